"""Graphs in 8 bits, and how close they are to the model."""

import json
from pathlib import Path

import pytest
import torch

from deepencoder import DeepEncoder, SamEncoder, SamEncoderConfig
from deepencoder.conversion.export import export_model
from deepencoder.conversion.export.compression import measure_accuracy, split_calibration
from deepencoder.conversion.export.graphs import ExportedView

from ...conftest import randomize


def test_a_fifth_is_held_back() -> None:
    for count, held_back in ((2, 1), (5, 1), (6, 2), (20, 4)):
        pages = torch.arange(count).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
        fitted, compared = split_calibration(pages, (3, 8, 8))
        assert len(compared) == held_back and torch.equal(torch.cat([fitted, compared]), pages.float())
    for shape in ((1, 3, 8, 8), (3, 8, 8), (4, 3, 8, 16)):
        with pytest.raises(ValueError, match="calibration must hold two or more pages"):
            split_calibration(torch.zeros(shape), (3, 8, 8))


def test_similarity_is_that_of_tokens(shallowest_model: DeepEncoder) -> None:
    pages = torch.randn(2, 3, 128, 128)
    sam = randomize(SamEncoder(SamEncoderConfig.tiny(num_hidden_layers=2)))
    for model in (shallowest_model, sam):
        view = ExportedView(model)
        with torch.no_grad():
            same = measure_accuracy(view, view, pages)

            def turned(page: torch.Tensor, view: ExportedView = view) -> tuple[torch.Tensor, ...]:
                """One token points into the opposite direction."""
                tokens = view(page)[0].clone()
                if tokens.ndim == 4:
                    tokens[:, :, 0, 0] *= -1  # (batch, channels, rows, columns)
                else:
                    tokens[:, 0] *= -1  # (batch, tokens, dim)
                return (tokens,)

            worse = measure_accuracy(view, turned, pages)
        assert same == {"mean_cosine": 1.0, "worst_cosine": 1.0}
        assert worse["worst_cosine"] == -1.0 and worse["mean_cosine"] == 1 - 2 / 4  # One token of four.


def test_openvino_in_eight_bits(shallow_model: DeepEncoder, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    pages = torch.randn(6, 3, 128, 128)
    facts = export_model(shallow_model, tmp_path / "encoder.xml", 128, "openvino", calibration=pages)
    export_model(shallow_model, tmp_path / "float.xml", 128, "openvino")
    found = json.loads(facts["compression"])
    print(found)
    assert facts["max_difference"] is None and found["calibration_pages"] == 4 and found["compared_pages"] == 2
    assert 0.97 < found["worst_cosine"] < found["mean_cosine"] < 1
    sizes = [(tmp_path / name).stat().st_size for name in ("encoder.bin", "float.bin")]
    assert sizes[0] < sizes[1]
