"""How the mistakes of a user are reported."""

import pytest

from deepencoder.commands.errors import UserError, one_line, reported_as


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("first\nsecond"), "first"),
        (ValueError("\n  \n  second  \n"), "second"),
        (ValueError(), "ValueError"),
        (KeyError(" \n"), "' \\n'"),
    ],
)
def test_one_line(error: Exception, line: str) -> None:
    assert one_line(error) == line


def test_only_the_given_errors_are_reported() -> None:
    with pytest.raises(UserError, match="^The page cannot be read: broken$") as caught:
        with reported_as("The page cannot be read", OSError, ValueError):
            raise ValueError("broken\nat byte 7")
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(KeyError), reported_as("The page cannot be read", OSError, ValueError):
        raise KeyError("x")


def test_a_reported_error_is_not_reported_again() -> None:
    with pytest.raises(UserError, match="^inner: broken$"), reported_as("outer", Exception):
        with reported_as("inner", Exception):
            raise ValueError("broken")
