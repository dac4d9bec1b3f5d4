"""What a model is: the three configurations."""

from .clip_vision_encoder import ClipVisionEncoderConfig
from .deepencoder import DeepEncoderConfig
from .sam_encoder import SamEncoderConfig

__all__ = ["ClipVisionEncoderConfig", "DeepEncoderConfig", "SamEncoderConfig"]
