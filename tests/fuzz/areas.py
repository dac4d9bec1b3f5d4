"""The table of areas. To add one, write a module with a `run`, and add a row."""

from . import (
    arrays,
    checkpoints,
    command_lines,
    configurations,
    containers,
    image_processors,
    images,
    models,
    output_folders,
)
from .trials import Area

__all__ = ["AREAS"]

GIB = 1 << 30

# Cheap areas have many cases, and expensive ones few. Images may have as many pixels as Pillow's limit allows.
AREAS = (
    Area("images", 270, images.run, memory=3 * GIB),
    Area("arrays", 150, arrays.run),
    Area("configurations", 120, configurations.run),
    Area("image_processors", 110, image_processors.run, memory=2 * GIB),
    Area("checkpoints", 130, checkpoints.run),
    Area("containers", 90, containers.run, memory=3 * GIB),
    Area("output_folders", 40, output_folders.run),
    Area("models", 50, models.run),
    Area("command_lines", 50, command_lines.run, seconds=60, memory=3 * GIB),
)
