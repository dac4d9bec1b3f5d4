"""Renaming, joining, splitting and transposing tensors."""

import pytest
import torch

from deepencoder.conversion.key_mapping import (
    convert_state_dict,
    joined_shape,
    map_keys,
    names_there,
    revert_state_dict,
)
from deepencoder.conversion.key_tables import CLIP_TRANSFORMERS, DEEPENCODER_DEEPSEEK_OCR, row


def test_unknown_and_partial_keys() -> None:
    assert map_keys(["lm_head.weight"], DEEPENCODER_DEEPSEEK_OCR) == ({}, ["lm_head.weight"])
    with pytest.raises(ValueError, match="k_proj.weight"):
        map_keys(
            ["encoder.layers.0.self_attn.q_proj.weight", "encoder.layers.0.self_attn.v_proj.weight"], CLIP_TRANSFORMERS
        )
    with pytest.raises(ValueError, match="2 rows"):
        map_keys(["a.b"], (row("x.*", "a.*"), row("y.*", "a.*")))


def test_tensors_are_joined_and_reshaped() -> None:
    parts = [torch.randn(2, 3) for _ in range(3)]
    table = (row("qkv", "q", "k", "v"), row("position", "positions"))
    target = {"qkv": torch.empty(6, 3), "position": torch.empty(5, 4)}
    source = {"q": parts[0], "k": parts[1], "v": parts[2], "positions": torch.randn(1, 5, 4), "rest": torch.empty(1)}
    converted, unused = convert_state_dict(source, table, target)
    assert torch.equal(converted["qkv"], torch.cat(parts)) and converted["position"].shape == (5, 4)
    assert unused == ["rest"]
    with pytest.raises(ValueError, match=r"positions.*\(1, 4, 5\).*\(5, 4\)"):
        convert_state_dict({"positions": torch.empty(1, 4, 5)}, table, target)


def test_tensors_that_are_joined_have_one_shape() -> None:
    item = row("qkv", "q", "k", "v")
    assert joined_shape(item, {"q": (2, 3), "k": (2, 3), "v": (2, 3)}) == (6, 3)
    with pytest.raises(ValueError, match=r"q and v must have the same shape, not \(2, 3\) and \(3, 2\)"):
        joined_shape(item, {"q": (2, 3), "k": (2, 3), "v": (3, 2)})


def test_names_in_the_other_code() -> None:
    assert names_there("layers.3.self_attn.qkv_proj.bias", CLIP_TRANSFORMERS) == [
        f"encoder.layers.3.self_attn.{part}_proj.bias" for part in "qkv"
    ]
    assert names_there("other", CLIP_TRANSFORMERS) == []


def test_tensors_are_transposed_and_split_again() -> None:
    table = (row("a.weight", "b", transposed=True), row("qkv.*", "q.*", "k.*"))
    source = {"b": torch.randn(2, 3), "q.bias": torch.randn(4), "k.bias": torch.randn(4)}
    target = {"a.weight": torch.empty(3, 2), "qkv.bias": torch.empty(8)}
    converted, unused = convert_state_dict(source, table, target)
    assert unused == [] and torch.equal(converted["a.weight"], source["b"].T)
    rows, _ = map_keys(source, table)
    shapes = {name: tuple(tensor.shape) for name, tensor in source.items()}
    assert {name: joined_shape(item, shapes) for name, item in rows.items()} == {"a.weight": (3, 2), "qkv.bias": (8,)}
    reverted = revert_state_dict(converted, table)
    assert all(torch.equal(reverted[name], tensor) for name, tensor in source.items())
    assert all(tensor.is_contiguous() for tensor in reverted.values())
    with pytest.raises(ValueError, match="'other' matches 0 rows"):
        revert_state_dict({"other": torch.zeros(1)}, table)
