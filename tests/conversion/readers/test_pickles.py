"""Pickles: state dicts as `torch.save` writes them, and files that must not run code."""

from pathlib import Path
from typing import Any

import pytest
import torch

from deepencoder.conversion.readers.pickles import open_pickle

from .refused_files import HARMFUL_PICKLE, LFS_POINTER, assert_refused


@pytest.mark.parametrize("key", [None, "state_dict", "model", "module"])
@pytest.mark.parametrize("old_format", [False, True])
def test_nested_and_old_files_are_read(key: str | None, old_format: bool, tmp_path: Path) -> None:
    tensors: Any = {"a": torch.randn(3), "b": torch.randn(2, 2).T}
    content = tensors if key is None else {"epoch": 3, key: tensors}
    torch.save(content, tmp_path / "file.pt", _use_new_zipfile_serialization=not old_format)
    stored = open_pickle(tmp_path / "file.pt")
    assert set(stored) == {"a", "b"}
    for name, tensor in tensors.items():
        read = stored[name].read
        assert read is not None and torch.equal(read(), tensor)
        assert (stored[name].shape, stored[name].dtype) == (tuple(tensor.shape), tensor.dtype)


def test_harmful_and_damaged_files_are_refused(tmp_path: Path) -> None:
    for name, (content, pattern) in {
        "harmful.pth": (HARMFUL_PICKLE, "without running its code"),
        "empty.pth": (b"", "is damaged"),
        "text.pth": (LFS_POINTER, "is damaged"),
    }.items():
        (tmp_path / name).write_bytes(content)
        assert_refused(tmp_path / name, pattern)
    torch.save({"epoch": 1}, tmp_path / "no-tensors.pth")
    assert_refused(tmp_path / "no-tensors.pth", "contains no dict of tensors")


def test_the_error_names_the_refused_class(tmp_path: Path) -> None:
    torch.save({"args": Path("x"), "state_dict": {}}, tmp_path / "model.pth")
    assert_refused(tmp_path / "model.pth", r"it refers to pathlib\.")


def test_names_must_be_unicode(tmp_path: Path) -> None:
    torch.save({"\ud800": torch.zeros(1)}, tmp_path / "model.pth")
    assert_refused(tmp_path / "model.pth", "not valid Unicode")


def test_tensors_that_are_not_dense_have_no_dtype(tmp_path: Path) -> None:
    dense = torch.eye(3)
    for tensor in (dense.to_sparse(), dense.to("meta")):
        torch.save({"a": tensor, "b": dense}, tmp_path / "model.pth")
        stored = open_pickle(tmp_path / "model.pth")
        assert stored["a"].dtype is None and stored["b"].dtype is torch.float32


def test_a_dict_that_contains_itself_is_refused(tmp_path: Path) -> None:
    content: Any = {"a": torch.zeros(1)}
    content["state_dict"] = content
    torch.save(content, tmp_path / "model.pth")
    assert_refused(tmp_path / "model.pth", "nested in more than 10 dicts")
    content = {"a": torch.zeros(1)}
    for _ in range(9):
        content = {"model": content}
    torch.save(content, tmp_path / "model.pth")
    assert set(open_pickle(tmp_path / "model.pth")) == {"a"}


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        open_pickle(tmp_path / "missing.pth")
