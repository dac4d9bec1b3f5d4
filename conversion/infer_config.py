"""The sizes of a model, read off the shapes of its tensors; what these do not tell, off the files beside them.

Unusual: nothing is guessed. What neither shapes nor configuration tell comes from a table of known sizes or from the
caller, else it is an error.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import CONFIG_MAPPING

from ..configuration import ClipVisionEncoderConfig, DeepEncoderConfig, SamEncoderConfig
from .checkpoint import Checkpoint
from .layouts import Layout

__all__ = ["infer_clip_config", "infer_config", "infer_sam_config", "read_hints"]

Shapes = Mapping[str, tuple[int, ...]]
# Attention heads of towers whose checkpoint does not tell: width -> heads, of ViT-Ti to ViT-bigG and SAM's.
KNOWN_HEADS = {192: 3, 384: 6, 512: 8, 640: 10, 768: 12, 1024: 16, 1152: 16, 1280: 16, 1408: 16, 1664: 16}


# Configurations of transformers, whose files leave out what is the default there.
KNOWN_CONFIGS = (
    "clip",
    "clip_vision_model",
    "deepseek_ocr2",
    "got_ocr2",
    "sam",
    "sam_vision_model",
    "unlimited_ocr",
    "vit",
)
HINTS = ("num_attention_heads", "hidden_act", "layer_norm_eps", "window_size", "global_attn_indexes")


def _walk(fields: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield fields
    for name, value in fields.items():
        if isinstance(value, Mapping) and not name.startswith("text"):
            yield from _walk(value)


def _complete(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add transformers' defaults to a configuration of its own."""
    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or model_type not in KNOWN_CONFIGS or model_type not in CONFIG_MAPPING:
        return fields
    try:
        return CONFIG_MAPPING[model_type].from_dict(dict(fields)).to_dict()
    except Exception:  # a damaged one: what it says is looked at as it is
        return fields


def _read_open_clip(fields: Mapping[str, Any], hidden_size: int) -> dict[str, Any]:
    tower = fields.get("vision_cfg")
    if not isinstance(tower, Mapping) or tower.get("width") != hidden_size:
        return {}
    head_width = tower.get("head_width", 64)
    if not isinstance(head_width, int) or head_width < 1 or hidden_size % head_width:
        raise ValueError(f"open_clip_config.json: head_width {head_width!r} does not divide the width {hidden_size}.")
    for name, usual in (("pool_type", "tok"), ("timm_model_name", None), ("attentional_pool", False)):
        if tower.get(name, usual) != usual:
            raise ValueError(f"open_clip_config.json: a tower with {name} {tower[name]!r} is not supported.")
    activation = "quick_gelu" if fields.get("quick_gelu") else "gelu"
    found: dict[str, Any] = {"num_attention_heads": hidden_size // head_width, "hidden_act": activation}
    norm = tower.get("norm_kwargs")
    if isinstance(norm, Mapping) and "eps" in norm:
        found["layer_norm_eps"] = norm["eps"]
    return found


def read_hints(layout: Layout, checkpoint: Checkpoint, hidden_size: int, part: str) -> dict[str, Any]:
    """Find what the files beside a checkpoint say of a tower of this width.

    Args:
        layout: what the checkpoint is. In a language model the top level of `config.json` is not about the tower.
        checkpoint: whose `config.json`, or `open_clip_config.json`, is read.
        hidden_size: the tower's width.
        part: `"sam"` or `"clip"`, where a model has both.

    Returns:
        those of `num_attention_heads`, `hidden_act`, `layer_norm_eps`, `window_size` and `global_attn_indexes` that
        are told.

    Raises:
        `ValueError`: an open_clip tower that is built in a way that is not supported.
    """
    open_clip = checkpoint.read_json("open_clip_config.json").get("model_cfg")
    if layout.slug == "clip" and isinstance(open_clip, Mapping):
        found = _read_open_clip(open_clip, hidden_size)
        if found:
            return found
    config = _complete(checkpoint.config)
    nested = config.get("vision_config")
    places: list[Mapping[str, Any]] = []
    if isinstance(nested, Mapping):
        places = list(_walk(nested))
    elif layout.is_tower:
        places = [config]
    other = "encoder_config" if part == "sam" else "sam_config"
    if isinstance(nested, Mapping) and isinstance(nested.get(other), Mapping):
        places = [place for place in places if place is not nested[other]]
    for place in places:
        if place.get("hidden_size") == hidden_size:
            return {name: place[name] for name in HINTS if place.get(name) is not None}
        # DeepSeek's own: {"clip-l-14-224": {"width": 1024, "heads": 16, ..}, "sam_vit_b": {..}}
        if place.get("width") == hidden_size and isinstance(place.get("heads"), int):
            is_sam = "global_attn_indexes" in place
            if part == ("sam" if is_sam else "clip"):
                windows = {"global_attn_indexes": place["global_attn_indexes"]} if is_sam else {}
                return {"num_attention_heads": place["heads"], **windows}
    return {}


def _part(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _count_layers(shapes: Shapes) -> int:
    numbers = {int(name.split(".")[1]) for name in shapes if name.startswith("layers.")}
    if numbers != set(range(len(numbers))) or not numbers:
        raise ValueError(f"The blocks are numbered {sorted(numbers)}, which is not 0, 1, 2 and so on.")
    return len(numbers)


def _shape(shapes: Shapes, name: str, length: int) -> tuple[int, ...]:
    if name not in shapes:
        raise ValueError(f"The checkpoint has nothing that would become {name!r}: it is not whole.")
    if len(shapes[name]) != length:
        raise ValueError(f"What would become {name!r} has shape {shapes[name]}, which is not of {length} sides.")
    return shapes[name]


def infer_sam_config(shapes: Shapes, hints: Mapping[str, Any]) -> SamEncoderConfig:
    """Read a SAM encoder's sizes off the shapes of its tensors.

    Args:
        shapes: shapes by their names here.
        hints: of [`read_hints`]: activation and epsilon; windows where the tables of positions do not tell.

    Raises:
        `ValueError`: a part is missing, or windows and whole maps have tables of one length, so that blocks cannot be
            told apart.
    """
    hidden_size, num_channels, patch_size, _ = _shape(shapes, "embeddings.patch_embedding.weight", 4)
    grid_size = _shape(shapes, "embeddings.position_embedding", 4)[1]
    num_layers = _count_layers(shapes)
    rows = [_shape(shapes, f"layers.{index}.attn.rel_pos_h", 2) for index in range(num_layers)]
    head_dim = rows[0][1]
    if hidden_size % head_dim:
        raise ValueError(f"A width of {hidden_size} is no multiple of the position tables' {head_dim}.")
    global_rows = 2 * grid_size - 1
    windowed = {length for length, _ in rows if length != global_rows}
    indexes = tuple(index for index, (length, _) in enumerate(rows) if length == global_rows)
    if len(windowed) == 1:
        window_size = (windowed.pop() + 1) // 2
    elif windowed or not isinstance(hints.get("global_attn_indexes"), (list, tuple)):
        lengths = sorted({length for length, _ in rows})
        raise ValueError(
            f"Cannot tell windowed from global blocks by the lengths of their position tables: {lengths}."
        )
    else:
        window_size, indexes = hints.get("window_size", grid_size), tuple(hints["global_attn_indexes"])
    convolutions = sorted(name for name in shapes if name.startswith("compressor.convs."))
    return SamEncoderConfig(
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // head_dim,
        intermediate_size=_shape(shapes, "layers.0.mlp.lin1.weight", 2)[0],
        num_channels=num_channels,
        image_size=grid_size * patch_size,
        patch_size=patch_size,
        window_size=window_size,
        global_attn_indexes=indexes,
        output_channels=_shape(shapes, "neck.conv1.weight", 4)[0],
        # A plain SAM has none: the published compressor is added, newly initialised.
        downsample_channels=tuple(_shape(shapes, name, 4)[0] for name in convolutions) or (512, 1024),
        **{name: hints[name] for name in ("hidden_act", "layer_norm_eps") if name in hints},
    )


def infer_clip_config(shapes: Shapes, hints: Mapping[str, Any], **values: Any) -> ClipVisionEncoderConfig:
    """Read a tower's sizes off the shapes of its tensors, and off hints what these do not tell.

    Args:
        shapes: shapes by their names here.
        hints: of [`read_hints`], or the defaults of a layout.
        values: fields that overrule all else.

    Raises:
        `ValueError`: a part is missing, or the number of heads is nowhere to be found.
    """
    position_shape = shapes.get("embeddings.position_embedding", ())
    if len(position_shape) < 2:
        raise ValueError("The checkpoint has no table of positions of the CLIP tower: it is not whole.")
    positions, hidden_size = position_shape[-2:]
    grid_size = round((positions - 1) ** 0.5)
    if grid_size**2 + 1 != positions:
        raise ValueError(f"{positions} positions are not a square and a class token.")
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
        _, found["num_channels"], found["patch_size"], _ = _shape(shapes, "embeddings.patch_embedding.weight", 4)
    if "visual_projection.weight" in shapes:
        found["projection_dim"] = _shape(shapes, "visual_projection.weight", 2)[0]
    found |= {name: value for name, value in hints.items() if name not in ("window_size", "global_attn_indexes")}
    found |= values
    if found["num_attention_heads"] is None:
        raise ValueError(f"num_attention_heads of a tower of width {hidden_size} is not known: pass it.")
    return ClipVisionEncoderConfig(image_size=grid_size * found["patch_size"], **found)


def infer_config(layout: Layout, shapes: Shapes, checkpoint: Checkpoint, **values: Any) -> Any:
    """Read the configuration of what a checkpoint of a layout becomes.

    Args:
        layout: what it is.
        shapes: shapes by their names here.
        checkpoint: whose files may tell more.
        values: fields of the CLIP tower that overrule all else.

    Raises:
        `ValueError`: a size that nothing tells, or a part that is missing.
    """

    def sam(shapes: Shapes) -> SamEncoderConfig:
        hidden_size = _shape(shapes, "embeddings.patch_embedding.weight", 4)[0]
        return infer_sam_config(shapes, read_hints(layout, checkpoint, hidden_size, "sam"))

    def clip(shapes: Shapes) -> ClipVisionEncoderConfig:
        width = (shapes.get("embeddings.class_embedding") or (0,))[-1]
        return infer_clip_config(
            shapes, dict(layout.defaults) | read_hints(layout, checkpoint, width, "clip"), **values
        )

    if layout.model_type == SamEncoderConfig.model_type:
        return sam(shapes)
    if layout.model_type == ClipVisionEncoderConfig.model_type:
        return clip(shapes)
    projection_dim = 1280  # the published one, where there is nothing to tell
    if "projector.layers.0.weight" in shapes:
        projection_dim = _shape(shapes, "projector.layers.0.weight", 2)[0]
    elif "image_newline" in shapes:
        projection_dim = _shape(shapes, "image_newline", 1)[0]
    return DeepEncoderConfig(
        sam_config=sam(_part(shapes, "sam_encoder.")),
        clip_config=clip(_part(shapes, "clip_encoder.")),
        projection_dim=projection_dim,
    )
