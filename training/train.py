"""Train the page reader.

    python -m training.train MATERIALS RUN --preset cpu --cpu --mixed-precision bf16 --minutes 90 --cooldown 25
    accelerate launch -m training.train MATERIALS RUN --preset gpu --mixed-precision bf16

MATERIALS is what `python -m training.materials` wrote. RUN is the folder of this run: its checkpoint, its log and
plot. A run that was stopped or killed goes on from its last checkpoint when it is started again. With `--minutes` the
learning rate falls to nothing in the last `--cooldown` minutes, and `before-cooldown.pt` keeps the checkpoint from
before: copied to `checkpoint.pt`, it lets the run go on as if it had not been about to end.
"""

import argparse
import json
import os
import shutil
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, Subset

from .corpus import Batches
from .evaluation import evaluate_reading, held_out_pages
from .muon import Muon
from .presets import PRESETS, Preset
from .reader import PATCHES, ReadingObjective

__all__ = ["Run", "train"]

WEIGHTS = {"patches": 0.5, "tokens": 0.3, "texts": 1.0, "regions": 0.2, "pages": 0.5}
"""Weights of the losses."""
PAGE_SIDES = (512, 640, 640, 1024)
"""Sides of the pages of which smaller crops are taken to be parts, for their positions."""
LONGEST_STEP = 10.0
"""Seconds that a step may count for."""
NOT_MUON = ("position_embedding", "rel_pos", "class_embedding", "patch_embedding", "regions", "classifier")
"""Matrices that AdamW trains: tables, the first layer and the last."""


def save_checkpoint(path: Path, state: dict) -> None:
    """Write a checkpoint to a temporary name, then rename it."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def average_weights(average: dict[str, torch.Tensor], model: nn.Module, decay: float) -> None:
    """Move the average of the weights towards the weights of `model`, in place."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            average[name].lerp_(tensor.detach().to(average[name].device), 1 - decay)


def make_optimizers(model: nn.Module, preset: Preset) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside and AdamW for everything else."""
    by_kind: dict[str, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            by_kind["vectors"].append(parameter)
        else:
            kind = "expand" if "head.expand" in name else "matrices"
            by_kind["tables" if any(part in name for part in NOT_MUON) else kind].append(parameter)
    groups = [
        {"params": by_kind["vectors"], "weight_decay": 0.0},
        {"params": by_kind["tables"], "weight_decay": 0.05},
    ]
    matrices: list[dict[str, Any]] = [
        {"params": by_kind["matrices"]},
        {"params": by_kind["expand"], "blocks": PATCHES**2},  # The rows of each patch are a matrix.
    ]
    return [
        Muon(matrices, lr=preset.matrix_rate, weight_decay=0.05),
        torch.optim.AdamW(groups, lr=preset.learning_rate, betas=(0.9, 0.98), fused=True),
    ]


class Run:
    """A run of the training: model, optimisers and their checkpoint."""

    def __init__(self, folder: Path, preset: Preset, accelerator: Accelerator) -> None:
        self.folder, self.preset, self.accelerator = folder, preset, accelerator
        torch.manual_seed(0)
        model = ReadingObjective()
        if accelerator.device.type == "cpu":  # Faster than the kernels for long sequences at these sizes.
            model.encoder.set_attn_implementation("eager")
        optimizers = make_optimizers(model, preset)
        self.step, self.seconds, self.cools = 0, 0.0, False
        self.path = folder / "checkpoint.pt"
        saved = torch.load(self.path, map_location="cpu", weights_only=True) if self.path.is_file() else None
        if saved:
            model.load_state_dict(saved["model"])
            for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            self.step, self.seconds = saved["step"], saved["seconds"]
        self.average = saved["average"] if saved else {k: v.clone() for k, v in model.state_dict().items()}
        self.average = {name: tensor.to(accelerator.device) for name, tensor in self.average.items()}
        self.model, *self.optimizers = accelerator.prepare(model, *optimizers)

    def take_step(self, batch: dict[str, torch.Tensor], share: float = 1.0) -> dict[str, torch.Tensor]:
        """Take a step with a share of the largest learning rates, or with less where the preset says so."""
        share = min(self.preset.rate(self.step), share)
        for optimizer, largest in zip(
            self.optimizers, (self.preset.matrix_rate, self.preset.learning_rate), strict=True
        ):
            for group in optimizer.param_groups:
                group["lr"] = largest * share
        device, has_pairs = self.accelerator.device, bool(batch["has_pairs"])
        pixels = batch["pixels"].to(device).float() / 127.5 - 1
        torch.manual_seed(self.step)  # A run that goes on chooses the places of crops that it would have chosen.
        page_side = 0 if pixels.shape[-1] >= min(PAGE_SIDES) else PAGE_SIDES[self.step % len(PAGE_SIDES)]
        with self.accelerator.autocast():
            slots, regions = batch["slots"].to(device), batch["regions"].to(device)
            losses = self.model(
                pixels, slots, regions, page_side, has_pairs, float(batch["empty_weight"]), bool(batch["aligns"])
            )
        self.accelerator.backward(sum(WEIGHTS[name] * loss for name, loss in losses.items() if name in WEIGHTS))
        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        if self.step % 4 == 0:
            # A young average forgets the first weights sooner.
            decay = min(self.preset.average, self.step / (self.step + 10))
            average_weights(self.average, self.accelerator.unwrap_model(self.model), decay**4)
        return losses

    def save(self) -> None:
        if self.accelerator.is_main_process:
            model = self.accelerator.unwrap_model(self.model).state_dict()
            optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
            state = {"model": model, "optimizers": optimizers, "average": self.average}
            save_checkpoint(self.path, state | {"step": self.step, "seconds": self.seconds})

    def start_cooldown(self) -> None:
        """Keep a checkpoint from before the learning rate falls."""
        self.cools = True
        self.save()
        if self.accelerator.is_main_process:
            shutil.copy(self.path, self.folder / "before-cooldown.pt")

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


class Clock:
    """The time that a run has: `minutes` of training, or any time for 0; in the last `cooldown` the rate falls.

    A process that is stopped and continued, so that something else can be measured, does not lose this time: a step
    counts for [`LONGEST_STEP`] seconds at most.
    """

    def __init__(self, minutes: float, cooldown: float) -> None:
        self.left = 60 * minutes if minutes else float("inf")
        self.cooldown = 60 * cooldown
        self.last = time.monotonic()

    def tick(self) -> None:
        """Count the step that has ended."""
        now = time.monotonic()
        self.left -= min(now - self.last, LONGEST_STEP)
        self.last = now

    @property
    def share_left(self) -> float:
        """1 before the cooldown; in it, the share of it that is left."""
        return min(1.0, max(0.0, self.left / self.cooldown)) if self.cooldown else 1.0


class Means:
    """Means of the losses since they were last taken."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = defaultdict(list)

    def add(self, losses: dict[str, torch.Tensor]) -> None:
        for name, value in losses.items():
            self.values[name].append(value.item())

    def take(self) -> dict[str, float]:
        means = {name: round(sum(values) / len(values), 4) for name, values in self.values.items()}
        self.values.clear()
        return means


def make_loader(run: Run, materials: str, workers: int) -> DataLoader:
    """Return the batches of this process from the run's step on."""
    world, rank = run.accelerator.num_processes, run.accelerator.process_index
    batches = Batches(materials, run.preset.stages, world)
    numbers = range(run.step * world + rank, len(batches), world)
    return DataLoader(
        Subset(batches, numbers), batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None
    )


def train(materials: str, folder: Path, preset: Preset, options: argparse.Namespace) -> None:
    """Train until the preset's last step, or for `options.minutes`."""
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder, preset, Accelerator(mixed_precision=options.mixed_precision, cpu=options.cpu))
    clock = Clock(options.minutes, options.cooldown)
    means, pages, last = Means(), 0, time.monotonic()
    for batch in make_loader(run, materials, options.workers):
        if clock.share_left < 1 and not run.cools:
            run.start_cooldown()
        means.add(run.take_step(batch, options.rate * clock.share_left))
        clock.tick()
        pages += len(batch["pixels"]) * run.accelerator.num_processes
        if run.step % options.log_every == 0:
            now = time.monotonic()
            run.seconds += now - last
            run.log(pages_per_second=round(pages / (now - last), 2), **means.take())
            pages, last = 0, now
            if run.step % options.save_every == 0:
                run.save()
            if run.step % options.evaluate_every == 0:
                run.evaluate(materials)
                last = time.monotonic()
        if clock.left <= 0:
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
    parser.add_argument("--cooldown", type=float, default=0, help="Minutes at the end in which the rate falls.")
    parser.add_argument(
        "--rate", type=float, default=1, help="Share of the largest learning rates, for a run that goes on."
    )
    parser.add_argument("--log-every", type=int, default=50, help="Steps between lines of the log.")
    parser.add_argument("--save-every", type=int, default=500, help="Steps between checkpoints.")
    parser.add_argument("--evaluate-every", type=int, default=2000, help="Steps between evaluations.")
    options = parser.parse_args()
    train(options.materials, options.run, PRESETS[options.preset], options)


if __name__ == "__main__":
    main()
