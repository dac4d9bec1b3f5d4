"""One row for each of our models: how it is made from a checkpoint, and what proves the conversion."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .infer_config import infer_clip_config, infer_deepencoder_config, infer_deepencoder_v2_config, infer_sam_config
from .references import CLIP_REFERENCE, DEEPENCODER_REFERENCE, DEEPENCODER_V2_REFERENCE, SAM_REFERENCE, Reference

__all__ = ["TARGETS", "Target"]


@dataclass(frozen=True)
class Target:
    """How one of our models is made from a checkpoint.

    Args:
        infer_config: infers its configuration; see [`infer_deepencoder_config`].
        reference ([`Reference`]): what a conversion is compared with.
        optional_parts: prefixes of tensors that a checkpoint may lack as a whole; they are newly initialised.
    """

    infer_config: Callable[..., Any]
    reference: Reference
    optional_parts: tuple[str, ...] = ()


TARGETS = {
    "deepencoder": Target(
        infer_deepencoder_config,
        DEEPENCODER_REFERENCE,
        optional_parts=("projector.", "image_newline", "view_separator"),
    ),
    "deepencoder_v2": Target(
        infer_deepencoder_v2_config,
        DEEPENCODER_V2_REFERENCE,
        optional_parts=("projector.", "view_separator"),
    ),
    "deepencoder_sam": Target(infer_sam_config, SAM_REFERENCE, optional_parts=("compressor.",)),
    "deepencoder_clip_vision": Target(infer_clip_config, CLIP_REFERENCE),
}
"""The models by `model_type`."""
