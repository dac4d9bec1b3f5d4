"""A small model with its image processor in a folder, and a cache of its own for what is exported."""

from pathlib import Path
from typing import Any

import pytest
import torch

from deepencoder import (
    ClipVisionEncoderConfig,
    DeepEncoder,
    DeepEncoderConfig,
    DeepEncoderImageProcessor,
    SamEncoderConfig,
)
from deepencoder.runtimes import RUNTIMES

from ..conftest import randomize

VIEW, TILE = 192, 128


@pytest.fixture(scope="session")
def model() -> DeepEncoder:
    """A DeepEncoder with one global block, one windowed block and one of CLIP."""
    sam = SamEncoderConfig.tiny(num_hidden_layers=2)
    clip = ClipVisionEncoderConfig.tiny(num_hidden_layers=1, image_size=256, patch_size=sam.total_stride)
    model = randomize(DeepEncoder(DeepEncoderConfig(sam_config=sam, clip_config=clip, projection_dim=48)))
    assert isinstance(model, DeepEncoder)
    return model


@pytest.fixture(scope="session")
def processor() -> DeepEncoderImageProcessor:
    return DeepEncoderImageProcessor(mode="gundam", size={"height": VIEW, "width": VIEW}, tile_size=TILE)


@pytest.fixture(scope="session")
def source(model: DeepEncoder, processor: DeepEncoderImageProcessor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ordinary folder of a model."""
    folder = tmp_path_factory.mktemp("source") / "encoder"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def exported(
    model: DeepEncoder, processor: DeepEncoderImageProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with the graphs of both sizes for each runtime that is installed."""
    from deepencoder.conversion.export import export_folder

    folder = tmp_path_factory.mktemp("exported") / "encoder"
    for runtime in RUNTIMES.values():
        pytest.importorskip(runtime.library)
        export_folder(model, folder, [VIEW, TILE], runtime.format, processor)
    return folder


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("assets")


@pytest.fixture
def cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hugging Face cache for exported graphs, which the tests of this folder share."""
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(shared_cache))
    return shared_cache


@pytest.fixture
def inputs(processor: DeepEncoderImageProcessor) -> Any:
    """Three pages: of two tiles, of none, and of six."""
    torch.manual_seed(1)
    pages = [torch.rand(3, 128, 256), torch.rand(3, 100, 100), torch.rand(3, 384, 256)]
    return processor(pages, return_tensors="pt")
