"""`deepencoder push`: a model's folder to the Hub, with all that it takes to load it anywhere."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..sharing.hub import collect_repository, push_folder
from .common import UserError, make_console, one_line

__all__ = ["push"]


def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="As convert or save_pretrained writes it.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="name or owner/name.")],
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Of a new repository.", show_default=False)
    ] = None,
    revision: Annotated[str | None, typer.Option(help="The branch; it is made if it is not there.")] = None,
    license: Annotated[
        str | None,
        typer.Option(help="Of the weights, as the Hub names it. Default: what the folder tells.", show_default=False),
    ] = None,
    message: Annotated[str, typer.Option("--message", "-m", help="Of the commit.")] = "Upload model",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Upload a model with its code, image processor and model card, so that it loads with or without this package.

    Shows what it will upload, and asks. The folder stays as it is. Log in with `hf auth login`, or set HF_TOKEN.
    """
    console = make_console()
    try:
        files = collect_repository(folder, repo_id, license=license)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} cannot be shared: {one_line(error)}") from error
    table = Table("file", "bytes", "", box=None, pad_edge=False)
    for name, content in files.items():
        made = isinstance(content, bytes)
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        table.add_row(name, f"{size:,}", "made for it" if made else "")
    console.print(table)
    visibility = {None: "", True: " (private)", False: " (public)"}[private]
    question = f"Upload {len(files)} files to {repo_id}{visibility}" + (f", branch {revision}" if revision else "")
    if not yes and not typer.confirm(f"{question}?"):
        raise typer.Exit(1)
    try:
        address = push_folder(folder, repo_id, private=private, revision=revision, commit_message=message, files=files)
    except (OSError, ValueError) as error:
        raise UserError(f"{repo_id} cannot be uploaded: {one_line(error)}") from error
    console.print(f"Uploaded: {address}", soft_wrap=True)
