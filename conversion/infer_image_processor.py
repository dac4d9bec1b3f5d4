"""The image processor that comes with a converted checkpoint.

Unusual: a SAM, CLIP or ViT tower keeps the processor of its family in transformers, with the numbers beside the
checkpoint where there are some; only what DeepSeek-OCR reads pages with becomes a [`DeepEncoderImageProcessor`].
"""

from collections.abc import Mapping
from typing import Any

from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ..processing import DeepEncoderImageProcessor
from ..processing.modes import MODES
from .checkpoint import Checkpoint
from .layouts import Layout

__all__ = ["infer_image_processor"]

# Sides up to which DeepSeek-OCR squashes pages, instead of padding them.
LARGEST_SQUASHED = 640
# transformers' own, whose file may leave out what is its default.
UNLIMITED_OCR = ("UnlimitedOcrImageProcessor", "UnlimitedOcrImageProcessorFast")
UNLIMITED_OCR_DEFAULTS = {"crop_to_patches": True, "min_patches": 2, "max_patches": 32, "tile_size": 640}
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


def _read_saved(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the fields of the image processor beside a checkpoint, if there is one."""
    saved = checkpoint.read_json("preprocessor_config.json")
    if saved:
        return saved
    processor = checkpoint.read_json("processor_config.json")
    nested = processor.get("image_processor")
    return dict(nested) if isinstance(nested, Mapping) else processor


def _read_side(*configs: Mapping[str, Any]) -> int | None:
    """Return the side of the view that DeepSeek-OCR's own files name, in pixels."""
    for config in configs:
        resolutions = config.get("candidate_resolutions")
        if isinstance(resolutions, list) and resolutions and isinstance(resolutions[0], list) and resolutions[0]:
            return int(resolutions[0][0])
    for config in configs:
        vision = config.get("vision_config")
        if isinstance(vision, Mapping) and isinstance(vision.get("image_size"), int):
            return vision["image_size"]
    return None


def _infer_pages(checkpoint: Checkpoint, saved: Mapping[str, Any]) -> DeepEncoderImageProcessor:
    size = saved.get("size")
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        if saved.get("image_processor_type") in UNLIMITED_OCR:
            saved = UNLIMITED_OCR_DEFAULTS | dict(saved)
        fields = {name: saved[name] for name in FIELDS if saved.get(name) is not None}
        side = max(int(size["height"]), int(size["width"]))
        fields["size"] = {"height": side, "width": side}  # its views are square
        largest_squashed = int(saved.get("maximum_pad_value", LARGEST_SQUASHED))
        fields.setdefault("do_pad", bool(saved.get("crop_to_patches")) or side > largest_squashed)
        return DeepEncoderImageProcessor(**fields)
    means = {name: saved[name] for name in ("image_mean", "image_std") if saved.get(name) is not None}
    side = _read_side(saved, checkpoint.config) or MODES["base"]["size"]["height"]
    for mode, fields in MODES.items():
        if fields["size"]["height"] == side and not fields["crop_to_patches"]:
            return DeepEncoderImageProcessor(mode=mode, **means)
    return DeepEncoderImageProcessor(
        size={"height": side, "width": side}, do_pad=side > LARGEST_SQUASHED, crop_to_patches=False, **means
    )


def infer_image_processor(layout: Layout, checkpoint: Checkpoint, config: Any) -> Any:
    """Make the image processor that belongs to a checkpoint.

    Args:
        layout: what the checkpoint is.
        checkpoint: beside which there may be an image processor's own file, which comes first.
        config: of the model that the checkpoint becomes; its `image_size` is for towers without such a file.

    Raises:
        `ValueError`: a file beside the checkpoint says something that cannot be.
    """
    try:
        processor = _infer(layout, checkpoint, config)
        mean, std = (list(map(float, getattr(processor, name))) for name in ("image_mean", "image_std"))
        if len(mean) != 3 or len(std) != 3 or 0 in std:
            raise ValueError(f"image_mean {mean} and image_std {std} are not of three channels")
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"The image processor's file beside the checkpoint is damaged: {reason}") from error
    return processor


def _infer(layout: Layout, checkpoint: Checkpoint, config: Any) -> Any:
    saved = _read_saved(checkpoint)
    if layout.pixels == "deepseek":
        return _infer_pages(checkpoint, saved)
    if layout.pixels == "got" and not saved:
        side = {"height": config.image_size, "width": config.image_size}
        return DeepEncoderImageProcessor(
            size=side, do_pad=False, image_mean=OPENAI_CLIP_MEAN, image_std=OPENAI_CLIP_STD
        )
    if layout.pixels == "got":
        return _infer_pages(checkpoint, {"do_pad": False} | saved)
    processor_class = {"sam": SamImageProcessorPil, "clip": CLIPImageProcessorPil, "vit": ViTImageProcessorPil}[
        layout.pixels
    ]
    if "image_mean" in saved:
        return processor_class.from_dict(saved)
    side = config.image_size
    if layout.pixels == "sam":
        return processor_class(size={"longest_edge": side}, pad_size={"height": side, "width": side})
    values: dict[str, Any] = {"size": {"height": side, "width": side}}
    if layout.pixels == "clip":
        values = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    # timm's and open_clip's own files
    told = checkpoint.config.get("pretrained_cfg") or checkpoint.read_json("open_clip_config.json").get(
        "preprocess_cfg"
    )
    if isinstance(told, Mapping):
        names = {"mean": "image_mean", "std": "image_std"}
        values |= {here: list(told[there]) for there, here in names.items() if there in told}
    return processor_class(**values)
