"""The way from a model's class to the converter, which the class may not import.

Unusual: configuration, modeling and processing travel with a model on the Hub, without the converter. So it is asked
for by name, when it is needed: where the package is installed, it is there.
"""

import importlib
from typing import Any

__all__ = ["import_converter"]


def import_converter() -> Any:
    """Return the installed package's converter.

    Raises:
        `ImportError`: the package is not installed.
    """
    try:
        return importlib.import_module("deepencoder.conversion.originals")
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("deepencoder"):
            raise
        raise ImportError("Reading checkpoints of other code takes the package: pip install deepencoder") from error
