"""Descriptions of tensors: merging shards, and making tensors from bytes."""

import re

import pytest
import torch

from deepencoder.conversion.readers.stored_tensors import StoredTensor, as_tensor, check_names, join_shards

TENSOR = StoredTensor((1,), torch.float32)


def test_shards_are_merged() -> None:
    shards = {"one": {"a": TENSOR}, "two": {"b": TENSOR, "c": TENSOR}}
    assert set(join_shards(shards, {})) == {"a", "b", "c"}
    assert set(join_shards(shards, {"a": "one", "b": "two"})) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("shards", "weight_map", "message"),
    [
        ({"one": {"a": TENSOR}, "two": {"a": TENSOR}}, {}, "two contains tensors that are also in another shard: a."),
        ({"one": {"a": TENSOR}}, {"b": "one"}, "one lacks tensors that its index lists: b."),
    ],
)
def test_inconsistent_shards_are_refused(
    shards: dict[str, dict[str, StoredTensor]], weight_map: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        join_shards(shards, weight_map)


def test_tensors_share_the_memory_of_their_bytes() -> None:
    content = bytearray(8)
    tensor = as_tensor(content, StoredTensor((2, 1), torch.float32))
    tensor.fill_(1)
    assert tensor.shape == (2, 1) and bytes(content) == torch.ones(2).numpy().tobytes()
    assert as_tensor(bytearray(), StoredTensor((0, 3), torch.int8)).shape == (0, 3)


def test_names_must_be_unicode() -> None:
    check_names(["weight", "gewicht.ß"], "file")
    with pytest.raises(ValueError, match="file has a tensor whose name is not valid Unicode"):
        check_names(["\ud800"], "file")
    with pytest.raises(ValueError, match="file has a tensor whose name has 1001 characters"):
        check_names(["a" * 1001], "file")
