"""The pages of the comparison, and the files in which all processes find the same pixels."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from deepencoder import DeepEncoderConfig
from deepencoder.runtimes.trials.operations import count_operations

TILE = 640
PIXELS = "pixels"


class Workload(NamedTuple):
    """A page with one view of `side` x `side` pixels and `columns` x `rows` tiles of 640 x 640."""

    name: str
    side: int
    columns: int = 0
    rows: int = 0

    @property
    def tiles(self) -> int:
        return self.columns * self.rows

    @property
    def sides(self) -> tuple[int, ...]:
        """The sides of the views that a model must be able to take."""
        return (self.side, TILE) if self.tiles else (self.side,)

    @property
    def patches_grid(self) -> list[list[int]] | None:
        return [[self.columns, self.rows]] if self.tiles else None

    @property
    def operations(self) -> float:
        config = DeepEncoderConfig()
        return count_operations(config, self.side, self.side) + self.tiles * count_operations(config, TILE, TILE)

    def write_inputs(self, folder: Path) -> dict[str, Path]:
        """Write the pixels, unless they are there, and return the files by the name of the input."""
        shapes = {"pixel_values": (1, 3, self.side, self.side)}
        if self.tiles:
            shapes["pixel_values_local"] = (self.tiles, 3, TILE, TILE)
        files = {}
        for name, shape in shapes.items():
            files[name] = folder / PIXELS / f"{'x'.join(map(str, shape))}.npy"
            if not files[name].exists():
                files[name].parent.mkdir(parents=True, exist_ok=True)
                np.save(files[name], np.random.default_rng(1).standard_normal(shape, np.float32))
        return files


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("512", 512),
        Workload("640", 640),
        Workload("1024", 1024),
        Workload("gundam", 1024, 2, 3),
    )
}
"""The pages by name. `gundam` is an A4 page in the mode of this name."""
