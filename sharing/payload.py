"""The code that a model repository takes along: our files, flattened.

Unusual: transformers' loader of remote code copies only files that lie side by side, and finds them by reading lines
of `from .x import y`. So `modeling/sam_encoder.py` becomes `modeling_sam_encoder.py`, and its imports are rewritten;
an import that cannot be is refused.
"""

import ast
import sys
from pathlib import Path

__all__ = ["ALLOWED", "ROOTS", "export_code", "flatten"]

FOLDERS = ("configuration", "modeling", "processing")
ALLOWED = ("PIL", "huggingface_hub", "numpy", "torch", "transformers")
# By model_type, the files that its auto_map names; what these import comes along.
ROOTS = {
    "deepencoder": ("configuration/deepencoder.py", "modeling/deepencoder.py"),
    "deepencoder_sam": ("configuration/sam_encoder.py", "modeling/sam_encoder.py"),
    "deepencoder_clip_vision": ("configuration/clip_vision_encoder.py", "modeling/clip_vision_encoder.py"),
}
IMAGE_PROCESSOR = "processing/image_processing.py"
PACKAGE = Path(__file__).parents[1]


def flatten(source: str, name: str) -> tuple[str, list[str]]:
    """Rewrite the relative imports of a file for a folder in which all files lie side by side.

    Args:
        source: the file's text.
        name: what it is called in the package, `"folder/module.py"`.

    Returns:
        the new text, and the names of the files that it imports.

    Raises:
        `ValueError`: an import that cannot be rewritten, or of a package that a model repository may not need.
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


def _check_packages(name: str, modules: list[str]) -> None:
    for module in modules:
        package = module.partition(".")[0]
        if package not in ALLOWED and package not in sys.stdlib_module_names:
            raise ValueError(f"{name} imports {module!r}; a model repository may import {', '.join(ALLOWED)} only.")


def export_code(model_type: str, version: str) -> dict[str, str]:
    """Return the files that a repository of a model of this type takes along, by name.

    Args:
        model_type: of the configuration.
        version: of this package, which each file names.

    Raises:
        `ValueError`: see [`flatten`].
    """
    waiting = [*ROOTS[model_type], IMAGE_PROCESSOR]
    files: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        flat = name.replace("/", "_")
        if flat in files:
            continue
        text, needed = flatten((PACKAGE / name).read_text(encoding="utf-8"), name)
        files[flat] = f"# deepencoder {version}: {name}, flattened for this repository. Licence: Apache-2.0.\n{text}"
        waiting += needed
    return files
