"""Configuration of the DeepEncoder: a SAM encoder, a CLIP vision encoder and a projector.

Unusual: the CLIP half runs on SAM's feature map. So it never has a patch embedding (`clip_config.use_patch_embedding`
is always false here), and the number of SAM's output channels must equal CLIP's width.
"""

import copy
from typing import Any

from huggingface_hub.dataclasses import strict

from .clip_vision_encoder import ClipVisionEncoderConfig
from .composite import CompositeConfig
from .sam_encoder import SamEncoderConfig
from .validation import raises_value_errors

__all__ = ["DeepEncoderConfig"]


@raises_value_errors
@strict
class DeepEncoderConfig(CompositeConfig):
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

    def settle_parts(self) -> None:
        """CLIP reads SAM's map, so it has no patch embedding."""
        if self.clip_config.use_patch_embedding:
            # Copied, as the caller's object may describe another model as well.
            self.clip_config = copy.deepcopy(self.clip_config)
            self.clip_config.use_patch_embedding = False

    def validate_architecture(self) -> None:
        """Raise `ValueError` if the two halves or the projector do not fit together."""
        super().validate_architecture()
        if self.sam_config.out_hidden_size != self.clip_config.hidden_size:
            raise ValueError(
                "DeepEncoderConfig: the last of sam_config.downsample_channels must equal clip_config.hidden_size, "
                f"got {self.sam_config.out_hidden_size} and {self.clip_config.hidden_size}."
            )

    @property
    def hidden_size(self) -> int:
        """Width of a fused token, which concatenates CLIP's and SAM's channels."""
        return self.clip_config.hidden_size + self.sam_config.out_hidden_size

    @property
    def pooled_size(self) -> int:
        """Width of `pooler_output`, CLIP's class token."""
        return self.clip_config.hidden_size

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
