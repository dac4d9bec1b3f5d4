"""transformers.js loads what is exported for it, and computes the same numbers.

`make javascript` installs it, and runs this file.
"""

import json
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

from ...conftest import ROOT

NODE_MODULES = ROOT / ".cache" / "javascript" / "node_modules"
PROGRAM = ROOT / "tests" / "javascript" / "encode.mjs"
TOLERANCE = 1e-4
needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not NODE_MODULES.is_dir(), reason="needs Node and `make javascript`"
)


def run_node(model: Path, page: Path, pixels: torch.Tensor) -> dict[str, np.ndarray]:
    """Return the outputs that transformers.js computes: `pixels.NAME` and, from the image file, `page.NAME`."""
    folder = model.parent
    (folder / "pixels.bin").write_bytes(pixels.numpy().tobytes())
    command = ["node", PROGRAM, NODE_MODULES, model, page, folder / "pixels.bin", folder / "output"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    shapes: dict[str, Any] = json.loads((folder / "output.json").read_text())
    return {
        name: np.fromfile(folder / f"output.{name}", dtype=np.float32).reshape(shape) for name, shape in shapes.items()
    }


def draw_page(path: Path, width: int, height: int) -> None:
    """Save a page of smooth blots, on which different filters differ little."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / (7 + channel)) * np.cos(columns / (11 - channel)) for channel in range(3)]
    Image.fromarray((127 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)).save(path)


@needs_node
@pytest.mark.parametrize(
    ("mode", "width", "height"),
    # Pages whose size is that of the view, so that nothing is resized; padded ones lie in the middle of the view.
    [("padded", 256, 256), ("padded", 200, 256), ("padded", 256, 130), ("squashed", 256, 256)],
)
@torch.no_grad()
def test_node_gives_the_models_numbers(
    shallow_model: DeepEncoder, mode: str, width: int, height: int, tmp_path: Path
) -> None:
    processor = DeepEncoderImageProcessor(do_pad=mode == "padded", size={"height": 256, "width": 256})
    export_for_transformers_js(shallow_model, tmp_path / "model", processor, 256)
    draw_page(tmp_path / "page.png", width, height)
    pixels = processor(tmp_path / "page.png", return_tensors="pt")["pixel_values"]
    found = run_node(tmp_path / "model", tmp_path / "page.png", pixels)
    np.testing.assert_allclose(found["page.pixel_values"], pixels.numpy(), atol=1e-5)
    expected = shallow_model(pixels)
    for source in ("pixels", "page"):
        for name, values in (
            ("last_hidden_state", expected.last_hidden_state),
            ("pooler_output", expected.pooler_output),
            ("vision_tokens", torch.stack(expected.vision_tokens)),
        ):
            difference = np.abs(found[f"{source}.{name}"] - values.numpy()).max()
            print(f"{mode}, {width} x {height}, {source}, {name}: {difference:.1e}")
            assert difference <= TOLERANCE
        np.testing.assert_array_equal(found[f"{source}.image_newline"], shallow_model.image_newline)
        np.testing.assert_array_equal(found[f"{source}.view_separator"], shallow_model.view_separator)


def test_the_folder(shallow_model: DeepEncoder, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    folder = tmp_path / "model"
    export_for_transformers_js(shallow_model, folder, DeepEncoderImageProcessor(mode="tiny"), 128)
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {"config.json", "preprocessor_config.json", "onnx/model.onnx", "onnx/model.onnx_data"}
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "deepencoder" and config["projection_dim"] == 48
    assert config["layout"]["image_size"] == 128 and config["layout"]["token_grid"] == [2, 2]
    assert config["transformers.js_config"] == {"dtype": "fp32", "use_external_data_format": {"model.onnx": 1}}
    fields = json.loads((folder / "preprocessor_config.json").read_text())
    assert fields["image_processor_type"] == "ViTImageProcessor" and fields["size"] == {"height": 128, "width": 128}
    with pytest.raises(FileExistsError):
        export_for_transformers_js(shallow_model, folder, DeepEncoderImageProcessor(), 128)


def test_a_colour_is_written_as_what_becomes_its_normalised_value(shallow_model: DeepEncoder, tmp_path: Path) -> None:
    """The library writes `color * rescale_factor` beside pixels that are normalised already."""
    pytest.importorskip("onnxruntime")
    color, mean, std = (127, 0, 255), [0.5, 0.4, 0.3], [0.5, 0.2, 0.1]
    processor = DeepEncoderImageProcessor(background_color=color, image_mean=mean, image_std=std)
    export_for_transformers_js(shallow_model, tmp_path / "model", processor, 128)
    fields = json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())
    written = np.array(fields["background_color"]) * fields["rescale_factor"]
    expected = processor(Image.new("RGB", (10, 100)), return_tensors="np")["pixel_values"][0, :, 0, 0]
    np.testing.assert_allclose(written, expected, atol=1e-6)
    assert fields["size"] == {"longest_edge": 128} and fields["pad_size"] == {"height": 128, "width": 128}


def test_what_transformers_js_cannot_do_is_refused(shallow_model: DeepEncoder, tmp_path: Path) -> None:
    for fields in ({"do_rescale": False, "do_normalize": False}, {"do_resize": False}):
        with pytest.raises(ValueError, match="do_rescale and do_resize"):
            export_for_transformers_js(shallow_model, tmp_path / "a", DeepEncoderImageProcessor(**fields), 128)
    assert list(tmp_path.iterdir()) == []
