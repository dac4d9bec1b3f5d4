"""Shows the version and every help text, and checks that this imports none of the libraries that take seconds."""

import sys
from contextlib import redirect_stdout
from io import StringIO

import deepencoder
from deepencoder.cli import app, main


def show(*arguments: str) -> str:
    sys.argv = ["deepencoder", *arguments]
    with redirect_stdout(StringIO()) as output:
        try:
            main()
        except SystemExit as stop:
            assert not stop.code, stop.code
    return output.getvalue()


assert show("--version") == f"deepencoder {deepencoder.__version__}\n"
commands = [command.callback.__name__ for command in app.registered_commands if command.callback]
assert {"convert", "encode", "export", "extract", "info", "push"} <= set(commands)
overview = show("--help")
assert "Usage: deepencoder" in overview and "pages in, vision tokens out" in overview
for name in commands:
    assert name in overview
    assert f"Usage: deepencoder {name}" in show(name, "--help")
heavy = {"torch", "transformers", "datasets", "pyarrow"} & sys.modules.keys()
assert not heavy, heavy
