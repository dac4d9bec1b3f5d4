"""The output folder of an extraction: its manifest, its dataset card, its locks, and what a killed run leaves in it.

Unusual: nothing about the work is kept in memory or in a database. The settings are in `manifest.json`, the finished
pages in the shards, the failed ones in `failures.jsonl`. So the same call continues after a kill, with any number of
processes.
"""

import glob
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import Timeout
from huggingface_hub.utils import WeakFileLock

from .. import __version__
from ..configuration.atomic_files import TEMPORARY_PATTERN, write_text
from .ledger import DATA, FAILURES, merge_failures, read_shards
from .outputs import OUTPUTS
from .settings import FORMATS, ExtractionSettings, ExtractionSummary, RunOptions

__all__ = [
    "STAGING",
    "collect_staged",
    "finish_output",
    "lock_output",
    "lock_rank",
    "open_output",
]

MANIFEST = "manifest.json"
CARD = "README.md"
LOCK = ".lock"
STAGING = ".ray"  # Ray writes here, as a task that dies leaves half a file.
LOCK_TIMEOUT = 0.1  # Seconds. With 0, WeakFileLock gives up before its first attempt.


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(path, timeout=LOCK_TIMEOUT))
        except Timeout as error:
            raise ValueError(f"output {path.parent} is in use by another run.") from error
        yield


@contextmanager
def lock_output(output: Path) -> Iterator[None]:
    """Keep other runs away from a folder, which is created if it is missing. The first process of a run calls this.

    Raises:
        `ValueError`: another run uses the folder, or a process that outlived its run.
    """
    output.mkdir(parents=True, exist_ok=True)
    with _lock(output / LOCK):
        for path in output.glob(f"{LOCK}-*"):  # Processes of other ranks hold these.
            with _lock(path):
                pass
        yield


@contextmanager
def lock_rank(output: Path, rank: int) -> Iterator[None]:
    """Show that a process other than the first of a run uses a folder.

    Raises:
        `ValueError`: a process of the same rank uses it.
    """
    with _lock(output / f"{LOCK}-{rank:05d}"):
        yield


def _read_manifest(output: Path, settings: ExtractionSettings, resume: bool) -> dict[str, Any]:
    """Return the manifest of earlier work, or that of new work."""
    wanted = json.loads(json.dumps(asdict(settings)))
    path = output / MANIFEST
    if not path.exists():
        if any(not entry.name.startswith(".") for entry in output.iterdir()):
            raise ValueError(f"output {output} is not empty, and has no {MANIFEST} of earlier work.")
        return {"settings": wanted}
    if not resume:
        raise ValueError(f"output {output} holds earlier work: choose another folder, or resume.")
    try:
        manifest = json.loads(path.read_bytes())
        found = manifest["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"output {output}: {MANIFEST} is damaged: {error!r}") from error
    changed = [
        f"{name} was {found.get(name)!r} and is {wanted.get(name)!r}"
        for name in sorted({*found, *wanted})
        if found.get(name) != wanted.get(name)
    ]
    if changed:
        raise ValueError(f"output {output} was made with other settings: {'; '.join(changed)}.")
    return dict(manifest)


def _check_place(output: Path, sources: Sequence[str]) -> None:
    for source in sources:
        for place in [source] if Path(source).exists() else glob.iglob(source, recursive=True):
            if Path(place).is_dir() and output.resolve().is_relative_to(Path(place).resolve()):
                raise ValueError(f"output {output} lies in the source {place}, and would be read as a part of it.")


def _remove_unfinished(output: Path) -> None:
    """Remove what a killed run left unfinished."""
    for folder in (output, output / DATA):
        for path in folder.glob(TEMPORARY_PATTERN):
            path.unlink()
    for path in (output / DATA).glob("part-*.safetensors"):
        if not path.with_suffix(".parquet").exists():
            path.unlink()


def collect_staged(output: Path) -> None:
    """Move the complete files that Ray wrote to the other shards, and remove the incomplete ones."""
    import pyarrow
    import pyarrow.parquet

    for path in sorted((output / STAGING).glob("**/*.parquet")):
        try:
            rows = pyarrow.parquet.read_metadata(path).num_rows
        except (pyarrow.ArrowException, OSError):
            rows = 0  # The process that wrote it was killed.
        if rows:
            (output / DATA).mkdir(exist_ok=True)
            path.replace(output / DATA / f"part-ray-{path.stem}.parquet")
        else:
            path.unlink()


def _make_card(settings: ExtractionSettings) -> str:
    lines = [
        "---",
        "tags:",
        "- deepencoder",
        "- feature-extraction",
        "configs:",
        "- config_name: default",
        "  data_files: data/*.parquet",
        "---",
        "",
        "# Features of pages",
        "",
        f"Computed by {settings.model} ({settings.commit}) in mode {settings.mode} and kept as {settings.dtype}.",
        FORMATS[settings.format],
        "",
        *(f"- `{name}`: {OUTPUTS[name].summary}." for name in settings.outputs),
        "- `source` and `page` (from 0) name the page; `width` and `height` are its size in pixels, `grid` the",
        "  columns and rows of its tiles, `num_tokens` the number of its vision tokens.",
        "- `model`, `commit` and `mode` are the same in every row.",
        "- `sha256` is the hash of the page's decoded RGB bytes, row-major.",
        "",
        f"Pages that could not be used are listed in `{FAILURES}`, settings and shards in `{MANIFEST}`.",
        "",
    ]
    return "\n".join(lines)


def open_output(output: Path, settings: ExtractionSettings, options: RunOptions) -> None:
    """Prepare a folder for a run, whether it is new or has earlier work. One process of a run calls this.

    Raises:
        `ImportError`: pyarrow is missing; names the extra that installs it.
        `OSError`: the folder cannot be written.
        `ValueError`: the folder lies in a source, holds something else or work with other settings (says which), or
            holds any work and `options.resume` is off.
    """
    if find_spec("pyarrow") is None:
        raise ImportError('Shards need pyarrow: pip install "deepencoder[extract]".')
    output.mkdir(parents=True, exist_ok=True)
    manifest = _read_manifest(output, settings, options.resume)
    _check_place(output, settings.sources)
    _remove_unfinished(output)
    collect_staged(output)
    merge_failures(output)
    if options.retry_failed:
        (output / FAILURES).unlink(missing_ok=True)
    # Written before the work begins, so that the manifest is true whatever ends this run.
    write_text(output / MANIFEST, json.dumps(manifest | {"done": False}, indent=2))
    if not (output / CARD).exists():
        write_text(output / CARD, _make_card(settings))


def _versions() -> dict[str, str]:
    found = {"deepencoder": __version__}
    for name in ("torch", "transformers", "pillow", "pypdfium2", "pyarrow", "datasets"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def finish_output(
    output: Path, settings: ExtractionSettings, counts: Sequence[tuple[int, int, bool]], seconds: float
) -> ExtractionSummary:
    """Write the manifest and sum the run up.

    Args:
        output, settings: as for [`open_output`].
        counts: for each process how many pages it wrote, how many failed in it, and whether it was stopped.
        seconds: duration of the run.
    """
    failed = merge_failures(output)
    shards = read_shards(output)
    pages = sum(shard["rows"] for shard in shards if shard["name"].endswith(".parquet"))
    written, newly_failed, stopped = (sum(values) for values in zip(*counts, strict=True))
    manifest = {
        "settings": asdict(settings),
        "versions": _versions(),
        "done": not stopped,
        "pages": pages,
        "failed": len(failed),
        "shards": shards,
    }
    write_text(output / MANIFEST, json.dumps(manifest, indent=2))
    return ExtractionSummary(
        pages=pages,
        failed=len(failed),
        written=written,
        newly_failed=newly_failed,
        shards=len(shards),
        bytes=sum(shard["bytes"] for shard in shards),
        seconds=seconds,
        done=not stopped,
    )
