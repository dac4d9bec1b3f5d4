"""The SAM encoder: shapes, sizes, optional outputs, and invalid inputs."""

import math
from typing import Any

import pytest
import torch

from deepencoder import SamEncoder, SamEncoderConfig, window_positions
from deepencoder.modeling import attention_schedules
from deepencoder.modeling.attention_kernels import ATTENTION_KERNELS
from deepencoder.modeling.memory_budgets import MemoryBudgets, set_memory_budgets

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


def attention_of_a_patch(model: Any, state: torch.Tensor, row: int, column: int) -> torch.Tensor:
    """Return the weights of the first block from one patch to the map `(height, width, hidden)`, patch by patch."""
    block, size = model.layers[0].attn, model.config.window_size
    heads, head_dim = model.config.num_attention_heads, model.config.head_dim
    state = model.layers[0].layer_norm1(state)

    def project(part: int, row: int, column: int) -> torch.Tensor:
        inside = row < state.shape[0] and column < state.shape[1]
        values = block.qkv(state[row, column] if inside else torch.zeros(state.shape[2]))
        return values.view(3, heads, head_dim)[part]

    query = project(0, row, column)
    top, left = row - row % size, column - column % size
    cells = [(top + i, left + j) for i in range(size) for j in range(size)]
    scores = []
    for i, j in cells:
        position = block.rel_pos_h[row - i + size - 1] + block.rel_pos_w[column - j + size - 1]
        scores.append((query * project(1, i, j)).sum(1) / head_dim**0.5 + query @ position)
    weights = torch.stack(scores, dim=1).softmax(1)
    page = torch.zeros(heads, *state.shape[:2])
    for index, (i, j) in enumerate(cells):
        if i < state.shape[0] and j < state.shape[1]:
            page[:, i, j] = weights[:, index]
    return page


@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 7), (6, 3), (7, 9)])
@torch.no_grad()
def test_window_attention_is_placed_on_the_page(model: Any, row: int, column: int) -> None:
    model.set_attn_implementation("eager")
    output = model(torch.randn(2, 3, 128, 160), output_hidden_states=True, output_attentions=True)
    height, width = output.hidden_states[0].shape[1:3]
    positions = window_positions((height, width), model.config.window_size)
    # (batch * windows, heads, n, n) -> (batch, windows, heads, n, n)
    weights = output.attentions[0].unflatten(0, (-1, len(positions)))
    (window, query), *others = (positions == row * width + column).nonzero().tolist()
    assert others == []
    real = positions[window] >= 0
    for image in range(2):
        placed = torch.zeros(2, height * width)
        placed[:, positions[window, real]] = weights[image, window, :, query, real]
        expected = attention_of_a_patch(model, output.hidden_states[0][image], row, column)
        torch.testing.assert_close(placed.unflatten(1, (height, width)), expected, atol=1e-6, rtol=1e-5)


# Whole windows, padded windows with resized tables, rectangles.
SIZES = [(96, 96), (128, 128), (96, 192), (176, 80), (240, 256)]


# Every schedule and every strip takes several steps.
SMALL_BUDGETS = MemoryBudgets(
    attention_strip=100 * 32 * 4,
    feed_forward_strip=50 * 64 * 4,
    projection_piece=50 * 96 * 4,
    bias_block=20_000,
    bias_block_per_thread=0,
    large_bias_block=20_000,
    augmented_block=20_000,
)


def use_kernel(name: str, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `sdpa` use one kernel of the table, in many steps."""
    kernel = next(kernel for kernel in ATTENTION_KERNELS if kernel.name == name)
    monkeypatch.setattr(attention_schedules, "choose_kernel", lambda inputs, implementation: kernel)
    model.set_attn_implementation("sdpa")
    set_memory_budgets(model, SMALL_BUDGETS)


@pytest.mark.parametrize("kernel", [kernel.name for kernel in ATTENTION_KERNELS])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_every_kernel_equals_eager(
    model: Any, kernel: str, size: tuple[int, int], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = torch.randn(batch, 3, *size)
    model.set_attn_implementation("eager")
    expected = model(pixels).last_hidden_state
    use_kernel(kernel, model, monkeypatch)
    torch.testing.assert_close(model(pixels).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", [kernel.name for kernel in ATTENTION_KERNELS])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_kernel_has_the_gradients_of_eager(
    model: Any, kernel: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = []
    for implementation in ("eager", kernel):
        model.zero_grad()
        if implementation == "eager":
            model.set_attn_implementation("eager")
        else:
            use_kernel(kernel, model, monkeypatch)
        model(torch.ones(2, 3, *size).cumsum(-1) / 100).last_hidden_state.square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None and gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)


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
