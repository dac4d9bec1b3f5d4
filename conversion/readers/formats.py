"""The file formats of checkpoints, as one table.

To support another format, write a module with a function that opens such a file and add a row to `FORMATS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .gguf_files import open_gguf, read_gguf_header
from .pickles import open_pickle
from .safetensors_files import open_safetensors, read_safetensors_header
from .stored_tensors import ReadBytes, StoredTensor

__all__ = ["FORMATS", "SUFFIXES", "FileFormat", "format_of", "open_file"]


@dataclass(frozen=True)
class FileFormat:
    """A file format of checkpoints.

    Args:
        suffix: suffix of the file names.
        open: finds the tensors of a file without reading them. It raises a `ValueError` if the file is damaged.
        usual_name: name of the file in a folder of a checkpoint that is not sharded, if there is a customary one.
        in_place: whether single tensors can be written at the offsets `StoredTensor.start` and `end`.
        read_header: does what `open` does, with a function that reads ranges of bytes. On the Hub, only the header and
            the needed ranges of such a file are downloaded. None for a format that must be downloaded whole.
        choose: of several files of this format in a folder without an index, chooses those that are the checkpoint.
        mapped: whether tensors that were read may still be backed by the file.
    """

    suffix: str
    open: Callable[[Path], dict[str, StoredTensor]]
    usual_name: str | None = None
    in_place: bool = False
    read_header: Callable[[ReadBytes, str], dict[str, StoredTensor]] | None = None
    choose: Callable[[list[str]], list[str]] = sorted
    mapped: bool = False


PRECISIONS = ("f32", "bf16", "f16", "q8_0")
"""How the names of GGUF files spell their precision, the best first."""


def choose_gguf(names: list[str]) -> list[str]:
    """Choose the vision encoder among the files of a model for llama.cpp, in the best precision."""
    vision = sorted(name for name in names if "mmproj" in name.lower()) or sorted(names)

    def rank(name: str) -> int:
        found = (index for index, precision in enumerate(PRECISIONS) if precision in name.lower())
        return next(found, len(PRECISIONS))

    return [min(vision, key=rank)]


# In order of preference: a folder may hold the same weights in several formats.
FORMATS = (
    FileFormat(
        ".safetensors",
        open_safetensors,
        usual_name="model.safetensors",
        in_place=True,
        read_header=read_safetensors_header,
    ),
    FileFormat(".pth", open_pickle, mapped=True),
    FileFormat(".pt", open_pickle, mapped=True),
    FileFormat(".bin", open_pickle, usual_name="pytorch_model.bin", mapped=True),
    FileFormat(".gguf", open_gguf, read_header=read_gguf_header, choose=choose_gguf),
)
SUFFIXES = tuple(row.suffix for row in FORMATS)


def format_of(name: str) -> FileFormat:
    """Return the format of a file, by the suffix of its name. Unknown suffixes are taken for safetensors files."""
    return next((row for row in FORMATS if name.endswith(row.suffix)), FORMATS[0])


def open_file(path: Path) -> dict[str, StoredTensor]:
    """Find the tensors of a checkpoint file without reading them.

    Raises:
        `ValueError`: the file is damaged, or is a pickle that needs its own code to be loaded.
    """
    return format_of(path.name).open(path)
