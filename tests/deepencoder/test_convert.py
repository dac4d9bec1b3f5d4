"""`deepencoder convert`, and how the other commands treat checkpoints of other code."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from deepencoder import DeepEncoder, DeepEncoderImageProcessor, SamEncoder

from ..conftest import randomize
from ..conversion.samples import OTHER_TENSORS, assert_same, build, layout_of, state_dict_there

DEEPSEEK_OCR = layout_of("deepseek-ocr")


@pytest.fixture
def original(tmp_path: Path) -> tuple[Path, Any]:
    """A folder in DeepSeek-OCR's layout, with small mode in its configuration, and the encoder in it."""
    model = build(DEEPSEEK_OCR)
    folder = tmp_path / "original"
    folder.mkdir()
    save_file(state_dict_there(model, DEEPSEEK_OCR, "model.") | OTHER_TENSORS, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"candidate_resolutions": [[640, 640]]}))
    return folder, model


def test_convert(cli: Any, original: tuple[Path, Any], example_page: Path, tmp_path: Path) -> None:
    folder, model = original
    target, report = tmp_path / "encoder", tmp_path / "report.json"
    code, out, _ = cli("convert", folder, target, "--report", report)
    assert code == 0 and f"DeepSeek-OCR -> DeepEncoder, {model.num_parameters():,} parameters, float32" in out
    assert "2 others are not a part of the encoder" in out
    facts = json.loads(report.read_text())
    assert facts["initialized"] == []
    if "has no Unlimited-OCR" not in out:  # Versions of transformers before 5.23 have no class to compare with.
        assert "fused tokens differ by at most" in out and "vision tokens differ by at most" in out
        assert facts["verification"]["outputs"]["vision tokens"]["max_difference"] < 1e-5
    assert facts["unused"] == dict.fromkeys(OTHER_TENSORS, "not a part of the encoder")
    assert_same(DeepEncoder.from_pretrained(target), model)
    assert DeepEncoderImageProcessor.from_pretrained(target).mode == "small"
    code, out, _ = cli("encode", example_page, "--model", target)
    assert code == 0 and " 111 " in out
    code, _, err = cli("convert", folder, target)
    assert code == 2 and "exists already" in err


def test_options(cli: Any, original: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = original
    code, out, _ = cli(
        "convert", folder, tmp_path / "a", "--no-verify", "--dtype", "bfloat16", "--max-shard-size", "500KB"
    )
    assert code == 0 and "not verified: not wanted" in out and "dtype changed" in out
    assert DeepEncoder.from_pretrained(tmp_path / "a").dtype == torch.bfloat16
    assert len(list((tmp_path / "a").glob("model-*.safetensors"))) > 1


def test_there_and_back(cli: Any, original: tuple[Path, Any], tmp_path: Path) -> None:
    folder, model = original
    tuned = randomize(model, seed=1)
    tuned.save_pretrained(tmp_path / "tuned")  # type: ignore[operator]
    report = tmp_path / "report.json"
    code, out, _ = cli(
        "convert", "--to", "deepseek-ocr", tmp_path / "tuned", folder, tmp_path / "back", "--report", report
    )
    assert code == 0 and "tensors replaced, 2 unchanged" in out
    assert len(json.loads(report.read_text())["replaced"]) == len(state_dict_there(model, DEEPSEEK_OCR))
    assert_same(DeepEncoder.from_original(tmp_path / "back"), tuned)


def test_mistakes(cli: Any, original: tuple[Path, Any], tmp_path: Path) -> None:
    folder, model = original
    model.save_pretrained(tmp_path / "ours")
    (tmp_path / "bad.pth").write_bytes(b"nonsense")
    target = tmp_path / "target"
    for arguments, words in (
        ((tmp_path / "bad.pth", target), "bad.pth"),
        ((tmp_path / "gone", target), "no file or folder"),
        ((tmp_path / "ours", target), "already: from_pretrained loads it"),
        ((folder, target, tmp_path / "third"), "SOURCE TARGET, or --to"),
        (("--to", "deepseek-ocr", folder, target), "SOURCE TARGET, or --to"),
        (("--to", "sam", tmp_path / "ours", folder, target), "layout DeepSeek-OCR ('deepseek-ocr'), not 'sam'"),
        ((folder, target, "--report", "report.txt"), "--report must end in .json"),
        ((folder, target, "--hidden-act", "nonsense"), "hidden_act"),
    ):
        code, _, err = cli("convert", *arguments)
        assert code == 2 and len(err.strip().splitlines()) == 1 and words in err, err
        assert not target.exists()


def test_encode_and_info_take_an_original(
    cli: Any, original: tuple[Path, Any], example_page: Path, tmp_path: Path
) -> None:
    folder, model = original
    output = tmp_path / "features.safetensors"
    code, out, err = cli("encode", example_page, "--model", folder, "--output", output)
    assert code == 0 and " 111 " in out, err
    inputs = DeepEncoderImageProcessor(mode="small")(example_page, return_tensors="pt")
    with torch.no_grad(), safe_open(output, "pt") as file:
        torch.testing.assert_close(file.get_tensor("0.vision_tokens"), model(**inputs).vision_tokens[0])
    code, out, _ = cli("encode", example_page, "--model", folder / "model.safetensors", "--mode", "tiny")
    assert code == 0 and " 73 " in out
    code, out, _ = cli("info", folder)
    assert code == 0 and "DeepSeek-OCR, 85 of 87 tensors" in out and f"{model.num_parameters():,}" in out

    SamEncoder(build(layout_of("got-ocr")).config).save_pretrained(tmp_path / "sam")
    save_file(state_dict_there(build(layout_of("got-ocr")), layout_of("got-ocr")), tmp_path / "got.safetensors")
    code, _, err = cli("encode", example_page, "--model", tmp_path / "got.safetensors")
    assert code == 2 and "holds a 'deepencoder_sam', not a 'deepencoder'" in err and len(err.strip().splitlines()) == 1
    code, out, _ = cli("info", tmp_path / "got.safetensors")
    assert code == 0 and "GOT-OCR-2.0 or Vary" in out and "SamEncoder" in out
