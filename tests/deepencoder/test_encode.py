"""`deepencoder encode`: its features, pictures and errors."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from deepencoder import (
    DeepEncoder,
    DeepEncoderConfig,
    DeepEncoderImageProcessor,
    SamEncoder,
    SamEncoderConfig,
    render_text,
)

from ..conftest import ROOT
from ..conversion.samples import build, layout_of
from .processes import run


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_encode_writes_features_and_picture(example_page: Path, tmp_path: Path) -> None:
    output, picture = tmp_path / "new" / "features.safetensors", tmp_path / "picture.png"
    done = run("encode", example_page, "--mode", "gundam", "--output", output, "--picture", picture)
    assert done.returncode == 0, done.stderr
    assert "903" in done.stdout and "2 x 3" in done.stdout and "1240 x 1754" in done.stdout
    assert "page-reader" in done.stderr
    with safe_open(output, "pt") as file:
        facts = json.loads(file.metadata()["0"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert facts["view_grid"] == [16, 16] and facts["tile_grid"] == [2, 3] and facts["mode"] == "gundam"
    assert (facts["width"], facts["height"], facts["image"]) == (1240, 1754, str(example_page))
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "0.vision_tokens": (903, 448),
        "0.tokens": (256 + 6 * 100, 640),
        "0.pooled": (320,),
        "0.boxes": (903, 4),
        "0.is_padding": (903,),
    }
    boxes, padding = tensors["0.boxes"], tensors["0.is_padding"]
    assert boxes[0].tolist() == pytest.approx([0, 0, 62, 1754 / 30]) and boxes[20].isnan().all()
    assert padding.dtype == torch.bool and int(padding.sum()) == 64
    with Image.open(picture) as drawn:
        assert drawn.height == 768 and drawn.width > 2 * 768
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "features.safetensors",
        "picture.png",
    ]
    if os.name == "posix":
        assert output.stat().st_mode & 0o777 == picture.stat().st_mode & 0o777 == 0o666 & ~current_umask()


@pytest.mark.parametrize("mode", ["tiny", "gundam"])
def test_encode_equals_the_model(cli: Any, mode: str, example_page: Path, tmp_path: Path) -> None:
    model = DeepEncoder(DeepEncoderConfig.tiny()).eval()
    model.save_pretrained(tmp_path / "model")
    processor = DeepEncoderImageProcessor(mode=mode)
    processor.save_pretrained(tmp_path / "model")
    small = tmp_path / "small.png"
    Image.new("L", (30, 20), 200).save(small)
    output = tmp_path / "features.safetensors"
    code, out, err = cli(
        "encode", example_page, small, "--model", tmp_path / "model", "-o", output, "--picture", tmp_path / "p.png"
    )
    assert code == 0 and "page-reader" not in err
    assert (tmp_path / "p-0.png").is_file() and (tmp_path / "p-1.png").is_file()
    with safe_open(output, "pt") as file:
        for index, image in enumerate((example_page, small)):
            with torch.no_grad():
                expected = model(**processor(image, return_tensors="pt"))
            torch.testing.assert_close(file.get_tensor(f"{index}.vision_tokens"), expected.vision_tokens[0])
            torch.testing.assert_close(file.get_tensor(f"{index}.pooled"), expected.pooler_output[0])
            tokens = expected.last_hidden_state[0]
            if expected.local_last_hidden_state is not None:
                tokens = torch.cat([tokens, expected.local_last_hidden_state.flatten(0, 1)])
            torch.testing.assert_close(file.get_tensor(f"{index}.tokens"), tokens)
            assert json.loads(file.metadata()[str(index)])["mode"] == mode


def test_the_picture_shows_what_is_similar_to_a_point(cli: Any, example_page: Path, tmp_path: Path) -> None:
    """The last panel is the page, 543 x 768 pixels, with the token at the point outlined."""
    page, picture = (example_page, "--mode", "tiny"), tmp_path / "picture.png"
    code, _, err = cli("encode", *page, "--picture", picture, "--similar-to", 1000, 1700)
    assert code == 0, err
    with Image.open(picture) as drawn:
        panel = np.asarray(drawn.convert("RGB"))[:, -543:]
    red = (panel == (214, 39, 40)).all(axis=-1)
    ys, xs = np.nonzero(red)
    assert 0 < red.sum() < 1000 and xs.min() == pytest.approx(543 * 6 / 8, abs=2) and ys.max() == 767
    code, _, err = cli("encode", *page, "--picture", picture, "--similar-to", 1240, 5)
    assert code == 2 and "images[0]" in err and "--similar-to" in err and "1240 x 1754" in err
    code, _, err = cli("encode", *page, "--similar-to", 5, 5)
    assert code == 2 and "--picture" in err


def test_a_page_that_vanishes_is_drawn(cli: Any, tmp_path: Path) -> None:
    Image.new("RGB", (1, 5000)).save(tmp_path / "thin.png")
    code, _, err = cli("encode", tmp_path / "thin.png", "--mode", "base", "--picture", tmp_path / "picture.png")
    assert code == 0, err


def test_a_bad_image_is_one_line_and_the_others_are_encoded(cli: Any, example_page: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("nonsense")
    output = tmp_path / "features.safetensors"
    code, out, err = cli("encode", tmp_path / "bad.png", example_page, "--mode", "tiny", "-o", output)
    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith("Error")]
    assert len(lines) == 1 and "images[0]" in lines[0] and "bad.png" in lines[0]
    with safe_open(output, "pt") as file:
        assert "1.vision_tokens" in file.keys() and "0.vision_tokens" not in file.keys()  # noqa: SIM118


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing.png"], ["images[0]", "nothing.png", "no such file"]),
        (["PAGE", "--output", "features.txt"], ["--output", ".safetensors", "features.txt"]),
        (["PAGE", "--picture", "picture.jpg"], ["--picture", ".png"]),
        (["PAGE", "--output", "PAGE/features.safetensors"], ["--output", "cannot write"]),
        (["PAGE", "--device", "cuda:99"], ["--device", "cuda:99"]),
        (["PAGE", "--device", "nonsense"], ["--device", "nonsense"]),
        (["PAGE", "--device", "meta"], ["--device", "meta"]),
        (["PAGE", "--output", "n" * 300 + ".safetensors"], ["--output", "too long"]),
        (["PAGE", "--output", "/proc/x.safetensors"], ["--output", "cannot write"]),
        (["PAGE", "--model", "FOLDER"], ["cannot be loaded"]),
        (["PAGE", "--model", "SAM"], ["deepencoder_sam", "needs a 'deepencoder'"]),
    ],
)
def test_mistakes_are_one_line_with_exit_code_2(
    cli: Any, arguments: list[str], words: list[str], example_page: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    SamEncoder(SamEncoderConfig.tiny()).save_pretrained(tmp_path / "sam")
    places = {"PAGE": str(example_page), "FOLDER": str(tmp_path / "empty"), "SAM": str(tmp_path / "sam")}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    code, out, err = cli("encode", *arguments)
    assert code == 2
    errors = [line for line in err.splitlines() if line and not line.startswith("No --model given")]
    assert len(errors) == 1 and errors[0].startswith("Error: "), err
    assert all(word in errors[0] for word in words), err


def test_names_are_no_markup(cli: Any, tmp_path: Path) -> None:
    page, output = tmp_path / "page[red].png", tmp_path / "o[x]:smile:.safetensors"
    Image.new("RGB", (20, 20)).save(page)
    code, out, _ = cli("encode", page, "--mode", "tiny", "-o", output)
    assert code == 0 and output.is_file()
    assert "page[red].png" in out and "o[x]:smile:.safetensors" in out


def test_a_failed_write_leaves_the_old_file(
    cli: Any, example_page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "features.safetensors"
    output.write_text("old")

    for error, expected in ((KeyboardInterrupt(), 130), (OSError("the disk is full"), 2)):

        def fail(tensors: Any, path: Path, metadata: Any, error: BaseException = error) -> None:
            path.write_text("half")
            raise error

        monkeypatch.setattr("safetensors.torch.save_file", fail)
        code, _, err = cli("encode", example_page, "--mode", "tiny", "-o", output)
        assert code == expected and "Traceback" not in err
        assert output.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == [output.name]


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_runtime(cli: Any, tmp_path: Path, runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(runtime)
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    build(layout_of("deepseek-ocr")).save_pretrained(tmp_path / "encoder")
    fields = {"size": {"height": 128, "width": 128}, "crop_to_patches": False}
    DeepEncoderImageProcessor(**fields).save_pretrained(tmp_path / "encoder")
    page = ROOT / "examples" / "table.png"
    found = []
    for name in ("torch", runtime):
        file = tmp_path / f"{name}.safetensors"
        code, _, err = cli("encode", page, "-m", tmp_path / "encoder", "--runtime", name, "-o", file)
        assert code == 0, err
        found.append(load_file(file)["0.vision_tokens"])
    torch.testing.assert_close(*found, atol=2e-5, rtol=0)
    for arguments, words in (
        (
            (page, "--runtime", runtime, "-m", tmp_path / "encoder", "--dtype", "float16"),
            "dtype must be torch.float32",
        ),
    ):
        code, _, err = cli("encode", *arguments)
        assert code == 2 and words in err.splitlines()[-1], err


def test_read_prints_what_the_tokens_carry(cli: Any, tmp_path: Path) -> None:
    page, output = tmp_path / "page.png", tmp_path / "features.safetensors"
    render_text("Reading is to the mind\nwhat exercise is to the body.", font_size=32)[0].image.save(page)
    code, out, err = cli("encode", page, "--read", "-o", output)
    assert code == 0, err
    with safe_open(output, "pt") as file:
        facts = json.loads(file.metadata()["0"])
        length = len(file.get_tensor("0.vision_tokens"))
    assert len(facts["token_texts"]) == length and "exercise" in facts["text"]
    assert all(line in out.splitlines() for line in facts["text"].splitlines())
    _, out, _ = cli("encode", page, page, "--read")
    assert out.splitlines().count(f"{page}:") == 2
    DeepEncoder(DeepEncoderConfig.tiny()).save_pretrained(tmp_path / "model")
    code, out, err = cli("encode", page, "--read", "--model", tmp_path / "model")
    assert code == 2 and out == "" and "has no reading head" in err and len(err.splitlines()) == 1
