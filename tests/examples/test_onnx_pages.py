"""Two graphs and ONNX Runtime give the vision tokens of the model, for pages with tiles and without."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deepencoder import (
    ClipVisionEncoderConfig,
    DeepEncoder,
    DeepEncoderConfig,
    DeepEncoderImageProcessor,
    SamEncoderConfig,
)
from deepencoder.conversion.export import export_model

from ..conftest import ROOT, randomize
from .programs import load_example

pytest.importorskip("onnxruntime")
PAGES = [str(ROOT / "examples" / name) for name in ("table.png", "encoding.png", "two-columns.png")]


@torch.no_grad()
def test_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sam = SamEncoderConfig.tiny(num_hidden_layers=1, global_attn_indexes=(0,))
    clip = ClipVisionEncoderConfig.tiny(num_hidden_layers=1, image_size=256, patch_size=sam.total_stride)
    model = randomize(DeepEncoder(DeepEncoderConfig(sam_config=sam, clip_config=clip, projection_dim=48)))
    for name, side in (("view", 256), ("tiles", 128)):
        export_model(model, tmp_path / f"{name}.onnx", side)
    files = [str(tmp_path / name) for name in ("view.onnx", "tiles.onnx")]
    output = tmp_path / "tokens.safetensors"
    monkeypatch.setattr(sys, "argv", ["onnx_pages.py", *files, *PAGES, "--output", str(output)])
    load_example("onnx_pages").main()
    found = load_file(output)
    processor = DeepEncoderImageProcessor(mode="gundam", size={"height": 256, "width": 256}, tile_size=128)
    expected = model(**processor(PAGES, return_tensors="pt")).vision_tokens
    assert len(found) == len(PAGES) and len({len(tokens) for tokens in expected}) > 1
    printed = capsys.readouterr().out
    for index, tokens in enumerate(expected):
        torch.testing.assert_close(found[str(index)], tokens, atol=1e-4, rtol=0)
        assert f"{PAGES[index]}: {len(tokens)} vision tokens" in printed
