"""State dicts keep their names, parameters their identity, and copies of a model are copies."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from deepencoder import replace_vision_tower, restore_vision_tower

from .peers import deepseek_images, same_tensors, tiny_deepseek_ocr, tiny_unlimited_ocr


def test_state_dicts_are_loaded_by_the_names_of_the_other_code() -> None:
    model, other = tiny_unlimited_ocr(seed=0), tiny_unlimited_ocr(seed=1)
    replace_vision_tower(model)
    sam = model.model.vision_tower.sam_encoder.deepencoder
    weight = sam.layers[0].attn.qkv.weight
    model.load_state_dict(other.state_dict())
    assert same_tensors(model.state_dict(), other.state_dict())
    assert sam.layers[0].attn.qkv.weight is weight
    broken = other.state_dict()
    name = "model.vision_tower.vision_encoder.pre_layrnorm.weight"
    broken[name] = torch.zeros(7)
    with pytest.raises(RuntimeError, match="pre_layernorm.weight"):
        model.load_state_dict(broken)
    del broken[name]
    with pytest.raises(RuntimeError, match="Missing"):
        model.load_state_dict(broken)


def test_parameters_are_handed_over_not_copied() -> None:
    model = tiny_unlimited_ocr()
    tower = model.model.vision_tower
    count, old = sum(parameter.numel() for parameter in model.parameters()), tower.sam_encoder.layers[1].attn.qkv
    weight, separate = old.weight, tower.vision_encoder.encoder.layers[0].self_attn.q_proj
    replace_vision_tower(model)
    assert tower.sam_encoder.deepencoder.layers[1].attn.qkv.weight is weight
    assert old.weight.is_meta and separate.weight.is_meta, "what is left of the other code's parts holds no data"
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_frozen_and_narrow_towers_stay_so() -> None:
    model = tiny_deepseek_ocr()
    model.model.sam_model.requires_grad_(False)
    replace_vision_tower(model)
    names = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert names and all(name.startswith("model.sam_model.") for name in names)
    model.bfloat16()
    assert model.state_dict()["model.vision_model.embeddings.patch_embedding.weight"].dtype == torch.bfloat16
    restore_vision_tower(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not model.model.sam_model.pos_embed.requires_grad
    assert model.model.vision_model.embeddings.position_ids.dtype == torch.int64


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=str)
def test_copies_are_independent(duplicate: Callable[[Any], Any]) -> None:
    model, images = tiny_deepseek_ocr(), deepseek_images()
    twin = duplicate(replace_vision_tower(model))
    with torch.no_grad():
        expected = twin(images)
        for parameter in model.parameters():
            parameter.zero_()
        for one, other in zip(twin(images), expected, strict=True):
            assert torch.equal(one, other) and one.any()
    restored = restore_vision_tower(twin).state_dict()
    assert restored["model.sam_model.pos_embed"].any() and "model.vision_model.embeddings.position_ids" in restored
