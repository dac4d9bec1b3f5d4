"""Families of checkpoints and the models that they become."""

import subprocess
import sys

from deepencoder.conversion.layouts import LAYOUTS
from deepencoder.conversion.targets import TARGETS
from deepencoder.modeling.catalog import MODELS

from ..conftest import ROOT


def test_every_family_becomes_a_model() -> None:
    for layout in LAYOUTS:
        assert layout.model_type in MODELS
        names = TARGETS[layout.model_type].optional_parts
        assert set(layout.family.absent_parts) <= set(names), "what a family never has must be optional"


def test_families_are_imported_without_torch() -> None:
    command = [sys.executable, "-m", "tests.programs.layouts_without_torch"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
