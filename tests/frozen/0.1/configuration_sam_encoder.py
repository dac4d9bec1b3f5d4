# deepencoder 0.1.0: configuration/sam_encoder.py, flattened for this repository. Licence: Apache-2.0.
"""Configuration of the SAM encoder.

Unusual: `downsample_channels` describes a convolutional compressor behind SAM's neck, one stride-2 convolution an
entry. Two make the 16x compressor of DeepSeek-OCR; an empty tuple leaves SAM's own neck as the last layer.
"""

from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_base import DeepEncoderPreTrainedConfig
from .configuration_validation import check_activation, check_divides, check_fraction, check_positive, raises_value_errors

__all__ = ["SamEncoderConfig"]


@raises_value_errors
@strict
class SamEncoderConfig(DeepEncoderPreTrainedConfig):
    r"""Configuration of a [`SamEncoder`]. The defaults are SAM ViT-B as DeepSeek-OCR published it (95.6M parameters).

    Args:
        hidden_size (`int`, defaults to 768): width of the transformer.
        num_hidden_layers (`int`, defaults to 12): number of transformer blocks.
        num_attention_heads (`int`, defaults to 12): attention heads of a block; divides `hidden_size`.
        intermediate_size (`int`, defaults to 3072): width of the MLP (`mlp_dim` is accepted too).
        num_channels (`int`, defaults to 3): channels of the image.
        image_size (`int`, defaults to 1024): side, in pixels, of the images that the position tables are made for.
            Other sizes run as well; their tables are resized.
        patch_size (`int`, defaults to 16): side of a patch in pixels; divides `image_size`.
        window_size (`int`, defaults to 14): side, in patches, of the attention windows.
        global_attn_indexes (`tuple[int, ...]`, defaults to `(2, 5, 8, 11)`): blocks that attend to the whole image.
        output_channels (`int`, defaults to 256): channels of the neck.
        downsample_channels (`tuple[int, ...]`, defaults to `(512, 1024)`): channels of the compressor's stride-2
            convolutions, each of which halves both sides. Empty for no compressor.
        hidden_act (`str`, defaults to `"gelu"`): activation of the MLP.
        layer_norm_eps (`float`, defaults to 1e-6): epsilon of every layer norm.
        attention_dropout (`float`, defaults to 0.0): dropout of the attention weights in training.
        initializer_range (`float`, defaults to 0.02): standard deviation of newly initialised weights.

    Raises:
        `ValueError`: a size is not positive, `patch_size` does not divide `image_size`, `num_attention_heads` does not
            divide `hidden_size`, or an index of `global_attn_indexes` is not a block.
    """

    model_type = "deepencoder_sam"
    base_config_key = "sam_config"
    attribute_map = {"mlp_dim": "intermediate_size"}

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    num_channels: int = 3
    image_size: int = 1024
    patch_size: int = 16
    window_size: int = 14
    global_attn_indexes: list[int] | tuple[int, ...] = (2, 5, 8, 11)
    output_channels: int = 256
    downsample_channels: list[int] | tuple[int, ...] = (512, 1024)
    hidden_act: str = "gelu"
    layer_norm_eps: float | int = 1e-6
    attention_dropout: float | int = 0.0
    initializer_range: float | int = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        # JSON has no tuples: one type, whatever the source, so that a reloaded config equals the saved one.
        self.global_attn_indexes = tuple(self.global_attn_indexes)
        self.downsample_channels = tuple(self.downsample_channels)
        super().__post_init__(**kwargs)
        self.validate_architecture()

    def validate_architecture(self) -> None:
        """Raise `ValueError` for sizes that no model can be built from."""
        check_positive(
            self,
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "num_channels",
            "image_size",
            "patch_size",
            "window_size",
            "output_channels",
            "layer_norm_eps",
        )
        check_divides(self, "patch_size", "image_size")
        check_divides(self, "num_attention_heads", "hidden_size")
        check_fraction(self, "attention_dropout")
        check_activation(self, "hidden_act")
        for index in self.global_attn_indexes:
            if not 0 <= index < self.num_hidden_layers:
                raise ValueError(
                    f"{type(self).__name__}.global_attn_indexes holds {index}, but num_hidden_layers="
                    f"{self.num_hidden_layers} leaves only blocks 0 to {self.num_hidden_layers - 1}."
                )
        for channels in self.downsample_channels:
            if channels <= 0:
                raise ValueError(
                    f"{type(self).__name__}.downsample_channels must be positive, got {channels} in "
                    f"{self.downsample_channels}."
                )

    @property
    def grid_size(self) -> int:
        """Patches along a side of an `image_size` image: the side of the absolute position table."""
        return self.image_size // self.patch_size

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def out_hidden_size(self) -> int:
        """Channels of the feature map that the encoder returns."""
        return self.downsample_channels[-1] if self.downsample_channels else self.output_channels

    @property
    def total_stride(self) -> int:
        """Pixels along a side of one position of the returned feature map (64 as published)."""
        return self.patch_size * 2 ** len(self.downsample_channels)

    @classmethod
    def tiny(cls, **overrides: Any) -> "SamEncoderConfig":
        """A model of 0.1M parameters with every part of the published one, for tests and demos."""
        defaults: dict[str, Any] = {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "image_size": 256,
            "window_size": 6,
            "global_attn_indexes": (1,),
            "output_channels": 16,
            "downsample_channels": (24, 32),
        }
        return cls(**(defaults | overrides))
