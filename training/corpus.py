"""The batches of the training, in the order of the curriculum.

Unusual: a batch is a function of its number alone. A run that is resumed at batch n therefore sees what it would have
seen, whatever the number of workers and processes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from .damage import damage_page
from .materials import Materials
from .pages import Page, PageStyle, draw_page
from .targets import character_slots, region_kinds

__all__ = ["Batches", "Stage", "make_batch"]


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum.

    Args:
        steps: number of steps; at each, every process takes one batch.
        side: side of the pages in pixels.
        pages: number of pages in a batch, an even number: the second half shows the texts of the first half again.
        sizes: smallest and largest size of body text in pixels.
        damage: strength of the damage, from 0 to 1.
        varied: whether there are headings, tables, figures and code.
    """

    steps: int
    side: int
    pages: int
    sizes: tuple[float, float]
    damage: float = 0.0
    varied: bool = True


def make_batch(pages: list[Page]) -> dict[str, torch.Tensor]:
    """Return the pixels (bytes, `(batch, 3, height, width)`), character slots and regions of pages of one size."""
    pixels = np.stack([np.asarray(page.image) for page in pages])  # (batch, height, width, 3)
    return {
        "pixels": torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        "slots": torch.from_numpy(np.stack([character_slots(page) for page in pages])),
        "regions": torch.from_numpy(np.stack([region_kinds(page) for page in pages])),
    }


class Batches(Dataset):
    """All batches of a curriculum, by number.

    Args:
        folder: the materials.
        stages: the curriculum, which counts steps.
        processes: number of processes, each of which takes one batch at a step. Batch `n` is for step
            `n // processes`.
        seed: chooses the pages.
    """

    def __init__(self, folder: str, stages: tuple[Stage, ...], processes: int = 1, seed: int = 0) -> None:
        self.folder, self.stages, self.processes, self.seed = folder, stages, processes, seed
        self._materials: Materials | None = None

    def __len__(self) -> int:
        return self.processes * sum(stage.steps for stage in self.stages)

    def stage(self, number: int) -> Stage:
        """Return the stage to which a batch belongs."""
        step = number // self.processes
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        raise IndexError("number of batch out of range")

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        if self._materials is None:  # Each worker reads its own.
            self._materials = Materials(self.folder)
        stage = self.stage(number)
        style = PageStyle(stage.side, stage.side, stage.sizes, cut=stage.side < 1024, varied=stage.varied)
        pages = []
        for index in range(stage.pages):
            text = (self.seed << 40) + number * 4096 + index % (stage.pages // 2)
            look = text + 2048 * (index // (stage.pages // 2))
            page = draw_page(look, self._materials, style, text_seed=text)
            pages.append(damage_page(page, look, stage.damage) if stage.damage else page)
        return make_batch(pages)
