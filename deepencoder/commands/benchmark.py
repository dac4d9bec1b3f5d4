"""`deepencoder benchmark`: which way of running a model is the fastest on this machine."""

from typing import Annotated, Any

import typer
from rich.table import Table

from .errors import UserError
from .terminal import make_console

__all__ = ["benchmark"]


def benchmark(
    size: Annotated[int, typer.Option(help="Side of the page in pixels, a multiple of 16.")] = 640,
    threads: Annotated[
        int | None,
        typer.Option(help="Number of threads. Default: as many as torch uses here.", show_default=False),
    ] = None,
) -> None:
    """Find the fastest way of running a DeepEncoder on this machine's CPU: torch or a runtime, in which precision.

    Takes about a minute. Each way that is installed runs a small part of the published model, with random weights.
    The time of the whole model is estimated from it.
    """
    import torch

    from ..runtimes.trials.fastest import measure_ways, part_of_published_model, scale_to_published_model

    if size <= 0 or size % 16:
        raise UserError(f"--size must be a positive multiple of 16, got {size}.")
    if threads is not None and threads < 1:
        raise UserError(f"--threads must be at least 1, got {threads}.")
    config = part_of_published_model()
    console, progress = make_console(), make_console(stderr=True)
    count = threads or torch.get_num_threads()
    with progress.status("starting") as status:
        found = measure_ways(config, size, count, report=status.update)
    print_results(console, found, scale_to_published_model(config, size), size, count)


def print_results(console: Any, found: list[Any], scale: float, size: int, threads: int) -> None:
    """Print the times and memory of all ways, and how to ask for the fastest.

    Args:
        console: where to print.
        found: a list of `Measured`.
        scale: how many times as many operations the whole model takes.
        size: side of the page in pixels.
        threads: number of threads.
    """
    console.print(f"A page of {size} pixels with {threads} thread{'s' * (threads > 1)}:")
    console.print(_make_table(found, scale))
    for measured in found:
        if measured.problem:
            console.print(f"{measured.way.title}: {measured.problem}", soft_wrap=True)
    timed = [measured for measured in found if measured.seconds is not None]
    if timed:
        fastest = min(timed, key=lambda measured: measured.seconds)
        console.print(f"Fastest here: {fastest.way.title}. Ask for it by {fastest.way.how}.", soft_wrap=True)
    console.print(
        "The whole model is an estimate from the number of its operations. docs/performance.md has whole models on "
        "several processors, with their memory.",
        soft_wrap=True,
    )


def _make_table(found: list[Any], scale: float) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("way", "part", "its loading", "its memory", "error", "whole, about"):
        table.add_column(heading, no_wrap=True)
    for measured in sorted((row for row in found if row.seconds is not None), key=lambda row: row.seconds):
        table.add_row(
            measured.way.title,
            f"{measured.seconds:.3f} s",
            f"{measured.load_seconds:.1f} s",
            "unknown" if measured.peak_bytes is None else f"{measured.peak_bytes / 1e9:.2f} GB",
            "reference" if measured.error is None else f"{measured.error:.0e}",
            f"{scale * measured.seconds:.2g} s",
        )
    return table
