"""TorchScript archives are read as data, and harmful ones are refused."""

import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deepencoder.conversion.checkpoint import open_checkpoint
from deepencoder.conversion.readers.data_pickles import PickledTensor, Placeholder
from deepencoder.conversion.readers.torchscript import is_torchscript, tensors_of_modules

from .refused_files import HARMFUL_PICKLE, assert_refused


class Scripted(nn.Module):
    """Nested modules, parameters and buffers of several dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Sequential(nn.Conv2d(3, 4, 2), nn.LayerNorm([4, 3, 3]))
        self.scale = nn.Parameter(torch.randn(4, 1, 1).half())
        self.register_buffer("resolution", torch.tensor(4))
        self.other: nn.Module = nn.Identity()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.other(self.visual(pixels) * self.scale)


@pytest.fixture
def archive(tmp_path: Path) -> tuple[Path, nn.Module]:
    module = Scripted().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but CLIP was published in it.
        torch.jit.save(torch.jit.trace(module, torch.randn(1, 3, 4, 4)), tmp_path / "model.pt")
    return tmp_path / "model.pt", module


def rewrite(path: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Change the files in an archive."""
    with zipfile.ZipFile(path) as old:
        contents = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in contents.items():
            new.writestr(name, change(name, content))


def test_archives_are_read_as_data(archive: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("torch.jit.load would compile the archive's code")

    monkeypatch.setattr(torch.jit, "load", refuse)
    path, module = archive
    checkpoint = open_checkpoint(path)
    assert set(checkpoint) == set(module.state_dict())
    assert all(torch.equal(checkpoint[name], tensor) for name, tensor in module.state_dict().items())


def test_archives_are_told_from_state_dicts(archive: tuple[Path, nn.Module], tmp_path: Path) -> None:
    path, module = archive
    torch.save(module.state_dict(), tmp_path / "new.pt")
    torch.save(module.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert is_torchscript(path)
    assert not is_torchscript(tmp_path / "new.pt") and not is_torchscript(tmp_path / "old.pt")


@pytest.mark.parametrize(
    ("file", "change", "pattern"),
    [
        ("/data.pkl", lambda content: HARMFUL_PICKLE, r"without running its code.*builtin.*exec"),
        ("/data.pkl", lambda content: content[:50], "is damaged"),
        ("/data.pkl", lambda content: b"\x80\x02}r" + (2**28).to_bytes(4, "little") + b".", "no module"),
        ("/data/0", lambda content: content[:-4], "is damaged.*storage '0'"),
    ],
    ids=["harmful", "truncated pickle", "memo index of 2 GB", "truncated tensor"],
)
def test_harmful_and_damaged_archives_are_refused(
    archive: tuple[Path, nn.Module], file: str, change: Callable[[bytes], bytes], pattern: str
) -> None:
    path, _ = archive
    rewrite(path, lambda name, content: change(content) if name.endswith(file) else content)
    assert_refused(path, pattern)


def test_two_tensors_of_one_name_are_refused() -> None:
    outer, inner = Placeholder(), Placeholder()
    outer.attributes = {"a.b": PickledTensor(), "a": inner, "c": outer}
    assert set(tensors_of_modules(outer)) == {"a.b"}
    inner.attributes = {"b": PickledTensor()}
    with pytest.raises(pickle.UnpicklingError, match="two tensors 'a.b'"):
        tensors_of_modules(outer)
