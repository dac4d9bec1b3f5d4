"""Configuration of the query encoder: the language model's layers in which learned queries read an image.

Unusual: the layers are transformers' Qwen2 layers, so the fields have the names that these read. The tokens are never
looked up in a vocabulary, and the rotary positions are plain ones: a token's place in the sequence.
"""

from collections.abc import Mapping
from reprlib import repr as shorten
from typing import Any

from huggingface_hub.dataclasses import strict

from .base import DeepEncoderPreTrainedConfig
from .validation import (
    MAX_CHANNELS,
    MAX_LAYERS,
    check_activation,
    check_divides,
    check_epsilon,
    check_fraction,
    check_initializer_range,
    check_parameters,
    check_positive,
    raises_value_errors,
)

__all__ = ["QueryEncoderConfig"]

MAX_ROPE_THETA = 1e12
"""Largest base of the rotary positions. Published language models have up to 1e9."""


@raises_value_errors
@strict
class QueryEncoderConfig(DeepEncoderPreTrainedConfig):
    r"""Configuration of a [`QueryEncoder`]. The defaults are those of DeepSeek-OCR-2 (358M parameters).

    Args:
        hidden_size (`int`, defaults to 896): width of the transformer.
        num_hidden_layers (`int`, defaults to 24): number of layers.
        num_attention_heads (`int`, defaults to 14): number of heads; must divide `hidden_size`.
        num_key_value_heads (`int`, defaults to 2): number of heads of keys and values; must divide
            `num_attention_heads`.
        intermediate_size (`int`, defaults to 4864): width of the gated MLP.
        hidden_act (`str`, defaults to `"silu"`): activation of the MLP's gate.
        rms_norm_eps (`float`, defaults to 1e-6): epsilon of every norm.
        rope_parameters (`dict`, *optional*): `rope_theta`, the base of the rotary positions, by default 1e6, and
            `rope_type`, which must be `"default"`. `rope_theta=...` may also be passed directly.
        attention_dropout (`float`, defaults to 0.0): dropout of the attention weights in training.
        initializer_range (`float`, defaults to 0.02): standard deviation of newly initialised weights.

    Raises:
        `ValueError`: a size is not positive or beyond the limits in `validation.py`, the heads do not divide the
            width, a head has an odd width, or the rotary positions are of another kind.
    """

    model_type = "deepencoder_query"
    base_config_key = "query_config"
    default_theta = 1_000_000.0
    max_position_embeddings = 32768  # Read by Qwen2's rotary positions, whose default kind does not use it.

    hidden_size: int = 896
    num_hidden_layers: int = 24
    num_attention_heads: int = 14
    num_key_value_heads: int = 2
    intermediate_size: int = 4864
    hidden_act: str = "silu"
    rms_norm_eps: float | int = 1e-6
    rope_parameters: dict[str, Any] | None = None
    attention_dropout: float | int = 0.0
    initializer_range: float | int = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if self.rope_parameters is not None:
            self.rope_parameters = dict(self.rope_parameters)  # It is completed in place.
        super().__post_init__(**kwargs)
        self.validate_architecture()

    def validate_architecture(self) -> None:
        """Raise `ValueError` if no model can be built from these sizes."""
        widths = ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
        check_positive(self, MAX_CHANNELS, *widths)
        check_positive(self, MAX_LAYERS, "num_hidden_layers")
        check_epsilon(self, "rms_norm_eps")
        check_initializer_range(self)
        check_divides(self, "num_attention_heads", "hidden_size")
        check_divides(self, "num_key_value_heads", "num_attention_heads")
        check_fraction(self, "attention_dropout")
        check_activation(self, "hidden_act")
        if self.head_dim % 2:
            raise ValueError(
                f"{type(self).__name__}: rotary positions need heads of even width, but hidden_size="
                f"{self.hidden_size} and num_attention_heads={self.num_attention_heads} give {self.head_dim}."
            )
        self._check_positions()
        layer = self.hidden_size * (4 * self.hidden_size + 3 * self.intermediate_size)
        check_parameters(self, self.num_hidden_layers * layer, "num_hidden_layers", *widths)

    def _check_positions(self) -> None:
        found = self.rope_parameters
        theta = found.get("rope_theta") if isinstance(found, Mapping) else None
        known = isinstance(found, Mapping) and set(found) <= {"rope_type", "rope_theta"}
        if not known or found.get("rope_type") != "default":  # type: ignore[union-attr]  # It is a mapping if known.
            raise ValueError(
                f"{type(self).__name__}.rope_parameters must hold rope_theta and the rope_type 'default' only, got "
                f"{shorten(found)}."
            )
        if type(theta) not in (int, float) or not 1 < theta <= MAX_ROPE_THETA:  # type: ignore[operator]
            raise ValueError(
                f"{type(self).__name__}.rope_parameters['rope_theta'] must be above 1 and at most {MAX_ROPE_THETA}, "
                f"got {shorten(theta)}."
            )

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def tiny(cls, **overrides: Any) -> "QueryEncoderConfig":
        """An encoder of 0.02M parameters with every part of the published one, for tests and demos."""
        defaults: dict[str, Any] = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 64,
        }
        return cls(**(defaults | overrides))
