"""The kinds of output that can be taken from the encoder for a page: one row of a table each.

Unusual: help texts read this table, so the module imports neither torch nor transformers. A new kind of output is one
more row: the Arrow columns, the shards, the dataset card and the command line follow from it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..processing.tiling import count_image_tokens
from ..processing.token_pooling import VectorOptions, make_vectors

if TYPE_CHECKING:
    import torch

__all__ = [
    "DTYPES",
    "MODEL_OUTPUTS",
    "OUTPUTS",
    "EncodedPage",
    "OutputKind",
    "VectorInputs",
    "check_outputs",
    "take_outputs",
]

DTYPES = {"float16": "float16", "bfloat16": "float32", "float32": "float32"}
"""The dtypes in which features can be kept, and the dtype that stores each: neither numpy nor Arrow has bfloat16."""


@dataclass(frozen=True)
class VectorInputs:
    """What `multi_vector` takes beside the model's output for a batch.

    Args:
        shown: `(batch, h, w)` booleans, which tokens of the global views show any of the page.
        pool, projection: as for [`make_vectors`].
    """

    shown: "torch.Tensor"
    pool: int
    projection: "torch.Tensor | None"


@dataclass(frozen=True)
class EncodedPage:
    """One page of a batch that the model has encoded.

    Args:
        encoded ([`DeepEncoderOutput`]): the model's output for the batch.
        index: position of the page in the batch.
        tile_tokens: fused tokens of its tiles `(tiles, tokens, hidden)`, or None for a page without tiles.
        vector_inputs: what [`make_vectors`] takes beside tokens; only for `multi_vector`.
    """

    encoded: Any
    index: int
    tile_tokens: "torch.Tensor | None"
    vector_inputs: VectorInputs | None = None


@dataclass(frozen=True)
class OutputKind:
    """A kind of output.

    Args:
        name: what the output is called in Python, on the command line, and in files.
        summary: what the output is, for help texts and dataset cards.
        take: returns the output of one page of a batch.
        width: returns the length of a vector. Takes the model's configuration and the options of `multi_vector`.
        count: returns how many vectors every page has, or None if their number varies with the page. Takes the fields
            of the image processor, the stride of the encoder in pixels, and the options of `multi_vector`. None for an
            output that is a single vector and not a sequence.
        has_options: whether the output depends on more than the model's output.
        needs_cells: whether tokens must be cells of the page, which the queries of a [`DeepEncoderV2`] are not.
    """

    name: str
    summary: str
    take: Callable[[EncodedPage], "torch.Tensor"]
    width: Callable[[Any, VectorOptions], int]
    count: Callable[[Mapping[str, Any], int, VectorOptions], int | None] | None = None
    has_options: bool = False
    needs_cells: bool = False


def _take_tokens(page: EncodedPage) -> "torch.Tensor":
    import torch

    view_tokens, tile_tokens = page.encoded.last_hidden_state[page.index], page.tile_tokens
    if tile_tokens is None:
        return view_tokens
    # (tiles, tokens, hidden) -> (tiles * tokens, hidden)
    return torch.cat([view_tokens, tile_tokens.flatten(0, 1).to(view_tokens.device)])


def _take_vectors(page: EncodedPage) -> "torch.Tensor":
    inputs, view_tokens = page.vector_inputs, page.encoded.last_hidden_state[page.index]
    if inputs is None:
        raise ValueError("vector_inputs is required for 'multi_vector', got None.")
    return make_vectors(view_tokens, inputs.shown[page.index], page.tile_tokens, inputs.pool, inputs.projection)


def _view_grid(fields: Mapping[str, Any], stride: int) -> tuple[int, int] | None:
    """Return the columns and rows of tokens of every page, or None if they vary with the page."""
    if fields["crop_to_patches"] or not fields["do_resize"]:
        return None
    return -(-int(fields["size"].width) // stride), -(-int(fields["size"].height) // stride)


def _count_tokens(fields: Mapping[str, Any], stride: int, options: VectorOptions) -> int | None:
    grid = _view_grid(fields, stride)
    return None if grid is None else grid[0] * grid[1]


def _count_vectors(fields: Mapping[str, Any], stride: int, options: VectorOptions) -> int | None:
    grid = _view_grid(fields, stride)
    return None if grid is None else options.count_cells(*grid)


def _count_vision_tokens(fields: Mapping[str, Any], stride: int, options: VectorOptions) -> int | None:
    grid = _view_grid(fields, stride)
    return None if grid is None else count_image_tokens(grid, (1, 1), (0, 0), fields["token_scheme"])


OUTPUTS = {
    kind.name: kind
    for kind in (
        OutputKind(
            "pooled",
            summary="one vector per page: CLIP's class token, or the last query of a DeepEncoderV2",
            take=lambda page: page.encoded.pooler_output[page.index],
            width=lambda config, options: config.pooled_size,
        ),
        OutputKind(
            "tokens",
            summary="tokens of the global view and then of each tile: fused tokens, row-major, or queries",
            take=_take_tokens,
            width=lambda config, options: config.hidden_size,
            count=_count_tokens,
        ),
        OutputKind(
            "vision_tokens",
            summary="projected tokens in the order of the decoder: the tiles' rows, then the view's rows, a newline "
            "token after each row, one separator at the end; the queries of a DeepEncoderV2 have no newlines",
            take=lambda page: page.encoded.vision_tokens[page.index],
            width=lambda config, options: config.projection_dim,
            count=_count_vision_tokens,
        ),
        OutputKind(
            "multi_vector",
            summary="short vectors for late interaction, one for each cell of the global view and then of each tile, "
            "row-major: the mean of the cell's fused tokens, padding left out, projected by random signs and of "
            "length 1; all zeros for a cell that shows nothing of the page",
            take=_take_vectors,
            width=lambda config, options: options.width_for(config.hidden_size),
            count=_count_vectors,
            has_options=True,
            needs_cells=True,
        ),
    )
}
"""The kinds of output, by name."""

MODEL_OUTPUTS = tuple(name for name, kind in OUTPUTS.items() if not kind.has_options)
"""The names of those that follow from the model's output alone."""


def take_outputs(
    encoded: Any,
    num_local_patches: Iterable[int],
    names: Sequence[str] = MODEL_OUTPUTS,
    vector_inputs: VectorInputs | None = None,
) -> "list[dict[str, torch.Tensor]]":
    """Take the chosen outputs of every image from the model's output for a batch.

    Args:
        encoded ([`DeepEncoderOutput`]): the model's output.
        num_local_patches: number of tiles of each image.
        names: names of rows of [`OUTPUTS`].
        vector_inputs ([`VectorInputs`], *optional*): what `multi_vector` needs.

    Returns:
        for each image its outputs by name: `pooled` `(clip_hidden,)`, `tokens` `(n, hidden)`, `vision_tokens`
        `(length, projection_dim)`, `multi_vector` `(cells, width)`. They may be views of the model's output.
    """
    counts = [int(count) for count in num_local_patches]
    tile_tokens: Sequence[torch.Tensor | None] = [None] * len(counts)
    if any(counts):
        parts = encoded.local_last_hidden_state.split(counts)
        tile_tokens = [part if count else None for part, count in zip(parts, counts, strict=True)]
    pages = [EncodedPage(encoded, index, tiles, vector_inputs) for index, tiles in enumerate(tile_tokens)]
    return [{name: OUTPUTS[name].take(page) for name in names} for page in pages]


def check_outputs(outputs: Sequence[str], dtype: str, config: Any = None) -> None:
    """Raise `ValueError` if `outputs` are not names of different kinds of output, or if `dtype` is unknown.

    Args:
        config (*optional*): the model's configuration, if it is known: a model of learned queries has no cells.
    """
    if isinstance(outputs, str) or not outputs or not set(outputs) <= set(OUTPUTS) or len(set(outputs)) < len(outputs):
        raise ValueError(f"outputs must be some of {', '.join(map(repr, OUTPUTS))}, got {outputs!r}.")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(repr, DTYPES))}, got {dtype!r}.")
    refused = [name for name in outputs if OUTPUTS[name].needs_cells]
    if refused and getattr(config, "token_scheme", "cells") == "queries":
        raise ValueError(f"outputs: {refused[0]!r} is made of cells of a page, but this model's tokens are queries.")
