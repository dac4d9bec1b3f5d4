"""Checks that all configurations share.

Unusual: they raise a plain `ValueError`, which the error that `@strict` wraps around a failing validator is not.
"""

from functools import wraps
from typing import Any, TypeVar

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

__all__ = [
    "raises_value_errors",
    "check_activation",
    "check_divides",
    "check_fraction",
    "check_one_of",
    "check_positive",
]


Config = TypeVar("Config", bound=type[PreTrainedConfig])


def raises_value_errors(config_class: Config) -> Config:
    """Have a `@strict` configuration raise a one-line `ValueError` for values of a wrong type, too."""
    original = config_class.__init__

    @wraps(original)
    def init(self: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        try:
            original(self, *args, **kwargs)
        except StrictDataclassError as error:
            reason = str(error.__cause__ or error)
            raise ValueError(f"{config_class.__name__}: {reason}") from error

    config_class.__init__ = init  # type: ignore[method-assign]
    return config_class


def _name(config: PreTrainedConfig, field: str) -> str:
    return f"{type(config).__name__}.{field}"


def check_positive(config: PreTrainedConfig, *fields: str) -> None:
    """Raise `ValueError` unless each of the fields is positive."""
    for field in fields:
        value = getattr(config, field)
        if not value > 0:
            raise ValueError(f"{_name(config, field)} must be positive, got {value}.")


def check_divides(config: PreTrainedConfig, divisor: str, multiple: str) -> None:
    """Raise `ValueError` unless the field `divisor` divides the field `multiple`."""
    small, large = getattr(config, divisor), getattr(config, multiple)
    if large % small:
        raise ValueError(
            f"{_name(config, divisor)}={small} must divide {multiple}={large}, but leaves a remainder of "
            f"{large % small}."
        )


def check_fraction(config: PreTrainedConfig, field: str) -> None:
    """Raise `ValueError` unless the field is a probability in [0, 1)."""
    value = getattr(config, field)
    if not 0 <= value < 1:
        raise ValueError(f"{_name(config, field)} must be at least 0 and below 1, got {value}.")


def check_one_of(config: PreTrainedConfig, field: str, allowed: tuple[Any, ...]) -> None:
    """Raise `ValueError` unless the field has one of the allowed values."""
    value = getattr(config, field)
    if value not in allowed:
        choices = ", ".join(repr(choice) for choice in allowed)
        raise ValueError(f"{_name(config, field)} must be one of {choices}, got {value!r}.")


def check_activation(config: PreTrainedConfig, field: str) -> None:
    """Raise `ValueError` unless the field names an activation that transformers has."""
    from transformers.activations import ACT2FN  # Takes a second to import, which AutoConfig should not cost.

    value = getattr(config, field)
    if value not in ACT2FN:
        raise ValueError(f"{_name(config, field)}={value!r} is not an activation of transformers.activations.ACT2FN.")
