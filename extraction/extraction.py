"""A corpus into a folder of shards: what was asked for, what is done, what is left.

Unusual: nothing is kept in memory or in a database about the work: the settings are in `manifest.json`, the finished
pages in the shards, the failed ones in `failures.jsonl`. So the same call after a kill, with any number of processes,
goes on with what is missing; processes share pages by their names and need not talk.
"""

import glob
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

from ..processing.modes import MODES
from .batches import check_outputs, iterate_features
from .features import feature_fields
from .listing import is_streamed, list_pages
from .pages import Page
from .shards import (
    FORMATS,
    FailureLog,
    ShardWriter,
    collect_staged,
    key_of,
    merge_failures,
    page_schema,
    read_finished,
    read_shards,
    remove_temporaries,
    write_atomically,
)
from .workers import PAGE_TIMEOUT

__all__ = ["BadPageError", "ExtractionSettings", "ExtractionSummary", "Progress", "extract_features", "open_output"]

MANIFEST = "manifest.json"
CARD = "README.md"
LOCK = ".lock"
SHARE = 16  # consecutive pages of a document that one process takes: they stay together, and it is still shared


class BadPageError(ValueError):
    """With `strict`, the first page that cannot be used."""


@dataclass(frozen=True)
class ExtractionSettings:
    """What decides the features: it is written down, and may not change between the runs of a folder.

    Args:
        sources: as for [`list_pages`], as are `dpi`, `split` and `column`.
        model, commit (`str`): the model's name, and which weights it has; see [`identify_model`].
        mode (`str`): one of the image processor's; anything else means its own fields.
        outputs, dtype: as for [`iterate_features`].
        format (`str`): `"parquet"` or `"safetensors"`; see [`ShardWriter`].
        model_dtype (`str`): in which the model computes; `"auto"` is the weights' own.

    Raises:
        `ValueError`: an unknown output, dtype or format.
    """

    sources: tuple[str, ...]
    model: str
    commit: str
    mode: str
    outputs: tuple[str, ...] = ("pooled",)
    dtype: str = "float16"
    dpi: int = 144
    split: str | None = None
    column: str | None = None
    format: str = "parquet"
    model_dtype: str = "auto"

    def __post_init__(self) -> None:
        check_outputs(self.outputs, self.dtype)
        if self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(map(repr, FORMATS))}, got {self.format!r}.")

    @property
    def named_mode(self) -> str | None:
        """The mode to say to an image processor whose own fields are not meant."""
        return self.mode if self.mode in MODES else None

    def list_pages(
        self,
        wanted: Callable[[int, str, int], bool] | None = None,
        sources: Sequence[str] | None = None,
        left_out: Path | None = None,
    ) -> Iterator[Page]:
        """List the pages of all sources, or of some; see [`list_pages`]."""
        chosen = self.sources if sources is None else sources
        return list_pages(chosen, dpi=self.dpi, split=self.split, column=self.column, wanted=wanted, left_out=left_out)


@dataclass
class Progress:
    """How far one process is.

    Args:
        total (`int`, *optional*): pages that were left for it to do; None if they are not counted.
        written, failed (`int`): of them, so far.
        error (`str`): of the last page, where it failed; with its name.
    """

    total: int | None = None
    written: int = 0
    failed: int = 0
    error: str = ""


@dataclass
class ExtractionSummary:
    """What a run did, over all processes.

    Args:
        pages (`int`): rows in the folder's shards, of this run and of earlier ones.
        failed (`int`): pages in `failures.jsonl`, likewise.
        written, newly_failed (`int`): of this run.
        shards (`int`): files of features.
        bytes (`int`): their size.
        seconds (`float`): that it took.
        done (`bool`): whether every page of the corpus is written or failed.
    """

    pages: int
    failed: int
    written: int
    newly_failed: int
    shards: int
    bytes: int
    seconds: float
    done: bool


def open_output(
    output: Path, settings: ExtractionSettings, *, resume: bool = True, retry_failed: bool = False
) -> None:
    """Make a folder ready for a run: new, or with earlier work of the same settings. For one process of a run.

    Raises:
        `ImportError`: pyarrow is missing; names the extra that brings it.
        `OSError`: it cannot be written.
        `ValueError`: it lies in a source, or holds something else, work with other settings (says which), or with
            `resume=False` any work.
    """
    if find_spec("pyarrow") is None:
        raise ImportError('Shards need pyarrow: pip install "deepencoder[extract]".')
    wanted = json.loads(json.dumps(asdict(settings)))
    output.mkdir(parents=True, exist_ok=True)
    path = output / MANIFEST
    if path.exists():
        if not resume:
            raise ValueError(f"output {output} holds earlier work: take another folder, or resume.")
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
    elif any(not entry.name.startswith(".") for entry in output.iterdir()):
        raise ValueError(f"output {output} is not empty, and holds no {MANIFEST} of earlier work.")
    for source in settings.sources:
        for place in [source] if Path(source).exists() else glob.iglob(source, recursive=True):
            if Path(place).is_dir() and output.resolve().is_relative_to(Path(place).resolve()):
                raise ValueError(f"output {output} lies in the source {place}, and would be read as a part of it.")
    remove_temporaries(output)
    collect_staged(output)
    merge_failures(output)
    if retry_failed:
        (output / "failures.jsonl").unlink(missing_ok=True)
    if not path.exists():
        manifest = {"settings": wanted}
    # Whatever ends this run before it is done, the manifest tells the truth.
    write_atomically(path, json.dumps(manifest | {"done": False}, indent=2))
    if not (output / CARD).exists():
        write_atomically(output / CARD, _make_card(settings))


def extract_features(
    settings: ExtractionSettings,
    output: Path,
    load: Callable[[], tuple[Any, Any]],
    *,
    batch_size: int | str = "auto",
    workers: int = 1,
    page_timeout: float | None = PAGE_TIMEOUT,
    shard_size: int = 512 << 20,
    shard_seconds: float = 1800.0,
    resume: bool = True,
    retry_failed: bool = False,
    strict: bool = False,
    count: bool = True,
    rank: int = 0,
    world_size: int = 1,
    gather: Callable[[Any], Sequence[Any]] | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> ExtractionSummary:
    """Write the features of a corpus into a folder; go on where an earlier call ended, however it ended.

    Args:
        settings ([`ExtractionSettings`]): what is extracted.
        output (`Path`): the folder. `datasets.load_dataset` opens it as it is.
        load: returns the model, on its device, and the image processor. Called if there is something to do.
        batch_size, workers, page_timeout: as for [`iterate_features`].
        shard_size, shard_seconds: as for [`ShardWriter`].
        resume, retry_failed: as for [`open_output`]; failed pages are else done with.
        strict (`bool`): end at the first page that fails; it is not written down as failed.
        count (`bool`): list the corpus once ahead, for `on_progress`' total. Not done for streamed datasets.
        rank, world_size (`int`): of this process among those that share the corpus; of any number in each run.
        gather (*optional*): takes a picklable value and returns those of all processes, when all have come to it.
        stop: asked between batches; once true, what there is is written and the call returns.
        on_progress: called after each page.

    Returns:
        [`ExtractionSummary`].

    Raises:
        `BadPageError`: with `strict`.
        `OSError`: the folder cannot be written. Finished shards stay.
        `ValueError`: see [`open_output`] and [`list_pages`]; or another run has this folder.
    """
    together = gather or (lambda value: [value])
    started = time.monotonic()
    output = Path(output)
    with ExitStack() as locks:
        refused: Exception | None = None
        if rank == 0:
            try:
                locks.enter_context(lock_output(output))
                open_output(output, settings, resume=resume, retry_failed=retry_failed)
            except (ImportError, OSError, ValueError) as error:
                refused = error
        (refused,) = together((refused,))[0]
        if refused is not None:
            raise refused  # in every process: none waits for the others
        if rank != 0:
            locks.enter_context(_lock(output / f"{LOCK}-{rank:05d}"))
        is_finished = read_finished(output)

        def is_mine(index: int, source: str, page: int) -> bool:
            # Not by the index: files that come while the processes list would shift it in some of them.
            return key_of(source, page // SHARE) % world_size == rank and not is_finished(source, page)

        progress = Progress()
        if count and rank == 0:
            progress.total = _count(settings, is_mine, output, stop)
        pages = settings.list_pages(is_mine, left_out=output)
        first = None if stop() else next(pages, None)
        if first is not None:
            model, image_processor = load()
            mode = settings.named_mode
            fields = feature_fields(model.config, image_processor, settings.outputs, settings.dtype, mode)
            writer = ShardWriter(
                output,
                page_schema(fields),
                {"model": settings.model, "commit": settings.commit, "mode": settings.mode},
                rank=rank,
                dtype=settings.dtype,
                format=settings.format,
                shard_size=shard_size,
                shard_seconds=shard_seconds,
            )
            features = iterate_features(
                chain([first], pages),
                model,
                image_processor,
                mode=mode,
                outputs=settings.outputs,
                dtype=settings.dtype,
                batch_size=batch_size,
                workers=workers,
                page_timeout=page_timeout,
                stop=stop,
            )
            _write_all(features, writer, FailureLog(output, rank), strict, progress, on_progress)
        counts = together((progress.written, progress.failed, stop()))
        summary = None
        if rank == 0:
            summary = finish_output(output, settings, counts, time.monotonic() - started)
        return next(found for found in together(summary) if found is not None)


@contextmanager
def lock_output(output: Path) -> Iterator[None]:
    """Keep other runs off a folder, which is made if it is missing.

    Raises:
        `ValueError`: another run has it, or a process that outlived its run.
    """
    output.mkdir(parents=True, exist_ok=True)
    with _lock(output / LOCK):
        for path in output.glob(f"{LOCK}-*"):  # of processes of other ranks
            with _lock(path):
                pass
        yield


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"output {path.parent} is in use by another run.") from error
    try:
        yield
    finally:
        lock.release()


def _count(
    settings: ExtractionSettings,
    is_wanted: Callable[[int, str, int], bool],
    left_out: Path,
    stop: Callable[[], bool],
) -> int | None:
    if any(is_streamed(source) for source in settings.sources):
        return None
    total = 0

    def note(index: int, source: str, page: int) -> bool:
        nonlocal total
        total += is_wanted(index, source, page)
        return stop()  # else none is read

    for _ in settings.list_pages(note, left_out=left_out):
        return None
    return total


def _write_all(
    features: Any,
    writer: ShardWriter,
    failures: FailureLog,
    strict: bool,
    progress: Progress,
    on_progress: Callable[[Progress], None],
) -> None:
    try:
        for row in features:
            progress.error = ""
            if row.error:
                progress.error = f"{row.page.source}, page {row.page.page}: {row.error}"
                if strict:
                    raise BadPageError(progress.error)
                failures.add(row)
                progress.failed += 1
            else:
                writer.add(row)
                progress.written += 1
            on_progress(progress)
    except BaseException:
        writer.close()  # what there is is good; where writing failed, nothing is left
        raise
    finally:
        features.close()  # and its workers with it: an exception would keep them alive
    writer.close()


def finish_output(
    output: Path, settings: ExtractionSettings, counts: Sequence[tuple[int, int, bool]], seconds: float
) -> ExtractionSummary:
    """Write the manifest and sum up. `counts`: pages written, pages failed and whether it stopped, of each process."""
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
    write_atomically(output / MANIFEST, json.dumps(manifest, indent=2))
    return ExtractionSummary(
        pages,
        len(failed),
        written,
        newly_failed,
        len(shards),
        sum(shard["bytes"] for shard in shards),
        seconds,
        not stopped,
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in ("deepencoder", "torch", "transformers", "pillow", "pypdfium2", "pyarrow", "datasets"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _make_card(settings: ExtractionSettings) -> str:
    described = {
        "pooled": "`pooled`: one vector a page, CLIP's class token.",
        "tokens": "`tokens`: fused tokens, the global view's and then each tile's, row-major.",
        "vision_tokens": "`vision_tokens`: projected and laid out as DeepSeek-OCR's decoder reads them.",
    }
    beside = (
        " They are in the safetensors file beside each shard, as `ROW.NAME`." if settings.format != "parquet" else ""
    )
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
        f"By {settings.model} ({settings.commit}), mode {settings.mode}, as {settings.dtype}.{beside}",
        "",
        *(f"- {described[name]}" for name in settings.outputs),
        "- `source`, `page` (from 0), `width` and `height` in pixels, `grid` (columns and rows of tiles),",
        "  `num_tokens`, `model`, `commit`, `mode`.",
        "- `sha256`: of the page's decoded RGB bytes, row-major.",
        "",
        "Pages that could not be used are in `failures.jsonl`; settings and shards in `manifest.json`.",
        "",
    ]
    return "\n".join(lines)
