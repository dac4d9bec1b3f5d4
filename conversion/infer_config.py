"""The configuration of a model, from the shapes of a checkpoint's tensors and the files beside it.

Unusual: nothing is guessed. What neither the shapes nor the files determine comes from a table of published sizes or
from the caller; otherwise it is an error.
"""

from collections.abc import Mapping
from math import isqrt
from typing import Any

from ..configuration import ClipVisionEncoderConfig, DeepEncoderConfig, DeepEncoderV2Config, SamEncoderConfig
from ..configuration.query_encoder import QueryEncoderConfig
from .checkpoint import Checkpoint
from .config_hints import TowerPart
from .layouts import Layout

__all__ = [
    "KNOWN_HEADS",
    "clip_config_from_shapes",
    "infer_clip_config",
    "infer_deepencoder_config",
    "infer_deepencoder_v2_config",
    "sam_config_from_shapes",
    "infer_sam_config",
]

Shapes = Mapping[str, tuple[int, ...]]
# Attention heads by width, of ViT-Ti to ViT-bigG and of SAM, for checkpoints that do not state their number.
KNOWN_HEADS = {192: 3, 384: 6, 512: 8, 640: 10, 768: 12, 1024: 16, 1152: 16, 1280: 16, 1408: 16, 1664: 16}
PUBLISHED_PROJECTION = 1280  # of DeepSeek-OCR, for checkpoints without a projector
PUBLISHED_CHANNELS = (512, 1024)  # of DeepSeek-OCR's compressor, for checkpoints without one
PUBLISHED_QUERY_HEADS = {896: 14}  # of DeepSeek-OCR-2's query encoder, by its width
CLIP_HINTS = ("num_attention_heads", "hidden_act", "layer_norm_eps", "post_norm")
QUERY_HINTS = ("num_attention_heads", "hidden_act", "rms_norm_eps", "rope_parameters")


def _part(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _count_layers(shapes: Shapes) -> int:
    numbers = {int(name.split(".")[1]) for name in shapes if name.startswith("layers.")}
    if numbers != set(range(len(numbers))) or not numbers:
        raise ValueError(f"The checkpoint's blocks must be numbered 0, 1, 2 and so on, but are {sorted(numbers)}.")
    return len(numbers)


def _shape(shapes: Shapes, name: str, length: int) -> tuple[int, ...]:
    if name not in shapes:
        raise ValueError(f"The checkpoint is incomplete: it has no tensor for {name!r}.")
    if len(shapes[name]) != length:
        raise ValueError(f"The tensor for {name!r} must have {length} axes, but has shape {shapes[name]}.")
    return shapes[name]


def _convolution(shapes: Shapes, name: str) -> tuple[int, ...]:
    """Return the output channels, the input channels and the side of a convolution with a square kernel."""
    shape = _shape(shapes, name, 4)
    if shape[2] != shape[3]:
        raise ValueError(
            f"The tensor for {name!r} has shape {shape}, which is not (out, in, side, side). Convolutions in the "
            "order of MLX, (out, side, side, in), are not supported."
        )
    return shape[:3]


def _infer_windows(shapes: Shapes, num_layers: int, grid_size: int, hints: Mapping[str, Any]) -> dict[str, Any]:
    """Tell windowed from global blocks by the lengths of their relative position tables."""
    lengths = [_shape(shapes, f"layers.{index}.attn.rel_pos_h", 2)[0] for index in range(num_layers)]
    global_length = 2 * grid_size - 1
    windowed = {length for length in lengths if length != global_length}
    if len(windowed) == 1:
        indexes = tuple(index for index, length in enumerate(lengths) if length == global_length)
        return {"window_size": (windowed.pop() + 1) // 2, "global_attn_indexes": indexes}
    if windowed or not isinstance(hints.get("global_attn_indexes"), (list, tuple)):
        raise ValueError(
            "Windowed and global blocks cannot be told apart: their position tables have the lengths "
            f"{sorted(set(lengths))}."
        )
    return {
        "window_size": hints.get("window_size", grid_size),
        "global_attn_indexes": tuple(hints["global_attn_indexes"]),
    }


def sam_config_from_shapes(shapes: Shapes, hints: Mapping[str, Any]) -> SamEncoderConfig:
    """Infer a SAM encoder's configuration from the shapes of its tensors.

    Args:
        shapes: shapes by our names.
        hints: fields from the files beside the checkpoint: activation and epsilon, and the windows where the position
            tables do not determine them.

    Raises:
        `ValueError`: a part is missing, or windowed and global blocks have position tables of the same length, so that
            they cannot be told apart.
    """
    hidden_size, num_channels, patch_size = _convolution(shapes, "embeddings.patch_embedding.weight")
    grid_size = _shape(shapes, "embeddings.position_embedding", 4)[1]
    num_layers = _count_layers(shapes)
    head_dim = _shape(shapes, "layers.0.attn.rel_pos_h", 2)[1]
    if hidden_size % head_dim:
        raise ValueError(f"The width {hidden_size} must be a multiple of the position tables' width {head_dim}.")
    convolutions = sorted(name for name in shapes if name.startswith("compressor.convs."))
    return SamEncoderConfig(
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // head_dim,
        intermediate_size=_shape(shapes, "layers.0.mlp.lin1.weight", 2)[0],
        num_channels=num_channels,
        image_size=grid_size * patch_size,
        patch_size=patch_size,
        output_channels=_shape(shapes, "neck.conv1.weight", 4)[0],
        downsample_channels=tuple(_shape(shapes, name, 4)[0] for name in convolutions) or PUBLISHED_CHANNELS,
        **_infer_windows(shapes, num_layers, grid_size, hints),
        **{name: hints[name] for name in ("hidden_act", "layer_norm_eps") if name in hints},
    )


def clip_config_from_shapes(shapes: Shapes, hints: Mapping[str, Any], **values: Any) -> ClipVisionEncoderConfig:
    """Infer a CLIP or ViT tower's configuration from the shapes of its tensors.

    Args:
        shapes: shapes by our names.
        hints: fields that the shapes do not determine, from the layout and the files beside the checkpoint.
        values: fields that take precedence over everything else.

    Raises:
        `ValueError`: a part is missing, or the number of attention heads is unknown.
    """
    position_shape = shapes.get("embeddings.position_embedding", ())
    if len(position_shape) < 2:
        raise ValueError("The checkpoint is incomplete: the CLIP tower has no position table.")
    positions, hidden_size = position_shape[-2:]
    grid_size = round((positions - 1) ** 0.5)
    if grid_size**2 + 1 != positions:
        raise ValueError(f"The position table must have one row for the class token and a square, not {positions}.")
    found: dict[str, Any] = {
        "hidden_size": hidden_size,
        "num_hidden_layers": _count_layers(shapes),
        "intermediate_size": _shape(shapes, "layers.0.mlp.fc1.weight", 2)[0],
        "use_pre_norm": "pre_layernorm.weight" in shapes,
        "use_patch_embedding": "embeddings.patch_embedding.weight" in shapes,
        "use_patch_bias": "embeddings.patch_embedding.bias" in shapes,
        "patch_size": 14,
        "num_attention_heads": KNOWN_HEADS.get(hidden_size),
    }
    if found["use_patch_embedding"]:
        _, found["num_channels"], found["patch_size"] = _convolution(shapes, "embeddings.patch_embedding.weight")
    if "visual_projection.weight" in shapes:
        found["projection_dim"] = _shape(shapes, "visual_projection.weight", 2)[0]
    found |= {name: hints[name] for name in CLIP_HINTS if name in hints}
    found |= values
    if found["num_attention_heads"] is None:
        raise ValueError(f"num_attention_heads of a tower of width {hidden_size} is unknown: pass it.")
    return ClipVisionEncoderConfig(image_size=grid_size * found["patch_size"], **found)


def infer_sam_config(layout: Layout, shapes: Shapes, checkpoint: Checkpoint, **values: Any) -> SamEncoderConfig:
    """Infer the configuration of a [`SamEncoder`]; see [`infer_deepencoder_config`] for the arguments."""
    hidden_size = _shape(shapes, "embeddings.patch_embedding.weight", 4)[0]
    return sam_config_from_shapes(shapes, layout.family.read_hints(checkpoint, hidden_size, TowerPart.SAM))


def infer_clip_config(
    layout: Layout, shapes: Shapes, checkpoint: Checkpoint, **values: Any
) -> ClipVisionEncoderConfig:
    """Infer the configuration of a [`ClipVisionEncoder`]; see [`infer_deepencoder_config`] for the arguments."""
    hidden_size = (shapes.get("embeddings.class_embedding") or (0,))[-1]
    hints = layout.family.read_hints(checkpoint, hidden_size, TowerPart.CLIP)
    return clip_config_from_shapes(shapes, dict(layout.defaults) | hints, **values)


def _projection_dim(shapes: Shapes, token: str) -> int:
    """Return the width of the vision tokens, from the projector or from a special token."""
    if "projector.layers.0.weight" in shapes:
        return _shape(shapes, "projector.layers.0.weight", 2)[0]
    return _shape(shapes, token, 1)[0] if token in shapes else PUBLISHED_PROJECTION


def infer_deepencoder_config(
    layout: Layout, shapes: Shapes, checkpoint: Checkpoint, **values: Any
) -> DeepEncoderConfig:
    """Infer the configuration of a [`DeepEncoder`].

    Args:
        layout ([`Layout`]): of the checkpoint.
        shapes: shapes by our names.
        checkpoint: the checkpoint, whose files may contain further fields.
        values: fields of the CLIP tower that take precedence over everything else.

    Raises:
        `ValueError`: a part is missing, or a size is unknown.
    """
    return DeepEncoderConfig(
        sam_config=infer_sam_config(layout, _part(shapes, "sam_encoder."), checkpoint),
        clip_config=infer_clip_config(layout, _part(shapes, "clip_encoder."), checkpoint, **values),
        projection_dim=_projection_dim(shapes, "image_newline"),
    )


def query_config_from_shapes(shapes: Shapes, hints: Mapping[str, Any], **values: Any) -> QueryEncoderConfig:
    """Infer a query encoder's configuration from the shapes of its tensors.

    Args:
        shapes: shapes by our names.
        hints: fields that the shapes do not determine, from the files beside the checkpoint.
        values: fields that take precedence over everything else.

    Raises:
        `ValueError`: a part is missing, or the number of attention heads is unknown or does not fit.
    """
    hidden_size = _shape(shapes, "norm.weight", 1)[0]
    found: dict[str, Any] = {"num_attention_heads": PUBLISHED_QUERY_HEADS.get(hidden_size)}
    found |= {name: hints[name] for name in QUERY_HINTS if name in hints}
    found |= {name: value for name, value in values.items() if name in QUERY_HINTS}
    heads, key_width = found["num_attention_heads"], _shape(shapes, "layers.0.self_attn.k_proj.weight", 2)[0]
    if heads is None:
        raise ValueError(f"num_attention_heads of a query encoder of width {hidden_size} is unknown: pass it.")
    if not isinstance(heads, int) or heads < 1 or hidden_size % heads or key_width % (hidden_size // heads):
        raise ValueError(f"num_attention_heads={heads!r:.100} does not fit the widths {hidden_size} and {key_width}.")
    return QueryEncoderConfig(
        hidden_size=hidden_size,
        num_hidden_layers=_count_layers(shapes),
        num_key_value_heads=key_width // (hidden_size // heads),
        intermediate_size=_shape(shapes, "layers.0.mlp.gate_proj.weight", 2)[0],
        **found,
    )


def infer_deepencoder_v2_config(
    layout: Layout, shapes: Shapes, checkpoint: Checkpoint, **values: Any
) -> DeepEncoderV2Config:
    """Infer the configuration of a [`DeepEncoderV2`]; see [`infer_deepencoder_config`] for the arguments."""
    sam_config = infer_sam_config(layout, _part(shapes, "sam_encoder."), checkpoint)
    query_shapes = _part(shapes, "query_encoder.")
    hidden_size = _shape(query_shapes, "norm.weight", 1)[0]
    hints = layout.family.read_hints(checkpoint, hidden_size, TowerPart.QUERIES)
    sides = [isqrt(_shape(shapes, f"queries.table_{index}", 2)[0]) for index in range(2)]
    return DeepEncoderV2Config(
        sam_config=sam_config,
        query_config=query_config_from_shapes(query_shapes, hints, **values),
        query_sizes=tuple(side * sam_config.total_stride for side in sides),
        projection_dim=_projection_dim(shapes, "view_separator"),
    )
