"""Models of other code compute, generate, train and are saved as before with our encoder in their vision tower."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from deepencoder import ClipVisionEncoder, SamEncoder, replace_vision_tower, restore_vision_tower
from deepencoder.conversion.key_tables import DEEPENCODER_UNLIMITED_OCR_VISION

from ..conftest import report_difference
from .peers import prompt, same_tensors, tiny_unlimited_ocr

GREEDY = {"max_new_tokens": 8, "do_sample": False}


@torch.no_grad()
def test_generation_stays_the_same() -> None:
    model, inputs = tiny_unlimited_ocr(), prompt()
    logits, ids = model(**inputs).logits, model.generate(**inputs, **GREEDY)
    assert replace_vision_tower(model) is model
    tower = model.model.vision_tower
    assert type(tower.sam_encoder.deepencoder) is SamEncoder
    assert type(tower.vision_encoder.deepencoder) is ClipVisionEncoder
    projected: list[Any] = []
    model.model.multi_modal_projector.register_forward_hook(lambda *call: projected.append(call[1][0].shape))
    report_difference("logits", model(**inputs).logits, logits, tolerance=1e-5)
    assert projected == [(2, 4, 48), (2, 4, 48)], "the views once, the tiles once"
    assert torch.equal(model.generate(**inputs, **GREEDY), ids)
    assert len(set(ids[:, -8:].flatten().tolist())) > 2, "a constant answer would be the same whatever the model sees"


@pytest.mark.parametrize("from_disk", [False, True], ids=["built", "loaded"])
def test_saved_models_are_those_of_the_other_code(from_disk: bool, tmp_path: Path) -> None:
    model, inputs = tiny_unlimited_ocr(), prompt()
    logits = model(**inputs).logits
    model.save_pretrained(tmp_path / "before")
    if from_disk:
        model = type(model).from_pretrained(tmp_path / "before")
        model.save_pretrained(tmp_path / "before")
    replace_vision_tower(model).save_pretrained(tmp_path / "after")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("before", "after"))
    assert same_tensors(before, after)
    assert (tmp_path / "before/config.json").read_text() == (tmp_path / "after/config.json").read_text()
    loaded = type(model).from_pretrained(tmp_path / "after")
    assert torch.equal(loaded(**inputs).logits, logits)


def test_restored_models_are_as_before() -> None:
    model, inputs = tiny_unlimited_ocr(), prompt()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters, text, logits = dict(model.named_parameters()), repr(model), model(**inputs).logits
    with pytest.raises(ValueError, match="was not replaced"):
        restore_vision_tower(model)
    assert restore_vision_tower(replace_vision_tower(model)) is model
    assert list(model.state_dict()) == list(before) and same_tensors(model.state_dict(), before)
    assert repr(model) == text and torch.equal(model(**inputs).logits, logits)
    for name, parameter in model.named_parameters():
        is_joined = "vision_encoder" in name and any(f".{part}_proj." in name for part in "qkv")
        assert (parameter is parameters[name]) != is_joined, name
    replace_vision_tower(model)
    with torch.no_grad():
        model.model.vision_tower.vision_encoder.deepencoder.layers[0].self_attn.qkv_proj.bias.fill_(3)
    layer = restore_vision_tower(model).model.vision_tower.vision_encoder.encoder.layers[0]
    assert (layer.self_attn.k_proj.bias == 3).all()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_the_same(checkpointing: bool) -> None:
    model, inputs = tiny_unlimited_ocr(), prompt()
    labels = inputs["input_ids"].where(inputs["attention_mask"].bool(), -100)

    def gradients(model: Any) -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    expected = gradients(model)
    if checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable()
    replace_vision_tower(model.train())
    sam = model.model.vision_tower.sam_encoder.deepencoder
    assert sam.training and sam.layers[0].gradient_checkpointing == checkpointing
    found = gradients(model)
    assert all(gradient is not None for gradient in found.values())
    places = {"sam_encoder.": "sam_encoder.deepencoder.", "clip_encoder.": "vision_encoder.deepencoder."}
    compared = 0
    for row in DEEPENCODER_UNLIMITED_OCR_VISION:
        half = next(half for half in places if row.here.startswith(half))
        for number in range(3 if "{i}" in row.here else 1):
            for rest in ("weight", "bias", "attn.qkv.weight", "attn.rel_pos_h", "mlp.lin1.bias", "conv1.weight"):
                names = [row.here, *row.there]
                here, *there = [name.replace("{i}", str(number)).replace("*", rest) for name in names]
                here = "model.vision_tower." + here.replace(half, places[half], 1)
                if here in found:
                    theirs = torch.cat([expected[f"model.vision_tower.{name}"] for name in there])
                    torch.testing.assert_close(found[here], theirs.reshape(found[here].shape), atol=1e-6, rtol=1e-3)
                    compared += 1
    assert compared > 40
    for name in found.keys() & expected.keys():
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-3)
    restored = restore_vision_tower(model.eval()).model.vision_tower.sam_encoder
    assert not restored.layers[0].training and restored.layers[0].gradient_checkpointing == checkpointing


def refused(prepare: Callable[[Any], Any], message: str) -> None:
    """Check that a model is refused and left as it was."""
    model = tiny_unlimited_ocr()
    model = prepare(model) or model
    before = repr(model)
    with pytest.raises(ValueError, match=message):
        replace_vision_tower(model)
    assert repr(model) == before


def add_hook(model: Any) -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module

    add_hook_to_module(model.model.vision_tower.sam_encoder.neck, ModelHook())


def add_adapters(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))


def freeze_queries(model: Any) -> None:
    model.model.vision_tower.vision_encoder.encoder.layers[0].self_attn.q_proj.requires_grad_(False)


def drop_bias(model: Any) -> None:
    model.model.vision_tower.sam_encoder.layers[0].attn.qkv.bias = None


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (add_hook, "accelerate places"),
        (add_adapters, "Merge adapters"),
        (freeze_queries, "requires_grad"),
        (drop_bias, r"layers\.0\.attn\.qkv\.bias"),
        (lambda model: model.to("meta"), "without data"),
        (lambda model: nn.Linear(2, 2), "has no vision tower"),
        (replace_vision_tower, "already"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_replaced_is_refused(prepare: Callable[[Any], Any], message: str) -> None:
    refused(prepare, message)


def test_adapters_on_our_encoder() -> None:
    """LoRA finds our layers, and the model is restored once they are merged."""
    from peft import LoraConfig, get_peft_model

    model, inputs = replace_vision_tower(tiny_unlimited_ocr()), prompt()
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["qkv", "qkv_proj"], init_lora_weights=False))
    expected = tuned(**inputs).logits
    with pytest.raises(ValueError, match="Merge adapters"):
        restore_vision_tower(tuned)
    restored = restore_vision_tower(tuned.merge_and_unload())
    report_difference("merged logits", restored(**inputs).logits, expected, tolerance=1e-4)
