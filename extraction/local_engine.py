"""Extracts the features of a corpus in the processes of this run.

Unusual: processes do not talk while they work. Each lists the whole corpus and takes the pages whose names hash to its
rank, so any number of processes can continue the work of any other number.
"""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from .encoding import PageEncoder, PageFeatures, iterate_features
from .ledger import FailureLog, key_of, read_finished
from .listing import Selector, is_streamed
from .output_folder import finish_output, lock_output, lock_rank, open_output
from .pages import Page
from .settings import BadPageError, ExtractionSettings, ExtractionSummary, ProcessGroup, Progress, RunOptions
from .shard_writer import ShardWriter

__all__ = ["extract_features"]

SHARE = 16  # Consecutive pages of a document that one process takes: few enough that all get some of a large one.


@dataclass(frozen=True)
class _Share:
    """The part of a run that one process does.

    Args:
        settings, output, options, stop: as for [`extract_features`].
        rank, world_size: as for [`ProcessGroup`].
    """

    settings: ExtractionSettings
    output: Path
    options: RunOptions
    rank: int
    world_size: int
    stop: Callable[[], bool]

    def extract(self, load: Callable[[], tuple[Any, Any]], on_progress: Callable[[Progress], None]) -> Progress:
        """Extract all pages that belong to this process and are not finished."""
        is_finished = read_finished(self.output)

        def is_mine(index: int, source: str, page: int) -> bool:
            # Not by the index: files that appear while the processes list would shift it in some of them.
            return key_of(source, page // SHARE) % self.world_size == self.rank and not is_finished(source, page)

        progress = Progress()
        if self.options.count and self.rank == 0:
            progress.total = self._count(is_mine)
        pages = self._list(is_mine)
        first = None if self.stop() else next(pages, None)
        if first is not None and not self.stop():
            encoder = PageEncoder.for_run(*load(), self.settings, self.options.batch_size)
            features = iterate_features(
                chain([first], pages),
                encoder,
                workers=self.options.workers,
                page_timeout=self.options.page_timeout,
                page_memory=self.options.page_memory,
                give_up_after=self.options.give_up_after,
                stop=self.stop,
            )
            writer = ShardWriter(self.output, encoder.schema, self.settings, self.options, self.rank)
            self._write(features, writer, progress, on_progress)
        return progress

    def _list(self, wanted: Selector) -> Iterator[Page]:
        return self.settings.list_pages(
            wanted, left_out=self.output, max_pages=self.options.max_pages_per_document, stop=self.stop
        )

    def _count(self, is_wanted: Callable[[int, str, int], bool]) -> int | None:
        """Count the pages to do, without reading any; None if that would mean downloading them, or after a stop."""
        if any(is_streamed(source) for source in self.settings.sources):
            return None
        total = 0

        def note(index: int, source: str, page: int) -> bool:
            nonlocal total
            total += is_wanted(index, source, page)
            return self.stop()

        for _ in self._list(note):
            return None
        return total

    def _write(
        self,
        features: Generator[PageFeatures, None, None],
        writer: ShardWriter,
        progress: Progress,
        on_progress: Callable[[Progress], None],
    ) -> None:
        """Write features into shards and failed pages into the log."""
        failures = FailureLog(self.output, self.rank)
        try:
            for row in features:
                progress.error = ""
                if row.error:
                    progress.error = row.failure
                    if self.options.strict:
                        raise BadPageError(progress.error)
                    failures.add(row)
                    progress.failed += 1
                else:
                    writer.add(row)
                    progress.written += 1
                on_progress(progress)
        except BaseException:
            writer.close()  # The rows so far are good. If writing failed, none are left.
            raise
        finally:
            features.close()  # Ends its worker processes, which the exception's traceback would keep alive.
        writer.close()


def _open_together(share: _Share, processes: ProcessGroup, locks: ExitStack) -> None:
    """Lock and prepare the folder in the first process; if it is refused, raise that in all of them."""
    refused: Exception | None = None
    if share.rank == 0:
        try:
            locks.enter_context(lock_output(share.output))
            open_output(share.output, share.settings, share.options)
        except (ImportError, OSError, ValueError) as error:
            refused = error
    (refused,) = processes.gather((refused,))[0]
    if refused is not None:
        raise refused
    if share.rank != 0:
        locks.enter_context(lock_rank(share.output, share.rank))


def extract_features(
    settings: ExtractionSettings,
    output: Path,
    load: Callable[[], tuple[Any, Any]],
    options: RunOptions | None = None,
    processes: ProcessGroup | None = None,
    *,
    stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> ExtractionSummary:
    """Write the features of a corpus into a folder, or continue where an earlier call ended, however it ended.

    Args:
        settings ([`ExtractionSettings`]): what is extracted.
        output (`Path`): the output folder. `datasets.load_dataset` opens it as it is.
        load: returns the model, on its device, and the image processor. It is called only if there is work to do.
        options ([`RunOptions`], *optional*): how this run goes about it.
        processes ([`ProcessGroup`], *optional*): the processes that share the corpus. Default: this one alone.
        stop: asked for each page; once it returns True, the features that exist are written and the call returns.
        on_progress: called after each page.

    Returns:
        [`ExtractionSummary`].

    Raises:
        `BadPageError`: a page cannot be used, with `options.strict`.
        `ModelError`: the model gives no usable features, page after page.
        `OSError`: the folder cannot be written. Finished shards stay.
        `ValueError`: see [`open_output`] and [`list_pages`]; or another run uses the folder.
    """
    processes = processes or ProcessGroup()
    share = _Share(settings, Path(output), options or RunOptions(), processes.rank, processes.world_size, stop)
    started = time.monotonic()
    with ExitStack() as locks:
        _open_together(share, processes, locks)
        progress = share.extract(load, on_progress)
        counts = processes.gather((progress.written, progress.failed, stop()))
        summary = None
        if share.rank == 0:
            summary = finish_output(share.output, settings, counts, time.monotonic() - started)
        return next(found for found in processes.gather(summary) if found is not None)
