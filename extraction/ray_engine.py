"""Extracts the features of a corpus with Ray Data: on a cluster, with Ray's scheduling, retries and back-pressure.

Unusual: nothing here schedules anything. Tasks list the pages of one file each, further tasks decode pages, actors
that hold the model encode them, and Ray writes the rows, into a folder from which complete files move to the other
shards.
"""

import logging
import os
import pickle
import re
import time
import uuid
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arrow import to_table
from .encoding import PageEncoder
from .failure_streaks import FailureStreaks
from .ledger import FailureLog, merge_failures, read_finished
from .limits import MAX_PAGES_PER_DOCUMENT
from .listing import NoImagesError, list_files
from .output_folder import finish_output, lock_output, open_output
from .pages import FailedPage, Page
from .preparation import PageLoader, not_prepared
from .settings import BadPageError, ExtractionSettings, ExtractionSummary, ModelError, RunOptions
from .shards import read_shards
from .staging import collect_staged, new_staging
from .workers import DiedError, Worker

if TYPE_CHECKING:
    import pyarrow

__all__ = ["extract_with_ray"]

PAGES_PER_CALL = 64  # Pages that an actor takes at once; it cuts them into batches itself.


class _Lister:
    """Lists the pages of a file that are still to be done, as pickled references."""

    def __init__(
        self,
        settings: ExtractionSettings,
        is_finished: Callable[[str, int], bool],
        max_pages: int = MAX_PAGES_PER_DOCUMENT,
    ) -> None:
        self.settings, self.is_finished, self.max_pages = settings, is_finished, max_pages

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        pages = self.settings.list_pages(
            lambda index, source, page: not self.is_finished(source, page),
            sources=(row["file"],),
            max_pages=self.max_pages,
        )
        try:
            for page in pages:
                yield {"page": pickle.dumps(page)}
        except (NoImagesError, FileNotFoundError) as error:
            if row["file"] in self.settings.sources:
                raise
            # The file was only found in a folder, or is gone since.
            yield {"page": pickle.dumps(FailedPage(row["file"], error=str(error)))}


class _Preparer:
    """Loads and prepares a page with a pickled [`PageLoader`].

    It does so in a process beside Ray's own, since a decoder may kill its process: Ray would then retry the same pages
    until it gave up.
    """

    def __init__(self, loader: bytes, options: RunOptions) -> None:
        self.loader, self.limits = loader, (options.page_timeout, options.page_memory)
        self.streaks = FailureStreaks(options.give_up_after)  # of the pages that one task prepares

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        page = self.streaks.replace(pickle.loads(row["page"]))
        try:
            prepared = _decoder(self.loader, *self.limits, os.getpid())(page)
        except DiedError as error:
            prepared = not_prepared(page, str(error))
        self.streaks.note(*prepared)
        return {"prepared": pickle.dumps(prepared)}


@lru_cache(maxsize=1)
def _decoder(loader: bytes, seconds: float | None, memory: int | None, process: int) -> Worker[Page, Any]:
    """Return a process that decodes, which is kept for the next tasks of this process."""
    return Worker(pickle.loads(loader), seconds, memory)


class _Encoder:
    """Turns prepared pages into rows of a shard. It is an actor, which holds the model and a log of failed pages."""

    def __init__(
        self, settings: ExtractionSettings, output: Path, load: Callable[[], tuple[Any, Any]], options: RunOptions
    ) -> None:
        self.settings, self.strict = settings, options.strict
        self.encoder = PageEncoder.for_run(*load(), settings, options.batch_size)
        self.schema = self.encoder.schema
        self.failures = FailureLog(output, uuid.uuid4().int)

    def __call__(self, batch: "pyarrow.Table") -> "pyarrow.Table":
        rows = []
        for row in self.encoder.encode_pages(pickle.loads(value) for value in batch["prepared"].to_pylist()):
            if not row.error:
                rows.append(row)
                continue
            if self.strict:
                raise BadPageError(row.failure)
            self.failures.add(row)
        return to_table(rows, self.schema, self.settings.constants)


def _restore(text: str) -> Exception:
    """Return the error of a task or an actor, of which Ray brings back only the text."""
    for kind in (BadPageError, ModelError):
        found = re.search(rf"{kind.__name__}: (.+)", text)
        if found:
            return kind(found[1])
    return RuntimeError(text)


def _count_rows(output: Path) -> int:
    return sum(int(shard["rows"]) for shard in read_shards(output))


def _plan(
    files: list[str],
    settings: ExtractionSettings,
    output: Path,
    load: Callable[[], tuple[Any, Any]],
    image_processor: Any,
    options: RunOptions,
    actors: int | None,
) -> Any:
    """Return the lazy dataset of features, from files to rows."""
    import ray
    import ray.data

    gpus = int(ray.cluster_resources().get("GPU", 0))
    loader = ray.cloudpickle.dumps(PageLoader(image_processor, settings.named_mode))
    return (
        ray.data.from_items([{"file": file} for file in files])
        .flat_map(_Lister(settings, read_finished(output), options.max_pages_per_document))
        .map(_Preparer(loader, options))
        .map_batches(
            _Encoder,
            fn_constructor_args=(settings, output, load, options),
            batch_size=PAGES_PER_CALL,
            batch_format="pyarrow",
            concurrency=actors or gpus or 1,
            num_gpus=1 if gpus else None,
        )
    )


def extract_with_ray(
    settings: ExtractionSettings,
    output: Path,
    load: Callable[[], tuple[Any, Any]],
    image_processor: Any,
    options: RunOptions | None = None,
    *,
    actors: int | None = None,
) -> ExtractionSummary:
    """Do what [`extract_features`] does, on the cluster that `ray.init` finds (`RAY_ADDRESS`), or on this machine.

    Args:
        settings, output, options: as for [`extract_features`]. Sources and output must be reachable under the same
            names on every node. `options.shard_size` is the least size of a file, if there is enough data.
        load: returns the model, on the device of the actor that calls it, and the image processor. It is pickled.
        image_processor ([`DeepEncoderImageProcessor`]): the model's image processor.
        actors (`int`, *optional*): number of copies of the model. Default: one per GPU, or one without GPUs.

    Raises:
        `ImportError`: Ray is missing.
        `ValueError`: as for [`extract_features`]; and for safetensors shards, which Ray does not write.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError("engine 'ray' needs Ray Data: pip install 'deepencoder[ray]'.") from error
    if settings.format != "parquet":
        raise ValueError(f"format must be 'parquet' with engine 'ray', got {settings.format!r}.")
    started = time.monotonic()
    output, options = Path(output).absolute(), options or RunOptions()
    with lock_output(output):
        open_output(output, settings, options)
        before, failed_before = _count_rows(output), len(merge_failures(output))
        files = list(list_files(settings.sources, output))
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(log_to_driver=False, logging_level=logging.WARNING)
        staging = new_staging(output)
        features = _plan(files, settings, output, load, image_processor, options, actors)
        try:
            features.write_parquet(str(staging), min_bytes_per_file=options.shard_size, write_page_checksum=True)
        except ray.exceptions.RayError as error:
            raise _restore(str(error)) from error
        finally:
            collect_staged(output, staging)
        written, failed = _count_rows(output) - before, len(merge_failures(output)) - failed_before
        return finish_output(output, settings, [(written, failed, False)], time.monotonic() - started)
