"""Each format writes a graph, and weights where it says."""

from pathlib import Path

import pytest
import torch

from deepencoder import DeepEncoder
from deepencoder.conversion.export import FORMATS, export_model


@pytest.mark.parametrize("format", FORMATS)
def test_files_and_released_weights(shallowest_model: DeepEncoder, format: str, tmp_path: Path) -> None:
    model = DeepEncoder(shallowest_model.config)
    model.load_state_dict(shallowest_model.state_dict())
    path = tmp_path / f"encoder{FORMATS[format].suffix}"
    facts = export_model(model, path, 128, format, release=True)
    assert facts["max_difference"] is not None
    assert all(parameter.is_meta for parameter in model.parameters())
    assert {path, FORMATS[format].weights_path(path) or path} == set(tmp_path.iterdir())
    for calibration in (torch.zeros(1, 3, 128, 128), torch.zeros(3, 3, 64, 64)):
        words = "two or more pages" if FORMATS[format].compress else "only OpenVINO"
        with pytest.raises(ValueError, match=words):
            export_model(shallowest_model, path, 128, format, calibration=calibration)
