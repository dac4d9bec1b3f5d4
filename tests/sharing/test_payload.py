"""The code that goes into a model repository."""

import ast
import sys

import pytest

from deepencoder import __version__
from deepencoder.modeling.catalog import MODELS
from deepencoder.sharing.payload import ALLOWED, export_code, flatten, root_files

ROOTS = {
    "deepencoder": ["configuration/deepencoder.py", "modeling/deepencoder.py"],
    "deepencoder_v2": ["configuration/deepencoder_v2.py", "modeling/deepencoder_v2.py"],
    "deepencoder_sam": ["configuration/sam_encoder.py", "modeling/sam_encoder.py"],
    "deepencoder_clip_vision": ["configuration/clip_vision_encoder.py", "modeling/clip_vision_encoder.py"],
}


@pytest.mark.parametrize("model_type", MODELS)
def test_exported_code_imports_only_what_it_may(model_type: str) -> None:
    files = export_code(model_type)
    assert root_files(model_type) == [*ROOTS[model_type], "processing/image_processing.py"]
    for root in root_files(model_type):
        assert root.replace("/", "_") in files
    for name, text in files.items():
        assert text.startswith(f"# deepencoder {__version__}: {name.replace('_', '/', 1)}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and f"{node.module}.py" in files, (name, node.module)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                packages = {module.partition(".")[0] for module in modules}
                assert packages <= {*ALLOWED, *sys.stdlib_module_names}, (name, packages)
    assert ("modeling_sam_encoder.py" in files) == (model_type != "deepencoder_clip_vision")
    assert "modeling_catalog.py" not in files


def test_flatten_rewrites_relative_imports() -> None:
    source = """'from ..a.b import c'
import torch
from os import path

def f():
    from ..configuration.x import (
        Y,
    )

from .z import q  # here
"""
    text, needed = flatten(source, "modeling/file.py")
    assert text == source.replace("from ..configuration.x import", "from .configuration_x import").replace(
        "from .z import", "from .modeling_z import"
    )
    assert sorted(needed) == ["configuration/x.py", "modeling/z.py"]


@pytest.mark.parametrize(
    "line",
    [
        "from . import x",
        "from .. import x",
        "from ..configuration import x",
        "from ..conversion.keys import x",
        "from ...a.b import x",
        "from .a.b import x",
        "import safetensors",
        "from accelerate import x",
        "import deepencoder",
        "from  .a import b",
    ],
)
def test_flatten_refuses_imports_that_it_cannot_rewrite(line: str) -> None:
    with pytest.raises(ValueError, match="modeling/file.py"):
        flatten(line + "\n", "modeling/file.py")
