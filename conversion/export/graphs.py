"""What is exported of each model: a module for pages of one size, which takes pixels and returns plain tensors.

Unusual: the position tables are resized before the export, because other runtimes lack the antialiased resizing
kernel. This does not change the numbers.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...modeling.catalog import MODELS
from ...modeling.positions import resize_position_grid, resize_relative_positions

__all__ = ["GRAPHS", "ExportedView", "fix_image_size"]

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Graph:
    """How one of our models is exported.

    Args:
        forward: computes the outputs from the model and `pixel_values`, in the order of `exported_outputs`.
        resize: resizes the position tables for one image size, which it sets in the configuration; takes both and the
            state dict, and returns the tensors that change.
        attn_implementation: attention of the exported model.
    """

    forward: Callable[[Any, torch.Tensor], tuple[torch.Tensor, ...]]
    resize: Callable[[Any, Tensors, int], dict[str, torch.Tensor]]
    attn_implementation: Any


def _forward_deepencoder(model: Any, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    fused, tokens, output = model.encode_view(pixel_values)  # tokens: (batch, rows, columns, dim)
    vision_tokens = model.lay_out(tokens, None, (1, 1))
    # The last two do not depend on the pixels. As outputs, any client can read them, in whatever language.
    constants = (model.image_newline.clone(), model.view_separator.clone())
    return fused, output.pooler_output, tokens.flatten(1, 2), vision_tokens, *constants


def _forward_deepencoder_v2(model: Any, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    queries, tokens, output = model.encode_view(pixel_values)
    return queries, output.pooler_output, tokens, model.lay_out(tokens, None, (1, 1)), model.view_separator.clone()


def _forward_sam(model: Any, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (model(pixel_values).last_hidden_state,)


def _forward_clip(model: Any, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    output = model(pixel_values)
    return output.last_hidden_state, output.pooler_output


def _sam_tables(state_dict: Tensors, prefix: str, grid_size: int, config: Any) -> dict[str, torch.Tensor]:
    name = f"{prefix}embeddings.position_embedding"
    found = {name: resize_position_grid(state_dict[name], (grid_size, grid_size))}
    for index in config.global_attn_indexes:
        for side in ("rel_pos_h", "rel_pos_w"):
            name = f"{prefix}layers.{index}.attn.{side}"
            found[name] = resize_relative_positions(state_dict[name], 2 * grid_size - 1)
    return found


def _clip_table(state_dict: Tensors, prefix: str, grid_size: int) -> dict[str, torch.Tensor]:
    name = f"{prefix}embeddings.position_embedding"
    table = state_dict[name]
    old = round((len(table) - 1) ** 0.5)
    # (1 + old * old, dim) -> (1, old, old, dim) -> (1 + new * new, dim)
    grid = resize_position_grid(table[1:].view(1, old, old, -1), (grid_size, grid_size))
    return {name: torch.cat([table[:1], grid.flatten(0, 2)])}


def _resize_deepencoder(config: Any, state_dict: Tensors, image_size: int) -> dict[str, torch.Tensor]:
    sam, clip = config.sam_config, config.clip_config
    tokens = -(-image_size // sam.total_stride)
    sam.image_size, clip.image_size = image_size, tokens * clip.patch_size
    return _sam_tables(state_dict, "sam_encoder.", image_size // sam.patch_size, sam) | _clip_table(
        state_dict, "clip_encoder.", tokens
    )


def _resize_deepencoder_v2(config: Any, state_dict: Tensors, image_size: int) -> dict[str, torch.Tensor]:
    sam = config.sam_config
    if image_size not in config.query_sizes:
        sizes = ", ".join(map(str, config.query_sizes))
        raise ValueError(f"image_size must be one of {sizes}, for which there are learned queries, got {image_size}.")
    sam.image_size = image_size
    return _sam_tables(state_dict, "sam_encoder.", image_size // sam.patch_size, sam)


def _resize_sam(config: Any, state_dict: Tensors, image_size: int) -> dict[str, torch.Tensor]:
    config.image_size = image_size
    return _sam_tables(state_dict, "", image_size // config.patch_size, config)


def _resize_clip(config: Any, state_dict: Tensors, image_size: int) -> dict[str, torch.Tensor]:
    config.image_size = image_size
    return _clip_table(state_dict, "", image_size // config.patch_size)


# CLIP's sdpa is that of transformers, whose export keeps the strides of the kernel that it was traced with.
GRAPHS = {
    "deepencoder": Graph(_forward_deepencoder, _resize_deepencoder, {"sam_config": "sdpa", "clip_config": "eager"}),
    "deepencoder_v2": Graph(
        _forward_deepencoder_v2, _resize_deepencoder_v2, {"sam_config": "sdpa", "query_config": "eager"}
    ),
    "deepencoder_sam": Graph(_forward_sam, _resize_sam, "sdpa"),
    "deepencoder_clip_vision": Graph(_forward_clip, _resize_clip, "eager"),
}
"""How each model is exported, by `model_type`."""


class ExportedView(nn.Module):
    """The module that is exported: it takes pixels and returns plain tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._compute = GRAPHS[model.config.model_type].forward

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self._compute(self.model, pixel_values)


@torch.no_grad()
def fix_image_size(model: Any, image_size: int, attn_implementation: Any = None) -> Any:
    """Return a copy of a model, in float32 on the CPU, whose position tables are those of one image size.

    Args:
        model: a [`DeepEncoder`], [`DeepEncoderV2`], [`SamEncoder`] or [`ClipVisionEncoder`].
        image_size: side of the pages, in pixels.
        attn_implementation: attention of the copy.

    Raises:
        `ValueError`: `image_size` is not a multiple of the patch size.
    """
    config = copy.deepcopy(model.config)
    main = getattr(config, "sam_config", config)
    if image_size <= 0 or image_size % main.patch_size:
        raise ValueError(f"image_size must be a positive multiple of {main.patch_size}, got {image_size}.")
    state_dict = {name: tensor.detach().float().cpu() for name, tensor in model.state_dict().items()}
    resized = GRAPHS[config.model_type].resize(config, state_dict, image_size)
    model_class: Any = MODELS[config.model_type].model_class
    fixed = model_class.from_pretrained(
        None,
        config=config,
        state_dict=state_dict | resized,
        dtype=torch.float32,
        attn_implementation=attn_implementation,
    )
    return fixed.eval()
