import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from training import train as module
from training.corpus import Stage
from training.presets import Preset
from training.train import train


def options(**changes: Any) -> argparse.Namespace:
    defaults = {
        "mixed_precision": "no",
        "cpu": True,
        "workers": 0,
        "minutes": 0,
        "cooldown": 0,
        "rate": 1,
        "log_every": 1,
    }
    return argparse.Namespace(**defaults | {"save_every": 1, "evaluate_every": 1000} | changes)


@pytest.fixture(autouse=True)
def no_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "held_out_pages", lambda folder: {})


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(folder: Path, tmp_path: Path) -> None:
    preset = Preset((Stage(4, 64, 4, (20, 24)),), warmup=2)
    train(str(folder), tmp_path / "whole", preset, options())
    train(str(folder), tmp_path / "halves", preset, options(minutes=1e-9))  # It stops after one step.
    saved = torch.load(tmp_path / "halves" / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 1
    train(str(folder), tmp_path / "halves", preset, options())
    whole, halves = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "halves"))
    assert whole["step"] == halves["step"] == 4
    for part in ("model", "average"):
        for name, tensor in whole[part].items():
            torch.testing.assert_close(halves[part][name], tensor, atol=1e-5, rtol=1e-4)


def test_the_learning_rate_grows_stays_and_falls() -> None:
    preset = Preset((Stage(100, 64, 4, (20, 24)),), warmup=10, decay=0.2)
    assert preset.rate(0) == pytest.approx(0.1) and preset.rate(9) == preset.rate(80) == 1.0
    assert preset.rate(90) == pytest.approx(0.5) and preset.rate(100) == 0.0


def test_the_rate_falls_in_the_last_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    clock, endless = module.Clock(1, 0.5), module.Clock(0, 4)
    shares = []
    for seconds in (5, 5, 3600, 10, 10, 10, 10, 10):  # The third step was interrupted for an hour.
        now += seconds
        clock.tick()
        shares.append(clock.share_left)
    assert shares == pytest.approx([1, 1, 1, 1, 2 / 3, 1 / 3, 0, 0])
    endless.tick()
    assert endless.share_left == 1.0 == module.Clock(10, 0).share_left


def test_a_checkpoint_from_before_the_cooldown_is_kept(folder: Path, tmp_path: Path) -> None:
    train(str(folder), tmp_path, Preset((Stage(3, 64, 2, (20, 24)),)), options(minutes=1e-9, cooldown=1))
    kept = torch.load(tmp_path / "before-cooldown.pt", weights_only=True)
    assert kept["step"] == 0 and torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 1


def test_training_learns_one_page(folder: Path, tmp_path: Path) -> None:
    """The head reads what it has seen: a loss that cannot fall would be a defect."""
    from training.corpus import Batches
    from training.reader import ReadingObjective

    batch = Batches(str(folder), (Stage(1, 64, 2, (24, 28), varied=False),))[0]
    torch.manual_seed(0)
    model = ReadingObjective()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pixels = batch["pixels"].float() / 127.5 - 1
    losses = []
    for _ in range(25):
        values = model(pixels, batch["slots"], batch["regions"])
        loss = values["patches"] + values["tokens"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0], losses
