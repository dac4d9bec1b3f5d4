"""Export of models to other runtimes."""

from .checks import TOLERANCE
from .exporting import export_model
from .folders import export_folder
from .formats import FORMATS, OPSET
from .graphs import fix_image_size
from .transformers_js import export_for_transformers_js

__all__ = [
    "FORMATS",
    "OPSET",
    "TOLERANCE",
    "export_folder",
    "export_for_transformers_js",
    "export_model",
    "fix_image_size",
]
