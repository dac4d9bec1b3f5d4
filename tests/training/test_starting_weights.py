import torch

from training.reader import ReadingObjective


def test_a_token_starts_as_a_projection_of_its_own_box() -> None:
    torch.manual_seed(0)
    compressor = ReadingObjective().encoder.sam_encoder.compressor
    width = compressor.convs[0].weight.shape[1]
    features = torch.randn(1, width, 8, 8, requires_grad=True)
    tokens = compressor(features)
    assert tokens.shape[2:] == (2, 2)
    (gradient,) = torch.autograd.grad(tokens[0, :, 1, 0].square().sum(), features)
    seen = gradient[0].abs().sum(0) > 0
    assert seen[4:, :4].all() and seen.sum() == 16
    # Orthogonal rows keep the size of what they let through.
    share = tokens.square().mean() / features.square().mean()
    assert 0.8 < share < 1.2
