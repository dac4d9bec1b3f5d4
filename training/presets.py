"""How runs go: their curricula and learning rates, as rows of one table."""

from dataclasses import dataclass

from .corpus import Stage

__all__ = ["PRESETS", "Preset"]


@dataclass(frozen=True)
class Preset:
    """How a run goes.

    Args:
        stages: the curriculum.
        learning_rate: largest learning rate of AdamW, for vectors, position tables and the classifiers.
        matrix_rate: largest learning rate of Muon, for all other matrices and convolutions.
        warmup: number of steps in which the learning rates grow.
        decay: share of all steps, at the end, in which the learning rates fall to nothing.
        average: decay of the moving average of the weights, which is what is evaluated and shipped.
    """

    stages: tuple[Stage, ...]
    learning_rate: float = 1e-3
    matrix_rate: float = 3e-3
    warmup: int = 100
    decay: float = 0.2
    average: float = 0.995

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def rate(self, step: int) -> float:
        """Return the share of the largest learning rates at a step: it grows, stays 1, and falls linearly."""
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        return min(1.0, (step + 1) / self.warmup, max(left, 0.0))


PRESETS = {
    "try": Preset((Stage(40, 128, 8, (24, 48), varied=False, empty_weight=0.03, aligns=False),), warmup=10),
    "cpu": Preset(
        (
            Stage(500, 128, 64, (28, 44), varied=False, empty_weight=0.03, aligns=False),
            Stage(400, 128, 64, (28, 44), varied=False, aligns=False),
            Stage(600, 128, 96, (20, 44), damage=0.2, new_pages=6),
            Stage(500, 256, 24, (20, 40), damage=0.3, new_pages=6, pairs=12, pairs_every=6),
            Stage(350, 256, 24, (18, 40), damage=0.3, new_pages=6, pairs=6, pair_side=512, pairs_every=5),
            Stage(100000, 256, 24, (14, 48), damage=0.4, new_pages=6, pairs=15, pair_side=320, pairs_every=4),
        ),
        warmup=60,
    ),
    "gpu": Preset(
        (
            Stage(1000, 128, 512, (24, 48), varied=False, empty_weight=0.03, aligns=False),
            Stage(6000, 256, 256, (14, 44), damage=0.3, pairs=64, pairs_every=4),
            Stage(8000, 512, 96, (11, 40), damage=0.7, pairs=48, pair_side=512, pairs_every=3),
            Stage(1500, 512, 96, (11, 36), damage=0.7, pairs=16, pair_side=1024, pairs_every=2),
        ),
        learning_rate=2e-3,
    ),
}
"""Curricula: `try` for a test, `cpu` for one core and some hours, `gpu` for half an hour on a large GPU."""
