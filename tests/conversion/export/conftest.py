"""Small models for exports, which take time for each block: one of each kind suffices."""

import pytest

from deepencoder import ClipVisionEncoderConfig, DeepEncoder, DeepEncoderConfig, SamEncoderConfig

from ...conftest import randomize

SAM = SamEncoderConfig.tiny(num_hidden_layers=2)
CLIP = ClipVisionEncoderConfig.tiny(num_hidden_layers=1, image_size=256, patch_size=SAM.total_stride)


@pytest.fixture
def shallow_model() -> DeepEncoder:
    """A DeepEncoder with one windowed block, one global block and one of CLIP."""
    model = randomize(DeepEncoder(DeepEncoderConfig(sam_config=SAM, clip_config=CLIP, projection_dim=48)))
    assert isinstance(model, DeepEncoder)
    return model
