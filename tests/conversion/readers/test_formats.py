"""The table of file formats."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from deepencoder.conversion.readers.formats import FORMATS, SUFFIXES, format_of, open_file


def test_the_suffix_decides() -> None:
    assert [format_of(f"model{suffix}").suffix for suffix in SUFFIXES] == list(SUFFIXES)
    assert format_of("weights.unknown") is FORMATS[0]
    assert format_of("model.safetensors").in_place and not format_of("model.safetensors").mapped
    assert format_of("model.bin").mapped and not format_of("model.bin").in_place


def write_gguf_file(path: Path) -> None:
    """Write a vector of two ones."""
    writer = pytest.importorskip("gguf").GGUFWriter(path, "clip")
    writer.add_tensor("a", np.ones(2, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_files_of_every_format_are_opened(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        path = tmp_path / f"model{suffix}"
        if suffix == ".safetensors":
            save_file({"a": torch.ones(2)}, path)
        elif suffix == ".gguf":
            write_gguf_file(path)
        else:
            torch.save({"a": torch.ones(2)}, path)
        read = open_file(path)["a"].read
        assert read is not None and torch.equal(read(), torch.ones(2))
