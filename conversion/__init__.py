"""Checkpoints of other code: what they hold, models of it, and the way back."""

from .checkpoints import Conversion, ConversionReport, convert_checkpoint
from .originals import convert_to_folder
from .remote import HubOptions
from .restoration import RestorationReport, restore_checkpoint

__all__ = [
    "Conversion",
    "ConversionReport",
    "HubOptions",
    "RestorationReport",
    "convert_checkpoint",
    "convert_to_folder",
    "restore_checkpoint",
]
