"""Declares the options of a command as the fields of a dataclass.

Unusual: typer reads a function's signature. A command with many options takes one dataclass instead, whose fields are
annotated as parameters would be, and the signature that typer sees is made from the fields.
"""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import wraps
from typing import Any, TypeVar, get_type_hints

__all__ = ["takes_options"]

Options = TypeVar("Options")


def takes_options(options_class: type[Options]) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Make a decorator that turns a function of one dataclass into a function of its fields.

    Args:
        options_class: a dataclass. Its fields are annotated `Annotated[type, typer.Option(...)]`, or with
            `typer.Argument`; their defaults are the defaults of the options.
    """
    hints = get_type_hints(options_class, include_extras=True)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(options_class)  # type: ignore[arg-type]
    ]

    def decorate(function: Callable[[Options], None]) -> Callable[..., None]:
        @wraps(function)
        def command(**values: Any) -> None:
            function(options_class(**values))

        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate
