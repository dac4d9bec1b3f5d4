"""Configuration of the DeepEncoder: a SAM encoder, a CLIP vision encoder and a projector.

Unusual: the CLIP half runs on SAM's feature map. So it never has a patch embedding (`clip_config.use_patch_embedding`
is always false here), and the number of SAM's output channels must equal CLIP's width.
"""

import copy
from reprlib import repr as shorten
from typing import Any

from huggingface_hub.dataclasses import strict

from .base import DeepEncoderPreTrainedConfig
from .clip_vision_encoder import ClipVisionEncoderConfig
from .sam_encoder import SamEncoderConfig
from .validation import (
    MAX_CHANNELS,
    MAX_LAYERS,
    check_initializer_range,
    check_one_of,
    check_parameters,
    check_positive,
    raises_value_errors,
)

__all__ = ["DeepEncoderConfig"]

PUBLISHED_PROJECTION_DIM = 1280


@raises_value_errors
@strict
class DeepEncoderConfig(DeepEncoderPreTrainedConfig):
    r"""Configuration of a [`DeepEncoder`]. The defaults are DeepSeek-OCR's vision encoder (400,770,048 parameters).

    Args:
        sam_config (`SamEncoderConfig` or `dict`, *optional*): configuration of the SAM half; defaults to the published
            one.
        clip_config (`ClipVisionEncoderConfig` or `dict`, *optional*): configuration of the CLIP half; defaults to the
            published one. It is copied if it has a patch embedding, which the copy has not.
        projector_type (`str`, defaults to `"linear"`): `"linear"`, `"mlp_gelu"` (`projector_depth` linear layers with
            GELU between them) or `"identity"` (vision tokens keep the fused width).
        projector_depth (`int`, defaults to 1): number of linear layers of an `"mlp_gelu"` projector.
        projection_dim (`int`, defaults to 1280): width of a vision token. An `"identity"` projector sets it to the
            fused width.
        initializer_range (`float`, defaults to 0.02): standard deviation of a newly initialised projector.

    Raises:
        `ValueError`: the number of SAM's output channels is not CLIP's `hidden_size`, `projector_type` is unknown, a
            size is not positive, or one of the two halves is invalid.
    """

    model_type = "deepencoder"
    sub_configs = {"sam_config": SamEncoderConfig, "clip_config": ClipVisionEncoderConfig}

    sam_config: Any = None
    clip_config: Any = None
    projector_type: str = "linear"
    projector_depth: int = 1
    projection_dim: int = PUBLISHED_PROJECTION_DIM
    initializer_range: float | int = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        for name, config_class in self.sub_configs.items():
            value = getattr(self, name)
            if value is None or isinstance(value, dict):
                value = config_class(**(value or {}))
                setattr(self, name, value)
            model_type = getattr(value, "model_type", type(value).__name__)
            if model_type != config_class.model_type:
                raise ValueError(
                    f"DeepEncoderConfig.{name} must be a {config_class.model_type!r}, got {shorten(model_type)}."
                )
        if self.clip_config.use_patch_embedding:
            # Copied, as the caller's object may describe another model as well.
            self.clip_config = copy.deepcopy(self.clip_config)
            self.clip_config.use_patch_embedding = False
        if self.projector_type == "identity" and self.projection_dim == PUBLISHED_PROJECTION_DIM:
            self.projection_dim = self.hidden_size
        super().__post_init__(**kwargs)
        self.validate_architecture()

    def validate_architecture(self) -> None:
        """Raise `ValueError` if the two halves or the projector do not fit together."""
        check_positive(self, MAX_LAYERS, "projector_depth")
        check_positive(self, MAX_CHANNELS, "projection_dim")
        check_initializer_range(self)
        check_parameters(
            self,
            self.projection_dim * (self.hidden_size + (self.projector_depth - 1) * self.projection_dim),
            "projection_dim",
            "projector_depth",
        )
        check_one_of(self, "projector_type", ("linear", "mlp_gelu", "identity"))
        if self.sam_config.out_hidden_size != self.clip_config.hidden_size:
            raise ValueError(
                "DeepEncoderConfig: the last of sam_config.downsample_channels must equal clip_config.hidden_size, "
                f"got {self.sam_config.out_hidden_size} and {self.clip_config.hidden_size}."
            )
        if self.projector_type == "identity" and self.projection_dim != self.hidden_size:
            raise ValueError(
                "DeepEncoderConfig.projection_dim of an identity projector is the fused width "
                f"{self.hidden_size}, got {self.projection_dim}."
            )

    @property
    def hidden_size(self) -> int:
        """Width of a fused token, which concatenates CLIP's and SAM's channels."""
        return self.clip_config.hidden_size + self.sam_config.out_hidden_size

    @classmethod
    def tiny(cls, image_size: int = 256, **overrides: Any) -> "DeepEncoderConfig":
        """A model of 0.1M parameters with every part of the published one, for tests and demos.

        Args:
            image_size (`int`, defaults to 256): side, in pixels, of the images that the position tables are made for.
        """
        sam_config = SamEncoderConfig.tiny(image_size=image_size)
        patch_size = sam_config.total_stride
        clip_config = ClipVisionEncoderConfig.tiny(image_size=image_size, patch_size=patch_size)
        defaults: dict[str, Any] = {"sam_config": sam_config, "clip_config": clip_config}
        if overrides.get("projector_type") != "identity":
            defaults["projection_dim"] = 48
        return cls(**(defaults | overrides))
