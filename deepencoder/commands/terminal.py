"""Consoles: what the commands print on stdout and stderr.

Unusual: names of files and tensors come from anywhere, so characters that a terminal would obey are escaped. A failure
to print (a closed pipe, a full disk, a letter that the terminal does not know) is never an error of the command, whose
work is on the disk.
"""

import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from rich.console import Console
from rich.text import Text

__all__ = ["escape", "lenient_output", "make_console", "print_warning"]


def escape(text: str) -> str:
    """Return text with control characters, among them those that set the direction of writing, as escape sequences."""
    return "".join(map(_escape_character, text))


def _escape_character(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":  # Spaces of all widths.
        return character
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


class _Console(Console):
    """A console that escapes every string that it prints, in a table as well."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(escape(text), **options)


def make_console(stderr: bool = False) -> Console:
    """Return a console that prints text as it is: brackets and colons in file names are no markup."""
    return _Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def print_warning(text: str) -> None:
    """Print a remark on stderr that the user should not miss."""
    make_console(stderr=True).print(text, style="yellow", soft_wrap=True)


class _LenientStream:
    """A text stream whose `write` and `flush` do not fail. Everything else is that of the stream inside."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except UnicodeEncodeError as error:
            return self.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        except OSError:
            return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def _finish(stream: TextIO) -> None:
    """Flush a stream. If that fails, drop what it holds, since the interpreter would fail to flush it on exit."""
    try:
        stream.flush()
    except OSError:
        with suppress(OSError), open(os.devnull, "w") as nowhere:  # Some streams have no file number.
            os.dup2(nowhere.fileno(), stream.fileno())
            stream.flush()


@contextmanager
def lenient_output() -> Iterator[None]:
    """Ignore failures to print on stdout and stderr, within this context and when the program exits after it."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, stream and _LenientStream(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in before:
            if stream is not None:
                _finish(stream)
