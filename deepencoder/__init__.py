"""DeepSeek-OCR's vision encoder for Hugging Face transformers.

Importing this package registers its models with `AutoConfig`, `AutoModel` and `AutoImageProcessor`.

Unusual: it costs next to nothing. What is public is imported when it is first asked for, and registered when
transformers' Auto classes are first imported.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from .registration import register

if TYPE_CHECKING:
    from .configuration import ClipVisionEncoderConfig, DeepEncoderConfig, SamEncoderConfig
    from .modeling import ClipVisionEncoder, ClipVisionEncoderOutput, DeepEncoder, DeepEncoderOutput, SamEncoder
    from .processing import DeepEncoderImageProcessor

__all__ = [
    "ClipVisionEncoder",
    "ClipVisionEncoderConfig",
    "ClipVisionEncoderOutput",
    "DeepEncoder",
    "DeepEncoderConfig",
    "DeepEncoderImageProcessor",
    "DeepEncoderOutput",
    "SamEncoder",
    "SamEncoderConfig",
]

try:
    __version__ = version("deepencoder")
except PackageNotFoundError:  # a checkout that is on the path, and not installed
    __version__ = "0.0.0"

_FOLDERS = ("configuration", "modeling", "processing")

if not TYPE_CHECKING:  # a type checker would take it for leave to ask for any name

    def __getattr__(name: str) -> Any:
        if name in _FOLDERS:
            return importlib.import_module(f".{name}", __name__)
        if name in __all__:
            folder = "modeling"
            if name.endswith("Config"):
                folder = "configuration"
            elif name.endswith("Processor"):
                folder = "processing"
            globals()[name] = value = getattr(importlib.import_module(f".{folder}", __name__), name)
            return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_FOLDERS})


register()
