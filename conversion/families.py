"""Families of checkpoints: what layouts have in common besides the names of their tensors.

Unusual: these rows hold functions. The command line's help reads them by way of the layouts, so the modules that they
come from import torch and transformers only when the functions are called.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .config_hints import TowerPart, read_language_model_hints, read_open_clip_hints, read_tower_hints
from .infer_image_processor import (
    infer_clip_processor,
    infer_got_processor,
    infer_page_processor,
    infer_query_processor,
    infer_sam_processor,
    infer_vit_processor,
)

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

__all__ = [
    "CLIP",
    "DEEPSEEK_OCR",
    "DEEPSEEK_OCR_2",
    "DEEPSEEK_OCR_CLIP",
    "DEEPSEEK_OCR_SAM",
    "GOT_OCR",
    "OPEN_CLIP",
    "SAM",
    "VIT",
    "Family",
]


@dataclass(frozen=True)
class Family:
    """A family of checkpoints.

    Args:
        model_type: `model_type` of the model that the checkpoints become.
        image_processor: makes the image processor; takes the checkpoint and the configuration of its model.
        read_hints: reads the files beside a checkpoint; see [`read_language_model_hints`].
        absent_parts: prefixes of tensors of the model that the checkpoints never have. They are newly initialised, and
            are left out when an encoder is written back.
    """

    model_type: str
    image_processor: Callable[["Checkpoint", Any], Any]
    read_hints: Callable[["Checkpoint", int, TowerPart], dict[str, Any]]
    absent_parts: tuple[str, ...] = ()


DEEPSEEK_OCR = Family("deepencoder", infer_page_processor, read_language_model_hints)
DEEPSEEK_OCR_2 = Family("deepencoder_v2", infer_query_processor, read_language_model_hints)
DEEPSEEK_OCR_SAM = Family("deepencoder_sam", infer_page_processor, read_language_model_hints)
DEEPSEEK_OCR_CLIP = Family("deepencoder_clip_vision", infer_clip_processor, read_language_model_hints)
GOT_OCR = Family("deepencoder_sam", infer_got_processor, read_language_model_hints)
SAM = Family("deepencoder_sam", infer_sam_processor, read_tower_hints, absent_parts=("compressor.",))
CLIP = Family("deepencoder_clip_vision", infer_clip_processor, read_tower_hints)
OPEN_CLIP = Family("deepencoder_clip_vision", infer_clip_processor, read_open_clip_hints)
VIT = Family("deepencoder_clip_vision", infer_vit_processor, read_tower_hints)
