"""Which files of a folder are the checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deepencoder.conversion.checkpoint import open_checkpoint
from deepencoder.conversion.readers.folders import choose_weights, find_files

from .refused_files import HARMFUL_PICKLE, assert_refused

TRAINING_FILES = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth")


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["a.safetensors", "model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["b.pth", "pytorch_model.bin"], ["pytorch_model.bin"]),
        (["c.pt", "b.safetensors", "a.safetensors"], ["a.safetensors", "b.safetensors"]),
        (["b.bin", "a.pt"], ["a.pt"]),
        ([".hidden.safetensors", "config.json", *TRAINING_FILES], []),
    ],
)
def test_choosing_the_weights(names: list[str], chosen: list[str]) -> None:
    assert choose_weights(names) == chosen


def test_safetensors_are_preferred_to_an_index_of_pickles(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    torch.save({"b": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"b": "pytorch_model.bin"}}))
    assert list(open_checkpoint(tmp_path)) == ["a"]


def test_an_index_is_preferred_to_other_files(tmp_path: Path) -> None:
    for name in ("one", "two", "other"):
        save_file({name: torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    weight_map = {name: f"{name}.safetensors" for name in ("one", "two")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert find_files(tmp_path) == ([tmp_path / "one.safetensors", tmp_path / "two.safetensors"], weight_map)
    assert set(open_checkpoint(tmp_path)) == {"one", "two"}


def test_files_that_trainers_write_are_ignored(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    for name in TRAINING_FILES:
        (tmp_path / name).write_bytes(HARMFUL_PICKLE)
    assert list(open_checkpoint(tmp_path)) == ["a"]
    for name in ("model.safetensors", "model.fp16.safetensors", "open_clip_model.safetensors"):
        save_file({"b": torch.zeros(1)}, tmp_path / name)
    assert list(open_checkpoint(tmp_path)) == ["b"]


INDEXES = {
    "parent folder": ({"weight_map": {"a": "../whole.safetensors"}}, "outside its folder"),
    "absolute path": ({"weight_map": {"a": "/etc/passwd"}}, "outside its folder"),
    "two dots": ({"weight_map": {"a": ".."}}, "outside its folder"),
    "missing shard": ({"weight_map": {"a": "gone.safetensors"}}, "do not exist: gone.safetensors"),
    "missing tensor": ({"weight_map": {"b": "here.safetensors"}}, "here.safetensors lacks.*b"),
    "list of names": ({"weight_map": ["a"]}, "not a valid index"),
    "number": ({"weight_map": {"a": 5}}, "not a valid index"),
    "without shards": ({"weight_map": {}}, "it lists no shards"),
    "list": ([], "not a valid index"),
}


@pytest.mark.parametrize("name", INDEXES)
def test_damaged_indexes_are_refused(name: str, tmp_path: Path) -> None:
    content: Any
    content, pattern = INDEXES[name]
    save_file({"a": torch.zeros(1)}, tmp_path / "here.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(content))
    assert_refused(tmp_path, pattern)


def test_folders_without_a_checkpoint_are_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path, r"contains no \.safetensors, \.pth, \.pt, \.bin, \.gguf files")
    for name in ("one", "two"):
        save_file({"same": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    assert_refused(tmp_path, "another shard")
