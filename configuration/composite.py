"""What the configurations of whole encoders share: parts with configurations of their own, and a projector.

Unusual: a part may be given as a configuration or as a dictionary, whose missing fields are those of the published
model of this class (`part_defaults`), not those of the part's own class.
"""

from collections.abc import Mapping
from reprlib import repr as shorten
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .base import DeepEncoderPreTrainedConfig
from .validation import (
    MAX_CHANNELS,
    MAX_LAYERS,
    check_initializer_range,
    check_one_of,
    check_parameters,
    check_positive,
)

__all__ = ["CompositeConfig", "reads_pages"]

PUBLISHED_PROJECTION_DIM = 1280


@strict
class CompositeConfig(DeepEncoderPreTrainedConfig):
    """Base class of the configurations of [`DeepEncoder`] and [`DeepEncoderV2`].

    A subclass declares its parts in `sub_configs`, and has the properties `hidden_size`, the width of a token before
    projection, and `pooled_size`, the width of `pooler_output`. Its `token_scheme` says what its tokens are; see the
    image processor's field of this name.
    """

    part_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    token_scheme: ClassVar[str] = "cells"

    projector_type: str = "linear"
    projector_depth: int = 1
    projection_dim: int = PUBLISHED_PROJECTION_DIM
    initializer_range: float | int = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        for name, config_class in self.sub_configs.items():
            value = getattr(self, name)
            if value is None or isinstance(value, dict):
                value = config_class(**{**self.part_defaults.get(name, {}), **(value or {})})
                setattr(self, name, value)
            model_type = getattr(value, "model_type", type(value).__name__)
            if model_type != config_class.model_type:
                raise ValueError(
                    f"{type(self).__name__}.{name} must be a {config_class.model_type!r}, got {shorten(model_type)}."
                )
        self.settle_parts()
        if self.projector_type == "identity" and self.projection_dim == PUBLISHED_PROJECTION_DIM:
            self.projection_dim = self.hidden_size
        super().__post_init__(**kwargs)
        self.validate_architecture()

    def settle_parts(self) -> None:
        """Change what the parts' configurations must have in this model, once they are built."""

    @property
    def hidden_size(self) -> int:
        """Width of a token before projection."""
        raise NotImplementedError

    @property
    def pooled_size(self) -> int:
        """Width of `pooler_output`."""
        raise NotImplementedError

    def validate_architecture(self) -> None:
        """Raise `ValueError` if the projector cannot be built; subclasses check how their parts fit together."""
        name = type(self).__name__
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
        if self.projector_type == "identity" and self.projection_dim != self.hidden_size:
            raise ValueError(
                f"{name}.projection_dim of an identity projector is the width {self.hidden_size} of the tokens, got "
                f"{self.projection_dim}."
            )


def reads_pages(config: Any) -> bool:
    """Return whether a configuration is that of a whole encoder, which takes a page's view and tiles.

    By an attribute, as remote code loads configurations as classes of their own.
    """
    return hasattr(config, "token_scheme") and hasattr(config, "sam_config")
