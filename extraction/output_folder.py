"""The output folder of an extraction: its manifest, its dataset card, its locks, and what a killed run leaves in it.

Unusual: nothing about the work is kept in memory or in a database. The settings are in `manifest.json`, the finished
pages in the shards, the failed ones in `failures.jsonl`. So the same call continues after a kill, with any number of
processes.
"""

import glob
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from reprlib import repr as shorten
from typing import Any

from filelock import Timeout
from huggingface_hub.utils import WeakFileLock

from .. import __version__
from ..configuration.atomic_files import TEMPORARY_PATTERN, write_text
from .ledger import FAILURES, merge_failures
from .listing import is_streamed
from .outputs import OUTPUTS
from .settings import FORMATS, ExtractionSettings, ExtractionSummary, RunOptions, VerificationSummary
from .shards import (
    DATA,
    SEPARATE_SUFFIX,
    DamagedShardError,
    list_shards,
    read_shards,
    set_aside,
    verify_shard,
)
from .staging import collect_left

__all__ = [
    "finish_output",
    "lock_output",
    "lock_rank",
    "open_output",
    "verify_output",
]

MANIFEST = "manifest.json"
PLACES = "source_places"  # Key of the manifest: where the sources are, however they were spelled.
CARD = "README.md"
LOCK = ".lock"
LOCK_TIMEOUT = 0.1  # Seconds. With 0, WeakFileLock gives up before its first attempt.
# What manifests of version 0.1, which had fewer settings, leave out.
LATER_SETTINGS = {name: getattr(ExtractionSettings, name) for name in ("vector_pool", "vector_width", "runtime")}


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(path, timeout=LOCK_TIMEOUT))
        except Timeout as error:
            raise ValueError(f"output {path.parent} is in use by another run.") from error
        yield


def _check_is_folder(output: Path) -> None:
    if output.is_symlink() and not output.exists():
        raise ValueError(f"output {output} is a link to {os.readlink(output)}, which does not exist.")
    if output.exists() and not output.is_dir():
        raise ValueError(f"output {output} is a file, not a folder.")


@contextmanager
def lock_output(output: Path) -> Iterator[None]:
    """Keep other runs away from a folder, which is created if it is missing. The first process of a run calls this.

    Raises:
        `ValueError`: another run uses the folder, or a process that outlived its run; or it is not a folder.
    """
    _check_is_folder(output)
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


def _check_pyarrow() -> None:
    if find_spec("pyarrow") is None:
        raise ImportError('Shards need pyarrow: pip install "deepencoder[extract]".')


def _is_manifest(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("settings"), dict)
        and isinstance(shards := value.get("shards", []), list)
        and all(isinstance(shard, dict) and isinstance(shard.get("name"), str) for shard in shards)
        and all(isinstance(shard.get("bytes"), int) for shard in shards)
    )


def _load_manifest(output: Path) -> dict[str, Any] | None:
    """Return the manifest of earlier work, or None if there is none.

    Raises:
        `ValueError`: it is damaged, or something else.
    """
    path = output / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
    if not _is_manifest(manifest):
        raise ValueError(f"{path} is damaged: it does not describe an extraction.")
    return dict(manifest)


def _recorded(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {shard["name"]: shard for shard in manifest.get("shards", [])}


def _find_places(sources: Sequence[str]) -> list[str]:
    """Return the sources as absolute paths and patterns; ids of datasets on the Hub stay as they are."""
    return [source if is_streamed(source) else os.path.abspath(source) for source in sources]


def _describe_changes(manifest: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Say which settings, or places of sources, differ from those of earlier work."""
    found, settings = LATER_SETTINGS | manifest["settings"], wanted["settings"]
    changed = [
        # A name that is none of ours may be anything.
        f"{name if name in settings else shorten(name)} was {found.get(name)!r} and is {settings.get(name)!r}"
        for name in sorted({*found, *settings})
        if found.get(name) != settings.get(name)
    ]
    places = manifest.get(PLACES)  # Earlier versions did not record them.
    if not changed and places is not None and places != wanted[PLACES]:
        changed.append(f"its sources were {places!r} and are {wanted[PLACES]!r}")
    return changed


def _read_manifest(output: Path, settings: ExtractionSettings, resume: bool) -> dict[str, Any]:
    """Return the manifest of earlier work, or that of new work."""
    wanted = {"settings": json.loads(json.dumps(asdict(settings))), PLACES: _find_places(settings.sources)}
    manifest = _load_manifest(output)
    if manifest is None:
        if any(not entry.name.startswith(".") for entry in output.iterdir()):
            raise ValueError(f"output {output} is not empty, and has no {MANIFEST} of earlier work.")
        return wanted
    if not resume:
        raise ValueError(f"output {output} holds earlier work: choose another folder, or resume.")
    changed = _describe_changes(manifest, wanted)
    if changed:
        raise ValueError(f"output {output} was made with other settings: {'; '.join(changed)}.")
    return manifest | wanted


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
    for path in (output / DATA).glob(f"part-*{SEPARATE_SUFFIX}"):
        if not path.with_suffix(".parquet").exists():
            path.unlink()


def _find_damaged(output: Path, manifest: dict[str, Any]) -> Iterator[DamagedShardError]:
    """Read every shard back, and yield what is wrong with those that are damaged."""
    recorded = _recorded(manifest)
    for path in list_shards(output):
        try:
            verify_shard(path, recorded)
        except DamagedShardError as error:
            yield error


def verify_output(output: Path) -> VerificationSummary:
    """Read everything back that an extraction wrote. Nothing is changed, and a run may go on meanwhile.

    Shards of earlier versions have no checksums; of these, only the damage that makes them unreadable is found.

    Raises:
        `ImportError`: pyarrow is missing.
        `ValueError`: the folder holds no extraction, or its manifest is damaged.
    """
    _check_pyarrow()
    manifest = _load_manifest(output)
    if manifest is None:
        raise ValueError(f"output {output} holds no extraction: it has no {MANIFEST}.")
    recorded, damaged, found = _recorded(manifest), {}, []
    for path in list_shards(output):
        try:
            found += verify_shard(path, recorded)
        except DamagedShardError as error:
            damaged[f"{DATA}/{path.name}"] = error.reason
    missing = {
        name: "it is missing" for name in recorded if name.endswith(".parquet") and not (output / name).exists()
    }
    return VerificationSummary(
        pages=sum(file["rows"] for file in found if file["name"].endswith(".parquet")),
        shards=len(found),
        bytes=sum(file["bytes"] for file in found),
        damaged=damaged | missing,
    )


def _describe_vectors(settings: ExtractionSettings) -> list[str]:
    """Say how to make comparable vectors, if there are any."""
    if "multi_vector" not in settings.outputs:
        return []
    return [
        f"  A cell has {settings.vector_pool} x {settings.vector_pool} tokens. Tokens of more than "
        f"{settings.vector_width} values are projected to that length by",
        "  the matrix that `deepencoder.processing.VectorOptions.make_projection` makes.",
    ]


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
        *_describe_vectors(settings),
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
            holds any work and `options.resume` is off; or a shard is damaged and `options.redo_damaged` is off.
    """
    _check_pyarrow()
    output.mkdir(parents=True, exist_ok=True)
    manifest = _read_manifest(output, settings, options.resume)
    _check_place(output, settings.sources)
    _remove_unfinished(output)
    if options.redo_damaged:
        for shard in _find_damaged(output, manifest):
            set_aside(output, shard.path)
    shards = read_shards(output, _recorded(manifest))
    collect_left(output)
    merge_failures(output)
    if options.retry_failed:
        (output / FAILURES).unlink(missing_ok=True)
    # Written before the work begins, so that the manifest is true whatever ends this run. It forgets the shards that
    # are gone, since new ones may get their names.
    manifest |= {"shards": shards} if "shards" in manifest else {}
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
        PLACES: _find_places(settings.sources),
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
