"""How a user's mistake is reported: one line on stderr and exit code 2."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["UserError", "one_line", "reported_as"]


class UserError(Exception):
    """A mistake of the user. The command line prints the message as one line and exits with code 2."""


def one_line(error: BaseException) -> str:
    """Return the first line of an error's message that is not empty, or the name of its class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextmanager
def reported_as(failure: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn errors of these kinds into a [`UserError`] that says `failure` and then the error's first line."""
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        raise UserError(f"{failure}: {one_line(error)}") from error
