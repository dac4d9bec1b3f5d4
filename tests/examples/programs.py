"""Imports the example programs, which are files outside of the package."""

import importlib.util
import sys
from types import ModuleType

from ..conftest import ROOT


def load_example(name: str) -> ModuleType:
    """Import `examples/NAME.py`."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Dataclasses look their module up.
    spec.loader.exec_module(module)
    return module
