"""Fields of a tower's configuration that tensor shapes do not determine, from the files beside a checkpoint.

Unusual: in the `config.json` of a language model, the top level describes the language model, so only its
`vision_config` is searched, for a tower of the width that the tensors have. The command line's help reads this file by
way of the layouts, so it imports transformers only when a configuration is read.
"""

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

__all__ = ["TowerPart", "read_language_model_hints", "read_open_clip_hints", "read_tower_hints"]

# Configurations of transformers whose files may leave out fields that have transformers' default value.
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
HINTS = (
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "rms_norm_eps",
    "rope_parameters",
    "window_size",
    "global_attn_indexes",
)


class TowerPart(Enum):
    """Which tower of a model is meant; the value is its field in the configurations of transformers' OCR models."""

    SAM = "sam_config"
    CLIP = "encoder_config"
    QUERIES = "encoder_config"  # No model has both.


def _walk(fields: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a configuration and all that are nested in it, except for those of language models."""
    left = [fields]
    while left:
        place = left.pop()
        yield place
        nested = [(name, value) for name, value in place.items() if isinstance(value, Mapping)]
        left += [value for name, value in reversed(nested) if not name.startswith("text")]


def _complete(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Fill in the defaults of one of transformers' configurations."""
    from transformers import CONFIG_MAPPING

    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or model_type not in KNOWN_CONFIGS or model_type not in CONFIG_MAPPING:
        return fields
    try:
        return CONFIG_MAPPING[model_type].from_dict(dict(fields)).to_dict()
    except Exception:  # The file is damaged: whatever fields it has are used as they are.
        return fields


def _read_place(place: Mapping[str, Any], hidden_size: int, part: TowerPart) -> dict[str, Any] | None:
    """Return the hints of one configuration, or None if it does not describe the tower."""
    if place.get("hidden_size") == hidden_size:
        return {name: place[name] for name in HINTS if place.get(name) is not None}
    # DeepSeek's own: {"clip-l-14-224": {"width": 1024, "heads": 16, ..}, "sam_vit_b": {..}}
    if place.get("width") == hidden_size and isinstance(place.get("heads"), int):
        is_sam = "global_attn_indexes" in place
        if part is (TowerPart.SAM if is_sam else TowerPart.CLIP):
            windows = {"global_attn_indexes": place["global_attn_indexes"]} if is_sam else {}
            return {"num_attention_heads": place["heads"], **windows}
    return None


def _search(places: list[Mapping[str, Any]], hidden_size: int, part: TowerPart) -> dict[str, Any]:
    found = (_read_place(place, hidden_size, part) for place in places)
    return next((hints for hints in found if hints is not None), {})


def _vision_places(config: Mapping[str, Any], part: TowerPart) -> list[Mapping[str, Any]]:
    """Return the configurations in `vision_config` that may describe the tower; none if there is no such field."""
    nested = config.get("vision_config")
    if not isinstance(nested, Mapping):
        return []
    others = [nested.get(other.value) for other in TowerPart if other is not part]
    return [place for place in _walk(nested) if not any(place is other for other in others)]


def read_language_model_hints(checkpoint: "Checkpoint", hidden_size: int, part: TowerPart) -> dict[str, Any]:
    """Read what the `config.json` of a language model says about its vision tower.

    Args:
        checkpoint: the checkpoint.
        hidden_size: the tower's width.
        part ([`TowerPart`]): which tower, for models that have both.

    Returns:
        Those of [`HINTS`] that the file contains.
    """
    return _search(_vision_places(_complete(checkpoint.config), part), hidden_size, part)


def read_tower_hints(checkpoint: "Checkpoint", hidden_size: int, part: TowerPart) -> dict[str, Any]:
    """Read what a tower's own `config.json` says; see [`read_language_model_hints`] for the arguments."""
    config = _complete(checkpoint.config)
    nested = isinstance(config.get("vision_config"), Mapping)
    return _search(_vision_places(config, part) if nested else [config], hidden_size, part)


def read_open_clip_hints(checkpoint: "Checkpoint", hidden_size: int, part: TowerPart) -> dict[str, Any]:
    """Read what `open_clip_config.json` says, or else `config.json`; see [`read_language_model_hints`].

    Raises:
        `ValueError`: the tower is of a kind that is not supported.
    """
    open_clip = checkpoint.read_json("open_clip_config.json").get("model_cfg")
    found = _read_open_clip(open_clip, hidden_size) if isinstance(open_clip, Mapping) else {}
    return found or read_tower_hints(checkpoint, hidden_size, part)


def _read_open_clip(fields: Mapping[str, Any], hidden_size: int) -> dict[str, Any]:
    tower = fields.get("vision_cfg")
    if not isinstance(tower, Mapping) or tower.get("width") != hidden_size:
        return {}
    head_width = tower.get("head_width", 64)
    if not isinstance(head_width, int) or head_width < 1 or hidden_size % head_width:
        raise ValueError(
            f"open_clip_config.json: head_width {head_width!r:.100} does not divide the width {hidden_size}."
        )
    for name, usual in (("pool_type", "tok"), ("timm_model_name", None), ("attentional_pool", False)):
        if tower.get(name, usual) != usual:
            raise ValueError(f"open_clip_config.json: a tower with {name} {tower[name]!r:.100} is not supported.")
    activation = "quick_gelu" if fields.get("quick_gelu") else "gelu"
    found: dict[str, Any] = {"num_attention_heads": hidden_size // head_width, "hidden_act": activation}
    norm = tower.get("norm_kwargs")
    if isinstance(norm, Mapping) and "eps" in norm:
        found["layer_norm_eps"] = norm["eps"]
    return found
