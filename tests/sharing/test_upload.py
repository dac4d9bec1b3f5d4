"""Pushing to the Hub; see also `tests/test_remote_code.py`, which loads what was pushed."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from deepencoder import (
    ClipVisionEncoder,
    ClipVisionEncoderConfig,
    DeepEncoder,
    DeepEncoderConfig,
    DeepEncoderImageProcessor,
    SamEncoder,
    SamEncoderConfig,
)
from deepencoder.sharing.payload import export_code
from deepencoder.sharing.repository import collect_repository
from deepencoder.sharing.upload import PushOptions, push_folder

from ..hub_server import COMMIT, Hub

MODELS = {
    "deepencoder": lambda: DeepEncoder(DeepEncoderConfig.tiny()),
    "sam": lambda: SamEncoder(SamEncoderConfig.tiny()),
    "clip": lambda: ClipVisionEncoder(ClipVisionEncoderConfig.tiny()),
}

PRIVATE_FILES = (
    "id_rsa",
    "optimizer.pt",
    "notes.md",
    "train.py",
    "modeling_old.py",
    "model_notes.bin",
    "model-private.safetensors",
    "credentials.json",
    ".env",
)


def auto_classes(folder: Path) -> set[str]:
    """Return the Auto classes in the `auto_map`s of a folder, and check that their code lies in it."""
    found = set()
    for file in folder.glob("*config.json"):
        for name, value in json.loads(file.read_text()).get("auto_map", {}).items():
            assert (folder / f"{value.split('.')[0]}.py").is_file(), (file.name, value)
            found.add(name)
    return found


def pushed_folder(hub: Hub, repo_id: str, revision: str = "main") -> Path:
    found = hub.find(repo_id, revision)
    assert found is not None
    return found[1]


def test_pushing_leaves_the_folder_as_it_is(converted: Path, hub: Hub) -> None:
    before = {path.name: path.read_bytes() for path in converted.iterdir()}
    (converted / ".secret").write_text("not to be shared")
    push_folder(converted, "some/converted", token=hub.token)
    (converted / ".secret").unlink()
    assert {path.name: path.read_bytes() for path in converted.iterdir()} == before
    folder = pushed_folder(hub, "some/converted")
    pushed = {path.name for path in folder.iterdir()}
    assert pushed == set(collect_repository(converted, "some/converted")) > set(before)
    assert ".secret" not in pushed and "modeling_deepencoder.py" in pushed
    assert (folder / "model.safetensors").read_bytes() == before["model.safetensors"]


@pytest.mark.parametrize("kind", ["plain", "with its code"])
def test_files_that_do_not_belong_to_the_model_are_not_pushed(kind: str, hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "me" / "model"
    folder.mkdir(parents=True)
    for name in PRIVATE_FILES:
        (folder / name).write_text("private")
    (folder / "checkpoint-500").mkdir()
    (folder / "checkpoint-500" / "model.safetensors").write_text("private")
    model = MODELS["deepencoder"]()
    options = {"repo_id": "some/model", "token": hub.token, "self_contained": kind == "with its code"}
    model.save_pretrained(folder, push_to_hub=True, **options)
    pushed = {path.name for path in pushed_folder(hub, "some/model").rglob("*")}
    code = set(export_code("deepencoder"))
    assert (
        pushed == {"model.safetensors", "config.json", "preprocessor_config.json", "README.md", "encoding.png"} | code
    )


def test_pushed_files_name_no_local_path(converted: Path, hub: Hub) -> None:
    report = json.loads((converted / "conversion_report.json").read_text())
    assert report["source"] == "original"
    report["source"] = str(converted.parent / "original")  # As earlier versions wrote it.
    (converted / "conversion_report.json").write_text(json.dumps(report))
    config = json.loads((converted / "config.json").read_text()) | {"_name_or_path": str(converted)}
    (converted / "config.json").write_text(json.dumps(config))
    push_folder(converted, "some/converted", token=hub.token)
    for path in pushed_folder(hub, "some/converted").iterdir():
        assert str(converted.parent).encode() not in path.read_bytes(), path.name
    pushed = json.loads((pushed_folder(hub, "some/converted") / "conversion_report.json").read_text())
    assert pushed == report | {"source": "original"}


def test_the_token_is_not_shown() -> None:
    assert "hf_secret" not in repr(PushOptions(token="hf_secret"))


def test_a_push_goes_to_the_branch_that_was_asked_for(hub: Hub) -> None:
    model = MODELS["sam"]()
    model.push_to_hub("some/model", token=hub.token)
    model.push_to_hub("some/model", token=hub.token, revision="other")
    first, second = hub.find("some/model", "main"), hub.find("some/model", "other")
    assert first is not None and second is not None and COMMIT not in (first[0], second[0]) and first != second


def test_the_licence_and_the_tags_reach_the_card(hub: Hub) -> None:
    MODELS["sam"]().push_to_hub("some/model", token=hub.token, license="mit", tags=["mine"])
    card = ModelCard((pushed_folder(hub, "some/model") / "README.md").read_text())
    assert card.data.license == "mit" and "mine" in (card.data.tags or [])


def test_unknown_options_are_refused(hub: Hub) -> None:
    with pytest.raises(TypeError, match="organisation"):
        MODELS["sam"]().push_to_hub("some/model", organisation="mine")
    assert hub.find("some/model", None) is None


def test_files_of_others_on_the_hub_stay_and_old_shards_go(hub: Hub) -> None:
    model = MODELS["sam"]()
    model.push_to_hub("some/model", token=hub.token, max_shard_size="50KB")
    assert len(list(pushed_folder(hub, "some/model").glob("model-*.safetensors"))) > 1
    DeepEncoderImageProcessor(mode="tiny").push_to_hub("some/model", token=hub.token)
    hub.commit("some/model", "main", {"README.md": b"my own words"})
    model.push_to_hub("some/model", token=hub.token)
    folder = pushed_folder(hub, "some/model")
    assert (folder / "README.md").read_text() == "my own words"
    assert json.loads((folder / "preprocessor_config.json").read_text())["size"]["height"] == 512
    assert not list(folder.glob("model-*"))
    assert auto_classes(folder) == {"AutoConfig", "AutoModel", "AutoImageProcessor"}


@pytest.mark.parametrize("kind", MODELS)
def test_save_pretrained_can_push_as_well(kind: str, hub: Hub, tmp_path: Path) -> None:
    model = MODELS[kind]()
    options = {"push_to_hub": True, "token": hub.token}
    model.save_pretrained(tmp_path / "a", repo_id="w/model", tags=["mine"], **options)
    DeepEncoderImageProcessor(mode="tiny").save_pretrained(tmp_path / "b", repo_id="w/processor", **options)
    model.config.save_pretrained(tmp_path / "c", repo_id="w/config", **options)
    assert auto_classes(pushed_folder(hub, "w/model")) == {"AutoConfig", "AutoModel", "AutoImageProcessor"}
    assert auto_classes(pushed_folder(hub, "w/processor")) == {"AutoImageProcessor"}
    assert auto_classes(pushed_folder(hub, "w/config")) == {"AutoConfig", "AutoModel"}
    for folder in ("a", "b", "c"):
        assert auto_classes(tmp_path / folder) == set()
    card = ModelCard((pushed_folder(hub, "w/model") / "README.md").read_text())
    assert "w/model" in card.text and "mine" in (card.data.tags or [])
