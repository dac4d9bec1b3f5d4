"""The SAM encoder: shapes, sizes, outputs on request, inputs it refuses."""

import math
from typing import Any

import pytest
import torch

from deepencoder import SamEncoder, SamEncoderConfig
from deepencoder.modeling import attention, sam_encoder

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


# Whole windows, padded windows with resized tables, rectangles.
SIZES = [(96, 96), (128, 128), (96, 192), (176, 80), (240, 256)]


def use(path: str, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `sdpa` take one of its ways, and take it in many steps."""
    model.set_attn_implementation("sdpa")
    if path == "lengthened":
        monkeypatch.setattr(attention, "_suits_flash", lambda query, grid: True)
        monkeypatch.setattr(attention, "LENGTHENED_BUDGET", 5000)
    else:
        monkeypatch.setattr(attention, "_bias_budget", lambda query, needs_grad: 5000)
    for name, tokens in (("ATTENTION_TOKENS", 100), ("FEED_FORWARD_TOKENS", 50)):
        monkeypatch.setattr(sam_encoder, name, tokens)


@pytest.mark.parametrize("path", ["bias", "lengthened"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_every_path_equals_eager(
    model: Any, path: str, size: tuple[int, int], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = torch.randn(batch, 3, *size)
    model.set_attn_implementation("eager")
    expected = model(pixels).last_hidden_state
    use(path, model, monkeypatch)
    torch.testing.assert_close(model(pixels).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("path", ["bias", "lengthened"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_path_has_the_gradients_of_eager(
    model: Any, path: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = []
    for implementation in ("eager", path):
        model.zero_grad()
        if implementation == "eager":
            model.set_attn_implementation("eager")
        else:
            use(path, model, monkeypatch)
        model(torch.ones(2, 3, *size).cumsum(-1) / 100).last_hidden_state.square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None and gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tokens, rows_together", [(1, 1), (60, 1), (100, 6), (200, 3), (10**6, 6)])
def test_pieces_cover_every_position_once(tokens: int, rows_together: int) -> None:
    features = torch.randn(3, 11, 5, 2)
    pieces = []

    def double(piece: torch.Tensor) -> torch.Tensor:
        pieces.append(piece)
        return 2 * piece

    assert torch.equal(sam_encoder.add_in_pieces(double, features, tokens, rows_together), features + 2 * features)
    assert sum(piece.shape[0] * piece.shape[1] for piece in pieces) == 33
    for piece in pieces:
        images, rows, width, _ = piece.shape
        assert images * rows * width <= max(tokens, rows_together * width)
        assert rows % rows_together in (0, 11 % rows_together)


@torch.no_grad()
def test_the_residual_stream_is_contiguous(model: Any) -> None:
    """Otherwise each norm copies its input, and sums run along the wrong axis."""
    strides = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda module, args: strides.append(args[0].is_contiguous()))
    model(torch.randn(2, 3, 128, 96))
    assert strides == [True] * 3


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
def test_attention_runs_from_real_positions_only(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In inference on a CPU; each real position still attends to the padding of its window."""
    lengths = []
    original = attention.scaled_dot_product_attention

    def spy(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        lengths.append((query[..., 0].numel(), key.shape[2]))
        return original(query, key, *args, **kwargs)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", spy)
    model(torch.randn(1, 3, 128, 128))
    heads = model.config.num_attention_heads
    assert sum(queries for queries, keys in lengths if keys == 36) == 2 * heads * 64  # two blocks with windows of 6
    assert sum(queries for queries, keys in lengths if keys == 64) == heads * 64


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
