"""Fixtures and helpers that several tests share."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deepencoder import DeepEncoder, DeepEncoderConfig
from deepencoder.cli import main

from .hub_server import Hub, serve

ROOT = Path(__file__).parents[1]


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter seeded random values of such a size that every part affects the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.1 * values)
            elif "rel_pos" in name or "position" in name or "embed" in name and parameter.ndim < 4:
                parameter.copy_(0.2 * values)
            elif parameter.ndim <= 1:
                parameter.copy_(0.1 * values)
            else:
                gain = 1.0 if parameter.ndim == 4 else 0.6
                parameter.copy_(gain * values * parameter[0].numel() ** -0.5)
    return model.eval()


def report_difference(name: str, ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 2e-5) -> None:
    """Print the largest and the mean difference, and fail above the tolerance."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    difference = (ours.double() - theirs.double()).abs()
    scale = theirs.double().std().item()
    print(f"{name}: max {difference.max():.2e}, mean {difference.mean():.2e} (values of size {scale:.2f})")
    assert scale > 1e-3, "values this small would agree whatever the model does"
    assert difference.max() <= tolerance


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield


@pytest.fixture
def tiny_model() -> DeepEncoder:
    """A small DeepEncoder with random weights everywhere."""
    model = randomize(DeepEncoder(DeepEncoderConfig.tiny()))
    assert isinstance(model, DeepEncoder)
    return model


@pytest.fixture(scope="session")
def example_page() -> Path:
    return ROOT / "examples" / "dense-text.png"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A local Hub server, which huggingface_hub is told to use."""
    with serve() as running:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(
            "huggingface_hub.constants.HF_HUB_DISABLE_XET", True
        )  # The server implements plain LFS only.
        yield running


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command line in this process: `code, out, err = cli("encode", ...)`."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["deepencoder", *map(str, arguments)])
        capsys.readouterr()  # what the test itself printed
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call
