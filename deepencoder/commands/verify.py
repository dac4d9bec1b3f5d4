"""`deepencoder extract --verify`: what is damaged in a folder of features."""

import json
from dataclasses import asdict
from pathlib import Path

import typer

from .errors import reported_as
from .terminal import make_console

__all__ = ["verify_folder"]


def verify_folder(output: Path, as_json: bool) -> None:
    """Print which shards of a folder are damaged or missing, and end with exit code 1 if any are."""
    from ..extraction.output_folder import verify_output

    with reported_as(f"--verify {output}", ImportError, OSError, ValueError):
        found = verify_output(output)
    console = make_console()
    if as_json:
        console.print(json.dumps({"output": str(output), **asdict(found)}), soft_wrap=True)
    else:
        for name, reason in found.damaged.items():
            console.print(f"Damaged: {output / name}: {reason}", soft_wrap=True)
        console.print(
            f"{output}: {found.pages:,} pages in {found.shards:,} files, {found.bytes / 1e6:,.1f} MB, are whole; "
            f"{len(found.damaged):,} shards are damaged or missing.",
            soft_wrap=True,
        )
        if found.damaged:
            console.print("With --redo-damaged, extract does their pages again.")
    if found.damaged:
        raise typer.Exit(1)
