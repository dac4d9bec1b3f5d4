"""What each host calls gets what it expects from our halves."""

import torch

from deepencoder import ClipVisionEncoder, SamEncoder, replace_vision_tower, restore_vision_tower
from deepencoder.integrations.hosts import HOSTS, find_halves
from deepencoder.modeling.memory_budgets import MemoryBudgets, set_memory_budgets

from ..conftest import report_difference
from .peers import deepseek_images, prompt, same_tensors, tiny_deepseek_ocr, tiny_deepseek_ocr2, tiny_unlimited_ocr


def test_each_host_is_recognised_wherever_it_is() -> None:
    models = [tiny_unlimited_ocr(), tiny_deepseek_ocr2(), tiny_deepseek_ocr()]
    for host, model in zip(HOSTS, models, strict=True):
        for wrapped in (model, model.model, torch.nn.Sequential(model)):
            assert [half for _, half in find_halves(wrapped)] == list(host.halves)


@torch.no_grad()
def test_hidden_states_and_attentions_are_clips() -> None:
    model, inputs = tiny_unlimited_ocr(), prompt()
    model.set_attn_implementation("eager")
    names = ("pixel_values", "pixel_values_local", "num_local_patches", "patches_grid")
    pages = {name: inputs[name] for name in names} | {"output_hidden_states": True, "output_attentions": True}
    expected = model.get_image_features(**pages)
    found = replace_vision_tower(model).get_image_features(**pages)
    for field in ("hidden_states", "attentions", "local_hidden_states", "local_attentions", "pooler_output"):
        assert len(found[field]) == len(expected[field]) > 1
        for ours, theirs in zip(found[field], expected[field], strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_deepseek_ocrs_own_code() -> None:
    model, images = tiny_deepseek_ocr(), deepseek_images()
    before, expected = {name: value.clone() for name, value in model.state_dict().items()}, model(images)
    replace_vision_tower(model)
    assert type(model.model.sam_model.deepencoder) is SamEncoder
    assert type(model.model.vision_model.deepencoder) is ClipVisionEncoder
    for ours, theirs in zip(model(images), expected, strict=True):
        report_difference("logits", ours, theirs, tolerance=1e-5)
    assert same_tensors(model.state_dict(), before)
    assert same_tensors(restore_vision_tower(model).state_dict(), before)
    for ours, theirs in zip(model(images), expected, strict=True):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_sam_in_deepseek_ocr2() -> None:
    model, pixels = tiny_deepseek_ocr2(), torch.randn(2, 3, 1024, 1024)
    before, expected = model.state_dict(), model.model.vision_tower(pixels[:1]).last_hidden_state
    replace_vision_tower(model)
    assert type(model.model.vision_tower.sam_encoder.deepencoder) is SamEncoder
    report_difference("tokens", model.model.vision_tower(pixels[:1]).last_hidden_state, expected, tolerance=1e-4)
    assert same_tensors(model.state_dict(), before)


@torch.no_grad()
def test_many_tiles_run_in_parts() -> None:
    model, pixels = tiny_unlimited_ocr(), torch.randn(5, 3, 128, 128)
    sam = replace_vision_tower(model).model.vision_tower.sam_encoder
    whole = sam(pixels).last_hidden_state
    sizes: list[int] = []
    sam.deepencoder.register_forward_hook(lambda *call: sizes.append(len(call[2].last_hidden_state)))
    set_memory_budgets(model, MemoryBudgets(views=2 * 8 * 8 * 32 * 4))
    torch.testing.assert_close(sam(pixels).last_hidden_state, whole, atol=1e-5, rtol=1e-4)
    assert sizes == [2, 2, 1]
    assert sam(pixels[:0]).last_hidden_state.shape == (0, 24, 2, 2)
