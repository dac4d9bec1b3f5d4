"""The CLIP vision encoder: both kinds of input, its variants, and invalid inputs."""

from typing import Any

import pytest
import torch

from deepencoder import ClipVisionEncoder, ClipVisionEncoderConfig

from ..conftest import randomize


def build(**values: Any) -> Any:
    return randomize(ClipVisionEncoder(ClipVisionEncoderConfig.tiny(**values)))


@pytest.mark.parametrize("size", [(64, 64), (48, 112), (16, 16)], ids=str)
@torch.no_grad()
def test_pixels_of_any_grid(size: tuple[int, int]) -> None:
    output = build()(torch.randn(2, 3, *size))
    assert output.last_hidden_state.shape == (2, 1 + size[0] // 16 * size[1] // 16, 32)
    assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0])
    assert output.image_embeds is None


@torch.no_grad()
def test_embedded_patches_equal_pixels() -> None:
    model = build()
    pixels = torch.randn(2, 3, 48, 80)
    patches = model.embeddings.patch_embedding(pixels)
    assert torch.equal(model(patch_embeds=patches).last_hidden_state, model(pixels).last_hidden_state)


@torch.no_grad()
def test_without_patch_embedding() -> None:
    model = build(use_patch_embedding=False)
    assert not any("patch_embedding" in name for name, _ in model.named_parameters())
    assert model(patch_embeds=torch.randn(1, 32, 2, 5)).last_hidden_state.shape == (1, 11, 32)
    with pytest.raises(ValueError, match="use_patch_embedding=False"):
        model(torch.randn(1, 3, 64, 64))


@torch.no_grad()
def test_an_empty_batch() -> None:
    for implementation in ("eager", "sdpa"):
        model = build(projection_dim=8)
        model.set_attn_implementation(implementation)
        output = model(torch.zeros(0, 3, 64, 64))
        assert output.last_hidden_state.shape == (0, 17, 32)
        assert output.image_embeds.shape == (0, 8)


@torch.no_grad()
def test_post_norms() -> None:
    pixels = torch.randn(2, 3, 64, 64)
    outputs = {kind: build(post_norm=kind)(pixels) for kind in ("none", "pooled", "all")}
    plain = outputs["none"].last_hidden_state
    norm = build(post_norm="all").post_layernorm
    assert torch.equal(outputs["pooled"].last_hidden_state, plain)
    torch.testing.assert_close(outputs["pooled"].pooler_output, norm(plain[:, 0]))
    torch.testing.assert_close(outputs["all"].last_hidden_state, norm(plain))
    torch.testing.assert_close(outputs["all"].pooler_output, norm(plain)[:, 0])


def test_position_ids_are_not_in_the_state_dict() -> None:
    assert not any("position_ids" in name for name in build().state_dict())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, ["pixel_values", "patch_embeds", "neither"]),
        ({"pixel_values": (1, 3, 64, 64), "patch_embeds": (1, 32, 4, 4)}, ["pixel_values", "patch_embeds", "both"]),
        ({"patch_embeds": (1, 31, 4, 4)}, ["patch_embeds", "32", "(1, 31, 4, 4)"]),
        ({"patch_embeds": (1, 32, 16)}, ["patch_embeds", "(1, 32, 16)"]),
        ({"pixel_values": (1, 1, 64, 64)}, ["3 channels", "got 1"]),
        ({"pixel_values": (1, 3, 60, 64)}, ["height", "16", "60"]),
    ],
)
def test_bad_inputs(arguments: dict[str, tuple[int, ...]], words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        build()(**{name: torch.zeros(shape) for name, shape in arguments.items()})
    assert all(word in str(error.value) for word in words), str(error.value)
