"""The image processor that belongs to a checkpoint, from the files beside it.

Unusual: a SAM, CLIP or ViT tower gets the image processor of its family in transformers; only checkpoints that read
pages get a [`DeepEncoderImageProcessor`]. The command line's help reads this file by way of the layouts, so each
function imports the class that it makes.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..processing.modes import MODES

if TYPE_CHECKING:
    from .checkpoint import Checkpoint
    from .layouts import Layout

__all__ = [
    "infer_clip_processor",
    "infer_got_processor",
    "infer_image_processor",
    "infer_page_processor",
    "infer_query_processor",
    "infer_sam_processor",
    "infer_vit_processor",
]

# Largest view, in pixels, that DeepSeek-OCR squashes pages into; pages are padded to larger ones.
LARGEST_SQUASHED = 640
# transformers' own classes, whose files may leave out fields that have the class's default value.
UNLIMITED_OCR = ("UnlimitedOcrImageProcessor", "UnlimitedOcrImageProcessorFast")
UNLIMITED_OCR_DEFAULTS = {"crop_to_patches": True, "min_patches": 2, "max_patches": 32, "tile_size": 640}
V2_FIELDS = ("crop_to_patches", "min_patches", "max_patches", "background_color", "image_mean", "image_std")
FIELDS = (
    "size",
    "do_pad",
    "crop_to_patches",
    "min_patches",
    "max_patches",
    "tile_size",
    "background_color",
    "image_mean",
    "image_std",
    "rescale_factor",
    "do_rescale",
    "do_normalize",
)


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def _read_saved(checkpoint: "Checkpoint") -> dict[str, Any]:
    """Return the fields of the image processor beside a checkpoint, or an empty dict."""
    saved = checkpoint.read_json("preprocessor_config.json")
    if saved:
        return saved
    processor = checkpoint.read_json("processor_config.json")
    nested = processor.get("image_processor")
    return dict(nested) if isinstance(nested, Mapping) else processor


def _read_side(*configs: Mapping[str, Any]) -> int | None:
    """Return the side of the view in pixels, from DeepSeek-OCR's own files."""
    for config in configs:
        resolutions = config.get("candidate_resolutions")
        if isinstance(resolutions, list) and resolutions and isinstance(resolutions[0], list) and resolutions[0]:
            return int(resolutions[0][0])
    for config in configs:
        vision = config.get("vision_config")
        if isinstance(vision, Mapping) and isinstance(vision.get("image_size"), int):
            return vision["image_size"]
    return None


def _from_saved_size(saved: Mapping[str, Any], size: Mapping[str, Any]) -> Any:
    """Make the image processor of a file that follows transformers' conventions."""
    from ..processing import DeepEncoderImageProcessor

    if saved.get("image_processor_type") in UNLIMITED_OCR:
        saved = UNLIMITED_OCR_DEFAULTS | dict(saved)
    fields = {name: saved[name] for name in FIELDS if saved.get(name) is not None}
    side = max(int(size["height"]), int(size["width"]))
    fields["size"] = _square(side)  # Views of a DeepEncoder are square.
    largest_squashed = int(saved.get("maximum_pad_value", LARGEST_SQUASHED))
    fields.setdefault("do_pad", bool(saved.get("crop_to_patches")) or side > largest_squashed)
    return DeepEncoderImageProcessor(**fields)


def _infer_pages(checkpoint: "Checkpoint", saved: Mapping[str, Any]) -> Any:
    from ..processing import DeepEncoderImageProcessor

    size = saved.get("size")
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        return _from_saved_size(saved, size)
    means = {name: saved[name] for name in ("image_mean", "image_std") if saved.get(name) is not None}
    side = _read_side(saved, checkpoint.config) or MODES["base"]["size"]["height"]
    for mode, fields in MODES.items():
        if fields["size"]["height"] == side and not fields["crop_to_patches"]:
            return DeepEncoderImageProcessor(mode=mode, **means)
    return DeepEncoderImageProcessor(
        size=_square(side), do_pad=side > LARGEST_SQUASHED, crop_to_patches=False, **means
    )


def infer_page_processor(checkpoint: "Checkpoint", config: Any) -> Any:
    """Make the image processor of DeepSeek-OCR or one of its relatives."""
    return _infer_pages(checkpoint, _read_saved(checkpoint))


def infer_query_processor(checkpoint: "Checkpoint", config: Any) -> Any:
    """Make the image processor of DeepSeek-OCR-2: the mode `"v2"`, with other tiles if its file says so."""
    from ..processing import DeepEncoderImageProcessor

    saved = _read_saved(checkpoint)
    fields = {name: saved[name] for name in V2_FIELDS if saved.get(name) is not None}
    return DeepEncoderImageProcessor(mode="v2", **fields)


def infer_got_processor(checkpoint: "Checkpoint", config: Any) -> Any:
    """Make the image processor of GOT-OCR-2.0 or Vary, which squash pages and normalise them as CLIP does."""
    saved = _read_saved(checkpoint)
    if saved:
        return _infer_pages(checkpoint, {"do_pad": False} | saved)
    from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    from ..processing import DeepEncoderImageProcessor

    return DeepEncoderImageProcessor(
        size=_square(config.image_size), do_pad=False, image_mean=OPENAI_CLIP_MEAN, image_std=OPENAI_CLIP_STD
    )


def _read_statistics(checkpoint: "Checkpoint") -> dict[str, list[float]]:
    """Return mean and standard deviation from the files of timm or open_clip, as far as they have them."""
    fields = checkpoint.config.get("pretrained_cfg")
    fields = fields or checkpoint.read_json("open_clip_config.json").get("preprocess_cfg")
    if not isinstance(fields, Mapping):
        return {}
    names = {"mean": "image_mean", "std": "image_std"}
    return {here: list(fields[there]) for there, here in names.items() if there in fields}


def infer_sam_processor(checkpoint: "Checkpoint", config: Any) -> Any:
    """Make the image processor of a SAM."""
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    saved, side = _read_saved(checkpoint), config.image_size
    if "image_mean" in saved:
        return SamImageProcessorPil.from_dict(saved)
    return SamImageProcessorPil(size={"longest_edge": side}, pad_size=_square(side))


def infer_clip_processor(checkpoint: "Checkpoint", config: Any) -> Any:
    """Make the image processor of a CLIP image tower."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    saved, side = _read_saved(checkpoint), config.image_size
    if "image_mean" in saved:
        return CLIPImageProcessorPil.from_dict(saved)
    values: dict[str, Any] = {"size": {"shortest_edge": side}, "crop_size": _square(side)}
    return CLIPImageProcessorPil(**values, **_read_statistics(checkpoint))


def infer_vit_processor(checkpoint: "Checkpoint", config: Any) -> Any:
    """Make the image processor of a ViT."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    saved = _read_saved(checkpoint)
    if "image_mean" in saved:
        return ViTImageProcessorPil.from_dict(saved)
    values: dict[str, Any] = {"size": _square(config.image_size)}
    return ViTImageProcessorPil(**values, **_read_statistics(checkpoint))


def _check_use(processor: Any) -> None:
    """Prepare a small page, within a bound of memory: transformers' own classes accept values of any kind."""
    from PIL import Image

    from ..processing.field_checks import MAX_PIXELS

    for name in ("size", "crop_size", "pad_size"):
        sides = [side for side in dict(getattr(processor, name, None) or {}).values() if side is not None]
        if not all(type(side) is int and 0 < side * side <= MAX_PIXELS for side in sides):
            raise ValueError(f"{name} must hold positive integers up to {math.isqrt(MAX_PIXELS)}")
    processor(Image.new("RGB", (3, 2)), return_tensors="pt")


def infer_image_processor(layout: "Layout", checkpoint: "Checkpoint", config: Any) -> Any:
    """Make the image processor that belongs to a checkpoint.

    Args:
        layout ([`Layout`]): of the checkpoint.
        checkpoint: the checkpoint. An image processor's file beside it takes precedence.
        config: of the model that the checkpoint becomes; its `image_size` is used where there is no such file.

    Raises:
        `ValueError`: a file beside the checkpoint has invalid values.
    """
    try:
        processor = layout.family.image_processor(checkpoint, config)
        mean, std = (list(map(float, getattr(processor, name))) for name in ("image_mean", "image_std"))
        if len(mean) != 3 or len(std) != 3 or 0 in std:
            raise ValueError(f"image_mean {mean} and image_std {std} must have three values, none of std being 0")
        _check_use(processor)
    except Exception as error:  # transformers' classes check little.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"The image processor's file beside the checkpoint is damaged: {reason}") from error
    return processor
