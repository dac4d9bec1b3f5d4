"""Options of a command as the fields of a dataclass."""

from dataclasses import dataclass
from enum import Enum
from typing import Annotated

import typer
from typer.testing import CliRunner

from deepencoder.commands.dataclass_options import takes_options


class Colour(str, Enum):
    red = "red"
    blue = "blue"


@dataclass(frozen=True)
class PaintOptions:
    rooms: Annotated[list[str], typer.Argument(metavar="ROOM...")]
    colour: Annotated[Colour, typer.Option("--colour", "-c", help="Colour of the walls.")] = Colour.red
    coats: Annotated[int | None, typer.Option(help="Number of coats.")] = None
    varnish: bool = False


received: list[PaintOptions] = []


@takes_options(PaintOptions)
def paint(options: PaintOptions) -> None:
    """Paint some rooms."""
    received.append(options)


def run(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(paint)
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.output


def test_fields_become_arguments_and_options() -> None:
    assert run("hall", "attic", "-c", "blue", "--coats", "2", "--varnish")[0] == 0
    assert received.pop() == PaintOptions(["hall", "attic"], Colour.blue, 2, True)
    assert run("hall")[0] == 0
    assert received.pop() == PaintOptions(["hall"])


def test_help_and_errors_are_those_of_a_function() -> None:
    code, text = run("--help")
    assert code == 0
    assert all(words in text for words in ("Paint some rooms.", "ROOM...", "--colour", "Colour of the walls.", "red"))
    assert run()[0] == run("hall", "--colour", "green")[0] == 2 and not received
