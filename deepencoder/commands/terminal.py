"""Consoles: what the commands print on stdout and stderr."""

from rich.console import Console

__all__ = ["make_console", "print_warning"]


def make_console(stderr: bool = False) -> Console:
    """Return a console that prints text as it is: brackets and colons in file names are no markup."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def print_warning(text: str) -> None:
    """Print a remark on stderr that the user should not miss."""
    make_console(stderr=True).print(text, style="yellow", soft_wrap=True)
