"""A converted checkpoint, for the tests of this folder."""

from pathlib import Path

import pytest
from safetensors.torch import save_file

from deepencoder.conversion import convert_to_folder

from ..conversion.samples import build, layout_of, state_dict_there


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    """A folder that `convert_to_folder` wrote, from a small checkpoint whose model card states a licence."""
    layout = layout_of("deepseek-ocr")
    (tmp_path / "original").mkdir()
    save_file(state_dict_there(build(layout), layout), tmp_path / "original" / "model.safetensors")
    (tmp_path / "original" / "README.md").write_text("---\nlicense: mit\n---\nA model.\n")
    convert_to_folder(tmp_path / "original", tmp_path / "converted")
    return tmp_path / "converted"
