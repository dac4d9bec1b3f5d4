"""The identity of a model: its commit on the Hub, or a hash of its files."""

from pathlib import Path

import pytest

from deepencoder import DeepEncoderConfig, SamEncoderConfig
from deepencoder.extraction import IdentifiedModel, identify_model

from ..hub_server import COMMIT, Hub


def test_a_file_of_weights_is_named_by_what_it_holds(tmp_path: Path) -> None:
    for name, content in (("a.safetensors", b"a"), ("b.safetensors", b"b")):
        (tmp_path / name).write_bytes(content)
    names = {identify_model(tmp_path / name) for name in ("a.safetensors", "b.safetensors")}
    assert len(names) == 2


def test_a_folder_is_named_by_its_files(fixed: Path, tmp_path: Path) -> None:
    name = identify_model(fixed)
    assert name.startswith("sha256:") and identify_model(str(fixed)) == name
    DeepEncoderConfig.tiny().save_pretrained(tmp_path)
    without_weights = identify_model(tmp_path)
    (tmp_path / "notes.txt").write_text("not a part of the model")
    assert identify_model(tmp_path) == without_weights != name


def test_another_model_is_refused(tmp_path: Path) -> None:
    SamEncoderConfig.tiny().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="model must be a 'deepencoder' or a 'deepencoder_v2', got a 'deepencoder_sam'"
    ):
        IdentifiedModel.find(tmp_path).load_config()


def test_a_model_on_the_hub_is_loaded_at_the_commit_that_names_it(
    hub: Hub, fixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.repos["user/encoder"] = fixed
    model = IdentifiedModel.find("user/encoder")
    assert model.identity == identify_model("user/encoder", "main") == COMMIT
    newer = hub.commit("user/encoder", "main", {"config.json": b"nonsense"})
    assert identify_model("user/encoder") == newer
    # The branch has moved on, but the identified commit is still the one that is loaded.
    assert model.load_config().model_type == "deepencoder"
    assert model.load_image_processor().size["height"] == 128
    assert model.load().config.projection_dim == 48

    hub.repos["user/nothing"] = tmp_path
    with pytest.raises(FileNotFoundError, match="no such folder, and no configuration"):
        identify_model("user/nothing")
