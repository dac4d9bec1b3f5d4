"""Files of `torch.save` and `torch.jit.save`: where the pickle and the bytes of each storage lie.

Unusual: the bytes are neither read nor copied here. Tensors are mapped when they are asked for, as the encoder may be
a small part of a file. Nothing that a file says about sizes is believed before it was compared with its own size.
"""

import io
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from .data_pickles import DataUnpickler, PickledTensor, Storage
from .stored_tensors import StoredTensor

__all__ = ["LARGEST_PICKLE", "SavedFile", "open_archive", "open_old_file"]

LARGEST_PICKLE = 2**24  # Bytes, without those of the tensors: enough for 100,000 tensors.
LOCAL_HEADER = 30  # bytes before the name of an entry in a zip archive
COUNT_BYTES = 8  # Files of torch before version 1.6 have the number of elements before each storage.
MAGIC_NUMBER, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # what such files start with


@dataclass(frozen=True)
class SavedFile:
    """A file of torch: what was pickled, and where the storages of its tensors are.

    Args:
        path: the file.
        content: what was pickled, with a [`PickledTensor`] for each tensor.
        places: offset of the first byte and number of bytes of each storage.
    """

    path: Path
    content: Any
    places: Mapping[str, tuple[int, int]]

    @cached_property
    def _mapped(self) -> torch.UntypedStorage:
        storage = torch.UntypedStorage.from_file(str(self.path), False, self.path.stat().st_size)
        assert isinstance(storage, torch.UntypedStorage)
        return storage

    def describe(self, tensor: PickledTensor) -> StoredTensor:
        """Return the description of a tensor, which reads it when it is asked for.

        Raises:
            `pickle.UnpicklingError`: the file has no such storage, or one of another size.
        """
        storage, dtype = tensor.storage, tensor.dtype
        if storage is None or dtype is None:
            return StoredTensor((), None, read=_refuse_to_read)
        start, size = self.places.get(storage.key, (0, -1))
        if not 0 <= size - storage.size < storage.dtype.itemsize:
            raise pickle.UnpicklingError(f"storage {storage.key!r} has an unexpected size of {size} bytes")
        return StoredTensor(tensor.shape, dtype, read=partial(self._read, tensor, storage, start))

    def _read(self, tensor: PickledTensor, storage: Storage, start: int) -> torch.Tensor:
        if 0 in tensor.shape:
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        if start + storage.size > self._mapped.nbytes():
            raise OSError(f"{self.path} became shorter while it was read.")
        content = self._mapped[start : start + storage.size]
        if start % storage.dtype.itemsize:
            content = content.clone()  # Files of torch before version 1.6 do not align their tensors.
        return torch.empty(0, dtype=tensor.dtype).set_(content, tensor.offset, tensor.shape, tensor.stride)


def _refuse_to_read() -> torch.Tensor:
    raise ValueError("The tensor is not dense.")


def _place(path: Path, entry: zipfile.ZipInfo) -> tuple[int, int]:
    """Return the offset and the number of the bytes of an entry in a zip archive, which must not be compressed."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
        raise pickle.UnpicklingError(f"{entry.filename} is compressed or encrypted")
    with open(path, "rb") as file:
        file.seek(entry.header_offset)
        header = file.read(LOCAL_HEADER)
    if len(header) < LOCAL_HEADER or not header.startswith(b"PK\3\4"):
        raise pickle.UnpicklingError(f"{entry.filename} has no header")
    name, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    return entry.header_offset + LOCAL_HEADER + name + extra, entry.file_size


def _check_places(path: Path, places: Mapping[str, tuple[int, int]]) -> None:
    """Check that no storage reaches beyond the end of the file, and that they cannot all be the same bytes."""
    file_size = path.stat().st_size
    beyond = [key for key, (start, size) in places.items() if size < 0 or start + size > file_size]
    if beyond:
        raise pickle.UnpicklingError(f"storage {beyond[0]!r} reaches beyond the end of the file")
    if sum(size for _, size in places.values()) > file_size:
        raise pickle.UnpicklingError("its storages overlap")


def open_archive(path: Path, largest_pickle: int = LARGEST_PICKLE) -> SavedFile:
    """Open a zip archive, which torch writes since version 1.6.

    Args:
        path: the archive.
        largest_pickle: most bytes of the pickle in it.

    Raises:
        `pickle.UnpicklingError`: the archive is damaged, or needs its own code. Damaged archives raise other
            exceptions, too.
    """
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if len(entries) < len(archive.infolist()):
            raise pickle.UnpicklingError("the archive contains two entries of the same name")
    folder = next(name for name in entries if name.endswith("/data.pkl")).removesuffix("/data.pkl")

    def read(name: str) -> bytes:
        start, size = _place(path, entries[name])
        if size > largest_pickle:
            raise pickle.UnpicklingError(f"{name} has {size} bytes, but at most {largest_pickle} are read")
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(size)

    if f"{folder}/byteorder" in entries and read(f"{folder}/byteorder") != b"little":
        raise pickle.UnpicklingError("its numbers are not little-endian")
    content = DataUnpickler(io.BytesIO(read(f"{folder}/data.pkl"))).load()
    prefix = f"{folder}/data/"
    places = {name.removeprefix(prefix): _place(path, entries[name]) for name in entries if name.startswith(prefix)}
    _check_places(path, places)
    return SavedFile(path, content, places)


def open_old_file(path: Path, largest_pickle: int = LARGEST_PICKLE) -> SavedFile:
    """Open a file as torch wrote it before version 1.6: pickles, and then the storages; see [`open_archive`]."""
    with open(path, "rb") as file:
        start = io.BytesIO(file.read(largest_pickle))
        if DataUnpickler(start).load() != MAGIC_NUMBER or DataUnpickler(start).load() != PROTOCOL:
            raise pickle.UnpicklingError("it was not written by torch.save")
        DataUnpickler(start).load()  # It describes the system.
        unpickler = DataUnpickler(start)
        content = unpickler.load()
        keys = DataUnpickler(start).load()
        places: dict[str, tuple[int, int]] = {}
        position = start.tell()
        for key in keys:
            file.seek(position)
            count = int.from_bytes(file.read(COUNT_BYTES), "little")
            size = count * unpickler.storages[key].dtype.itemsize
            places[key] = (position + COUNT_BYTES, size)
            position += COUNT_BYTES + size
    _check_places(path, places)
    return SavedFile(path, content, places)
