"""`deepencoder push`: a model's folder to the Hub, with everything that is needed to load it anywhere."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from .errors import reported_as
from .terminal import make_console

__all__ = ["push"]


def push(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of a model, as convert or save_pretrained writes it.")
    ],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="Repository on the Hub: NAME or OWNER/NAME.")],
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public",
            help="Visibility of a new repository. Default: the setting of its owner.",
            show_default=False,
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch to upload to; it is created if it does not exist.")
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(
            help="Licence of the weights, by its identifier on the Hub. Default: the one recorded in the folder.",
            show_default=False,
        ),
    ] = None,
    message: Annotated[str, typer.Option("--message", "-m", help="Message of the commit.")] = "Upload model",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Upload without asking first.")] = False,
) -> None:
    """Upload a model with its code, image processor and model card, so that it loads with or without this package.

    Uploads the weights, the files that describe them, and code that it generates; nothing else in FOLDER. Lists the
    files that it will upload and those that it leaves out, and asks. The folder stays as it is. Log in with `hf auth
    login`, or set HF_TOKEN.
    """
    from ..sharing.repository import collect_repository, list_left_out
    from ..sharing.upload import push_folder

    console = make_console()
    with reported_as(f"{folder} cannot be shared", Exception):  # Damaged files raise anything.
        files = collect_repository(folder, repo_id, license=license)
        left_out = list_left_out(folder, files)
    console.print(_list_files(files))
    if left_out:
        console.print(f"not published: {', '.join(left_out)}", soft_wrap=True)
    visibility = {None: "", True: " (private)", False: " (public)"}[private]
    question = f"Upload {len(files)} files to {repo_id}{visibility}" + (f", branch {revision}" if revision else "")
    if not yes and not typer.confirm(f"{question}?"):
        raise typer.Exit(1)
    with reported_as(f"{repo_id} cannot be uploaded", OSError, ValueError):
        address = push_folder(folder, repo_id, private=private, revision=revision, commit_message=message, files=files)
    console.print(f"Uploaded: {address}", soft_wrap=True)


def _list_files(files: Mapping[str, Path | bytes]) -> Table:
    """Return a table of files on disk (paths) and of files generated for the upload (bytes)."""
    table = Table("file", "bytes", "", box=None, pad_edge=False)
    for name, content in files.items():
        if isinstance(content, bytes):
            table.add_row(name, f"{len(content):,}", "generated")
        else:
            table.add_row(name, f"{content.stat().st_size:,}", f"link to {content.resolve()}" * content.is_symlink())
    return table
