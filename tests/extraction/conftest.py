"""Models that the tests of extraction share."""

from pathlib import Path

import pytest
import torch

from .corpus import save_model
from .helpers import Load, load_once


@pytest.fixture(scope="session")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose pages all have the same number of tokens."""
    torch.manual_seed(0)
    return save_model(tmp_path_factory.mktemp("models") / "fixed")


@pytest.fixture(scope="session")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that cuts pages into tiles."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiled"
    return save_model(folder, crop_to_patches=True, min_patches=2, max_patches=6)


@pytest.fixture
def load(fixed: Path) -> Load:
    return lambda: load_once(fixed)


@pytest.fixture
def load_tiled(tiled: Path) -> Load:
    return lambda: load_once(tiled)
