"""What is exported is the model for one image size."""

import pytest
import torch

from deepencoder import DeepEncoder
from deepencoder.conversion.export import fix_image_size


@torch.no_grad()
def test_fixing_the_image_size_changes_no_number(shallow_model: DeepEncoder) -> None:
    for side in (192, 256, 512):
        pixels = torch.randn(1, 3, side, side)
        fixed = fix_image_size(shallow_model, side)
        assert fixed.config.sam_config.image_size == side and shallow_model.config.sam_config.image_size == 256
        assert torch.equal(fixed(pixels).last_hidden_state, shallow_model(pixels).last_hidden_state)
    for size in (0, -16, 100):
        with pytest.raises(ValueError, match="image_size"):
            fix_image_size(shallow_model, size)
