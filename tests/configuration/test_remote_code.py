"""The `auto_map` of saved files; see also `tests/test_remote_code.py`, which loads models by it."""

import json
from pathlib import Path
from typing import Any

import pytest

from deepencoder import DeepEncoderImageProcessor, SamEncoder, SamEncoderConfig
from deepencoder.configuration.remote_code import dump_json, flat_name, settle_auto_map


def test_flat_names() -> None:
    assert flat_name(SamEncoder) == "modeling_sam_encoder.SamEncoder"
    assert flat_name(SamEncoderConfig) == "configuration_sam_encoder.SamEncoderConfig"
    assert flat_name(DeepEncoderImageProcessor) == "processing_image_processing.DeepEncoderImageProcessor"
    remote = type("SamEncoder", (), {"__module__": "transformers_modules.some.model.123.modeling_sam_encoder"})
    assert flat_name(remote) == "modeling_sam_encoder.SamEncoder"


def test_json_is_formatted_as_by_transformers(tmp_path: Path) -> None:
    SamEncoderConfig.tiny().save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text(encoding="utf-8")
    assert dump_json(json.loads(text)) == text
    assert dump_json({"b": "é", "a": 1}) == '{\n  "a": 1,\n  "b": "é"\n}\n'


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (None, {"AutoModel": "modeling_here.Model"}),
        ({"AutoModel": "some/repository--modeling_here.Model"}, {"AutoModel": "modeling_here.Model"}),
        (
            {"AutoConfig": "some/repository--modeling_here.Config", "AutoTokenizer": "tokenization_gone.Tokenizer"},
            {"AutoConfig": "modeling_here.Config", "AutoModel": "modeling_here.Model"},
        ),
        ("not a dictionary", {"AutoModel": "modeling_here.Model"}),
    ],
)
def test_the_auto_map_names_code_that_lies_beside_the_file(before: Any, expected: Any, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "x"} | ({} if before is None else {"auto_map": before})))
    (tmp_path / "modeling_here.py").write_text("")
    settle_auto_map(path, AutoModel="modeling_here.Model")
    assert json.loads(path.read_text()) == {"model_type": "x", "auto_map": expected}


@pytest.mark.parametrize(
    ("part", "name"),
    [(SamEncoderConfig, "config.json"), (DeepEncoderImageProcessor, "preprocessor_config.json")],
)
def test_files_of_nested_brackets_are_refused(part: Any, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("[" * 100_000)
    for read in (lambda: part.from_pretrained(tmp_path), lambda: settle_auto_map(tmp_path / name)):
        with pytest.raises(ValueError, match=f"{name}.*too deeply"):
            read()


def test_without_code_there_is_no_auto_map(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"auto_map": {"AutoModel": "some/repository--modeling_gone.Model"}}))
    settle_auto_map(path, AutoModel="modeling_gone.Model")
    assert json.loads(path.read_text()) == {}
    path.write_text("{}")  # Not as transformers formats it: nothing changes, so nothing is written.
    settle_auto_map(path, AutoModel="modeling_gone.Model")
    assert path.read_text() == "{}"
