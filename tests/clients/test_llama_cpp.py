"""llama.cpp itself: it loads our files and gives our vision tokens, and we read what its converter writes.

Unusual: these tests are slow and need `make llama.cpp`, which takes minutes. They run with
`pytest -m slow -s tests/clients/test_llama_cpp.py`, print what they measured, and need 6 GB of memory.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.peers.files import gguf_path
from benchmarks.peers.llama_cpp import LIBRARY, open_llama_cpp
from deepencoder import DeepEncoder, DeepEncoderConfig
from deepencoder.conversion.gguf_writer import write_gguf
from deepencoder.conversion.key_mapping import revert_state_dict
from deepencoder.conversion.key_tables import DEEPENCODER_DEEPSEEK_OCR

from ..conftest import randomize

SOURCES = LIBRARY.parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not LIBRARY.is_file(), reason="llama.cpp is not built: make llama.cpp"),
]


@pytest.fixture(scope="module")
def model() -> Any:
    return randomize(DeepEncoder(DeepEncoderConfig())).eval()


@pytest.mark.parametrize(("gguf_type", "largest"), [("f32", 2e-3), ("f16", 2e-2), ("q8_0", 0.2)])
def test_llama_cpp_gives_our_tokens_at_1024(model: Any, gguf_type: str, largest: float, tmp_path: Path) -> None:
    path = gguf_path(tmp_path, gguf_type)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(model, path, gguf_type)
    pixels = torch.randn(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = model(pixels).vision_tokens[0].numpy()
    theirs = open_llama_cpp(str(tmp_path), [1024], torch.get_num_threads(), gguf_type)(pixels.numpy()).vision_tokens[0]
    difference = np.abs(ours - theirs)
    print(
        f"\n{gguf_type}: differ by at most {difference.max():.1e}, {difference.mean():.1e} on average; "
        f"values up to {np.abs(ours).max():.1f}"
    )
    assert difference.max() < largest


def test_we_read_what_its_converter_writes(model: Any, tmp_path: Path) -> None:
    original = tmp_path / "original"
    original.mkdir()
    tensors = revert_state_dict(model.state_dict(), DEEPENCODER_DEEPSEEK_OCR)
    clip = model.config.clip_config
    tensors["vision_model.embeddings.patch_embedding.weight"] = torch.randn(clip.hidden_size, 3, 14, 14)
    save_file({f"model.{name}": tensor.clone() for name, tensor in tensors.items()}, original / "model.safetensors")
    fields = {
        "architectures": ["DeepseekOCRForCausalLM"],
        "model_type": "DeepseekOCR",
        "torch_dtype": "float32",
        "hidden_size": 1280,
        "num_hidden_layers": 12,
        "vision_config": {
            "image_size": 1024,
            "mlp_ratio": 3.7362,
            "model_name": "deeplip_b_l",
            "model_type": "vision",
            "width": {
                "clip-l-14-224": {"heads": 16, "image_size": 224, "layers": 24, "patch_size": 14, "width": 1024},
                "sam_vit_b": {"global_attn_indexes": [2, 5, 8, 11], "heads": 12, "layers": 12, "width": 768},
            },
        },
    }
    (original / "config.json").write_text(json.dumps(fields))
    (original / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    (script,) = SOURCES.glob("*/vendor/llama.cpp/convert_hf_to_gguf.py")
    target = tmp_path / "mmproj-theirs-f32.gguf"
    command = [sys.executable, script, "--mmproj", "--outtype", "f32", "--outfile", target, original]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (written,) = tmp_path.glob("*.gguf")
    loaded = DeepEncoder.from_original(written)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    print(f"\n{len(loaded.state_dict())} tensors are equal bit for bit")
