# deepencoder 0.1.0: configuration/sharing.py, flattened for this repository. Licence: Apache-2.0.
"""What lets a model travel: the map from Auto classes to code beside the weights, and the way back to the package.

Unusual: configuration, modeling and the image processor are copied into a model repository as flat files
(`modeling/sam_encoder.py` as `modeling_sam_encoder.py`), without the rest of the package. What they need of it is
asked for by name, when it is needed.
"""

import importlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["flat_name", "import_converter", "settle_auto_map", "write_json"]

PAYLOAD = ("configuration", "modeling", "processing")


def import_converter(module: str = "originals") -> Any:
    """Return a module of the installed package's converter.

    Raises:
        `ImportError`: the package is not installed.
    """
    try:
        return importlib.import_module(f"deepencoder.conversion.{module}")
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("deepencoder"):
            raise
        raise ImportError("This takes the package: pip install deepencoder") from error


def flat_name(owner: type) -> str:
    """Return what a class is called in an `auto_map`: `"modeling_sam_encoder.SamEncoder"`."""
    *_, folder, module = ("", *owner.__module__.split("."))
    flat = module if module.startswith(tuple(f"{name}_" for name in PAYLOAD)) else f"{folder}_{module}"
    return f"{flat}.{owner.__name__}"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all, in the way that transformers does."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
        os.chmod(name, path.stat().st_mode if path.exists() else 0o644)
        os.replace(name, path)
    finally:
        if os.path.exists(name):
            os.unlink(name)


def settle_auto_map(path: Path, **own: str) -> None:
    """See to it that the `auto_map` of a saved file names just the code that lies beside it.

    Args:
        path: a `config.json` or `preprocessor_config.json`.
        own: for each Auto class, the [`flat_name`] of the class that was saved.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    before = content.pop("auto_map", None)
    known = before if isinstance(before, dict) else {}
    entries = {name: value.rpartition("--")[2] for name, value in known.items() if isinstance(value, str)} | own
    beside = {name: value for name, value in entries.items() if (path.parent / f"{value.split('.')[0]}.py").is_file()}
    if beside != (before or {}):
        write_json(path, content | ({"auto_map": beside} if beside else {}))
