"""Folders of graphs appear whole, and never hold graphs of two models."""

import copy
from pathlib import Path

import pytest

from deepencoder import DeepEncoder, DeepEncoderImageProcessor, SamEncoder, SamEncoderConfig
from deepencoder.conversion.export import export_folder
from deepencoder.conversion.export.folders import TOKENS_NAME, find_graphs, fingerprint

from ...conftest import randomize


def test_a_folder_grows(shallowest_model: DeepEncoder, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    folder = tmp_path / "graphs"
    facts = export_folder(shallowest_model, folder, [64, 128], "onnx", DeepEncoderImageProcessor(mode="tiny"))
    assert list(facts) == [64, 128] == list(find_graphs(folder, "onnx"))
    export_folder(shallowest_model, folder, [192], "onnx")
    assert list(find_graphs(folder, "onnx")) == [64, 128, 192] and not find_graphs(folder, "openvino")
    assert {"config.json", "preprocessor_config.json", TOKENS_NAME} <= {path.name for path in folder.iterdir()}
    assert not list(folder.glob(".*"))


def test_what_is_refused(shallowest_model: DeepEncoder, tmp_path: Path) -> None:
    sam = SamEncoder(SamEncoderConfig.tiny(num_hidden_layers=2))
    (tmp_path / "other").mkdir()
    for model, folder, sizes, words in (
        (sam, tmp_path / "new", [64], "must hold a DeepEncoder"),
        (shallowest_model, tmp_path / "new", [100], "image_size"),
        (shallowest_model, tmp_path / "other", [64], "is not a folder of exported graphs"),
    ):
        with pytest.raises(ValueError, match=words):
            export_folder(model, folder, sizes, "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    export_folder(shallowest_model, tmp_path / "empty", [], "onnx")
    other = randomize(copy.deepcopy(shallowest_model), seed=1)
    with pytest.raises(ValueError, match="graphs of another model"):
        export_folder(other, tmp_path / "empty", [], "onnx")


def test_the_fingerprint_is_that_of_the_weights(shallowest_model: DeepEncoder) -> None:
    same = copy.deepcopy(shallowest_model)
    assert fingerprint(same) == fingerprint(shallowest_model)
    same.view_separator.data[0] += 1
    assert fingerprint(same) != fingerprint(shallowest_model)
