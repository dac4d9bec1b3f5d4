"""Which graphs are used: those in a folder, whoever wrote it, and those of the very weights in the cache."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deepencoder import DeepEncoder, ExportedDeepEncoder, SamEncoder, SamEncoderConfig
from deepencoder.conversion.export.folders import TOKENS_NAME, find_graphs, graph_name
from deepencoder.runtimes import graph_folders
from deepencoder.runtimes.graph_folders import choose_runtime

from ..conftest import randomize, report_difference
from ..conversion.samples import build, layout_of, state_dict_there
from .conftest import TILE, VIEW


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    """A folder of graphs that may be damaged."""
    return Path(shutil.copytree(exported, tmp_path / "copied"))


@torch.no_grad()
def test_a_model_is_exported_once(
    model: DeepEncoder, source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, inputs: Any
) -> None:
    first = ExportedDeepEncoder.from_pretrained(source, runtime="onnxruntime")
    report_difference("exported", first(**inputs).last_hidden_state, model(**inputs).last_hidden_state)
    folder = first.graphs.path
    assert folder.is_relative_to(cache) and set(find_graphs(folder, "onnx")) == {VIEW, TILE}
    assert not list(folder.glob(".*"))  # Nothing temporary is left.

    def refuse(*_: Any) -> None:
        raise AssertionError("The model is loaded again.")

    monkeypatch.setattr(graph_folders, "_load_model", refuse)
    again = ExportedDeepEncoder.from_pretrained(source, runtime="onnxruntime")
    assert torch.equal(again(**inputs).last_hidden_state, first(**inputs).last_hidden_state)
    with pytest.raises(AssertionError, match="again"):
        again(torch.zeros(1, 3, 64, 64))


def test_other_weights_and_versions_have_graphs_of_their_own(
    model: DeepEncoder, source: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = randomize(DeepEncoder(model.config), seed=1)
    other.save_pretrained(tmp_path / "other")  # type: ignore[operator]
    folders = {ExportedDeepEncoder.from_pretrained(path).graphs.path for path in (source, tmp_path / "other")}
    monkeypatch.setattr(graph_folders, "EXPORT_VERSION", -1)
    folders.add(ExportedDeepEncoder.from_pretrained(source).graphs.path)
    assert len(folders) == 3


@torch.no_grad()
def test_an_original(cache: Path, tmp_path: Path) -> None:
    layout = layout_of("deepseek-ocr")
    model = build(layout)
    save_file(state_dict_there(model, layout), tmp_path / "original.safetensors")
    found = ExportedDeepEncoder.from_pretrained(tmp_path / "original.safetensors", runtime="onnxruntime")
    pixels = torch.randn(1, 3, 128, 128)
    report_difference("original", found(pixels).vision_tokens[0], model(pixels).vision_tokens[0])


def test_a_model_of_another_class(cache: Path, tmp_path: Path) -> None:
    SamEncoder(SamEncoderConfig.tiny(num_hidden_layers=2)).save_pretrained(tmp_path / "sam")
    with pytest.raises(ValueError, match="DeepEncoder"):
        ExportedDeepEncoder.from_pretrained(tmp_path / "sam")
    with pytest.raises(OSError, match="gone"):
        ExportedDeepEncoder.from_pretrained(tmp_path / "gone")


def test_only_files_of_the_right_names_are_graphs(copied: Path) -> None:
    for name in ("view_.xml", "view_064.xml", "view_1000000.xml", "view_64.xml.tmp", "view_-64.xml", "x_64.xml"):
        (copied / name).write_text("")
    assert list(find_graphs(copied, "openvino")) == [TILE, VIEW]
    assert graph_name(64, "onnx") == "view_64.onnx"


def test_a_graph_under_the_name_of_another_size(copied: Path) -> None:
    for suffix in (".xml", ".bin", ".onnx"):
        shutil.copy(copied / f"view_{TILE}{suffix}", copied / f"view_64{suffix}")
    for runtime in ("openvino", "onnxruntime"):
        found = ExportedDeepEncoder.from_pretrained(copied, runtime=runtime)
        with pytest.raises(ValueError, match="view_64.* is not a graph of the model"):
            found(torch.zeros(1, 3, 64, 64))


def test_a_damaged_graph(copied: Path) -> None:
    for runtime, name in (("openvino", "view_64.xml"), ("onnxruntime", "view_64.onnx")):
        (copied / name).write_bytes(b"<net" * 100)
        found = ExportedDeepEncoder.from_pretrained(copied, runtime=runtime)
        with pytest.raises(OSError, match=f"{name} cannot be opened by {runtime}"):
            found(torch.zeros(1, 3, 64, 64))


def test_a_configuration_that_does_not_fit(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    for change, words in (
        ({"projection_dim": 64}, "two vectors of length 64"),
        ({"projection_dim": -1}, "projection"),
    ):
        (copied / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=words):
            ExportedDeepEncoder.from_pretrained(copied)


def test_tokens_that_do_not_fit(copied: Path) -> None:
    save_file({"image_newline": torch.zeros(48, 2)}, copied / TOKENS_NAME)
    with pytest.raises(ValueError, match="two vectors of length 48"):
        ExportedDeepEncoder.from_pretrained(copied)
    (copied / TOKENS_NAME).write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match="is damaged"):
        ExportedDeepEncoder.from_pretrained(copied)


def test_weights_outside_of_the_folder(copied: Path) -> None:
    """ONNX names the file of its weights, which must lie in the folder."""
    onnx = pytest.importorskip("onnx")
    path = copied / f"view_{TILE}.onnx"
    graph = onnx.load(path, load_external_data=False)
    (copied / f"{path.name}.data").rename(copied.parent / "outside.data")
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../outside.data"
    path.write_bytes(graph.SerializeToString())
    found = ExportedDeepEncoder.from_pretrained(copied, runtime="onnxruntime")
    with pytest.raises(OSError, match="cannot be opened"):
        found(torch.zeros(1, 3, TILE, TILE))


def test_the_runtime_is_that_of_the_folder(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_runtime(None, copied).name == choose_runtime(None).name == "openvino"
    for path in copied.glob("*.xml"):
        path.unlink()
    assert choose_runtime(None, copied).name == "onnxruntime"
    monkeypatch.setattr(graph_folders, "find_spec", lambda name: None)
    for name, words in (("openvino", "needs openvino: pip install openvino"), (None, "needs openvino or onnxruntime")):
        with pytest.raises(ImportError, match=words):
            choose_runtime(name)
