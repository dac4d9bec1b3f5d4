"""The kinds of output that can be taken from the encoder for a page: one row of a table each.

Unusual: help texts read this table, so the module imports neither torch nor transformers. A new kind of output is one
more row: the Arrow columns, the shards, the dataset card and the command line follow from it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..processing.tiling import count_image_tokens

if TYPE_CHECKING:
    import torch

__all__ = ["DTYPES", "OUTPUTS", "OutputKind", "check_outputs", "take_outputs"]

DTYPES = {"float16": "float16", "bfloat16": "float32", "float32": "float32"}
"""The dtypes in which features can be kept, and the dtype that stores each: neither numpy nor Arrow has bfloat16."""


@dataclass(frozen=True)
class OutputKind:
    """A kind of output.

    Args:
        name: what the output is called in Python, on the command line, and in files.
        summary: what the output is, for help texts and dataset cards.
        take: returns the output of one image of a batch. Takes the model's output, the index of the image, and the
            fused tokens of its tiles `(tiles, tokens, hidden)`, or None for an image without tiles.
        width: returns the length of a vector. Takes the model's configuration.
        count: returns how many vectors every page has, or None if their number varies with the page. Takes the fields
            of the image processor and the stride of the encoder in pixels. None for an output that is a single vector
            and not a sequence.
    """

    name: str
    summary: str
    take: Callable[[Any, int, "torch.Tensor | None"], "torch.Tensor"]
    width: Callable[[Any], int]
    count: Callable[[Mapping[str, Any], int], int | None] | None = None


def _take_tokens(encoded: Any, index: int, tile_tokens: "torch.Tensor | None") -> "torch.Tensor":
    import torch

    view_tokens = encoded.last_hidden_state[index]
    if tile_tokens is None:
        return view_tokens
    # (tiles, tokens, hidden) -> (tiles * tokens, hidden)
    return torch.cat([view_tokens, tile_tokens.flatten(0, 1).to(view_tokens.device)])


def _view_grid(fields: Mapping[str, Any], stride: int) -> tuple[int, int] | None:
    """Return the columns and rows of tokens of every page, or None if they vary with the page."""
    if fields["crop_to_patches"] or not fields["do_resize"]:
        return None
    return -(-int(fields["size"].width) // stride), -(-int(fields["size"].height) // stride)


def _count_tokens(fields: Mapping[str, Any], stride: int) -> int | None:
    grid = _view_grid(fields, stride)
    return None if grid is None else grid[0] * grid[1]


def _count_vision_tokens(fields: Mapping[str, Any], stride: int) -> int | None:
    grid = _view_grid(fields, stride)
    return None if grid is None else count_image_tokens(grid, (1, 1), (0, 0))


OUTPUTS = {
    kind.name: kind
    for kind in (
        OutputKind(
            "pooled",
            summary="one vector per page, CLIP's class token",
            take=lambda encoded, index, tile_tokens: encoded.pooler_output[index],
            width=lambda config: config.clip_config.hidden_size,
        ),
        OutputKind(
            "tokens",
            summary="fused tokens of the global view and then of each tile, row-major",
            take=_take_tokens,
            width=lambda config: config.hidden_size,
            count=_count_tokens,
        ),
        OutputKind(
            "vision_tokens",
            summary="projected tokens in the order of DeepSeek-OCR's decoder: the tiles' rows, then the view's rows, "
            "a newline token after each row, one separator at the end",
            take=lambda encoded, index, tile_tokens: encoded.vision_tokens[index],
            width=lambda config: config.projection_dim,
            count=_count_vision_tokens,
        ),
    )
}
"""The kinds of output, by name."""


def take_outputs(
    encoded: Any, num_local_patches: Iterable[int], names: Sequence[str]
) -> "list[dict[str, torch.Tensor]]":
    """Take the chosen outputs of every image from the model's output for a batch.

    Args:
        encoded ([`DeepEncoderOutput`]): the model's output.
        num_local_patches: number of tiles of each image.
        names: names of rows of [`OUTPUTS`].

    Returns:
        for each image its outputs by name: `pooled` `(clip_hidden,)`, `tokens` `(n, hidden)`, `vision_tokens`
        `(length, projection_dim)`. They may be views of the model's output.
    """
    counts = [int(count) for count in num_local_patches]
    tile_tokens: Sequence[torch.Tensor | None] = [None] * len(counts)
    if any(counts):
        parts = encoded.local_last_hidden_state.split(counts)
        tile_tokens = [part if count else None for part, count in zip(parts, counts, strict=True)]
    return [
        {name: OUTPUTS[name].take(encoded, index, tile_tokens[index]) for name in names}
        for index in range(len(counts))
    ]


def check_outputs(outputs: Sequence[str], dtype: str) -> None:
    """Raise `ValueError` if `outputs` are not names of different kinds of output, or if `dtype` is unknown."""
    if isinstance(outputs, str) or not outputs or not set(outputs) <= set(OUTPUTS) or len(set(outputs)) < len(outputs):
        raise ValueError(f"outputs must be some of {', '.join(map(repr, OUTPUTS))}, got {outputs!r}.")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(repr, DTYPES))}, got {dtype!r}.")
