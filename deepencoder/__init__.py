"""DeepSeek-OCR's vision encoder for Hugging Face transformers.

Importing this package registers its models with `AutoConfig`, `AutoModel` and `AutoImageProcessor`.
"""

from importlib.metadata import PackageNotFoundError, version

from transformers import AutoConfig, AutoModel

# From its module: older versions hide it in the top-level package where torchvision is missing.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

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

for _config, _model in (
    (SamEncoderConfig, SamEncoder),
    (ClipVisionEncoderConfig, ClipVisionEncoder),
    (DeepEncoderConfig, DeepEncoder),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
    # Pillow does the work whichever backend is asked for: only it gives the pixels that the model was trained on.
    AutoImageProcessor.register(
        _config,
        image_processor_classes={"pil": DeepEncoderImageProcessor, "torchvision": DeepEncoderImageProcessor},
        exist_ok=True,
    )
