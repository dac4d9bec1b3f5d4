"""Pages through a model: worker processes decode and prepare, batches are cut by a budget, order is kept.

Unusual: workers send pixels as bytes and not as floats, a quarter of the size, in arrays that go through a pipe and
not through shared memory, of which containers have little; they are scaled and normalised beside the model, to the
same numbers. A page that fails is a result like any other. A batch that does not fit into memory is halved.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..processing.tiling import count_image_tokens
from .pages import Page, PageError, load_page
from .workers import PAGE_TIMEOUT, map_in_processes

__all__ = [
    "DTYPES",
    "OUTPUTS",
    "BatchBudget",
    "PageFeatures",
    "PageLoader",
    "PreparedImage",
    "encode_images",
    "encode_prepared",
    "iterate_features",
    "not_prepared",
    "prepare_image",
]

OUTPUTS = ("pooled", "tokens", "vision_tokens")
DTYPES = ("float16", "bfloat16", "float32")
CPU_BUDGET = 1 << 20  # pixels a batch: one page in base mode. More is no faster, only larger.
PIXELS_PER_GIB = 1 << 20  # of an accelerator's free memory
MOST_PIXELS = 32 << 20  # beyond it, nothing is faster
MOST_FAILED = 64  # pages that wait with a batch: behind more of them, it is not filled up


@dataclass(frozen=True)
class PreparedImage:
    """An image as the model's views.

    Args:
        width, height (`int`): of the image, in pixels.
        sha256 (`str`): of the image's RGB bytes, row-major.
        view (`numpy.ndarray` of shape `(3, H, W)`): the global view, not yet scaled and normalised.
        tiles (`numpy.ndarray` of shape `(T, 3, t, t)`, *optional*): likewise.
        grid (`tuple[int, int]`): columns and rows of tiles; `(1, 1)` without.
    """

    width: int
    height: int
    sha256: str
    view: np.ndarray
    tiles: np.ndarray | None
    grid: tuple[int, int]

    @property
    def pixels(self) -> int:
        """Pixels of all views: what the model's work and memory go by."""
        tiles = 0 if self.tiles is None else self.tiles.size
        return (self.view.size + tiles) // self.view.shape[0]


@dataclass
class PageFeatures:
    """What became of a page: features, or an error.

    Args:
        page ([`Page`]): which one.
        width, height, sha256, grid: as in [`PreparedImage`]; zeros and `""` for a failed page.
        num_tokens (`int`): its vision tokens, laid out.
        outputs (`dict[str, numpy.ndarray]`): `pooled` `(clip_hidden,)`, `tokens` `(n, hidden)`: the global view's
            fused tokens and then each tile's, `vision_tokens` `(num_tokens, projection_dim)`; those asked for.
            bfloat16 comes as float32, which holds its values exactly.
        error (`str`): why there is nothing; `""` if all went well.
    """

    page: Page
    width: int = 0
    height: int = 0
    sha256: str = ""
    grid: tuple[int, int] = (1, 1)
    num_tokens: int = 0
    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    error: str = ""


class BatchBudget:
    """How many pixels a batch may have; less after each batch that did not fit.

    Args:
        batch_size: a number of pages, or `"auto"`: by pixels, one page in base mode on a CPU, and on an accelerator
            what a third of its free memory is sure to hold.
        device (`torch.device`): the model's.
    """

    def __init__(self, batch_size: int | str, device: torch.device) -> None:
        if batch_size != "auto" and not (isinstance(batch_size, int) and batch_size >= 1):
            raise ValueError(f"batch_size must be 'auto' or a positive number, got {batch_size!r}.")
        self.pages = batch_size if isinstance(batch_size, int) else None
        self.pixels = CPU_BUDGET
        self.ahead = 1 if device.type == "cuda" else 0  # batches to launch before one is waited for
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0] / 3
            self.pixels = min(MOST_PIXELS, max(CPU_BUDGET, int(free / 2**30 * PIXELS_PER_GIB)))

    def is_full(self, images: Sequence[PreparedImage]) -> bool:
        """Whether no further image of the size of the last one fits."""
        if self.pages is not None:
            return len(images) >= self.pages
        return bool(images) and sum(image.pixels for image in images) + images[-1].pixels > self.pixels

    def halve(self, images: Sequence[PreparedImage]) -> None:
        """Remember that these were too many."""
        half = max(1, len(images) // 2)
        if self.pages is not None:
            self.pages = min(self.pages, half)
        self.pixels = min(self.pixels, max(1, sum(image.pixels for image in images) // 2))


def prepare_image(image: Image.Image, image_processor: Any, mode: str | None = None) -> PreparedImage:
    """Cut an RGB image into the views that the model sees.

    Raises:
        `PageError`: it cannot be used.
    """
    fields = {} if mode is None else {"mode": mode}
    try:
        inputs = image_processor(image, do_rescale=False, do_normalize=False, **fields)
    except ValueError as error:
        raise PageError(str(error)) from error
    columns, rows = (int(cells) for cells in inputs["patches_grid"][0])
    tiles = inputs.get("pixel_values_local")
    return PreparedImage(
        image.width,
        image.height,
        hashlib.sha256(image.tobytes()).hexdigest(),
        np.asarray(inputs["pixel_values"][0]),
        None if tiles is None else np.stack(tiles),
        (columns, rows),
    )


def _to_pixel_values(views: np.ndarray, image_processor: Any, device: torch.device) -> torch.Tensor:
    """Scale and normalise `(views, 3, H, W)` bytes, by the same operations in float32 as the image processor's."""
    pixels = torch.from_numpy(views)
    if device.type == "cuda":
        pixels = pixels.pin_memory()  # else the copy waits for all that runs on the device
    pixels = pixels.to(device, non_blocking=True)
    factor = np.full(3, image_processor.rescale_factor if image_processor.do_rescale else 1.0)
    normalize = image_processor.do_normalize
    mean = np.broadcast_to(np.asarray(image_processor.image_mean if normalize else 0.0, np.float64), 3)
    std = np.broadcast_to(np.asarray(image_processor.image_std if normalize else 1.0, np.float64), 3)
    scale, shift = (
        torch.from_numpy(values.astype(np.float32)).to(device)[:, None, None] for values in (factor / std, -mean / std)
    )
    return pixels.to(torch.float32).mul_(scale).add_(shift)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is what torch raises, on a CPU or an accelerator, when an allocation fails."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


Result = dict[str, np.ndarray] | PageError


def _launch(
    images: Sequence[PreparedImage], model: Any, image_processor: Any, outputs: Sequence[str], dtype: str
) -> Callable[[], list[Result]]:
    """Begin to encode images. On CUDA nothing here waits for the device; what is returned does, and for this only."""
    device = next(model.parameters()).device
    # Views of one batch have one size; a processor that does not resize gives others, a page at a time.
    values = _to_pixel_values(np.stack([image.view for image in images]), image_processor, device)
    tiles = [image.tiles for image in images if image.tiles is not None]
    local = _to_pixel_values(np.concatenate(tiles), image_processor, device) if tiles else None
    with torch.inference_mode():
        encoded = model(pixel_values=values, pixel_values_local=local, patches_grid=[image.grid for image in images])
        counts = [0 if image.tiles is None else len(image.tiles) for image in images]
        local_tokens: Sequence[torch.Tensor | None] = [None] * len(images)
        if local is not None:
            local_tokens = encoded.local_last_hidden_state.split(counts)
        found = []
        for index in range(len(images)):
            chosen = {}
            for name in outputs:
                if name == "pooled":
                    chosen[name] = encoded.pooler_output[index]
                elif name == "tokens":
                    parts = [encoded.last_hidden_state[index]]
                    if (tile_tokens := local_tokens[index]) is not None:
                        parts.append(tile_tokens.flatten(0, 1).to(parts[0].device))
                    chosen[name] = torch.cat(parts)
                else:
                    chosen[name] = encoded.vision_tokens[index]
            found.append({name: _send_home(tensor, dtype) for name, tensor in chosen.items()})
        devices = {tensor.device for tensor in chosen.values() if tensor.is_cuda}
        # Copies home come before what is launched later, so these events do, too.
        events = [torch.cuda.current_stream(device).record_event() for device in devices]

    def collect() -> list[Result]:
        for event in events:
            event.synchronize()
        return [_check(sent, dtype) for sent in found]

    return collect


def _send_home(tensor: torch.Tensor, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Begin to copy features to the CPU, in the type in which they are kept, and the largest of their values."""
    kept = tensor.to(getattr(torch, dtype), copy=True)  # a view would keep all hidden states of its batch
    kept = kept.float() if dtype == "bfloat16" else kept
    # Pinned memory, which the device writes while it goes on.
    return tuple(part.to("cpu", non_blocking=part.is_cuda) for part in (kept, tensor.abs().amax()))  # type: ignore[return-value]


def _check(sent: dict[str, tuple[torch.Tensor, torch.Tensor]], dtype: str) -> Result:
    """Return features as arrays, unless they do not fit the type in which they are kept."""
    for name, (_, largest) in sent.items():
        if not bool(largest.isfinite()):
            return PageError(f"{name} has values that are not finite: the model overflows in {largest.dtype}")
        if not bool(largest.to(getattr(torch, dtype)).isfinite()):
            return PageError(
                f"{name} reaches {float(largest):.6g}, which {dtype} cannot hold: choose bfloat16 or float32"
            )
    return {name: kept.numpy() for name, (kept, _) in sent.items()}


def _start_images(
    images: Sequence[PreparedImage],
    model: Any,
    image_processor: Any,
    outputs: Sequence[str],
    dtype: str,
    budget: BatchBudget | None,
) -> list[Callable[[], list[Result]]]:
    """Begin to encode images in one batch, or in halves of it where memory does not suffice."""
    try:
        return [_launch(images, model, image_processor, outputs, dtype)]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # Only noted here: the exception keeps the tensors alive.
        reason = f"there is not enough memory for its {images[0].pixels:,} pixels"
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if budget is not None:
        budget.halve(images)
    if len(images) == 1:
        return [lambda: [PageError(reason)]]
    middle = len(images) // 2
    halves = (images[:middle], images[middle:])
    return [
        collect for half in halves for collect in _start_images(half, model, image_processor, outputs, dtype, budget)
    ]


def encode_images(
    images: Sequence[PreparedImage],
    model: Any,
    image_processor: Any,
    outputs: Sequence[str] = OUTPUTS,
    dtype: str = "float16",
    budget: BatchBudget | None = None,
) -> list[dict[str, np.ndarray] | PageError]:
    """Encode prepared images in one batch, or in halves of it where memory does not suffice.

    Returns:
        for each image its outputs, as in [`PageFeatures`], or a [`PageError`]: a single image that does not fit into
        memory, or features that `dtype` cannot hold.
    """
    started = _start_images(images, model, image_processor, outputs, dtype, budget)
    return [result for collect in started for result in collect()]


class PageLoader:
    """Pages -> prepared images, or why there is none."""

    def __init__(self, image_processor: Any, mode: str | None) -> None:
        self.image_processor, self.mode = image_processor, mode

    def __call__(self, page: Page) -> tuple[Page, PreparedImage | str]:
        try:
            prepared: PreparedImage | str = prepare_image(load_page(page), self.image_processor, self.mode)
        except PageError as error:
            prepared = str(error) or "it cannot be used"
        except MemoryError:
            prepared = "not enough memory to prepare it"
        return page.without_data(), prepared  # what was read need not travel back


def not_prepared(page: Page, reason: str) -> tuple[Page, PreparedImage | str]:
    """Say of a page, as [`PageLoader`] does, that the process that decoded it gave no answer."""
    return page.without_data(), f"decoding it failed: {reason}"


def _prepare_pages(
    pages: Iterable[Page], image_processor: Any, mode: str | None, workers: int, page_timeout: float | None
) -> Generator[tuple[Page, PreparedImage | str], None, None]:
    loader = PageLoader(image_processor, mode)
    if not workers:
        for page in pages:
            yield loader(page)
        return

    yield from map_in_processes(loader, pages, workers, not_prepared, page_timeout)


def iterate_features(
    pages: Iterable[Page],
    model: Any,
    image_processor: Any,
    *,
    mode: str | None = None,
    outputs: Sequence[str] = OUTPUTS,
    dtype: str = "float16",
    batch_size: int | str = "auto",
    workers: int = 1,
    page_timeout: float | None = PAGE_TIMEOUT,
    stop: Callable[[], bool] | None = None,
) -> Iterator[PageFeatures]:
    """Encode a stream of pages, in order, while worker processes decode and prepare the next ones.

    Args:
        pages: of [`list_pages`], say. Drawn as they are needed, never all at once.
        model ([`DeepEncoder`]): on its device, in its dtype.
        image_processor ([`DeepEncoderImageProcessor`]): the model's.
        mode (`str`, *optional*): overrules the image processor's.
        outputs: any of `"pooled"`, `"tokens"` and `"vision_tokens"`.
        dtype (`str`, defaults to `"float16"`): of the features; see [`PageFeatures`].
        batch_size: see [`BatchBudget`].
        workers (`int`, defaults to 1): processes that decode; 0 for none, and no overlap.
        page_timeout (`float`, *optional*, defaults to 300): seconds that a worker process may take for a page, which
            else fails; None for any time. Without workers there is no limit.
        stop (*optional*): asked between batches: whether to end here.

    Yields:
        [`PageFeatures`], one a page.

    Raises:
        `ValueError`: an unknown output or dtype, or a `batch_size`, `workers` or `page_timeout` out of range.
    """
    check_outputs(outputs, dtype)
    if workers < 0:
        raise ValueError(f"workers must not be negative, got {workers}.")
    if page_timeout is not None and not page_timeout > 0:
        raise ValueError(f"page_timeout must be positive or None, got {page_timeout}.")
    budget = BatchBudget(batch_size, next(model.parameters()).device)
    model.eval()

    def encode() -> Iterator[PageFeatures]:
        # Closed by name: an exception's traceback would keep the worker processes.
        with closing(_prepare_pages(pages, image_processor, mode, workers, page_timeout)) as prepared:
            yield from encode_prepared(prepared, model, image_processor, outputs, dtype, budget, stop)

    return encode()


def check_outputs(outputs: Sequence[str], dtype: str) -> None:
    """Raise `ValueError` for outputs or a dtype that there are not."""
    if isinstance(outputs, str) or not outputs or not set(outputs) <= set(OUTPUTS) or len(set(outputs)) < len(outputs):
        raise ValueError(f"outputs must be some of {', '.join(map(repr, OUTPUTS))}, got {outputs!r}.")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(repr, DTYPES))}, got {dtype!r}.")


def encode_prepared(
    prepared: Iterable[tuple[Page, PreparedImage | str]],
    model: Any,
    image_processor: Any,
    outputs: Sequence[str],
    dtype: str,
    budget: BatchBudget,
    stop: Callable[[], bool] | None = None,
) -> Iterator[PageFeatures]:
    """Encode what [`PageLoader`] gives for each page, in order, in batches that the budget cuts.

    On an accelerator the next batch is launched before the last one's features are waited for.
    """
    waiting: list[tuple[Page, PreparedImage | str]] = []
    images: list[PreparedImage] = []  # of those that wait
    launched: deque[tuple[list[tuple[Page, PreparedImage | str]], list[Callable[[], list[Result]]]]] = deque()

    def finish(ahead: int) -> Iterator[PageFeatures]:
        while len(launched) > ahead:
            pages, started = launched.popleft()
            results = iter([result for collect in started for result in collect()])
            for page, image in pages:
                if isinstance(image, str):
                    yield PageFeatures(page, error=image)
                    continue
                result = next(results)
                facts: dict[str, Any] = {"width": image.width, "height": image.height, "sha256": image.sha256}
                if isinstance(result, PageError):
                    yield PageFeatures(page, **facts, error=str(result))
                    continue
                tokens = count_tokens(image, model.config.sam_config.total_stride)
                yield PageFeatures(page, **facts, grid=image.grid, num_tokens=tokens, outputs=result)

    def encode() -> Iterator[PageFeatures]:
        started = _start_images(images, model, image_processor, outputs, dtype, budget) if images else []
        launched.append((waiting[:], started))
        waiting.clear()
        images.clear()
        yield from finish(budget.ahead)

    for page, image in prepared:
        if stop is not None and stop():
            waiting.clear()  # not begun
            break
        if isinstance(image, str):
            waiting.append((page, image))
            if not images or len(waiting) - len(images) >= MOST_FAILED:
                yield from encode()
            continue
        if images and (budget.is_full(images) or image.view.shape != images[-1].view.shape):
            yield from encode()
        waiting.append((page, image))
        images.append(image)
    if waiting and not (stop is not None and stop()):
        yield from encode()
    yield from finish(0)


def count_tokens(image: PreparedImage, stride: int) -> int:
    """Count the vision tokens of an image, newlines and separator included."""
    height, width = image.view.shape[1:]
    tile = 0 if image.tiles is None else -(-image.tiles.shape[-1] // stride)
    return count_image_tokens((-(-width // stride), -(-height // stride)), image.grid, (tile, tile))
