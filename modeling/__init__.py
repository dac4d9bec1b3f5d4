"""What a model computes: the three models and what they are built from."""

from .clip_vision_encoder import ClipVisionEncoder, ClipVisionEncoderOutput
from .deepencoder import DeepEncoder, DeepEncoderOutput
from .sam_encoder import SamEncoder

__all__ = ["ClipVisionEncoder", "ClipVisionEncoderOutput", "DeepEncoder", "DeepEncoderOutput", "SamEncoder"]
