"""What importing the package does, and what it does not."""

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import deepencoder

from ..conftest import ROOT

FOLDERS = {
    "configuration": {"configuration"},
    "modeling": {"configuration", "modeling"},
    "processing": {"configuration", "processing"},
    "conversion": {"configuration", "modeling", "processing", "conversion"},
}


def test_public_names() -> None:
    for name in deepencoder.__all__:
        assert hasattr(deepencoder, name)


def test_registered_with_the_auto_classes(tmp_path: Path) -> None:
    for config_class, model_class in (
        (deepencoder.SamEncoderConfig, deepencoder.SamEncoder),
        (deepencoder.ClipVisionEncoderConfig, deepencoder.ClipVisionEncoder),
        (deepencoder.DeepEncoderConfig, deepencoder.DeepEncoder),
    ):
        config = config_class.tiny()
        assert type(AutoConfig.for_model(config.model_type)) is config_class
        assert type(AutoModel.from_config(config)) is model_class
        config.save_pretrained(tmp_path)
        deepencoder.DeepEncoderImageProcessor().save_pretrained(tmp_path)
        for backend in ("pil", "torchvision", None):
            loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
            assert type(loaded) is deepencoder.DeepEncoderImageProcessor


def test_import_asks_for_neither_network_nor_device() -> None:
    code = (
        "import socket, torch\n"
        "def refuse(*args, **kwargs): raise AssertionError('a connection')\n"
        "socket.socket.connect = refuse\n"
        "import deepencoder\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("folder", FOLDERS)
def test_arrows_point_one_way(folder: str) -> None:
    """configuration <- modeling, processing <- conversion <- the command line; inside, imports are relative."""
    for path in (ROOT / folder).glob("*.py"):
        for line in path.read_text().splitlines():
            words = line.split()
            if not words or words[0] not in ("from", "import"):
                continue
            assert not words[1].startswith("deepencoder"), f"{path.name}: {line}"
            if words[1].startswith(".."):
                assert words[1].lstrip(".").split(".")[0] in FOLDERS[folder], f"{path.name}: {line}"
