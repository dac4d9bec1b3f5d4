"""The batches of the training, in the order of the curriculum.

Unusual: a batch is a function of its number alone. A run that is resumed at batch n therefore sees what it would have
seen, whatever the number of workers and processes. Drawing would take longer than learning on a CPU; so a batch takes
its crops from pages that the batches before it have drawn, and only a few pages are new in each. A worker that starts
in the middle draws those pages again.
"""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from .damage import damage_page, photograph_page
from .materials import Materials
from .pages import Page, PageStyle, draw_page
from .targets import character_slots, region_kinds

__all__ = ["Batches", "Stage", "crop_page", "make_batch"]

SHEET = 512
"""Side in pixels of the pages from which crops are cut."""
SHEETS_IN_USE = 128
"""Pages from which the crops of a batch are chosen."""


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum.

    Args:
        steps: number of steps; at each, every process takes one batch.
        side: side of the crops in pixels.
        crops: number of crops in a batch.
        sizes: smallest and largest size of body text in pixels.
        damage: strength of the damage, from 0 to 1.
        varied: whether there are headings, tables, figures and code.
        new_pages: number of pages that are drawn for each batch of crops.
        pairs: number of pairs of pages in a batch of pairs.
        pair_side: side of these pages in pixels.
        pairs_every: one batch in so many is a batch of pairs; 0 is none.
        empty_weight: weight of an empty slot in the loss; see [`slot_loss`].
        aligns: whether tokens may put their text into slots as they like; see [`alignment_loss`].
    """

    steps: int
    side: int
    crops: int
    sizes: tuple[float, float]
    damage: float = 0.0
    varied: bool = True
    new_pages: int = 4
    pairs: int = 16
    pair_side: int = 256
    pairs_every: int = 0
    empty_weight: float = 1.0
    aligns: bool = True


def make_batch(pages: list[Page]) -> dict[str, torch.Tensor]:
    """Return the pixels (bytes, `(batch, 3, height, width)`), character slots and regions of pages of one size."""
    pixels = np.stack([np.asarray(page.image) for page in pages])  # (batch, height, width, 3)
    return {
        "pixels": torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        "slots": torch.from_numpy(np.stack([character_slots(page) for page in pages])),
        "regions": torch.from_numpy(np.stack([region_kinds(page) for page in pages])),
    }


def crop_page(page: Page, left: int, top: int, side: int) -> Page:
    """Cut a square from a page, with the characters whose centres lie in it."""
    boxes = page.boxes - np.array([left, top, left, top], dtype=np.float32)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centers >= 0) & (centers < side)).all(axis=1)
    regions = [(kind, (x0 - left, y0 - top, x1 - left, y1 - top)) for kind, (x0, y0, x1, y1) in page.regions]
    image = page.image.crop((left, top, left + side, top + side))
    return Page(image, page.characters[inside], boxes[inside], page.lines[inside], regions)


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
        self._sheets: OrderedDict[tuple[int, int], Page] = OrderedDict()

    def __len__(self) -> int:
        return self.processes * sum(stage.steps for stage in self.stages)

    @property
    def materials(self) -> Materials:
        if self._materials is None:  # Each worker reads its own.
            self._materials = Materials(self.folder)
        return self._materials

    def stage(self, number: int) -> tuple[int, Stage]:
        """Return the stage to which a batch belongs, and its index."""
        step = number // self.processes
        for index, stage in enumerate(self.stages):
            if step < stage.steps:
                return index, stage
            step -= stage.steps
        raise IndexError("number of batch out of range")

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        index, stage = self.stage(number)
        if stage.pairs_every and number // self.processes % stage.pairs_every == 0:
            batch = make_batch(self._draw_pairs(number, stage)) | {"has_pairs": torch.tensor(True)}
        else:
            batch = make_batch(self._cut_crops(number, index, stage)) | {"has_pairs": torch.tensor(False)}
        return batch | {"empty_weight": torch.tensor(stage.empty_weight), "aligns": torch.tensor(stage.aligns)}

    def _cut_crops(self, number: int, index: int, stage: Stage) -> list[Page]:
        choose = np.random.default_rng((self.seed, number))
        sheets = number * stage.new_pages + choose.integers(SHEETS_IN_USE, size=stage.crops)
        places = choose.integers(SHEET - stage.side + 1, size=(stage.crops, 2))
        return [
            crop_page(self._sheet(index, stage, int(sheet)), int(left), int(top), stage.side)
            for sheet, (left, top) in zip(sheets, places, strict=True)
        ]

    def _sheet(self, index: int, stage: Stage, number: int) -> Page:
        key = (index, number)
        if key not in self._sheets:
            style = PageStyle(SHEET, SHEET, stage.sizes, cut=True, varied=stage.varied)
            seed = (self.seed << 40) + number
            self._sheets[key] = self._damaged(draw_page(seed, self.materials, style), seed, stage.damage)
            while len(self._sheets) > 2 * SHEETS_IN_USE:
                self._sheets.popitem(last=False)
        return self._sheets[key]

    def _draw_pairs(self, number: int, stage: Stage) -> list[Page]:
        """Draw pages, then for each of them a degraded copy, a photograph, or the same text in another look."""
        side = stage.pair_side
        style = PageStyle(side, side, stage.sizes, cut=False, varied=stage.varied)
        pages, partners = [], []
        for pair in range(stage.pairs):
            text = (self.seed << 40) + (1 << 39) + number * 4096 + pair
            page = draw_page(text, self.materials, style)
            if pair % 3 == 0:
                partner = damage_page(page, text, 1.0)
            elif pair % 3 == 1:
                partner = photograph_page(page, text)
            else:
                other = draw_page(text + 2048, self.materials, style, text_seed=text)
                page, partner = self._damaged(page, text, stage.damage), damage_page(other, text + 2048, 0.3)
            pages.append(page)
            partners.append(partner)
        return pages + partners

    @staticmethod
    def _damaged(page: Page, seed: int, strength: float) -> Page:
        return damage_page(page, seed, strength) if strength else page
