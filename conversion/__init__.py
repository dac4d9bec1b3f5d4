"""Checkpoints of other code: what they hold, our models made from them, and the way back."""

from typing import TYPE_CHECKING

from ..lazy import lazy_attributes

if TYPE_CHECKING:
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

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "Conversion": ".checkpoints",
            "ConversionReport": ".checkpoints",
            "HubOptions": ".remote",
            "RestorationReport": ".restoration",
            "convert_checkpoint": ".checkpoints",
            "convert_to_folder": ".originals",
            "restore_checkpoint": ".restoration",
        },
    )
