"""What an extraction is told and what it reports: dataclasses only, so that help texts need not import torch.

Unusual: the settings that decide the features are kept apart from the options of one run. The former are written to
the output folder and may not change between its runs; the latter may.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..processing.modes import MODES
from ..processing.token_pooling import VectorOptions
from .limits import GIVE_UP_AFTER, MAX_PAGES_PER_DOCUMENT, PAGE_MEMORY, PAGE_TIMEOUT
from .outputs import check_outputs

if TYPE_CHECKING:
    from .pages import Page

__all__ = [
    "FORMATS",
    "MAX_LOST_PAGES",
    "BadPageError",
    "ExtractionSettings",
    "ExtractionSummary",
    "ModelError",
    "ProcessGroup",
    "Progress",
    "RunOptions",
    "VerificationSummary",
]

FORMATS = {
    "parquet": "The features are columns of the shards.",
    "safetensors": "The features are in the safetensors file beside each shard, as `ROW.NAME`.",
}
"""The formats of shards, with a sentence on each for the dataset card."""


MAX_LOST_PAGES = 32
"""Pages in a row without usable features after which a run ends, since the model and not the pages is to blame."""


class BadPageError(ValueError):
    """The first page that cannot be used, in a strict run."""


class ModelError(ValueError):
    """The model gives no usable features, page after page."""


@dataclass(frozen=True)
class ExtractionSettings:
    """What decides the features. It is written to the output folder and may not change between runs.

    Args:
        sources: as for [`list_pages`], as are `dpi`, `split` and `column`.
        model: name of the model.
        commit: identity of the model's weights; see [`identify_model`].
        mode: one of the image processor's modes. Any other name means the processor's own fields.
        outputs: names of the [`OUTPUTS`] to keep.
        dtype: one of [`DTYPES`], in which the features are kept.
        format: one of [`FORMATS`], in which the shards are written.
        model_dtype: dtype in which the model computes; `"auto"` is the dtype of the weights.
        vector_pool, vector_width: pool and width of `multi_vector`; see [`VectorOptions`].
        runtime: `"torch"`, or the library that runs the exported graphs of the model.

    Raises:
        `ValueError`: an unknown output, dtype or format, or a number that is not positive.
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
    vector_pool: int = VectorOptions.pool
    vector_width: int = VectorOptions.width
    runtime: str = "torch"

    def __post_init__(self) -> None:
        check_outputs(self.outputs, self.dtype)
        VectorOptions(self.vector_pool, self.vector_width)  # checks both
        if self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(map(repr, FORMATS))}, got {self.format!r}.")

    @property
    def named_mode(self) -> str | None:
        """The mode to pass to the image processor, or None if its own fields are meant."""
        return self.mode if self.mode in MODES else None

    @property
    def vectors(self) -> VectorOptions:
        """Pool and width of `multi_vector`."""
        return VectorOptions(self.vector_pool, self.vector_width)

    @property
    def constants(self) -> dict[str, str]:
        """The columns of the shards that are the same in every row."""
        return {"model": self.model, "commit": self.commit, "mode": self.mode}

    def list_pages(
        self,
        wanted: Callable[[int, str, int], bool] | None = None,
        sources: Sequence[str] | None = None,
        left_out: Path | None = None,
        max_pages: int = MAX_PAGES_PER_DOCUMENT,
        stop: Callable[[], bool] | None = None,
    ) -> "Iterator[Page]":
        """List the pages of all sources, or of the given ones; see [`list_pages`]."""
        from .listing import list_pages  # imports torch

        chosen = self.sources if sources is None else sources
        return list_pages(
            chosen,
            dpi=self.dpi,
            split=self.split,
            column=self.column,
            wanted=wanted,
            left_out=left_out,
            max_pages=max_pages,
            stop=stop,
        )


@dataclass(frozen=True)
class RunOptions:
    """How one run goes about its work. None of it changes the features.

    Args:
        batch_size: a number of pages, or `"auto"`; see [`BatchBudget`].
        workers: number of processes that decode and prepare pages; 0 decodes in the main process. The Ray engine
            leaves this to Ray.
        page_timeout: seconds after which decoding a page in a worker process fails; None for no limit.
        page_memory: bytes that a worker process may take to decode a page, on Linux; None for no limit.
        max_pages_per_document: how many pages of one PDF or TIFF are read.
        give_up_after: failed pages in a row after which the rest of a PDF or TIFF fails without being tried.
        shard_size: bytes of features after which a shard is closed.
        shard_seconds: seconds after which a shard is closed whatever its size. The first shards of a run are closed
            after 1, 2, 4, ... minutes, so that a run that is often killed advances. The Ray engine ignores it.
        resume: continue earlier work in the output folder instead of refusing the folder.
        retry_failed: try the pages again that failed in earlier runs.
        redo_damaged: read all shards of earlier runs back first, set damaged ones aside in the folder `damaged`, and
            extract their pages again. Without it, a shard that is seen to be damaged ends the run.
        strict: end the run at the first page that cannot be used. The page is not recorded as failed.
        count: list the corpus once in advance, so that [`Progress`] has a total. Streamed datasets are not counted.
    """

    batch_size: int | str = "auto"
    workers: int = 1
    page_timeout: float | None = PAGE_TIMEOUT
    page_memory: int | None = PAGE_MEMORY
    max_pages_per_document: int = MAX_PAGES_PER_DOCUMENT
    give_up_after: int = GIVE_UP_AFTER
    shard_size: int = 512 << 20
    shard_seconds: float = 1800.0
    resume: bool = True
    retry_failed: bool = False
    redo_damaged: bool = False
    strict: bool = False
    count: bool = True


def _gather_own(value: Any) -> Sequence[Any]:
    return [value]


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a run, which share its corpus. Each run of a folder may have any number of them.

    Args:
        rank: index of this process.
        world_size: number of processes.
        gather: takes a picklable value and returns those of all processes, once all of them have called it.
    """

    rank: int = 0
    world_size: int = 1
    gather: Callable[[Any], Sequence[Any]] = _gather_own


@dataclass
class Progress:
    """How far one process has come.

    Args:
        total: number of pages that this process had to do, or None if they were not counted.
        written, failed: number of pages so far.
        error: name of the last page and the reason why it failed; empty if it did not.
    """

    total: int | None = None
    written: int = 0
    failed: int = 0
    error: str = ""


@dataclass
class ExtractionSummary:
    """What a run did, over all its processes.

    Args:
        pages: number of rows in the folder's shards, from this run and earlier ones.
        failed: number of pages in `failures.jsonl`, from this run and earlier ones.
        written, newly_failed: number of pages that this run wrote, and that failed in it.
        shards: number of files of features.
        bytes: total size of these files.
        seconds: duration of the run.
        done: whether every page of the corpus is written or failed.
    """

    pages: int
    failed: int
    written: int
    newly_failed: int
    shards: int
    bytes: int
    seconds: float
    done: bool


@dataclass
class VerificationSummary:
    """What was found when a folder of features was read back.

    Args:
        pages: number of rows in the whole shards.
        shards: number of files of the whole shards.
        bytes: total size of these files.
        damaged: what is wrong with each of the other shards, by the name of its parquet file.
    """

    pages: int
    shards: int
    bytes: int
    damaged: dict[str, str]
