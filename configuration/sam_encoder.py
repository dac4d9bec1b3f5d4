"""Configuration of the SAM encoder.

Unusual: `downsample_channels` describes a convolutional compressor after SAM's neck, with one stride-2 convolution for
each entry. Two entries are the 16x compressor of DeepSeek-OCR; without any, SAM's own neck is the last layer.
"""

from reprlib import repr as shorten
from typing import Any

from huggingface_hub.dataclasses import strict

from .base import DeepEncoderPreTrainedConfig, VisionTransformerSizes
from .validation import (
    MAX_CHANNELS,
    MAX_DOWNSAMPLINGS,
    MAX_LAYERS,
    MAX_SIDE,
    MAX_WINDOW,
    MIN_EPSILON,
    check_activation,
    check_divides,
    check_epsilon,
    check_fraction,
    check_initializer_range,
    check_parameters,
    check_positive,
    raises_value_errors,
)

__all__ = ["SamEncoderConfig"]


@raises_value_errors
@strict
class SamEncoderConfig(VisionTransformerSizes, DeepEncoderPreTrainedConfig):
    r"""Configuration of a [`SamEncoder`]. The defaults are SAM ViT-B as DeepSeek-OCR published it (95.6M parameters).

    Args:
        hidden_size (`int`, defaults to 768): width of the transformer.
        num_hidden_layers (`int`, defaults to 12): number of transformer blocks.
        num_attention_heads (`int`, defaults to 12): number of attention heads of a block; must divide `hidden_size`.
        intermediate_size (`int`, defaults to 3072): width of the MLP (`mlp_dim` is accepted too).
        num_channels (`int`, defaults to 3): channels of the image.
        image_size (`int`, defaults to 1024): side, in pixels, of the images that the position tables are made for.
            For images of other sizes the tables are resized.
        patch_size (`int`, defaults to 16): side of a patch in pixels; must divide `image_size`.
        window_size (`int`, defaults to 14): side, in patches, of the attention windows.
        global_attn_indexes (`tuple[int, ...]`, defaults to `(2, 5, 8, 11)`): indices of the blocks that attend to the
            whole image; the others attend in windows.
        output_channels (`int`, defaults to 256): channels of the neck.
        downsample_channels (`tuple[int, ...]`, defaults to `(512, 1024)`): channels of the compressor's stride-2
            convolutions, each of which halves both sides. An empty tuple means no compressor.
        hidden_act (`str`, defaults to `"gelu"`): activation of the MLP.
        layer_norm_eps (`float`, defaults to 1e-6): epsilon of every layer norm.
        attention_dropout (`float`, defaults to 0.0): dropout of the attention weights in training.
        initializer_range (`float`, defaults to 0.02): standard deviation of newly initialised weights.

    Raises:
        `ValueError`: a size is not positive or beyond the limits in `validation.py`, `patch_size` does not divide
            `image_size`, `num_attention_heads` does not divide `hidden_size`, or an entry of `global_attn_indexes` is
            not the index of a block.
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
        # JSON has no tuples. Always use them here, so that a reloaded configuration equals the saved one.
        self.global_attn_indexes = tuple(self.global_attn_indexes)
        self.downsample_channels = tuple(self.downsample_channels)
        super().__post_init__(**kwargs)
        self.validate_architecture()

    def validate_architecture(self) -> None:
        """Raise `ValueError` if no model can be built from these sizes."""
        widths = ("hidden_size", "num_attention_heads", "intermediate_size", "num_channels", "output_channels")
        check_positive(self, MAX_CHANNELS, *widths)
        check_positive(self, MAX_LAYERS, "num_hidden_layers")
        check_positive(self, MAX_SIDE, "image_size", "patch_size")
        check_positive(self, MAX_WINDOW, "window_size")
        check_epsilon(self, "layer_norm_eps")
        check_initializer_range(self, lowest=MIN_EPSILON)  # Truncated normal values are divided by it.
        check_divides(self, "patch_size", "image_size")
        check_divides(self, "num_attention_heads", "hidden_size")
        check_fraction(self, "attention_dropout")
        check_activation(self, "hidden_act")
        for index in self.global_attn_indexes:
            if not 0 <= index < self.num_hidden_layers:
                raise ValueError(
                    f"{type(self).__name__}.global_attn_indexes holds {shorten(index)}, but num_hidden_layers="
                    f"{self.num_hidden_layers} leaves only blocks 0 to {self.num_hidden_layers - 1}."
                )
        if len(self.downsample_channels) > MAX_DOWNSAMPLINGS:
            raise ValueError(
                f"{type(self).__name__}.downsample_channels must have at most {MAX_DOWNSAMPLINGS} entries, got "
                f"{len(self.downsample_channels)}."
            )
        for channels in self.downsample_channels:
            if not 0 < channels <= MAX_CHANNELS:
                raise ValueError(
                    f"{type(self).__name__}.downsample_channels must be positive and at most {MAX_CHANNELS}, got "
                    f"{shorten(channels)} in {shorten(self.downsample_channels)}."
                )
        self._check_parameters()

    def _check_parameters(self) -> None:
        layer = 2 * self.hidden_size * (2 * self.hidden_size + self.intermediate_size)
        patches = self.hidden_size * (self.grid_size**2 + self.num_channels * self.patch_size**2)
        widths = (self.output_channels, self.output_channels, *self.downsample_channels)
        convolutions = sum(9 * width * next_width for width, next_width in zip(widths[:-1], widths[1:], strict=True))
        check_parameters(
            self,
            self.num_hidden_layers * layer + patches + convolutions,
            "hidden_size",
            "num_hidden_layers",
            "intermediate_size",
            "image_size",
            "patch_size",
            "num_channels",
            "output_channels",
            "downsample_channels",
        )

    @property
    def out_hidden_size(self) -> int:
        """Number of channels of the feature map that the encoder returns."""
        return self.downsample_channels[-1] if self.downsample_channels else self.output_channels

    @property
    def total_stride(self) -> int:
        """Distance in pixels between two positions of the returned feature map (64 for the published model)."""
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
