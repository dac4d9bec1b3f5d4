"""How a CPU runs SAM's layers fast: in strips of rows whose activations stay in the cache.

Unusual: this changes the order of the work and no result. In inference on a CPU, windowed attention runs on a few rows
of windows at a time, without the queries of padding; the MLP runs on a few rows at a time; and a global block projects
queries, keys and values in pieces, without one tensor of all three. `SamEncoderLayer.forward` is the only caller.

To switch it off, call `set_memory_budgets(model, MemoryBudgets(cpu_strips=False))`; its sizes are set there, too.

Forward hooks on the modules **inside** a layer (`attn`, `mlp`, `qkv`, the norms) therefore fire once for each strip,
with a part of the rows. Hooks on the layer itself, and all hooks with `attn_implementation="eager"`, in training, or
on other devices, fire once and see everything.
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch

from .windows import WindowCache

__all__ = ["add_in_strips", "project_in_pieces", "run_layer_in_strips", "runs_in_strips"]


def runs_in_strips(layer: Any, hidden_states: torch.Tensor) -> bool:
    """Return whether a layer runs in strips.

    It must be allowed to call its modules several times: `eager` returns whole attention weights, offloaded weights
    would be loaded for each strip, and a graph for batches of any size has no strips of known size.
    """
    return (
        layer.memory_budgets.cpu_strips
        and hidden_states.device.type == "cpu"
        and layer.config._attn_implementation == "sdpa"
        and not (torch.is_grad_enabled() or torch.jit.is_tracing())
        and isinstance(hidden_states.shape[0], int)
        and not layer.attn.qkv.weight.is_meta
    )


def run_layer_in_strips(layer: Any, hidden_states: torch.Tensor, windows: WindowCache) -> torch.Tensor:
    """Compute what `SamEncoderLayer.forward` computes: `(batch, height, width, hidden)` -> the same shape."""
    height, width, hidden_size = hidden_states.shape[1:]
    budgets, device, window_size = layer.memory_budgets, hidden_states.device, layer.attn.window_size
    bytes_per_value = hidden_states.element_size()

    def attend(strip: torch.Tensor) -> torch.Tensor:
        if not window_size:
            return layer.attn(layer.layer_norm1(strip), project=project_in_pieces)[0]
        # In a graph each group would be code of its own to compile.
        grouped = not torch.compiler.is_compiling()
        cut = windows.get((strip.shape[1], width), device, grouped)
        return layer.attn(layer.layer_norm1(strip), windows=cut)[0]

    def feed_forward(strip: torch.Tensor) -> torch.Tensor:
        return layer.mlp(layer.layer_norm2(strip))

    if window_size:
        positions = budgets.attention_strip // (hidden_size * bytes_per_value)
        attended = add_in_strips(attend, hidden_states, positions, rows_together=window_size)
    else:
        attended = add_in_strips(attend, hidden_states, height * width, rows_together=height)
    mlp_size = layer.config.intermediate_size
    return add_in_strips(feed_forward, attended, budgets.feed_forward_strip // (mlp_size * bytes_per_value))


def add_in_strips(
    function: Callable[[torch.Tensor], torch.Tensor],
    features: torch.Tensor,
    max_positions: int,
    rows_together: int = 1,
) -> torch.Tensor:
    """Return `features + function(features)`, computed on a few images, or on a few rows of one image, at a time.

    Args:
        function: maps `(images, rows, width, dim)` to the same shape.
        features (`torch.Tensor` of shape `(batch, height, width, dim)`): the input.
        max_positions (`int`): positions that a strip may have, if `rows_together` allow it.
        rows_together (`int`, defaults to 1): the number of rows of a strip is a multiple of this.

    Returns:
        `torch.Tensor` of shape `(batch, height, width, dim)`.
    """
    batch, height, width, _ = features.shape
    images = max(1, max_positions // (height * width))
    bands = -(-height // rows_together)
    strips = -(-bands // max(1, max_positions // (rows_together * width)))
    rows = -(-bands // strips) * rows_together  # About equally many rows in each strip.
    if torch.compiler.is_compiling():
        # Inductor fuses `cat` into one buffer but lowers slice assignment to masked writes.
        parts = [[part + function(part) for part in some.split(rows, dim=1)] for some in features.split(images)]
        return torch.cat([torch.cat(part, dim=1) for part in parts])
    output = torch.empty_like(features)
    for image, row in itertools.product(range(0, batch, images), range(0, height, rows)):
        strip = (slice(image, image + images), slice(row, row + rows))
        torch.add(features[strip], function(features[strip]), out=output[strip])  # Without a copy in between.
    return output


def project_in_pieces(attention: Any, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Project `(batch, N, hidden)` to contiguous queries, keys and values, `(batch, heads, N, head_dim)` each."""
    batch, length, hidden_size = hidden_states.shape
    positions = attention.memory_budgets.projection_piece // (3 * hidden_size * hidden_states.element_size())
    step = -(-length // -(-length // max(1, positions)))  # About equally many positions in each piece.
    if torch.compiler.is_compiling():  # `cat` for the reason given in `add_in_strips`.
        pieces = [attention.project(piece) for piece in hidden_states.split(step, dim=1)]
        return tuple(torch.cat(parts, dim=2) for parts in zip(*pieces, strict=True))
    shape = (batch, attention.num_heads, length, attention.head_dim)
    projected = tuple(hidden_states.new_empty(shape) for _ in range(3))
    for image, start in itertools.product(range(batch), range(0, length, step)):
        piece = attention.project(hidden_states[image : image + 1, start : start + step])
        for tensor, part in zip(projected, piece, strict=True):
            tensor[image : image + 1, :, start : start + step] = part
    return projected
