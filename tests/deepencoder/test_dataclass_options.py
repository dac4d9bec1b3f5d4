"""Commands whose options are the fields of a dataclass."""

from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from deepencoder.commands.dataclass_options import takes_options


@dataclass(frozen=True)
class Options:
    names: Annotated[list[str], typer.Argument(help="Names to greet.")]
    greeting: Annotated[str, typer.Option("--greeting", "-g", help="Word before each name.")] = "Hello"
    times: Annotated[int, typer.Option(help="How often to greet.")] = 1


@takes_options(Options)
def greet(options: Options) -> None:
    """Greet people."""
    assert isinstance(options, Options)
    for name in options.names * options.times:
        print(options.greeting, name)


def run(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(greet)
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


def test_fields_become_arguments_and_options() -> None:
    assert run("Ada", "Alan") == (0, "Hello Ada\nHello Alan\n")
    assert run("Ada", "-g", "Bye", "--times", "2") == (0, "Bye Ada\nBye Ada\n")


def test_a_field_without_a_default_is_required() -> None:
    assert run()[0] == 2
    assert run("Ada", "--times", "often")[0] == 2


def test_help_shows_the_docstring_and_the_fields() -> None:
    code, out = run("--help")
    assert code == 0 and all(words in out for words in ("Greet people.", "Names to greet.", "--greeting", "How often"))
