"""Sharing: the code that goes along, the model card, and the command that pushes."""

import ast
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import save_file

from deepencoder import ClipVisionEncoder, ClipVisionEncoderConfig, DeepEncoder, DeepEncoderConfig, SamEncoder
from deepencoder.conversion.from_original import convert_to_folder
from deepencoder.sharing.hub import collect_repository, complete_folder, push_folder
from deepencoder.sharing.payload import ALLOWED, IMAGE_PROCESSOR, ROOTS, export_code, flatten

from ..conversion.samples import build, layout_of, state_dict_there
from ..hub_server import Hub


@pytest.mark.parametrize("model_type", ROOTS)
def test_the_payload_imports_what_it_may(model_type: str) -> None:
    files = export_code(model_type, "1.2.3")
    for root in (*ROOTS[model_type], IMAGE_PROCESSOR):
        assert root.replace("/", "_") in files
    for name, text in files.items():
        assert text.startswith(f"# deepencoder 1.2.3: {name.replace('_', '/', 1)}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and f"{node.module}.py" in files, (name, node.module)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                packages = {module.partition(".")[0] for module in modules}
                assert packages <= {*ALLOWED, *sys.stdlib_module_names}, (name, packages)
    assert ("modeling_sam_encoder.py" in files) == (model_type != "deepencoder_clip_vision")


def test_flattening() -> None:
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
        "from ..conversion.key_tables import x",
        "from ...a.b import x",
        "from .a.b import x",
        "import safetensors",
        "from accelerate import x",
        "import deepencoder",
        "from  .a import b",
    ],
)
def test_what_cannot_be_flattened_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="modeling/file.py"):
        flatten(line + "\n", "modeling/file.py")


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    layout = layout_of("deepseek-ocr")
    (tmp_path / "original").mkdir()
    save_file(state_dict_there(build(layout), layout), tmp_path / "original" / "model.safetensors")
    (tmp_path / "original" / "README.md").write_text("---\nlicense: mit\n---\nA model.\n")
    convert_to_folder(tmp_path / "original", tmp_path / "converted")
    return tmp_path / "converted"


def test_the_card_of_a_converted_model(converted: Path) -> None:
    report = json.loads((converted / "conversion_report.json").read_text())
    assert report["license"] == "mit"
    report |= {"source": "deepseek-ai/DeepSeek-OCR", "commit": "abc123"}
    (converted / "conversion_report.json").write_text(json.dumps(report))
    complete_folder(converted)
    card = ModelCard.load(converted / "README.md")
    assert card.data.license == "mit" and card.data.base_model == "deepseek-ai/DeepSeek-OCR"
    assert {"deepencoder", "ocr"} <= set(card.data.tags or [])
    model = DeepEncoder.from_pretrained(converted)
    assert f"{model.num_parameters():,} parameters" in card.text and "`abc123`" in card.text
    assert "| `gundam` |" in card.text and "903" in card.text and "trust_remote_code=True" in card.text
    if report["verification"].get("outputs"):
        assert "UnlimitedOcrVisionModel" in card.text
    picture = Image.open(converted / "encoding.png")
    assert min(picture.size) > 100 and "](encoding.png)" in card.text


def test_what_is_there_is_kept(converted: Path) -> None:
    (converted / "README.md").write_text("my own words")
    (converted / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}')
    complete_folder(converted)
    assert (converted / "README.md").read_text() == "my own words"
    assert "auto_map" not in json.loads((converted / "preprocessor_config.json").read_text())
    assert "auto_map" in json.loads((converted / "config.json").read_text())


def test_cards_of_the_halves(tmp_path: Path) -> None:
    for model in (SamEncoder(build(layout_of("sam")).config), ClipVisionEncoder(ClipVisionEncoderConfig.tiny())):
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder, self_contained=True)
        card = ModelCard.load(folder / "README.md")
        assert model.config.model_type in card.text and "Modes" not in card.text
        assert card.data.license == "apache-2.0" and not (folder / "encoding.png").exists()
    processor = json.loads((tmp_path / "ClipVisionEncoder" / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 64, "width": 64} and processor["do_pad"] is False


def test_a_model_in_training_stays_in_training(tmp_path: Path) -> None:
    model = DeepEncoder(DeepEncoderConfig.tiny()).bfloat16().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, self_contained=True)
    assert model.training and all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_pushing_leaves_the_folder_as_it_is(converted: Path, hub: Hub) -> None:
    before = {path.name: path.read_bytes() for path in converted.iterdir()}
    (converted / ".secret").write_text("not to be shared")
    push_folder(converted, "some/converted", token=hub.token)
    (converted / ".secret").unlink()
    assert {path.name: path.read_bytes() for path in converted.iterdir()} == before
    found = hub.find("some/converted", "main")
    assert found is not None
    pushed = {path.name for path in found[1].iterdir()}
    assert pushed == set(collect_repository(converted, "some/converted")) > set(before)
    assert ".secret" not in pushed and "modeling_deepencoder.py" in pushed
    assert (found[1] / "model.safetensors").read_bytes() == before["model.safetensors"]


def test_push_on_the_command_line(cli: Any, converted: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    questions: list[str] = []
    monkeypatch.setattr("typer.confirm", questions.append)  # which answers None: no
    code, out, _ = cli("push", converted, "some/model")
    number = len(collect_repository(converted, "some/model"))
    assert questions == [f"Upload {number} files to some/model?"]
    assert code == 1 and "model.safetensors" in out and "made for it" in out and hub.find("some/model", None) is None
    code, out, err = cli("push", converted, "some/model", "--yes", "--private", "--revision", "v1", "--license", "mit")
    assert code == 0 and "/some/model/commit/" in out, err
    assert "some/model" in hub.private
    found = hub.find("some/model", "v1")
    assert found is not None and "license: mit" in (found[1] / "README.md").read_text()
    for arguments, words in (
        ((converted.parent / "original", "some/model"), "not a saved model of this package"),
        ((converted.parent / "gone", "some/model"), "not a saved model of this package"),
        ((converted, "no//name"), "no//name"),
    ):
        code, _, err = cli("push", *arguments, "--yes")
        assert code == 2 and len(err.strip().splitlines()) == 1 and words in err, err
    monkeypatch.setenv("HF_TOKEN", "wrong")
    code, _, err = cli("push", converted, "some/model", "--yes")
    assert code == 2 and len(err.strip().splitlines()) == 1, err
