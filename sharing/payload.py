"""The code that goes into a model repository: this package's files, flattened.

Unusual: transformers' loader of remote code copies only files that lie side by side, and finds them by searching for
lines of the form `from .x import y`. So `modeling/sam_encoder.py` becomes `modeling_sam_encoder.py` with rewritten
imports, and an import that cannot be rewritten is an error.
"""

import ast
import sys
from pathlib import Path

from .. import __version__
from ..modeling.catalog import MODELS
from ..processing import DeepEncoderImageProcessor

__all__ = ["ALLOWED", "export_code", "flatten", "root_files"]

FOLDERS = ("configuration", "modeling", "processing")
ALLOWED = ("PIL", "huggingface_hub", "numpy", "torch", "transformers")
"""The packages that a model repository may need, beside the standard library."""
PACKAGE = Path(__file__).parents[1]


def root_files(model_type: str) -> list[str]:
    """Return the files, as `"folder/module.py"`, that define what the `auto_map` of a repository names."""
    kind = MODELS[model_type]
    paths = [owner.__module__.split(".")[-2:] for owner in (kind.config_class, kind.model_class)]
    paths.append(DeepEncoderImageProcessor.__module__.split(".")[-2:])
    return [f"{folder}/{module}.py" for folder, module in paths]


def _check_packages(name: str, modules: list[str]) -> None:
    for module in modules:
        package = module.partition(".")[0]
        if package not in ALLOWED and package not in sys.stdlib_module_names:
            raise ValueError(f"{name} imports {module!r}; a model repository may import {', '.join(ALLOWED)} only.")


def flatten(source: str, name: str) -> tuple[str, list[str]]:
    """Rewrite the relative imports of a file for a folder in which all files lie side by side.

    Args:
        source: text of the file.
        name: path of the file in the package, `"folder/module.py"`.

    Returns:
        the new text, and the paths of the files that it imports.

    Raises:
        `ValueError`: an import that cannot be rewritten, or that needs a package outside [`ALLOWED`].
    """
    folder = name.partition("/")[0]
    lines = source.splitlines(keepends=True)
    needed = []
    for node in ast.walk(ast.parse(source, name)):
        if isinstance(node, ast.Import):
            _check_packages(name, [alias.name for alias in node.names])
        if not isinstance(node, ast.ImportFrom):
            continue
        module = node.module or ""
        if node.level == 0:
            _check_packages(name, [module])
            continue
        parts = module.split(".") if node.level == 2 else [folder, *module.split(".")]
        before = f"from {'.' * node.level}{module} import"
        line = lines[node.lineno - 1]
        if node.level > 2 or len(parts) != 2 or not parts[1] or parts[0] not in FOLDERS or before not in line:
            raise ValueError(f"{name}, line {node.lineno}: {line.strip()!r} cannot be flattened.")
        lines[node.lineno - 1] = line.replace(before, f"from .{parts[0]}_{parts[1]} import", 1)
        needed.append(f"{parts[0]}/{parts[1]}.py")
    return "".join(lines), needed


def export_code(model_type: str) -> dict[str, str]:
    """Return the text of each file that goes into a repository, by its flat name.

    Args:
        model_type: `model_type` of the model's configuration.

    Raises:
        `ValueError`: a file cannot be flattened; see [`flatten`].
    """
    waiting = root_files(model_type)
    files: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        flat = name.replace("/", "_")
        if flat in files:
            continue
        text, needed = flatten((PACKAGE / name).read_text(encoding="utf-8"), name)
        header = f"# deepencoder {__version__}: {name}, flattened for this repository. Licence: Apache-2.0."
        files[flat] = f"{header}\n{text}"
        waiting += needed
    return files
