"""`deepencoder export`; `tests/conversion/export/` looks at the graphs themselves."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from deepencoder import (
    ClipVisionEncoder,
    ClipVisionEncoderConfig,
    DeepEncoderImageProcessor,
    SamEncoder,
    SamEncoderConfig,
)

from ..conftest import ROOT, randomize
from ..conversion.samples import build, layout_of, state_dict_there


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A folder with a CLIP tower for pages of 64 pixels."""
    ClipVisionEncoder(ClipVisionEncoderConfig.tiny(post_norm="pooled")).save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def test_an_original_to_onnx(cli: Any, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    layout = layout_of("deepseek-ocr")
    save_file(state_dict_there(build(layout), layout), tmp_path / "original.safetensors")
    code, out, err = cli("export", tmp_path / "original.safetensors", tmp_path / "a.onnx", "--size", "192")
    assert code == 0 and "192 x 192 pixels, any batch; differs by at most" in out, err
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["model_type"] == "deepencoder"


def test_a_tower_has_its_own_size(cli: Any, clip: Path, tmp_path: Path) -> None:
    code, out, _ = cli("export", clip, tmp_path / "b.pt2")
    assert code == 0 and "64 x 64" in out


def test_a_mode_sets_the_size(cli: Any, tmp_path: Path) -> None:
    SamEncoder(SamEncoderConfig.tiny()).save_pretrained(tmp_path / "sam")
    code, out, err = cli("export", tmp_path / "sam", tmp_path / "c.pt2", "--mode", "tiny", "--format", "torch")
    assert code == 0 and "512 x 512" in out, err


def test_a_folder_for_transformers_js(cli: Any, clip: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    code, out, err = cli("export", clip, tmp_path / "js", "--layout", "transformers.js")
    assert code == 0 and "64 x 64 pixels, any batch; differs by at most" in out, err
    assert (tmp_path / "js" / "onnx" / "model.onnx").is_file()
    fields = json.loads((tmp_path / "js" / "preprocessor_config.json").read_text())
    assert fields["pad_size"] == {"height": 64, "width": 64}
    for arguments, words in (
        ((clip, tmp_path / "js"), "exists already"),
        ((clip, tmp_path / "c", "--format", "torch"), "--format must be onnx"),
        ((clip, tmp_path / "c", "--mode", "base"), "--size"),
    ):
        code, _, err = cli("export", *arguments, "--layout", "transformers.js")
        assert code == 2 and len(err.strip().splitlines()) == 1 and words in err, err
    assert not (tmp_path / "c").exists()


def test_a_mode_sets_the_fields_of_the_folders_image_processor(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SamEncoder(SamEncoderConfig.tiny()).save_pretrained(tmp_path / "sam")
    DeepEncoderImageProcessor(mode="large", background_color=9).save_pretrained(tmp_path / "sam")
    calls: list[Any] = []

    def record(*arguments: Any) -> dict[str, float]:
        calls.append(arguments)
        return {"max_difference": 0.0}

    monkeypatch.setattr("deepencoder.conversion.export.export_for_transformers_js", record)
    for options, side, do_pad in (
        (("--mode", "tiny"), 512, False),
        ((), 1024, True),
        (("--size", "192"), 192, True),
    ):
        code, _, err = cli("export", tmp_path / "sam", tmp_path / "js", "--layout", "transformers.js", *options)
        assert code == 0, err
        model, folder, processor, size = calls.pop()
        assert folder == tmp_path / "js" and size == side and processor.do_pad == do_pad
        assert processor.background_color == (9, 9, 9)


def test_mistakes_are_one_line(cli: Any, clip: Path, tmp_path: Path) -> None:
    for arguments, words in (
        ((clip, tmp_path / "b.bin"), "FILE must end in .onnx or .xml or .pt2"),
        ((clip, tmp_path / "b.onnx", "--format", "torch"), "FILE must end in .pt2"),
        (
            (clip, tmp_path / "c.onnx", "--format", "tensorrt"),
            "--format must be onnx or openvino or torch, got 'tensorrt'",
        ),
        ((clip, tmp_path / "c.onnx", "--size", "100"), "multiple of 16"),
        ((clip, tmp_path / "c.onnx", "--size", "0"), "image_size"),
        ((clip, tmp_path / "c.onnx", "--mode", "base"), "--size"),
        ((clip, tmp_path / "c.onnx", "--mode", "base", "--size", "64"), "not both"),
        ((tmp_path / "gone", tmp_path / "c.onnx"), "gone"),
    ):
        code, _, err = cli("export", *arguments)
        assert code == 2 and len(err.strip().splitlines()) == 1 and words in err, err
        assert not (tmp_path / "c.onnx").exists()


def test_a_folder_for_a_runtime(cli: Any, tmp_path: Path) -> None:
    """It holds the graphs of a mode, further sizes are added to it, and encode and extract take it as a model."""
    pytest.importorskip("onnxruntime")
    model = build(layout_of("deepseek-ocr"))
    model.save_pretrained(tmp_path / "encoder")
    DeepEncoderImageProcessor(mode="tiny").save_pretrained(tmp_path / "encoder")
    folder = tmp_path / "graphs"
    for side in (64, 128):
        code, out, err = cli("export", tmp_path / "encoder", folder, "--format", "onnx", "--size", str(side))
        assert code == 0 and f"{side} x {side} pixels, any batch; differs by at most" in out, err
    names = {path.name for path in folder.iterdir()}
    graphs = {f"view_{side}.onnx{suffix}" for side in (64, 128) for suffix in ("", ".data")}
    assert names == graphs | {"config.json", "preprocessor_config.json", "layout_tokens.safetensors"}
    randomize(model, seed=1)
    model.save_pretrained(tmp_path / "other")
    for arguments, words in (
        ((tmp_path / "other", folder, "--size", "64"), "graphs of another model"),
        ((tmp_path / "other", tmp_path, "--size", "64"), "is not a folder of exported graphs"),
        ((tmp_path / "encoder", tmp_path / "new", "--size", "60"), "multiple of 16"),
    ):
        code, _, err = cli("export", *arguments, "--format", "onnx")
        assert code == 2 and len(err.strip().splitlines()) == 1 and words in err, err
    assert not (tmp_path / "new").exists()


def test_a_mode_with_tiles_takes_two_graphs(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(layout_of("deepseek-ocr")).save_pretrained(tmp_path / "encoder")
    calls: list[Any] = []

    def record(*arguments: Any, **_: Any) -> dict[int, dict[str, float]]:
        calls.append(arguments)
        return {}

    monkeypatch.setattr("deepencoder.conversion.export.export_folder", record)
    code, _, err = cli("export", tmp_path / "encoder", tmp_path / "a", "--format", "openvino", "--mode", "gundam")
    assert code == 0 and calls.pop()[2] == [1024, 640], err
    code, _, err = cli("export", tmp_path / "encoder", tmp_path / "a.xml", "--mode", "gundam")
    assert code == 2 and "needs two graphs" in err


def test_eight_bits(cli: Any, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    build(layout_of("deepseek-ocr")).save_pretrained(tmp_path / "encoder")
    pages = [ROOT / "examples" / name for name in ("table.png", "dense-text.png", "encoding.png")]
    calibration = [word for page in pages for word in ("--calibration", page)]
    arguments = ["export", tmp_path / "encoder", tmp_path / "a.xml", "--size", "128", "--compress", "int8"]
    code, out, err = cli(*arguments, *calibration)
    assert code == 0 and "int8: cosine similarity to the model's tokens" in out and "on 1 pages" in out, err
    assert {path.name for path in tmp_path.glob("a.*")} == {"a.xml", "a.bin"}
    for extra, words in (
        ([], "need each other"),
        (calibration[:2], "two or more pages"),
        ([*calibration, "--layout", "transformers.js"], "not for --layout"),
    ):
        code, _, err = cli(*arguments[:2], tmp_path / "b.xml", *arguments[3:], *extra)
        assert code == 2 and words in err, err
    code, _, err = cli("export", tmp_path / "encoder", tmp_path / "b.onnx", *arguments[3:], *calibration)
    assert code == 2 and "only OpenVINO" in err, err
