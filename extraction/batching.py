"""The rule that cuts a stream of pages into batches.

Unusual: pages that failed travel in the batches of their neighbours, so that results keep the order of the pages. The
budget of a batch is a number of pixels by default, as the views of two pages may differ in size by a factor of ten.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch

from .pages import PageError
from .preparation import PreparedImage

__all__ = ["BatchBudget", "cut_batches"]

Key = TypeVar("Key")

CPU_BUDGET = 1 << 20  # Pixels per batch: one page in base mode. Larger batches are no faster on a CPU.
PIXELS_PER_GIB = 1 << 20  # Pixels that a GiB of an accelerator's free memory is sure to hold.
MAX_PIXELS = 32 << 20  # Larger batches are no faster on any accelerator.
MAX_FAILED = 64  # Failed pages that wait with a batch; it is encoded before more of them pile up.


class BatchBudget:
    """How large a batch may be. It shrinks after each batch that did not fit into memory.

    Args:
        batch_size: a number of pages, or `"auto"` for a number of pixels: one page in base mode on a CPU, and on an
            accelerator what a third of its free memory is sure to hold.
        device (`torch.device`): the model's device.
        ahead (`int`, *optional*): number of batches to launch before the results of one are waited for. Default: 1
            on CUDA, which computes while the CPU goes on, and else 0.

    Raises:
        `ValueError`: `batch_size` is neither `"auto"` nor positive.
    """

    def __init__(self, batch_size: int | str, device: torch.device, ahead: int | None = None) -> None:
        if batch_size != "auto" and not (isinstance(batch_size, int) and batch_size >= 1):
            raise ValueError(f"batch_size must be 'auto' or a positive number, got {batch_size!r}.")
        self.pages = batch_size if isinstance(batch_size, int) else None
        self.pixels = CPU_BUDGET
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0] / 3
            self.pixels = min(MAX_PIXELS, max(CPU_BUDGET, int(free / 2**30 * PIXELS_PER_GIB)))
        self.ahead = int(device.type == "cuda") if ahead is None else ahead

    def is_full(self, images: Sequence[PreparedImage]) -> bool:
        """Return whether a batch has no room for one more image of the size of its last one."""
        if self.pages is not None:
            return len(images) >= self.pages
        return bool(images) and sum(image.pixels for image in images) + images[-1].pixels > self.pixels

    def halve(self, images: Sequence[PreparedImage]) -> None:
        """Shrink the budget to half of a batch that did not fit into memory."""
        half = max(1, len(images) // 2)
        if self.pages is not None:
            self.pages = min(self.pages, half)
        self.pixels = min(self.pixels, max(1, sum(image.pixels for image in images) // 2))


def _has_room(images: Sequence[PreparedImage], image: PreparedImage, budget: BatchBudget) -> bool:
    """Return whether one more image goes into a batch: there is room, and its view has the size of the others."""
    return not images or (not budget.is_full(images) and image.view.shape == images[-1].view.shape)


def cut_batches(
    entries: Iterable[tuple[Key, PreparedImage | PageError]],
    budget: BatchBudget,
    stop: Callable[[], bool] | None = None,
) -> Iterator[list[tuple[Key, PreparedImage | PageError]]]:
    """Cut a stream of prepared images, and of pages that failed, into batches.

    A batch ends when the budget is full, and where the size of the view changes. Failed pages do not wait for a batch
    to fill: they are given at once if no image comes before them, and else with the images before them.

    Args:
        entries: pairs of anything that names an image and the image, or the reason why there is none.
        budget: how large a batch may be. It is read anew for each image.
        stop (*optional*): asked for each entry; once it returns True, the batch that was begun is dropped.

    Yields:
        the entries of one batch, in their order.
    """
    batch: list[tuple[Key, PreparedImage | PageError]] = []
    images: list[PreparedImage] = []  # The images among them.
    for key, image in entries:
        if stop is not None and stop():
            return
        if isinstance(image, PreparedImage) and not _has_room(images, image, budget):
            yield batch
            batch, images = [], []
        batch.append((key, image))
        if isinstance(image, PreparedImage):
            images.append(image)
        elif not images or len(batch) - len(images) >= MAX_FAILED:
            yield batch
            batch, images = [], []
    if batch and not (stop is not None and stop()):
        yield batch
