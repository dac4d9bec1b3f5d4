"""What a model is: one configuration a model, and their checks."""

from typing import TYPE_CHECKING

from ..lazy import lazy_attributes

if TYPE_CHECKING:
    from .clip_vision_encoder import ClipVisionEncoderConfig
    from .deepencoder import DeepEncoderConfig
    from .deepencoder_v2 import DeepEncoderV2Config
    from .sam_encoder import SamEncoderConfig

__all__ = ["ClipVisionEncoderConfig", "DeepEncoderConfig", "DeepEncoderV2Config", "SamEncoderConfig"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "ClipVisionEncoderConfig": ".clip_vision_encoder",
            "DeepEncoderConfig": ".deepencoder",
            "DeepEncoderV2Config": ".deepencoder_v2",
            "SamEncoderConfig": ".sam_encoder",
        },
    )
