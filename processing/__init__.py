"""Images in, features out: tiling, the image processor, and pictures of what the encoder saw."""

from .image_processing import DeepEncoderImageProcessor

__all__ = ["DeepEncoderImageProcessor"]
