"""Checkpoints of other code: recognise, convert and verify them, write encoders back, and export models."""

from typing import TYPE_CHECKING

from ..lazy import lazy_attributes

if TYPE_CHECKING:
    from .converter import Conversion, convert_checkpoint
    from .from_original import convert_to_folder
    from .readers.hub import HubOptions
    from .report import ConversionReport
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
            "Conversion": ".converter",
            "ConversionReport": ".report",
            "HubOptions": ".readers.hub",
            "RestorationReport": ".restoration",
            "convert_checkpoint": ".converter",
            "convert_to_folder": ".from_original",
            "restore_checkpoint": ".restoration",
        },
    )
