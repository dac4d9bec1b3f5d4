"""Prepared pages through the model, in order.

Unusual: on CUDA a batch is launched before the results of the one before it are waited for, and features are copied
into pinned memory meanwhile. A batch that does not fit into memory is encoded in halves. A page that fails is a result
like any other.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from ..processing.placement import cell_fields
from ..processing.token_pooling import VectorOptions
from .arrow import feature_fields, page_schema
from .batching import BatchBudget, cut_batches
from .failure_streaks import FailureStreaks
from .limits import GIVE_UP_AFTER, PAGE_MEMORY, PAGE_TIMEOUT
from .outputs import DTYPES, OUTPUTS, VectorInputs, check_outputs, take_outputs
from .pages import Page, PageError
from .preparation import PageLoader, PreparedImage, not_prepared
from .settings import MAX_LOST_PAGES, ModelError
from .workers import map_in_processes

if TYPE_CHECKING:
    import pyarrow

    from .settings import ExtractionSettings

__all__ = ["PageEncoder", "PageFeatures", "iterate_features"]

Key = TypeVar("Key")
Prepared = PreparedImage | PageError
Result = dict[str, np.ndarray] | PageError
Collect = Callable[[], list[Result]]
"""Waits for the results of images that are being encoded, and returns them in the order of the images."""


class LostFeaturesError(PageError):
    """The model gives features that are not finite, or that the dtype in which they are kept cannot hold."""


@dataclass(frozen=True)
class PageFeatures:
    """A page's features, or the reason why it has none.

    Args:
        page ([`Page`]): the page.
        width, height, sha256, grid: as in [`PreparedImage`]; zeros and `""` for a page that cannot be prepared.
        num_tokens (`int`): number of its vision tokens, newlines and separator included.
        outputs (`dict[str, numpy.ndarray]`): the outputs that were chosen, by name; see [`take_outputs`]. bfloat16
            becomes float32, which holds its values exactly.
        error (`str`): why the page has no features; `""` if it has.
    """

    page: Page
    width: int = 0
    height: int = 0
    sha256: str = ""
    grid: tuple[int, int] = (1, 1)
    num_tokens: int = 0
    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    error: str = ""

    @property
    def failure(self) -> str:
        """The name of the page, and why it has no features."""
        return f"{self.page.source}, page {self.page.page}: {self.error}"


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether torch raises this error when an allocation fails, on a CPU or an accelerator."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def _send_home(tensor: torch.Tensor, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Begin to copy features to the CPU, in the dtype that stores them, together with their largest magnitude."""
    kept = tensor.to(getattr(torch, dtype), copy=True)  # A view would keep the hidden states of its whole batch.
    kept, largest = kept.to(getattr(torch, DTYPES[dtype])), tensor.abs().amax()
    # From a GPU these go to pinned memory, which the device writes while it goes on.
    return kept.to("cpu", non_blocking=kept.is_cuda), largest.to("cpu", non_blocking=largest.is_cuda)


def _check(sent: dict[str, tuple[torch.Tensor, torch.Tensor]], dtype: str) -> Result:
    """Return features as arrays, or an error if `dtype` cannot hold their values."""
    for name, (_, largest) in sent.items():
        if not bool(largest.isfinite()):
            return LostFeaturesError(f"{name} has values that are not finite: the model overflows in {largest.dtype}")
        if not bool(largest.to(getattr(torch, dtype)).isfinite()):
            return LostFeaturesError(
                f"{name} reaches {float(largest):.6g}, which {dtype} cannot hold: choose bfloat16 or float32"
            )
    return {name: kept.numpy() for name, (kept, _) in sent.items()}


class PageEncoder:
    """A model with its image processor, and which features of a page it gives.

    Args:
        model ([`DeepEncoder`]): the model, on its device and in its dtype. It is put into evaluation mode.
        image_processor ([`DeepEncoderImageProcessor`]): the model's image processor.
        budget ([`BatchBudget`], *optional*): how large a batch may be. Default: `"auto"` on the model's device.
        mode (`str`, *optional*): a mode that overrides the processor's own fields.
        outputs: names of the [`OUTPUTS`] to give.
        dtype (`str`, defaults to `"float16"`): one of [`DTYPES`], in which features are kept.
        vectors ([`VectorOptions`], *optional*): pool and width of `multi_vector`.

    Raises:
        `ValueError`: an unknown output or dtype.
    """

    def __init__(
        self,
        model: Any,
        image_processor: Any,
        budget: BatchBudget | None = None,
        *,
        mode: str | None = None,
        outputs: Sequence[str] = tuple(OUTPUTS),
        dtype: str = "float16",
        vectors: VectorOptions | None = None,
    ) -> None:
        check_outputs(outputs, dtype, model.config)
        self.model, self.image_processor = model.eval(), image_processor
        self.device = next(model.parameters()).device
        self.budget = BatchBudget("auto", self.device) if budget is None else budget
        self.mode, self.outputs, self.dtype = mode, tuple(outputs), dtype
        self.vectors = vectors or VectorOptions()
        projection = self.vectors.make_projection(model.config.hidden_size) if "multi_vector" in outputs else None
        self._projection = None if projection is None else torch.from_numpy(projection).to(self.device)
        self._lost_in_a_row = 0

    @classmethod
    def for_run(
        cls, model: Any, image_processor: Any, settings: "ExtractionSettings", batch_size: int | str
    ) -> "PageEncoder":
        """Make the encoder of an extraction with these settings."""
        budget = BatchBudget(batch_size, next(model.parameters()).device)
        return cls(
            model,
            image_processor,
            budget,
            mode=settings.named_mode,
            outputs=settings.outputs,
            dtype=settings.dtype,
            vectors=settings.vectors,
        )

    @property
    def schema(self) -> "pyarrow.Schema":
        """The columns of pages with these features."""
        config, processor = self.model.config, self.image_processor
        return page_schema(feature_fields(config, processor, self.outputs, self.dtype, self.mode, self.vectors))

    def encode_images(self, images: Sequence[PreparedImage]) -> list[Result]:
        """Encode prepared images in one batch, or in parts of it if memory does not suffice.

        Returns:
            for each image its outputs, as in [`PageFeatures`], or a [`PageError`] if a single image does not fit into
            memory or `dtype` cannot hold its features.
        """
        return self._start(images)()

    def encode_entries(
        self, entries: Iterable[tuple[Key, Prepared]], stop: Callable[[], bool] | None = None
    ) -> Iterator[tuple[Key, Prepared, Result]]:
        """Encode a stream of prepared images, in order, in the batches of [`cut_batches`].

        Args:
            entries, stop: as for [`cut_batches`].

        Yields:
            each entry with its result. An entry that failed is its own result.
        """
        launched: deque[tuple[list[tuple[Key, Prepared]], Collect]] = deque()

        def finish(ahead: int) -> Iterator[tuple[Key, Prepared, Result]]:
            while len(launched) > ahead:
                batch, collect = launched.popleft()
                results = iter(collect())
                for key, image in batch:
                    yield key, image, image if isinstance(image, PageError) else next(results)

        for batch in cut_batches(entries, self.budget, stop):
            launched.append((batch, self._start([image for _, image in batch if isinstance(image, PreparedImage)])))
            yield from finish(self.budget.ahead)
        yield from finish(0)

    def encode_pages(
        self, prepared: Iterable[tuple[Page, Prepared]], stop: Callable[[], bool] | None = None
    ) -> Iterator[PageFeatures]:
        """Encode what [`PageLoader`] gives for each page, in order; see [`encode_entries`].

        Raises:
            [`ModelError`]: the features of the last [`MAX_LOST_PAGES`] pages cannot be kept, so it is not the pages
                that are to blame.
        """
        for page, image, result in self.encode_entries(prepared, stop):
            if isinstance(image, PageError):
                yield PageFeatures(page, error=str(image))
                continue
            row = PageFeatures(page, image.width, image.height, image.sha256)
            self._lost_in_a_row = self._lost_in_a_row + 1 if isinstance(result, LostFeaturesError) else 0
            if isinstance(result, PageError):
                yield replace(row, error=str(result))
            else:
                yield replace(row, grid=image.grid, num_tokens=image.count_tokens(self.model.config), outputs=result)
            if self._lost_in_a_row >= MAX_LOST_PAGES:
                reason = self._find_bad_weight() or str(result)
                raise ModelError(f"model gives no usable features for {MAX_LOST_PAGES} pages in a row: {reason}.")

    def _find_bad_weight(self) -> str:
        """Return a sentence on a weight that is not finite, or `""`. Weights of unusual kinds are not examined."""
        for name, weight in self.model.named_parameters():
            with suppress(RuntimeError):
                if not bool(weight.isfinite().all()):
                    return f"its weight {name} has values that are not finite"
        return ""

    def _start(self, images: Sequence[PreparedImage]) -> Collect:
        """Begin to encode images in one batch, or in halves of it if memory does not suffice."""
        if not images:
            return lambda: []
        try:
            return self._launch(images)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            # The halves are encoded after this block, as the exception keeps the batch's tensors alive.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.budget.halve(images)
        if len(images) == 1:
            reason = f"there is not enough memory for its {images[0].pixels:,} pixels"
            return lambda: [PageError(reason)]
        middle = len(images) // 2
        halves = [self._start(half) for half in (images[:middle], images[middle:])]
        return lambda: [result for collect in halves for result in collect()]

    def _launch(self, images: Sequence[PreparedImage]) -> Collect:
        """Begin to encode images. On CUDA nothing here waits for the device; only what is returned does."""
        # The views of a batch have one size; a processor that does not resize gets one page at a time.
        view_pixels = self._to_pixel_values(np.stack([image.view for image in images]))
        tiles = [image.tiles for image in images if image.tiles is not None]
        tile_pixels = self._to_pixel_values(np.concatenate(tiles)) if tiles else None
        vector_inputs = self._make_vector_inputs(images) if "multi_vector" in self.outputs else None
        with torch.inference_mode():
            encoded = self.model(
                pixel_values=view_pixels,
                pixel_values_local=tile_pixels,
                patches_grid=[image.grid for image in images],
            )
            taken = take_outputs(encoded, [image.num_tiles for image in images], self.outputs, vector_inputs)
            sent = [{name: _send_home(tensor, self.dtype) for name, tensor in row.items()} for row in taken]
            devices = {tensor.device for row in taken for tensor in row.values() if tensor.is_cuda}
            # An event comes after this batch's copies and before the work of the next batch.
            events = [torch.cuda.current_stream(device).record_event() for device in devices]

        def collect() -> list[Result]:
            for event in events:
                event.synchronize()
            return [_check(row, self.dtype) for row in sent]

        return collect

    def _to_pixel_values(self, views: np.ndarray) -> torch.Tensor:
        """Normalise `(views, 3, H, W)` bytes on the model's device."""
        return self.image_processor.normalize_pixels(self._send(torch.from_numpy(views)))

    def _make_vector_inputs(self, images: Sequence[PreparedImage]) -> VectorInputs:
        sam = self.model.config.sam_config
        # The model decides how many pixels a token has, whatever the image processor was told.
        sizes = [(image.height, image.width) for image in images]
        shown = self.image_processor.get_token_mask(sizes, self.mode, **cell_fields(self.model.config))
        rows = -(-images[0].view.shape[1] // sam.total_stride)
        # (batch, h * w) -> (batch, h, w)
        return VectorInputs(self._send(shown.unflatten(1, (rows, -1))), self.vectors.pool, self._projection)

    def _send(self, tensor: torch.Tensor) -> torch.Tensor:
        """Begin to copy a tensor to the model's device."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()  # A copy from other memory would wait for all work on the device.
        return tensor.to(self.device, non_blocking=True)


@dataclass(frozen=True)
class _Decoding:
    """How pages are decoded; see [`iterate_features`]."""

    workers: int
    page_timeout: float | None
    page_memory: int | None
    give_up_after: int

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"workers must not be negative, got {self.workers}.")
        for name in ("page_timeout", "page_memory"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive or None, got {value}.")
        if self.give_up_after < 1:
            raise ValueError(f"give_up_after must be positive, got {self.give_up_after}.")


def _prepare_pages(
    pages: Iterable[Page], encoder: PageEncoder, decoding: _Decoding, stop: Callable[[], bool] | None
) -> Generator[tuple[Page, Prepared], None, None]:
    loader = PageLoader(encoder.image_processor, encoder.mode)
    streaks = FailureStreaks(decoding.give_up_after)
    tried = map(streaks.replace, pages)
    if decoding.workers:
        prepared = map_in_processes(
            loader,
            tried,
            decoding.workers,
            not_prepared,
            seconds=decoding.page_timeout,
            memory=decoding.page_memory,
            stop=stop,
            size_of=lambda page: page.encoded_bytes,
        )
    else:
        prepared = map(loader, tried)
    for page, result in prepared:
        streaks.note(page, result)
        yield page, result


def iterate_features(
    pages: Iterable[Page],
    encoder: PageEncoder,
    *,
    workers: int = 1,
    page_timeout: float | None = PAGE_TIMEOUT,
    page_memory: int | None = PAGE_MEMORY,
    give_up_after: int = GIVE_UP_AFTER,
    stop: Callable[[], bool] | None = None,
) -> Generator[PageFeatures, None, None]:
    """Encode a stream of pages, in order, while worker processes decode and prepare the next ones.

    Args:
        pages: for example from [`list_pages`]. They are drawn as they are needed, never all at once.
        encoder ([`PageEncoder`]): the model, and which features it gives.
        workers (`int`, defaults to 1): number of processes that decode; with 0 this process decodes between batches,
            without any of the next two decoding.
        page_timeout (`float`, *optional*, defaults to 300): seconds after which decoding a page fails and its worker
            process is killed; None for no limit.
        page_memory (`int`, *optional*, defaults to 8 GiB): bytes that a worker process may take to decode a page, on
            Linux; None for no limit.
        give_up_after (`int`, defaults to 50): failed pages in a row after which the rest of a PDF or TIFF fails
            without being tried.
        stop (*optional*): asked several times a second; once it returns True, only batches that were launched are
            finished.

    Yields:
        [`PageFeatures`], one for each page.

    Raises:
        `ValueError`: one of the numbers is out of range.
    """
    decoding = _Decoding(workers, page_timeout, page_memory, give_up_after)

    def encode() -> Generator[PageFeatures, None, None]:
        # Closed explicitly, as the traceback of an exception would keep the worker processes alive.
        with closing(_prepare_pages(pages, encoder, decoding, stop)) as prepared:
            yield from encoder.encode_pages(prepared, stop)

    return encode()
