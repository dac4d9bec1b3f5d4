"""Exported graphs that run like a model: OpenVINO and ONNX Runtime."""

from typing import TYPE_CHECKING

from ..lazy import lazy_attributes

if TYPE_CHECKING:
    from .engines import RUNTIMES
    from .exported_model import ExportedDeepEncoder

__all__ = ["RUNTIMES", "ExportedDeepEncoder"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_attributes(
        __name__, {"RUNTIMES": ".engines", "ExportedDeepEncoder": ".exported_model"}
    )
