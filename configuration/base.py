"""What all configurations share beyond transformers' own base class."""

from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import CONFIG_NAME

from .remote_code import SharedPart
from .validation import check_transformers_fields, one_line

__all__ = ["DeepEncoderPreTrainedConfig", "VisionTransformerSizes"]


class DeepEncoderPreTrainedConfig(SharedPart, PreTrainedConfig):
    """The base class of all configurations."""

    _shared_as = ("AutoConfig", CONFIG_NAME)

    def __post_init__(self, **kwargs: Any) -> None:
        check_transformers_fields(self, kwargs)
        try:
            super().__post_init__(**kwargs)
        except ValueError as error:  # Some of them name nothing, for example those of `int`.
            raise ValueError(f"{type(self).__name__}: {one_line(error)}") from error


class VisionTransformerSizes:
    """Sizes that follow from the fields of any vision transformer."""

    @property
    def grid_size(self: Any) -> int:
        """Number of patches along a side of an image of `image_size` pixels."""
        return self.image_size // self.patch_size

    @property
    def head_dim(self: Any) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_attention_heads
