"""What a model computes: one file a model, and what these are built from."""

from typing import TYPE_CHECKING

from ..lazy import lazy_attributes

if TYPE_CHECKING:
    from .clip_vision_encoder import ClipVisionEncoder, ClipVisionEncoderOutput
    from .deepencoder import DeepEncoder
    from .deepencoder_v2 import DeepEncoderV2
    from .pages import DeepEncoderOutput
    from .sam_encoder import SamEncoder
    from .windows import window_positions

__all__ = [
    "ClipVisionEncoder",
    "ClipVisionEncoderOutput",
    "DeepEncoder",
    "DeepEncoderOutput",
    "DeepEncoderV2",
    "SamEncoder",
    "window_positions",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "ClipVisionEncoder": ".clip_vision_encoder",
            "ClipVisionEncoderOutput": ".clip_vision_encoder",
            "DeepEncoder": ".deepencoder",
            "DeepEncoderOutput": ".pages",
            "DeepEncoderV2": ".deepencoder_v2",
            "SamEncoder": ".sam_encoder",
            "window_positions": ".windows",
        },
    )
