"""Checks that all configurations share.

Unusual: they raise a plain `ValueError`, which the error that `@strict` wraps around a failing validator is not. A
`config.json` may have been written by anybody, so everything that a model's size or time grows with has a limit.
"""

import textwrap
from collections.abc import Mapping
from functools import wraps
from reprlib import repr as shorten
from typing import Any, TypeVar

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

__all__ = [
    "MAX_CHANNELS",
    "MAX_DOWNSAMPLINGS",
    "MAX_LABELS",
    "MAX_LAYERS",
    "MAX_PARAMETERS",
    "MAX_QUERY_TABLES",
    "MAX_SIDE",
    "MAX_WINDOW",
    "MIN_EPSILON",
    "check_activation",
    "check_divides",
    "check_epsilon",
    "check_fraction",
    "check_initializer_range",
    "check_one_of",
    "check_parameters",
    "check_positive",
    "check_transformers_fields",
    "one_line",
    "raises_value_errors",
]

MAX_CHANNELS = 2**17
"""Largest width of a layer. The MLP of the largest vision transformer that was published has 24,576 channels."""
MAX_LAYERS = 1024
"""Most layers of a stack. The largest published vision transformers have fewer than 64."""
MAX_SIDE = 2**16
"""Largest side of an image or a patch, in pixels. It takes an hour to encode a much smaller page."""
MAX_WINDOW = 256
"""Largest side of an attention window, in patches: maps are padded to whole windows. SAM's windows have 14."""
MAX_DOWNSAMPLINGS = 8
"""Most convolutions of the compressor, each of which halves both sides. DeepSeek-OCR has two."""
MAX_QUERY_TABLES = 16
"""Most tables of learned queries of a model, each for views of one size. DeepSeek-OCR-2 has two."""
MAX_PARAMETERS = 2**35
"""Most parameters of a model: 137 GB in float32. The largest published vision transformer has 22e9."""
MAX_LABELS = 2**16
"""Largest `num_labels`. transformers makes a name for each, though no model of this package has labels."""
MIN_EPSILON, MAX_EPSILON = 1e-37, 1.0
"""Range of the epsilon of layer norms. A smaller one is zero in float32, and the norm of a constant is then NaN."""
MAX_MESSAGE = 300
"""Longest message about a value of a wrong type, in characters."""
MAX_INITIALIZER_RANGE = 100.0
"""Largest standard deviation of new weights."""
UNCHECKED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError)
"""What a bad value of one of transformers' own fields, which it reads without checks, can raise."""

Config = TypeVar("Config", bound=type[PreTrainedConfig])


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line of bounded length."""
    return textwrap.shorten(str(error).partition(" Errors: ")[0], MAX_MESSAGE)  # It quotes values of any length.


def raises_value_errors(config_class: Config) -> Config:
    """Have a `@strict` configuration raise a one-line `ValueError` for values of a wrong type, too."""
    original = config_class.__init__

    @wraps(original)
    def init(self: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        try:
            original(self, *args, **kwargs)
        except (StrictDataclassError, *UNCHECKED) as error:
            raise ValueError(f"{config_class.__name__}: {one_line(error.__cause__ or error)}") from error

    config_class.__init__ = init  # type: ignore[method-assign]
    return config_class


def _name(config: PreTrainedConfig, field: str) -> str:
    return f"{type(config).__name__}.{field}"


def _check_range(config: PreTrainedConfig, field: str, lowest: float, highest: float) -> None:
    value = getattr(config, field)
    if not lowest <= value <= highest:
        raise ValueError(
            f"{_name(config, field)} must be at least {lowest} and at most {highest}, got {shorten(value)}."
        )


def check_positive(config: PreTrainedConfig, limit: int, *fields: str) -> None:
    """Raise `ValueError` unless each of the fields is a positive integer of at most `limit`."""
    for field in fields:
        value = getattr(config, field)
        # The types of names in an `attribute_map` are not checked elsewhere, and `True` is an integer.
        if type(value) is not int or not 0 < value <= limit:
            raise ValueError(
                f"{_name(config, field)} must be a positive integer of at most {limit}, got {shorten(value)}."
            )


def check_epsilon(config: PreTrainedConfig, field: str) -> None:
    """Raise `ValueError` unless the field is an epsilon that float32 tells from zero."""
    _check_range(config, field, MIN_EPSILON, MAX_EPSILON)


def check_initializer_range(config: PreTrainedConfig, lowest: float = 0.0) -> None:
    """Raise `ValueError` unless the field `initializer_range` is a standard deviation of at least `lowest`."""
    _check_range(config, "initializer_range", lowest, MAX_INITIALIZER_RANGE)


def check_parameters(config: PreTrainedConfig, count: int, *fields: str) -> None:
    """Raise `ValueError` if a model has more than [`MAX_PARAMETERS`].

    Args:
        count: about how many parameters the model has.
        fields: the fields that they grow with.
    """
    if count > MAX_PARAMETERS:
        shown = ", ".join(f"{field}={shorten(getattr(config, field))}" for field in fields)
        raise ValueError(f"{type(config).__name__}: {shown} give more than {MAX_PARAMETERS} parameters.")


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
        raise ValueError(f"{_name(config, field)} must be at least 0 and below 1, got {shorten(value)}.")


def check_one_of(config: PreTrainedConfig, field: str, allowed: tuple[Any, ...]) -> None:
    """Raise `ValueError` unless the field has one of the allowed values."""
    value = getattr(config, field)
    if value not in allowed:
        choices = ", ".join(repr(choice) for choice in allowed)
        raise ValueError(f"{_name(config, field)} must be one of {choices}, got {shorten(value)}.")


def check_activation(config: PreTrainedConfig, field: str) -> None:
    """Raise `ValueError` unless the field names an activation that transformers has."""
    from transformers.activations import ACT2FN  # Takes a second to import, which AutoConfig should not cost.

    value = getattr(config, field)
    if value not in ACT2FN:
        raise ValueError(
            f"{_name(config, field)}={shorten(value)} is not an activation of transformers.activations.ACT2FN."
        )


def check_transformers_fields(config: PreTrainedConfig, others: Mapping[str, Any]) -> None:
    """Raise `ValueError` for fields of every configuration that transformers would take without a check.

    Args:
        others: the keyword arguments that are no fields of the configuration's class.
    """
    import torch

    labels = others.get("num_labels")
    if labels is not None and not (isinstance(labels, int) and 0 <= labels <= MAX_LABELS):
        raise ValueError(f"{_name(config, 'num_labels')} must be at most {MAX_LABELS}, got {shorten(labels)}.")
    for name, dtype in (("dtype", config.dtype), ("torch_dtype", others.get("torch_dtype"))):
        found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if dtype is not None and not isinstance(found, torch.dtype):
            raise ValueError(f"{_name(config, name)} must be a dtype of torch, got {shorten(dtype)}.")
    attention = others.get("attn_implementation")
    if not isinstance(attention, (str, dict, type(None))):
        raise ValueError(f"{_name(config, 'attn_implementation')} must be a name, got {shorten(attention)}.")
