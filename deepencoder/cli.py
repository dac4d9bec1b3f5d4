"""The command line: one module per command, in `commands/`.

Unusual: importing torch and transformers takes seconds, so the modules of the commands import them inside their
functions, and help texts appear at once. A mistake of the user is reported in one line with exit code 2. Files appear
whole or not at all. What cannot be printed is dropped, and does not change the exit code.
"""

import inspect
import logging
import re
import signal
import sys
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from . import __version__
from .commands.benchmark import benchmark
from .commands.convert import convert
from .commands.encode import encode
from .commands.errors import UserError, one_line
from .commands.export import export
from .commands.extract import extract
from .commands.info import info
from .commands.push import push
from .commands.terminal import lenient_output, make_console

__all__ = ["app", "main"]

# Importing transformers imports torchao, which logs that it cannot load CUDA kernels, and which registers enums with
# torch's pytree in a way that is deprecated. The last one warns of slow dtypes; commands do that in their own words.
CHATTY_LOGGERS = ("torchao", "torch.utils._pytree", "transformers.deepencoder.precision")

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"deepencoder {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """DeepSeek-OCR's vision encoder: pages in, vision tokens out."""


def _quiet_libraries() -> None:
    """Turn off the progress bars and warnings of transformers and of the Hub, except for our own downloads."""
    from huggingface_hub.constants import HF_HUB_DISABLE_PROGRESS_BARS
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging as transformers_logging

    from .conversion.readers.progress import PROGRESS_BAR

    transformers_logging.disable_progress_bar()  # This turns off the bars of huggingface_hub, too.
    if not HF_HUB_DISABLE_PROGRESS_BARS:
        enable_progress_bars(PROGRESS_BAR)
    transformers_logging.set_verbosity_error()


def _with_quiet_libraries(command: Callable[..., None]) -> Callable[..., None]:
    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        _quiet_libraries()
        command(*args, **kwargs)

    return run


def _help_text(command: Callable[..., None]) -> str:
    """Return a command's docstring with each paragraph on one line, since typer keeps line breaks as they are."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(command.__doc__ or ""))


for _command in (encode, extract, info, convert, push, export, benchmark):
    app.command(help=_help_text(_command))(_with_quiet_libraries(_command))


def main() -> None:
    """Run the command line. A mistake of the user ends it with one line on stderr and exit code 2."""
    for name in CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    if hasattr(signal, "SIGTERM"):
        # As an exception, so that temporary files and folders are removed.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with lenient_output():
        try:
            app(prog_name="deepencoder")
        except (UserError, OSError) as error:  # An OSError may be a full disk.
            text = str(error) if isinstance(error, UserError) else one_line(error)
            make_console(stderr=True).print(f"Error: {text}", style="red", soft_wrap=True)
            sys.exit(2)
        except KeyboardInterrupt:
            sys.exit(130)


if __name__ == "__main__":
    main()
