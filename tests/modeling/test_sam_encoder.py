"""The SAM encoder: shapes, sizes, outputs on request, inputs it refuses."""

import math
from typing import Any

import pytest
import torch

from deepencoder import SamEncoder, SamEncoderConfig

from ..conftest import randomize


@pytest.fixture
def model() -> Any:
    return randomize(SamEncoder(SamEncoderConfig.tiny(image_size=128)))


@pytest.mark.parametrize("size", [(128, 128), (64, 192), (16, 16), (208, 48), (240, 256)], ids=str)
@torch.no_grad()
def test_any_multiple_of_the_patch_size(model: Any, size: tuple[int, int]) -> None:
    output = model(torch.randn(2, 3, *size)).last_hidden_state
    assert output.shape == (2, 32, math.ceil(size[0] / 64), math.ceil(size[1] / 64))
    assert output.isfinite().all()


@torch.no_grad()
def test_images_of_a_batch_do_not_mix(model: Any) -> None:
    pixels = torch.randn(3, 3, 128, 192)
    alone = torch.cat([model(image[None]).last_hidden_state for image in pixels])
    torch.testing.assert_close(model(pixels).last_hidden_state, alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_empty_batch_gives_an_empty_map(model: Any) -> None:
    assert model(torch.zeros(0, 3, 128, 192)).last_hidden_state.shape == (0, 32, 2, 3)


@torch.no_grad()
def test_without_compressor_the_neck_is_last() -> None:
    model = SamEncoder(SamEncoderConfig.tiny(downsample_channels=()))
    assert model(torch.zeros(1, 3, 64, 96)).last_hidden_state.shape == (1, 16, 4, 6)


@torch.no_grad()
def test_hidden_states_and_attentions(model: Any) -> None:
    model.set_attn_implementation("eager")
    output = model(torch.randn(2, 3, 128, 64), output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in output.hidden_states] == [(2, 8, 4, 32)] * 4
    # 8 x 4 patches in windows of 6: two windows an image; the second block is global.
    assert [weights.shape for weights in output.attentions] == [(4, 2, 36, 36), (2, 2, 32, 32), (4, 2, 36, 36)]
    for weights in output.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


@torch.no_grad()
def test_eager_equals_sdpa_on_padded_windows_and_resized_tables(model: Any) -> None:
    for size in ((128, 128), (96, 96), (176, 80)):
        pixels = torch.randn(2, 3, *size)
        outputs = []
        for implementation in ("eager", "sdpa"):
            model.set_attn_implementation(implementation)
            outputs.append(model(pixels).last_hidden_state)
        torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)


def test_eager_and_sdpa_have_the_same_gradients(model: Any) -> None:
    gradients = []
    for implementation in ("eager", "sdpa"):
        model.zero_grad()
        model.set_attn_implementation(implementation)
        model(torch.ones(2, 3, 96, 176).cumsum(-1) / 100).last_hidden_state.square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None and gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_projection_runs_on_real_positions_only(model: Any) -> None:
    """8 x 8 patches in windows of 6 are 144 positions with padding, and 64 without."""
    positions = []
    layer = model.layers[0].attn.qkv
    handle = layer.register_forward_hook(lambda module, args, output: positions.append(output[..., 0].numel()))
    model(torch.randn(1, 3, 128, 128))
    handle.remove()
    assert positions == [65]  # the map, and one zero whose projection is the padding


@torch.no_grad()
def test_tables_are_not_resized_again(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = torch.nn.functional.interpolate

    def spy(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(kwargs["mode"])
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "interpolate", spy)
    pixels = torch.randn(1, 3, 192, 192)
    first = model(pixels).last_hidden_state
    assert sorted(calls) == ["bicubic", "linear", "linear"]  # absolute; rows and columns of the global block
    calls.clear()
    assert torch.equal(model(pixels).last_hidden_state, first)
    assert calls == []
    model(torch.randn(1, 3, 64, 64))
    assert calls


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 4, 64, 64), ["3 channels", "got 4"]),
        ((1, 3, 65, 64), ["height", "16", "65"]),
        ((1, 3, 64, 0), ["width", "16", "0"]),
        ((3, 64, 64), ["4 dimensions", "(3, 64, 64)"]),
    ],
)
def test_bad_pixels(model: Any, shape: tuple[int, ...], words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        model(torch.zeros(shape))
    assert all(word in str(error.value) for word in ["pixel_values", *words]), str(error.value)


def test_flash_attention_is_refused_by_transformers_itself() -> None:
    with pytest.raises((ValueError, ImportError)):
        SamEncoder._from_config(SamEncoderConfig.tiny(), attn_implementation="flash_attention_2")
