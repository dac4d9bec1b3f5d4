"""Weights that training starts from.

Unusual: the convolutions between patches and tokens start as a plain rearrangement. Each token is an orthogonal
projection of the 4 x 4 patches of its own box, and nothing of its neighbours is mixed in. With random convolutions a
token starts as a blur of 7 x 7 patches, and learning to read tokens takes several times as many pages.
"""

import torch
from torch import nn

from deepencoder import DeepEncoder

__all__ = ["start_weights"]


@torch.no_grad()
def start_weights(encoder: DeepEncoder) -> None:
    """Set the starting weights of the neck, the compressor and the projector of a model."""
    neck, compressor = encoder.sam_encoder.neck, encoder.sam_encoder.compressor
    nn.init.orthogonal_(neck.conv1.weight)
    nn.init.dirac_(neck.conv2.weight)
    for weight in compressor.parameters():  # of its convolutions, which have no biases
        _start_as_rearrangement(weight)
    for layer in encoder.projector.layers:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight)


def _start_as_rearrangement(weight: torch.Tensor) -> None:
    """Make a 3 x 3 convolution of stride 2 an orthogonal projection of 2 x 2 positions."""
    outputs, inputs = weight.shape[:2]
    projection = torch.empty(outputs, 4 * inputs)
    nn.init.orthogonal_(projection)
    weight.zero_()
    # With a padding of 1, taps 1 and 2 see the positions 2i and 2i + 1, and tap 0 sees the neighbour's.
    weight[:, :, 1:, 1:] = projection.view(outputs, inputs, 2, 2)
