"""The CPU strategy: strips cover every position once, hooks see what the documentation says, and it can be off."""

from typing import Any

import pytest
import torch

from deepencoder import SamEncoder, SamEncoderConfig
from deepencoder.modeling.cpu_execution import add_in_strips, runs_in_strips
from deepencoder.modeling.memory_budgets import MemoryBudgets, set_memory_budgets

from ..conftest import randomize


@pytest.fixture
def model() -> Any:
    model = randomize(SamEncoder(SamEncoderConfig.tiny(image_size=128)))
    model.set_attn_implementation("sdpa")
    return model


@pytest.mark.parametrize("max_positions, rows_together", [(0, 1), (1, 1), (60, 1), (100, 6), (200, 3), (10**6, 6)])
def test_strips_cover_every_position_once(max_positions: int, rows_together: int) -> None:
    features = torch.randn(3, 11, 5, 2)
    strips = []

    def double(strip: torch.Tensor) -> torch.Tensor:
        strips.append(strip)
        return 2 * strip

    assert torch.equal(add_in_strips(double, features, max_positions, rows_together), features + 2 * features)
    assert sum(strip.shape[0] * strip.shape[1] for strip in strips) == 33
    for strip in strips:
        images, rows, width, _ = strip.shape
        assert images * rows * width <= max(max_positions, rows_together * width)
        assert rows % rows_together in (0, 11 % rows_together)


@torch.no_grad()
def test_hooks_inside_a_layer_fire_for_each_strip(model: Any) -> None:
    rows: dict[str, list[int]] = {"layer": [], "attn": [], "mlp": []}
    layer = model.layers[0]
    for name, module in (("layer", layer), ("attn", layer.attn), ("mlp", layer.mlp)):
        module.register_forward_hook(lambda module, args, output, name=name: rows[name].append(args[0].shape[1]))
    # 16 rows of 8 patches of 32 float32 values: 7 KB of hidden states hold a row of windows, 4 KB of MLP two rows.
    set_memory_budgets(model, MemoryBudgets(attention_strip=7000, feed_forward_strip=2 * 8 * 64 * 4))
    model(torch.randn(1, 3, 256, 128))
    assert rows == {"layer": [16], "attn": [6, 6, 4], "mlp": [2] * 8}
    for values in rows.values():
        values.clear()
    set_memory_budgets(model, MemoryBudgets(cpu_strips=False))
    model(torch.randn(1, 3, 256, 128))
    assert rows == {"layer": [16], "attn": [16], "mlp": [16]}


def test_strips_are_for_inference_on_a_cpu(model: Any) -> None:
    layer, features = model.layers[0], torch.zeros(1, 8, 8, 32)
    assert not runs_in_strips(layer, features)
    with torch.no_grad():
        assert runs_in_strips(layer, features)
        assert not runs_in_strips(layer, features.to("meta"))
        set_memory_budgets(model, MemoryBudgets(cpu_strips=False))
        assert not runs_in_strips(layer, features)
        set_memory_budgets(model, MemoryBudgets())
        model.set_attn_implementation("eager")
        assert not runs_in_strips(layer, features)


@torch.no_grad()
def test_no_positions_of_padding_are_queries(model: Any) -> None:
    """8 x 8 patches in windows of 6 have 144 positions with padding, and 64 without."""
    lengths: list[tuple[int, int]] = []
    for layer in model.layers:
        attend = layer.attn.attend

        def spy(query: torch.Tensor, key: torch.Tensor, *args: Any, attend: Any = attend) -> Any:
            lengths.append((query[..., 0].numel(), key.shape[2]))
            return attend(query, key, *args)

        layer.attn.attend = spy
    model(torch.randn(1, 3, 128, 128))
    heads = model.config.num_attention_heads
    assert sum(queries for queries, keys in lengths if keys == 36) == 2 * heads * 64  # Two windowed blocks.
    assert sum(queries for queries, keys in lengths if keys == 64) == heads * 64
