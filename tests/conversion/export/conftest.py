"""Small models for exports, which take time for each block: one of each kind suffices."""

import pytest

from deepencoder import ClipVisionEncoderConfig, DeepEncoder, DeepEncoderConfig, SamEncoderConfig

from ...conftest import randomize


def make_model(sam_config: SamEncoderConfig) -> DeepEncoder:
    """Return a DeepEncoder with one block in its CLIP half, for views of 256 pixels."""
    clip = ClipVisionEncoderConfig.tiny(num_hidden_layers=1, image_size=256, patch_size=sam_config.total_stride)
    model = randomize(DeepEncoder(DeepEncoderConfig(sam_config=sam_config, clip_config=clip, projection_dim=48)))
    assert isinstance(model, DeepEncoder)
    return model


@pytest.fixture
def shallow_model() -> DeepEncoder:
    """A DeepEncoder with one windowed block, one global block and one of CLIP."""
    return make_model(SamEncoderConfig.tiny(num_hidden_layers=2))


@pytest.fixture(scope="session")
def shallowest_model() -> DeepEncoder:
    """A DeepEncoder with one global block and one of CLIP, for tests of what surrounds the graph."""
    return make_model(SamEncoderConfig.tiny(num_hidden_layers=1, global_attn_indexes=(0,)))
