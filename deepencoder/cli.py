"""The command line: one module a command, in `commands/`.

Unusual: without `--model` a tiny model with fixed random weights stands in, so that everything can be tried at once;
it says so. A model may be a checkpoint of other code, which is converted on the way. A mistake of the user's is one
line and exit code 2; files appear whole or not at all.
"""

import signal
import sys

import typer
from huggingface_hub.constants import HF_HUB_DISABLE_PROGRESS_BARS
from huggingface_hub.utils import enable_progress_bars
from transformers.utils import logging

from .commands.common import UserError, make_console
from .commands.convert import convert
from .commands.encode import encode
from .commands.export import export
from .commands.extract import extract
from .commands.info import info
from .commands.push import push
from .conversion.readers.progress import PROGRESS_BAR

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="DeepSeek-OCR's vision encoder: pages in, vision tokens out.",
)
for _command in (encode, extract, info, convert, push, export):
    app.command()(_command)


def main() -> None:
    """Run the command line; mistakes of the user's end with one line and exit code 2."""
    logging.disable_progress_bar()  # the Hub's, too
    if not HF_HUB_DISABLE_PROGRESS_BARS:
        enable_progress_bars(PROGRESS_BAR)
    logging.set_verbosity_error()
    if hasattr(signal, "SIGTERM"):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was begun is removed
    try:
        app(prog_name="deepencoder")
    except (UserError, OSError) as error:  # OSError: a full disk, say
        make_console(stderr=True).print(f"Error: {error}", style="red", soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
