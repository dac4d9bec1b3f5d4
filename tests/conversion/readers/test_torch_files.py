"""Files of torch: what they say about the bytes of their tensors is compared with the file."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from deepencoder.conversion.readers.data_pickles import PickledTensor
from deepencoder.conversion.readers.torch_files import open_archive, open_old_file

TENSORS = {
    "floats": torch.arange(12.0).reshape(3, 4).T,
    "halves": torch.arange(5).half()[2:],
    "bytes": torch.arange(3, dtype=torch.uint8),
    "brain": torch.arange(3).bfloat16(),
    "float8": torch.arange(4).to(torch.float8_e4m3fn),
    "unsigned": torch.arange(4).to(torch.uint16),
    "empty": torch.empty(0, 3),
    "scalar": torch.tensor(2.5),
}


def values(saved: Any) -> dict[str, torch.Tensor]:
    return {name: saved.describe(tensor).read() for name, tensor in saved.content.items()}


@pytest.mark.parametrize("old", [False, True])
def test_tensors_of_all_kinds_are_read(old: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    tensors: Any = dict(TENSORS, parameter=torch.nn.Parameter(torch.ones(2)), again=TENSORS["floats"])
    torch.save(tensors, path, _use_new_zipfile_serialization=not old)
    read = values((open_old_file if old else open_archive)(path))
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and read[name].stride() == tensor.stride()
        assert read[name].shape == tensor.shape and torch.equal(read[name].float(), tensor.float())
    assert read["floats"].untyped_storage().data_ptr() != read["scalar"].untyped_storage().data_ptr()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_tensors_that_are_not_what_is_stored_are_not_dense(tmp_path: Path) -> None:
    tensors = {
        "complex": torch.ones(2, dtype=torch.complex64).conj(),
        "expanded": torch.ones(1).expand(1000),
        "quantised": torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8),
    }
    torch.save(tensors, tmp_path / "model.pt")
    saved = open_archive(tmp_path / "model.pt")
    assert set(saved.content.values()) == {PickledTensor()}
    stored = saved.describe(saved.content["expanded"])
    assert stored.dtype is None and stored.read is not None
    with pytest.raises(ValueError, match="not dense"):
        stored.read()


def write_archive(path: Path, entries: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(name, content)


@pytest.fixture
def entries(tmp_path: Path) -> dict[str, bytes]:
    """What `torch.save` writes into an archive."""
    torch.save({"a": torch.arange(4.0), "b": torch.ones(4)}, tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_damaged_archives_are_refused(entries: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "damaged.pt"
    write_archive(path, list(entries.items()))
    assert torch.equal(values(open_archive(path))["a"], torch.arange(4.0))
    with pytest.raises(pickle.UnpicklingError, match="at most 10 are read"):
        open_archive(path, largest_pickle=10)
    for name, changed, message in (
        ("byteorder", b"big", "not little-endian"),
        ("data/1", bytes(15), "unexpected size of 15 bytes"),
        ("data/1", bytes(20), "unexpected size of 20 bytes"),
    ):
        write_archive(path, [*(entries | {f"model/{name}": changed}).items()])
        with pytest.raises(pickle.UnpicklingError, match=message):
            values(open_archive(path))
    write_archive(path, list(entries.items()), zipfile.ZIP_DEFLATED)
    with pytest.raises(pickle.UnpicklingError, match="is compressed"):
        open_archive(path)
    with pytest.warns(UserWarning, match="Duplicate"):
        write_archive(path, [*entries.items(), ("model/data/0", bytes(16))])
    with pytest.raises(pickle.UnpicklingError, match="two entries of the same name"):
        open_archive(path)


def patch_directory(path: Path, name: bytes, offset: int, value: int) -> None:
    """Change four bytes of an entry in the directory at the end of an archive."""
    content = bytearray(path.read_bytes())
    place = content.rindex(name) - 46 + offset
    content[place : place + 4] = value.to_bytes(4, "little")
    path.write_bytes(content)


def test_storages_that_lie_elsewhere_are_refused(entries: dict[str, bytes], tmp_path: Path) -> None:
    """An entry of a directory says how long a file in an archive is, and where."""
    path = tmp_path / "damaged.pt"
    write_archive(path, list(entries.items()))
    for offset in (20, 24):
        patch_directory(path, b"model/data/1", offset, 10**9)
    with pytest.raises(pickle.UnpicklingError, match="beyond the end of the file"):
        open_archive(path)
    write_archive(path, list(entries.items()))
    patch_directory(path, b"model/data/1", 42, 7)
    with pytest.raises(pickle.UnpicklingError, match="has no header"):
        open_archive(path)


def test_storages_that_overlap_are_refused(tmp_path: Path) -> None:
    """Otherwise a small file could hold any number of large tensors."""
    path = tmp_path / "model.pt"
    torch.save({str(number): torch.ones(1000) + number for number in range(3)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: b"" if "/data/" in name else archive.read(name) for name in archive.namelist()}
        entries["model/data/0"] = archive.read("model/data/0")
    write_archive(path, list(entries.items()))
    with zipfile.ZipFile(path) as archive:
        first = archive.getinfo("model/data/0").header_offset
    for number in (1, 2):
        for offset, value in ((20, 4000), (24, 4000), (42, first)):
            patch_directory(path, b"model/data/%d" % number, offset, value)
    with pytest.raises(pickle.UnpicklingError, match="storages overlap"):
        open_archive(path)


def test_damaged_old_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"a": torch.arange(4.0)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    count = whole.rindex((4).to_bytes(8, "little"))
    for content, message in (
        (whole[:-1], "beyond the end of the file"),
        (whole[:count] + (10**12).to_bytes(8, "little") + whole[count + 8 :], "beyond the end of the file"),
        (whole[:count] + (2).to_bytes(8, "little") + whole[count + 8 :], "unexpected size of 8 bytes"),
        (pickle.dumps({"a": 1}), "not written by torch.save"),
    ):
        path.write_bytes(content)
        with pytest.raises(pickle.UnpicklingError, match=message):
            values(open_old_file(path))
    path.write_bytes(whole)
    with pytest.raises(EOFError):
        open_old_file(path, largest_pickle=10)


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"a": torch.arange(4.0)}, path)
    saved = open_archive(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(OSError, match="became shorter"):
        values(saved)
