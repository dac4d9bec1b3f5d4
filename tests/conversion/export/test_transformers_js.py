"""transformers.js loads what is exported for it, and computes the same numbers.

`make javascript` installs it, and runs this file.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deepencoder import DeepEncoder, DeepEncoderImageProcessor
from deepencoder.conversion.export import export_for_transformers_js
from deepencoder.conversion.export.transformers_js import image_processor_fields

from ...conftest import ROOT

NODE_MODULES = ROOT / ".cache" / "javascript" / "node_modules"
PROGRAM = ROOT / "tests" / "javascript" / "encode.mjs"
TOLERANCE = 1e-4
needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not NODE_MODULES.is_dir(), reason="needs Node and `make javascript`"
)


SIDE = 256
PROCESSORS = {
    "padded": DeepEncoderImageProcessor(do_pad=True, size={"height": SIDE, "width": SIDE}),
    "squashed": DeepEncoderImageProcessor(do_pad=False, size={"height": SIDE, "width": SIDE}),
}


@pytest.fixture(scope="session")
def padded(shallowest_model: DeepEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for transformers.js whose pages are padded."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("padded") / "encoder-js"
    export_for_transformers_js(shallowest_model, folder, PROCESSORS["padded"], SIDE)
    return folder


@pytest.fixture(params=PROCESSORS)
def exported(request: pytest.FixtureRequest, padded: Path, tmp_path: Path) -> tuple[Path, DeepEncoderImageProcessor]:
    """A folder for transformers.js, and the image processor whose fields it has. The graph is the same in both."""
    folder, processor = tmp_path / "encoder-js", PROCESSORS[request.param]
    shutil.copytree(padded, folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(image_processor_fields(processor, SIDE)))
    return folder, processor


def run_node(model: Path, pixels: np.ndarray, pages: list[Path], folder: Path) -> dict[str, np.ndarray]:
    """Return what transformers.js computes from pixels, as `pixels.NAME`, and from each image file, as `0.NAME`."""
    (folder / "pixels.bin").write_bytes(pixels.tobytes())
    command = ["node", PROGRAM, NODE_MODULES, model, folder / "output", folder / "pixels.bin", *pages]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    shapes: dict[str, Any] = json.loads((folder / "output.json").read_text())
    return {
        name: np.fromfile(folder / f"output.{name}", dtype=np.float32).reshape(shape) for name, shape in shapes.items()
    }


def draw_page(path: Path, width: int, height: int) -> Path:
    """Save a page of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@needs_node
@torch.no_grad()
def test_node_gives_the_models_numbers(exported: Any, shallowest_model: DeepEncoder, tmp_path: Path) -> None:
    """From pixels, and from pages that need not be resized: padded ones lie in the middle of the view."""
    folder, processor = exported
    sizes = [(SIDE, SIDE), (200, SIDE), (SIDE, 130)] if processor.do_pad else [(SIDE, SIDE)]
    pages = [draw_page(tmp_path / f"{width}.{height}.png", width, height) for width, height in sizes]
    pixels = processor(pages, return_tensors="pt")["pixel_values"]
    outputs = shallowest_model(pixels)
    expected = {
        "pixel_values": pixels,
        "last_hidden_state": outputs.last_hidden_state,
        "pooler_output": outputs.pooler_output,
        "vision_tokens": torch.stack(outputs.vision_tokens),
    }
    Image.open(ROOT / "examples" / "table.png").crop((0, 100, 400, 700)).save(tmp_path / "large.png")
    found = run_node(folder, pixels.numpy(), [*pages, tmp_path / "large.png"], tmp_path)
    for name, values in expected.items():
        from_pages = np.concatenate([found[f"{index}.{name}"] for index in range(len(pages))])
        for source, ours in (("pixels", found[f"pixels.{name}"]), ("pages", from_pages)):
            assert ours.shape == values.shape
            difference = np.abs(ours - values.numpy()).max()
            print(f"{source}, {name}: {difference:.1e}")
            assert difference <= TOLERANCE
    # A page that is resized differs from Pillow's by little on average.
    resized = processor(tmp_path / "large.png", return_tensors="np")["pixel_values"]
    difference = np.abs(found[f"{len(pages)}.pixel_values"] - resized).mean() * 127.5
    print(f"resized: {difference:.2f} of 255 on average")
    assert 0 < difference < 2
    np.testing.assert_array_equal(found["pixels.image_newline"], shallowest_model.image_newline)
    np.testing.assert_array_equal(found["pixels.view_separator"], shallowest_model.view_separator)


@needs_node
def test_the_snippet_of_the_guide_runs(padded: Path, tmp_path: Path) -> None:
    (snippet,) = re.findall(r"^```js\n(.*?)^```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "snippet.mjs").write_text(snippet)
    for name, target in (("encoder-js", padded), ("examples", ROOT / "examples"), ("node_modules", NODE_MODULES)):
        (tmp_path / name).symlink_to(target)
    command = ["node", "snippet.mjs"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == "[ 1, 32 ] [ 1, 21, 48 ] [ 4, 4 ]".split()


def test_the_folder(padded: Path) -> None:
    names = {str(path.relative_to(padded)) for path in padded.rglob("*") if path.is_file()}
    assert names == {"config.json", "preprocessor_config.json", "onnx/model.onnx", "onnx/model.onnx_data"}
    config = json.loads((padded / "config.json").read_text())
    assert config["model_type"] == "deepencoder" and config["projection_dim"] == 48
    assert config["layout"]["image_size"] == SIDE and config["layout"]["token_grid"] == [4, 4]
    assert config["transformers.js_config"] == {"dtype": "fp32", "use_external_data_format": {"model.onnx": 1}}
    fields = json.loads((padded / "preprocessor_config.json").read_text())
    assert fields == image_processor_fields(PROCESSORS["padded"], SIDE)
    assert fields["size"] == {"longest_edge": SIDE + 0.5} and fields["pad_size"] == {"height": SIDE, "width": SIDE}
    squashed = image_processor_fields(PROCESSORS["squashed"], SIDE)
    assert squashed["size"] == {"height": SIDE, "width": SIDE} and "pad_size" not in squashed


def test_a_colour_is_written_as_what_becomes_its_normalised_value() -> None:
    """The library writes `color * rescale_factor` beside pixels that are normalised already."""
    color, mean, std = (127, 0, 255), [0.5, 0.4, 0.3], [0.5, 0.2, 0.1]
    for normalization in ({"image_mean": mean, "image_std": std}, {"do_normalize": False}):
        processor = DeepEncoderImageProcessor(background_color=color, **normalization)
        fields = image_processor_fields(processor, 128)
        written = np.array(fields["background_color"]) * fields["rescale_factor"]
        expected = processor(Image.new("RGB", (10, 100)), return_tensors="np")["pixel_values"][0, :, 0, 0]
        np.testing.assert_allclose(written, expected, atol=1e-6)


def test_what_cannot_be_exported_leaves_nothing(shallowest_model: DeepEncoder, tmp_path: Path) -> None:
    for fields in ({"do_rescale": False, "do_normalize": False}, {"do_resize": False}):
        with pytest.raises(ValueError, match="do_rescale and do_resize"):
            export_for_transformers_js(shallowest_model, tmp_path / "a", DeepEncoderImageProcessor(**fields), 128)
    with pytest.raises(ValueError, match="image_size"):
        export_for_transformers_js(shallowest_model, tmp_path / "a", DeepEncoderImageProcessor(), 100)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileExistsError):
        export_for_transformers_js(shallowest_model, tmp_path, DeepEncoderImageProcessor(), 128)
