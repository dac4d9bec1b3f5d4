"""Train the page reader. A first version: the weights do not ship yet.

    accelerate launch -m training.train MATERIALS RUN --preset cpu
    python -m training.train MATERIALS RUN --preset gpu --mixed-precision bf16

MATERIALS is what `python -m training.materials` wrote. RUN is the folder of this run: its checkpoint, its log and
plot. A run that was stopped or killed goes on from its last checkpoint when it is started again.
"""

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Subset

from .corpus import Batches, Stage
from .evaluation import evaluate_reading, held_out_pages
from .reader import ReadingObjective

__all__ = ["PRESETS", "Preset", "train"]

WEIGHTS = {"patches": 1.0, "tokens": 1.0, "regions": 0.2, "pages": 0.1}
"""Weights of the losses."""


@dataclass(frozen=True)
class Preset:
    """How a run goes.

    Args:
        stages: the curriculum.
        learning_rate: largest learning rate.
        warmup: number of steps in which the learning rate grows.
        decay: share of all steps, at the end, in which the learning rate falls to nothing.
        average: decay of the moving average of the weights, which is what is evaluated and shipped.
    """

    stages: tuple[Stage, ...]
    learning_rate: float = 1e-3
    warmup: int = 500
    decay: float = 0.2
    average: float = 0.999

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: it grows, stays, and falls linearly at the end."""
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.learning_rate * min(1.0, (step + 1) / self.warmup, max(left, 0.0))


PRESETS = {
    "try": Preset((Stage(40, 128, 8, (24, 48), varied=False),), warmup=10),
    "cpu": Preset(
        (
            Stage(6000, 128, 32, (24, 48), varied=False),
            Stage(20000, 256, 16, (16, 44), damage=0.3),
            Stage(30000, 256, 16, (12, 40), damage=0.7),
            Stage(8000, 512, 8, (12, 36), damage=0.7),
        )
    ),
    "gpu": Preset(
        (
            Stage(2000, 128, 512, (24, 48), varied=False),
            Stage(6000, 256, 256, (14, 44), damage=0.3),
            Stage(8000, 512, 96, (11, 40), damage=0.7),
            Stage(1500, 1024, 32, (11, 36), damage=0.7),
        ),
        learning_rate=2e-3,
    ),
}
"""Curricula: `try` for a test, `cpu` for two cores and a day or two, `gpu` for half an hour on a large GPU."""


def save_checkpoint(path: Path, state: dict) -> None:
    """Write a checkpoint to a temporary name, then rename it."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def average_weights(average: dict[str, torch.Tensor], model: torch.nn.Module, decay: float) -> None:
    """Move the average of the weights towards the weights of `model`, in place."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            average[name].lerp_(tensor.detach().to(average[name].device), 1 - decay)


class Run:
    """A run of the training: model, optimiser and their checkpoint."""

    def __init__(self, folder: Path, preset: Preset, accelerator: Accelerator) -> None:
        self.folder, self.preset, self.accelerator = folder, preset, accelerator
        torch.manual_seed(0)
        model = ReadingObjective()
        matrices = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=preset.learning_rate, betas=(0.9, 0.98))
        self.step, self.seconds = 0, 0.0
        self.path = folder / "checkpoint.pt"
        saved = torch.load(self.path, map_location="cpu", weights_only=True) if self.path.is_file() else None
        if saved:
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            self.step, self.seconds = saved["step"], saved["seconds"]
        self.average = saved["average"] if saved else {k: v.clone() for k, v in model.state_dict().items()}
        self.average = {name: tensor.to(accelerator.device) for name, tensor in self.average.items()}
        self.model, self.optimizer = accelerator.prepare(model, optimizer)

    def take_step(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.preset.rate(self.step)
        pixels = batch["pixels"].to(self.accelerator.device).float() / 127.5 - 1
        with self.accelerator.autocast():
            losses = self.model(pixels, batch["slots"].to(pixels.device), batch["regions"].to(pixels.device))
        loss = sum(weight * losses[name] for name, weight in WEIGHTS.items())
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        if self.step % 4 == 0:
            own = self.accelerator.unwrap_model(self.model)
            average_weights(self.average, own, self.preset.average**4)
        return losses

    def save(self) -> None:
        if self.accelerator.is_main_process:
            model = self.accelerator.unwrap_model(self.model).state_dict()
            state = {"model": model, "optimizer": self.optimizer.state_dict(), "average": self.average}
            save_checkpoint(self.path, state | {"step": self.step, "seconds": self.seconds})

    def log(self, **fields: object) -> None:
        if self.accelerator.is_main_process:
            line = json.dumps({"step": self.step, "hours": round(self.seconds / 3600, 3), **fields})
            print(line, flush=True)
            with open(self.folder / "log.jsonl", "a") as file:
                file.write(line + "\n")

    def evaluate(self, materials: str) -> None:
        """Read held-out pages with the averaged weights."""
        reader = ReadingObjective().to(self.accelerator.device)
        reader.load_state_dict(self.average)
        self.log(held_out=evaluate_reading(reader.eval(), held_out_pages(materials)))


def train(materials: str, folder: Path, preset: Preset, options: argparse.Namespace) -> None:
    """Train until the preset's last step, or for `options.minutes`."""
    accelerator = Accelerator(mixed_precision=options.mixed_precision, cpu=options.cpu)
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder, preset, accelerator)
    world = accelerator.num_processes
    batches = Batches(materials, preset.stages, world)
    loader = DataLoader(
        Subset(batches, range(run.step * world + accelerator.process_index, len(batches), world)),
        batch_size=None,
        num_workers=options.workers,
        prefetch_factor=4 if options.workers else None,
    )
    started = last = time.monotonic()
    pages = 0
    for batch in loader:
        losses = run.take_step(batch)
        pages += len(batch["pixels"]) * world
        now = time.monotonic()
        if run.step % options.log_every == 0:
            run.seconds += now - last
            values = {name: round(value.item(), 4) for name, value in losses.items()}
            run.log(pages_per_second=round(pages / (now - last), 2), **values)
            pages, last = 0, now
            if run.step % options.save_every == 0:
                run.save()
            if run.step % options.evaluate_every == 0:
                run.evaluate(materials)
                last = time.monotonic()
            if options.minutes and now - started > 60 * options.minutes:
                break
    run.save()
    run.evaluate(materials)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("materials")
    parser.add_argument("run", type=Path)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--mixed-precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--cpu", action="store_true", help="Use no GPU.")
    parser.add_argument("--workers", type=int, default=1, help="Processes that draw pages.")
    parser.add_argument("--minutes", type=float, default=0, help="Stop after so many minutes. 0: at the last step.")
    parser.add_argument("--log-every", type=int, default=50, help="Steps between lines of the log.")
    parser.add_argument("--save-every", type=int, default=500, help="Steps between checkpoints.")
    parser.add_argument("--evaluate-every", type=int, default=2000, help="Steps between evaluations.")
    options = parser.parse_args()
    train(options.materials, options.run, PRESETS[options.preset], options)


if __name__ == "__main__":
    main()
