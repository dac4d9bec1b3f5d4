"""Fixtures of the tests that download checkpoints."""

from pathlib import Path
from typing import Any

import pytest

from deepencoder import DeepEncoder

from ..hub_server import Hub
from .hub_samples import build_encoder, publish_original


@pytest.fixture
def original(hub: Hub, tmp_path: Path) -> DeepEncoder:
    """The encoder of the checkpoint that the Hub serves as `REPO`."""
    model = build_encoder()
    publish_original(hub, model, tmp_path / "hub")
    return model


@pytest.fixture
def cache(tmp_path: Path) -> dict[str, Any]:
    """Keyword arguments that select an empty cache."""
    return {"cache_dir": str(tmp_path / "cache")}
