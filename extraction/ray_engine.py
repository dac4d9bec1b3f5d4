"""The same corpus into the same shards, by Ray Data: on a cluster, with its scheduling, retries and back-pressure.

Unusual: nothing here schedules anything. Pages are listed a file a task, decoded in tasks, encoded by actors that hold
the model, and written by Ray. It writes into a hidden folder, as a task that dies leaves half a file; whole files move
to the other shards at the end, or at the beginning of the next run, by whichever engine.
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

from .batches import BatchBudget, PageLoader, encode_prepared, not_prepared
from .extraction import BadPageError, ExtractionSettings, ExtractionSummary, finish_output, lock_output, open_output
from .features import feature_fields
from .listing import NoImagesError, list_files
from .pages import FailedPage, Page
from .shards import (
    STAGING,
    FailureLog,
    collect_staged,
    merge_failures,
    page_schema,
    read_finished,
    read_shards,
    to_table,
)
from .workers import PAGE_TIMEOUT, DiedError, Worker

if TYPE_CHECKING:
    import pyarrow

__all__ = ["extract_with_ray"]

PAGES_A_CALL = 64  # that an actor takes at once, and cuts into batches


class _Lister:
    """A file -> the pages of it that are to be done, as pickled references."""

    def __init__(self, settings: ExtractionSettings, is_finished: Callable[[str, int], bool]) -> None:
        self.settings, self.is_finished = settings, is_finished

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        pages = self.settings.list_pages(
            lambda index, source, page: not self.is_finished(source, page), sources=(row["file"],)
        )
        try:
            for page in pages:
                yield {"page": pickle.dumps(page)}
        except (NoImagesError, FileNotFoundError) as error:  # it happened to lie there, or has gone
            if row["file"] in self.settings.sources:
                raise
            yield {"page": pickle.dumps(FailedPage(row["file"], error=str(error)))}


class _Preparer:
    """A page's reference -> what a [`PageLoader`], pickled, makes of it.

    In a process beside Ray's own, which a decoder may kill: Ray would try the same pages again until it gave up.
    """

    def __init__(self, loader: bytes, page_timeout: float | None) -> None:
        self.loader, self.page_timeout = loader, page_timeout

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        page = pickle.loads(row["page"])
        try:
            prepared = _decoder(self.loader, self.page_timeout, os.getpid())(page)
        except DiedError as error:
            prepared = not_prepared(page, str(error))
        return {"prepared": pickle.dumps(prepared)}


@lru_cache(maxsize=1)
def _decoder(loader: bytes, page_timeout: float | None, process: int) -> Worker[Page, Any]:
    return Worker(pickle.loads(loader), page_timeout)  # kept from task to task


class _Encoder:
    """Prepared pages -> rows of a shard. An actor, which holds the model; failed pages go to a log of its own."""

    def __init__(
        self,
        settings: ExtractionSettings,
        output: Path,
        load: Callable[[], tuple[Any, Any]],
        batch_size: int | str,
        strict: bool,
    ) -> None:
        self.settings, self.strict = settings, strict
        self.model, self.image_processor = load()
        self.model.eval()
        outputs, dtype = settings.outputs, settings.dtype
        self.schema = page_schema(
            feature_fields(self.model.config, self.image_processor, outputs, dtype, settings.named_mode)
        )
        self.budget = BatchBudget(batch_size, next(self.model.parameters()).device)
        self.failures = FailureLog(output, uuid.uuid4().int)

    def __call__(self, batch: "pyarrow.Table") -> "pyarrow.Table":
        prepared = (pickle.loads(value) for value in batch["prepared"].to_pylist())
        settings, rows = self.settings, []
        for row in encode_prepared(
            prepared, self.model, self.image_processor, settings.outputs, settings.dtype, self.budget
        ):
            if not row.error:
                rows.append(row)
                continue
            if self.strict:
                raise BadPageError(f"{row.page.source}, page {row.page.page}: {row.error}")
            self.failures.add(row)
        return to_table(rows, self.schema, model=settings.model, commit=settings.commit, mode=settings.mode)


def extract_with_ray(
    settings: ExtractionSettings,
    output: Path,
    load: Callable[[], tuple[Any, Any]],
    image_processor: Any,
    *,
    actors: int | None = None,
    batch_size: int | str = "auto",
    page_timeout: float | None = PAGE_TIMEOUT,
    shard_size: int = 512 << 20,
    resume: bool = True,
    retry_failed: bool = False,
    strict: bool = False,
) -> ExtractionSummary:
    """Do what [`extract_features`] does, on the cluster that `ray.init` finds (`RAY_ADDRESS`), or on this machine.

    Args:
        settings, output, batch_size, page_timeout, resume, retry_failed, strict: as for [`extract_features`]. Sources
            and output must be reachable under the same names on every node.
        load: returns the model, on the device of the actor that calls it, and the image processor. It is pickled.
        image_processor ([`DeepEncoderImageProcessor`]): the model's.
        actors (`int`, *optional*): copies of the model. Default: one a GPU, or one without GPUs.
        shard_size (`int`): bytes of features that a file has at least, if there are so many.

    Raises:
        `ImportError`: Ray is missing.
        `ValueError`: as [`extract_features`]; and safetensors shards, which Ray does not write.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError("engine 'ray' needs Ray Data: pip install 'deepencoder[ray]'.") from error
    if settings.format != "parquet":
        raise ValueError(f"format must be 'parquet' with engine 'ray', got {settings.format!r}.")
    started = time.monotonic()
    output = Path(output).absolute()
    with lock_output(output):
        open_output(output, settings, resume=resume, retry_failed=retry_failed)
        before = sum(shard["rows"] for shard in read_shards(output))
        failed_before = len(merge_failures(output))
        files = list(list_files(settings.sources, output))
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(log_to_driver=False, logging_level=logging.WARNING)
        gpus = int(ray.cluster_resources().get("GPU", 0))
        pages = ray.data.from_items([{"file": file} for file in files]).flat_map(
            _Lister(settings, read_finished(output))
        )
        loader = ray.cloudpickle.dumps(PageLoader(image_processor, settings.named_mode))
        features = pages.map(_Preparer(loader, page_timeout)).map_batches(
            _Encoder,
            fn_constructor_args=(settings, output, load, batch_size, strict),
            batch_size=PAGES_A_CALL,
            batch_format="pyarrow",
            concurrency=actors or gpus or 1,
            num_gpus=1 if gpus else None,
        )
        try:
            features.write_parquet(str(output / STAGING), min_bytes_per_file=shard_size)
        except ray.exceptions.RayError as error:
            bad_page = re.search(r"BadPageError: (.+)", str(error))  # all that comes back is the text
            raise BadPageError(bad_page[1]) if bad_page else RuntimeError(str(error)) from error
        finally:
            collect_staged(output)
        written = sum(shard["rows"] for shard in read_shards(output)) - before
        failed = len(merge_failures(output)) - failed_before
        return finish_output(output, settings, [(written, failed, False)], time.monotonic() - started)
