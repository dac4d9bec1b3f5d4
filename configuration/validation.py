"""Checks that the three configurations share.

They raise a plain `ValueError`: the wrapper that `@strict` puts around a failing validator is not one.
"""

from typing import Any

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

__all__ = ["check_activation", "check_divides", "check_fraction", "check_one_of", "check_positive"]


def _name(config: PreTrainedConfig, field: str) -> str:
    return f"{type(config).__name__}.{field}"


def check_positive(config: PreTrainedConfig, *fields: str) -> None:
    """Raise `ValueError` unless each of `fields` is above zero."""
    for field in fields:
        value = getattr(config, field)
        if not value > 0:
            raise ValueError(f"{_name(config, field)} must be positive, got {value}.")


def check_divides(config: PreTrainedConfig, divisor: str, multiple: str) -> None:
    """Raise `ValueError` unless the field `divisor` divides the field `multiple`."""
    small, large = getattr(config, divisor), getattr(config, multiple)
    if large % small:
        raise ValueError(
            f"{_name(config, divisor)}={small} must divide {multiple}={large}, but leaves {large % small}."
        )


def check_fraction(config: PreTrainedConfig, field: str) -> None:
    """Raise `ValueError` unless `field` is a probability in [0, 1)."""
    value = getattr(config, field)
    if not 0 <= value < 1:
        raise ValueError(f"{_name(config, field)} must be at least 0 and below 1, got {value}.")


def check_one_of(config: PreTrainedConfig, field: str, allowed: tuple[Any, ...]) -> None:
    """Raise `ValueError` unless `field` holds one of `allowed`."""
    value = getattr(config, field)
    if value not in allowed:
        choices = ", ".join(repr(choice) for choice in allowed)
        raise ValueError(f"{_name(config, field)} must be one of {choices}, got {value!r}.")


def check_activation(config: PreTrainedConfig, field: str) -> None:
    """Raise `ValueError` unless `field` names an activation that transformers knows."""
    value = getattr(config, field)
    if value not in ACT2FN:
        raise ValueError(f"{_name(config, field)}={value!r} is not an activation of transformers.activations.ACT2FN.")
