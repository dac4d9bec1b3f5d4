"""Files with several pages: damaged tables, archives and documents, and rows that name files of others."""

import io
import json
import os
import tarfile
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet

from deepencoder.extraction.listing import list_pages
from deepencoder.extraction.pages import PageError, load_page

from ..extraction.corpus import encoded
from .images import damaged_image
from .materials import SECRET_COLOR
from .mutations import mutate_bytes, nasty_name
from .trials import RefusedError, Trial, ViolationError

__all__ = ["run", "write_container"]

MAX_LISTED = 300
MAX_LOADED = 12


def _chained_paths(trial: Trial) -> tuple[str, ...]:
    secret = trial.materials.secret
    return (
        str(secret),
        f"file://{secret}",
        f"{secret}::https://example.invalid/x.png",
        f"zip://secret.png::{secret}",
        f"hf://datasets/owner/name/x.png::{secret}",
        os.path.relpath(secret, trial.folder),
        os.path.relpath(secret),
        "http://example.invalid/x.png",
        "hf://datasets/owner/name@main/x.png",
        "/dev/zero",
        "",
        "\0",
    )


def _cell(trial: Trial) -> Any:
    """Return a value of an image column."""
    match trial.random.choice(("good", "damaged", "path", "path", "none", "empty")):
        case "good":
            return {"bytes": encoded(1), "path": None}
        case "damaged":
            return {"bytes": damaged_image(trial)[1], "path": "x.png"}
        case "path":
            return {
                "bytes": trial.random.choice((None, None, b"")),
                "path": trial.random.choice(_chained_paths(trial)),
            }
        case "none":
            return None
    return {"bytes": b"", "path": None}


def _table(trial: Trial) -> pyarrow.Table:
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    cells = [_cell(trial) for _ in range(trial.random.choice((1, 3, 8)))]
    columns = {"image": pyarrow.array(cells, kind), "name": pyarrow.array([nasty_text(trial.random) for _ in cells])}
    if trial.chance(0.1):
        columns["other"] = columns["image"]
    if trial.chance(0.1):
        columns = {"image": pyarrow.array([value and value["bytes"] for value in cells], pyarrow.large_binary())}
    return pyarrow.table(columns)


def nasty_text(random: Random) -> str:
    """Return a name that is valid UTF-8, as Arrow demands."""
    return nasty_name(random).encode(errors="replace").decode()


def _write_parquet(trial: Trial) -> Path:
    path = trial.folder / "a.parquet"
    compression = trial.random.choice(("none", "snappy", "gzip", "zstd"))
    pyarrow.parquet.write_table(
        _table(trial), path, compression=compression, row_group_size=trial.random.choice((1, 100))
    )
    return path


def _write_saved(trial: Trial) -> Path:
    """Write a saved dataset, which says that its first column holds images."""
    path = trial.folder / "saved"
    datasets.Dataset(_table(trial)).save_to_disk(str(path))
    information = json.loads((path / "dataset_info.json").read_bytes())
    information["features"]["image"] = {"_type": "Image"}  # As an image, the library would have read its files.
    (path / "dataset_info.json").write_text(json.dumps(information))
    if trial.chance(0.4):
        file = trial.random.choice(sorted(each for each in path.rglob("*") if each.is_file()))
        file.write_bytes(mutate_bytes(trial.random, file.read_bytes()))
    return path


def _write_tar(trial: Trial) -> Path:
    random = trial.random
    suffix, mode = random.choice(((".tar", "w"), (".tar.gz", "w:gz"), (".tar.xz", "w:xz")))
    path = trial.folder / f"a{suffix}"
    with tarfile.open(path, mode, format=random.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))) as archive:
        for _ in range(random.choice((0, 1, 4))):
            content = damaged_image(trial)[1]
            name = random.choice(
                (nasty_text(random).replace("\0", "0") + ".png", "../../x.png", "/x.png", "a" * 300 + ".png", "x.png")
            )
            member = tarfile.TarInfo(name)
            member.type = random.choice(
                (tarfile.REGTYPE, tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE)
            )
            member.linkname = str(trial.materials.secret) if member.type != tarfile.REGTYPE else ""
            member.size = len(content) if member.type == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(content))
    return path


def _write_damaged(trial: Trial) -> Path:
    containers = trial.materials.containers
    suffix, other = trial.random.choice(sorted(containers)), trial.random.choice(sorted(containers))
    path = trial.folder / f"a{trial.random.choice((suffix, suffix, suffix, other))}"
    path.write_bytes(mutate_bytes(trial.random, containers[suffix], containers[other]))
    return path


def _write_odd(trial: Trial) -> Path:
    """Write what is neither a file nor a folder of pages."""
    path = trial.folder / "odd.png"
    match trial.random.choice(("fifo", "loop", "dangling", "canary", "folder")):
        case "fifo":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path)
        case "dangling":
            path.symlink_to(trial.folder / "nothing.png")
        case "canary":
            (trial.folder / "link.txt").symlink_to(trial.materials.canary)
            return trial.folder
        case _:
            path.mkdir()
    return path


WRITERS = (_write_parquet, _write_saved, _write_tar, _write_damaged, _write_damaged, _write_damaged, _write_odd)


def write_container(trial: Trial) -> Path:
    """Write a source of pages that is mostly damaged."""
    writer = trial.random.choice(WRITERS)
    path = writer(trial)
    if writer in (_write_parquet, _write_tar) and trial.chance(0.3):
        path.write_bytes(mutate_bytes(trial.random, path.read_bytes()))
    trial.note(writer=writer.__name__, path=path.name)
    return path


def run(trial: Trial) -> None:
    path = write_container(trial)
    source = trial.random.choice((path, path, path, trial.folder))
    column = trial.random.choice((None, None, None, "image", "name", "nothing"))
    dpi = trial.random.choice((1, 36, 72, 10**6))
    split = trial.random.choice((None, None, None, "train"))
    with trial.may_raise(ValueError, OSError, one_line=True):
        pages = list(islice(list_pages([source], column=column, dpi=dpi, split=split), MAX_LISTED))
    if len({(page.source, page.page) for page in pages}) != len(pages):
        raise ViolationError("listed two pages of the same name")
    for page in pages[:MAX_LOADED]:
        try:
            with trial.may_raise(PageError, one_line=True):
                image = load_page(page)
        except RefusedError:
            continue
        if np.array_equal(np.asarray(image)[0, 0], SECRET_COLOR):
            raise ViolationError(f"read an image outside of the source: {page!r:.200}")
