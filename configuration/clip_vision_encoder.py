"""Configuration of the CLIP vision encoder.

Unusual: DeepSeek-OCR's CLIP has no norm after its last block and runs on SAM's feature map instead of pixels. OpenAI's
towers and plain ViTs differ from it in a few places, and each difference is a field, not a subclass.
"""

from typing import Any

from huggingface_hub.dataclasses import strict

from .base import DeepEncoderPreTrainedConfig, VisionTransformerSizes
from .validation import (
    MAX_CHANNELS,
    MAX_LAYERS,
    MAX_SIDE,
    check_activation,
    check_divides,
    check_epsilon,
    check_fraction,
    check_initializer_range,
    check_one_of,
    check_parameters,
    check_positive,
    raises_value_errors,
)

__all__ = ["ClipVisionEncoderConfig"]


@raises_value_errors
@strict
class ClipVisionEncoderConfig(VisionTransformerSizes, DeepEncoderPreTrainedConfig):
    r"""Configuration of a [`ClipVisionEncoder`]. The defaults are the CLIP-L of DeepSeek-OCR.

    | | `use_patch_bias` | `use_pre_norm` | `post_norm` | `hidden_act` |
    |---|---|---|---|---|
    | DeepSeek-OCR | no | yes | `"none"` | `quick_gelu` |
    | OpenAI CLIP | no | yes | `"pooled"` | `quick_gelu` |
    | plain ViT | yes | no | `"all"` | `gelu` or `gelu_pytorch_tanh` |

    Args:
        hidden_size (`int`, defaults to 1024): width of the transformer.
        num_hidden_layers (`int`, defaults to 24): number of transformer blocks.
        num_attention_heads (`int`, defaults to 16): number of attention heads of a block; must divide `hidden_size`.
        intermediate_size (`int`, defaults to 4096): width of the MLP.
        num_channels (`int`, defaults to 3): channels of the image.
        image_size (`int`, defaults to 224): side, in pixels, of the images that the position table is made for.
        patch_size (`int`, defaults to 14): side of a patch in pixels; must divide `image_size`. The position table
            has a row for the class token and one for each of `(image_size // patch_size) ** 2` patches.
        use_patch_embedding (`bool`, defaults to `True`): whether to build the convolution that embeds pixels. Without
            it the model accepts `patch_embeds` only, as inside a [`DeepEncoder`].
        use_patch_bias (`bool`, defaults to `False`): whether that convolution has a bias.
        use_pre_norm (`bool`, defaults to `True`): whether a layer norm comes before the first block.
        post_norm (`str`, defaults to `"none"`): which tokens the layer norm after the last block applies to: `"none"`,
            `"pooled"` (the pooled class token only) or `"all"` (every token, before pooling).
        projection_dim (`int`, *optional*): width of a linear projection of the pooled token, which has no bias. None
            for no projection.
        hidden_act (`str`, defaults to `"quick_gelu"`): activation of the MLP.
        layer_norm_eps (`float`, defaults to 1e-5): epsilon of every layer norm.
        attention_dropout (`float`, defaults to 0.0): dropout of the attention weights in training.
        initializer_range (`float`, defaults to 0.02): standard deviation of newly initialised weights.

    Raises:
        `ValueError`: a size is not positive or beyond the limits in `validation.py`, `patch_size` does not divide
            `image_size`, `num_attention_heads` does not divide `hidden_size`, or `post_norm` is unknown.
    """

    model_type = "deepencoder_clip_vision"
    base_config_key = "clip_config"

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 14
    use_patch_embedding: bool = True
    use_patch_bias: bool = False
    use_pre_norm: bool = True
    post_norm: str = "none"
    projection_dim: int | None = None
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float | int = 1e-5
    attention_dropout: float | int = 0.0
    initializer_range: float | int = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.validate_architecture()

    def validate_architecture(self) -> None:
        """Raise `ValueError` if no model can be built from these sizes."""
        check_positive(self, MAX_CHANNELS, "hidden_size", "num_attention_heads", "intermediate_size", "num_channels")
        check_positive(self, MAX_LAYERS, "num_hidden_layers")
        check_positive(self, MAX_SIDE, "image_size", "patch_size")
        check_epsilon(self, "layer_norm_eps")
        check_initializer_range(self)
        if self.projection_dim is not None:
            check_positive(self, MAX_CHANNELS, "projection_dim")
        check_divides(self, "patch_size", "image_size")
        check_divides(self, "num_attention_heads", "hidden_size")
        check_fraction(self, "attention_dropout")
        check_activation(self, "hidden_act")
        check_one_of(self, "post_norm", ("none", "pooled", "all"))
        layer = 2 * self.hidden_size * (2 * self.hidden_size + self.intermediate_size)
        positions = self.grid_size**2 + self.num_channels * self.patch_size**2
        check_parameters(
            self,
            self.num_hidden_layers * layer + self.hidden_size * (positions + (self.projection_dim or 0)),
            "hidden_size",
            "num_hidden_layers",
            "intermediate_size",
            "image_size",
            "patch_size",
            "num_channels",
            "projection_dim",
        )

    @classmethod
    def base_patch32(cls, **overrides: Any) -> "ClipVisionEncoderConfig":
        """OpenAI's ViT-B/32 at 224 pixels."""
        return cls.base_patch16(**({"patch_size": 32} | overrides))

    @classmethod
    def base_patch16(cls, **overrides: Any) -> "ClipVisionEncoderConfig":
        """OpenAI's ViT-B/16 at 224 pixels."""
        defaults: dict[str, Any] = {
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "patch_size": 16,
            "post_norm": "pooled",
            "projection_dim": 512,
        }
        return cls(**(defaults | overrides))

    @classmethod
    def large_patch14(cls, **overrides: Any) -> "ClipVisionEncoderConfig":
        """OpenAI's ViT-L/14 at 224 pixels."""
        defaults: dict[str, Any] = {"post_norm": "pooled", "projection_dim": 768}
        return cls(**(defaults | overrides))

    @classmethod
    def tiny(cls, **overrides: Any) -> "ClipVisionEncoderConfig":
        """A model of 0.04M parameters with every part of the published one, for tests and demos."""
        defaults: dict[str, Any] = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "image_size": 64,
            "patch_size": 16,
        }
        return cls(**(defaults | overrides))
