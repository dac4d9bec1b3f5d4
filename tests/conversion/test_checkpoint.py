"""Opening a checkpoint: its tensors, and the files beside them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deepencoder.conversion.checkpoint import Checkpoint, open_checkpoint
from deepencoder.conversion.converter import convert_checkpoint
from deepencoder.conversion.readers.stored_tensors import StoredTensor

from .samples import build, layout_of, state_dict_there

DEEPSEEK_OCR = layout_of("deepseek-ocr")


def test_tensors_are_read_on_access() -> None:
    read: list[str] = []

    def stored(name: str) -> StoredTensor:
        return StoredTensor((2,), torch.float32, read=lambda: (read.append(name), torch.ones(2))[1])

    checkpoint = Checkpoint({name: stored(name) for name in "ab"}, lambda name: None)
    assert list(checkpoint) == ["a", "b"] and len(checkpoint) == 2 and "a" in checkpoint and "c" not in checkpoint
    assert checkpoint.shapes == {"a": (2,), "b": (2,)} and read == []
    assert torch.equal(checkpoint["b"], torch.ones(2)) and read == ["b"]


def test_absent_tensors_are_downloaded_once() -> None:
    fetched: list[list[str]] = []

    def fetch(names: Any) -> dict[str, StoredTensor]:
        fetched.append(list(names))
        return {name: StoredTensor((), torch.float32, read=lambda: torch.tensor(1.0)) for name in names}

    absent = {name: StoredTensor((), torch.float32) for name in "abc"}
    checkpoint = Checkpoint(absent, lambda name: None, fetch)
    checkpoint.fetch(["a", "b"])
    assert checkpoint["b"] == checkpoint["c"] == checkpoint["a"] == 1
    assert fetched == [["a", "b"], ["c"]]


@pytest.mark.parametrize("name", ["gone", "./gone", "gone/a/b"])
def test_missing_files_and_folders(name: str, tmp_path: Path) -> None:
    source = tmp_path / name if name == "gone" else name
    with pytest.raises(FileNotFoundError, match="gone"):
        open_checkpoint(source)


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: [mit]\n---\n", None),
        ("---\n: [\n---\n", None),
        ("no metadata", None),
        ("---\n" + "\n" * 500_000, None),
        ("---\nlicense: mit\n---\n" + "x" * 100_000 + "\u00e4", "mit"),
        (None, None),
    ],
)
def test_the_licence_is_that_of_the_model_card(card: str | None, expected: str | None, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert open_checkpoint(tmp_path).read_license() == expected


def test_json_files_beside_the_tensors(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "other"}')
    (tmp_path / "list.json").write_text("[1]")
    for source in (tmp_path, tmp_path / "model.safetensors"):
        checkpoint = open_checkpoint(source)
        assert checkpoint.config == {"model_type": "other"}
        assert checkpoint.read_json("list.json") == checkpoint.read_json("missing.json") == {}
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON") as error:
        open_checkpoint(tmp_path)
    assert len(str(error.value).splitlines()) == 1


STRANGE_FILES = [
    ("config.json", {"model_type": []}),
    ("config.json", {"model_type": {}, "vision_config": 3}),
    ("config.json", {"vision_config": {"width": {"clip": {"width": 192, "heads": 0}}}}),
    ("config.json", {"vision_config": {"hidden_size": 192, "num_attention_heads": "x"}}),
    ("config.json", {"candidate_resolutions": [[None]]}),
    ("config.json", {"candidate_resolutions": [[[1]]]}),
    ("config.json", {"candidate_resolutions": [[float("inf")]]}),
    ("preprocessor_config.json", {"size": {"height": "a", "width": None}}),
    ("preprocessor_config.json", {"size": {"height": 640, "width": 640}, "background_color": "red"}),
    ("preprocessor_config.json", {"size": {"height": 640, "width": 640}, "image_mean": "x"}),
    ("preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5], "image_std": [0, 0, 0]}),
    ("processor_config.json", {"image_processor": {"size": {"height": [], "width": 1}}}),
    ("model.safetensors.index.json", {"weight_map": {}}),
]


@pytest.mark.parametrize(("name", "content"), STRANGE_FILES)
def test_conversion_with_strange_files_beside_the_tensors(name: str, content: Any, tmp_path: Path) -> None:
    """Such a file is ignored or refused with one line, and never raises anything else."""
    save_file(state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR), tmp_path / "model.safetensors")
    (tmp_path / name).write_text(json.dumps(content))
    try:
        convert_checkpoint(tmp_path)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert name == "config.json" and not isinstance(content.get("model_type"), str)


MISSHAPEN = {
    "vision_model.pre_layrnorm.weight": torch.zeros(7),
    "sam_model.pos_embed": torch.zeros(1, 32),
    "sam_model.patch_embed.proj.weight": torch.zeros(3),
    "projector.layers.weight": torch.zeros(()),
    "vision_model.embeddings.class_embedding": torch.zeros(()),
    "sam_model.blocks.0.attn.rel_pos_h": torch.zeros(15, 0),
}


@pytest.mark.parametrize("name", MISSHAPEN)
def test_conversion_refuses_misshapen_tensors(name: str, tmp_path: Path) -> None:
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR)
    assert name in tensors
    save_file(tensors | {name: MISSHAPEN[name]}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as error:
        convert_checkpoint(tmp_path)
    assert len(str(error.value).splitlines()) == 1


def assert_not_convertible(source: Path, pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern) as error:
        convert_checkpoint(source)
    assert len(str(error.value).splitlines()) == 1


def test_conversion_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    save_file({"something.weight": torch.zeros(1)}, tmp_path / "unknown.safetensors")
    assert_not_convertible(tmp_path / "unknown.safetensors", "something.weight")
    tensors: dict[str, Any] = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR)
    name = "sam_model.blocks.0.mlp.lin1.weight"
    for other in (tensors[name].to_sparse(), tensors[name].to_sparse_csr(), tensors[name].to("meta")):
        torch.save(tensors | {name: other}, tmp_path / "model.pth")
        assert_not_convertible(tmp_path / "model.pth", "lin1.weight is not a dense tensor")
    torch.save(tensors | {"sam_model.net_2.weight": torch.zeros(())}, tmp_path / "model.pth")
    assert_not_convertible(tmp_path / "model.pth", "compressor")
