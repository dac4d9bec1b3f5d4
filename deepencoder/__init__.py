"""DeepSeek-OCR's vision encoder for Hugging Face transformers.

Importing this package registers its models with `AutoConfig`, `AutoModel` and `AutoImageProcessor`.

Unusual: the import takes milliseconds. Public names are imported when they are first used, and registered when
transformers' Auto classes are first imported.
"""

import os
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if not os.path.isdir(os.path.join(os.path.dirname(__file__), "modeling")):
    raise ImportError(
        "This checkout of deepencoder lacks its symbolic links. On Windows, turn on developer mode, set "
        "`git config --global core.symlinks true` and clone again; or install a wheel."
    )

from .configuration.package_services import provide_services
from .lazy import lazy_attributes
from .registration import register
from .services import SERVICES

if TYPE_CHECKING:
    from .configuration import ClipVisionEncoderConfig, DeepEncoderConfig, DeepEncoderV2Config, SamEncoderConfig
    from .integrations import insert_vision_tokens, replace_vision_tower, restore_vision_tower
    from .modeling import (
        ClipVisionEncoder,
        ClipVisionEncoderOutput,
        DeepEncoder,
        DeepEncoderOutput,
        DeepEncoderV2,
        SamEncoder,
        window_positions,
    )
    from .processing import (
        DeepEncoderImageProcessor,
        TokenLayout,
        draw_heat_map,
        draw_similarity,
        stitch_vision_tokens,
    )
    from .reading import PageReader, page_reader, render_text
    from .runtimes import ExportedDeepEncoder

__all__ = [
    "ClipVisionEncoder",
    "ClipVisionEncoderConfig",
    "ClipVisionEncoderOutput",
    "DeepEncoder",
    "DeepEncoderConfig",
    "DeepEncoderImageProcessor",
    "DeepEncoderOutput",
    "DeepEncoderV2",
    "DeepEncoderV2Config",
    "ExportedDeepEncoder",
    "PageReader",
    "SamEncoder",
    "SamEncoderConfig",
    "TokenLayout",
    "window_positions",
    "draw_heat_map",
    "draw_similarity",
    "insert_vision_tokens",
    "page_reader",
    "render_text",
    "replace_vision_tower",
    "restore_vision_tower",
    "stitch_vision_tokens",
]

try:
    __version__ = version("deepencoder")
except PackageNotFoundError:  # A checkout that is on the path, but not installed.
    __version__ = "0.0.0"

if not TYPE_CHECKING:  # A type checker would take `__getattr__` as leave to use any name.
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "ClipVisionEncoder": ".modeling.clip_vision_encoder",
            "ClipVisionEncoderConfig": ".configuration.clip_vision_encoder",
            "ClipVisionEncoderOutput": ".modeling.clip_vision_encoder",
            "DeepEncoder": ".modeling.deepencoder",
            "DeepEncoderConfig": ".configuration.deepencoder",
            "DeepEncoderImageProcessor": ".processing.image_processing",
            "DeepEncoderOutput": ".modeling.pages",
            "DeepEncoderV2": ".modeling.deepencoder_v2",
            "DeepEncoderV2Config": ".configuration.deepencoder_v2",
            "ExportedDeepEncoder": ".runtimes.exported_model",
            "PageReader": ".reading.reader",
            "SamEncoder": ".modeling.sam_encoder",
            "SamEncoderConfig": ".configuration.sam_encoder",
            "TokenLayout": ".processing.token_layout",
            "window_positions": ".modeling.windows",
            "draw_heat_map": ".processing.visualization",
            "draw_similarity": ".processing.visualization",
            "insert_vision_tokens": ".integrations.ready_tokens",
            "page_reader": ".reading.shipped",
            "render_text": ".reading.rendering",
            "replace_vision_tower": ".integrations.vision_towers",
            "restore_vision_tower": ".integrations.vision_towers",
            "stitch_vision_tokens": ".processing.stitching",
        },
        subpackages=(
            "configuration",
            "modeling",
            "processing",
            "extraction",
            "conversion",
            "integrations",
            "reading",
            "runtimes",
            "sharing",
        ),
    )

provide_services(SERVICES)
register()
