import torch

from training.muon import Muon, orthogonalize


def test_singular_values_come_near_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 16, 48), (2, 48, 16), (1, 32, 32)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape, generator=generator)).float())
        assert values.shape == (shape[0], min(shape[1:])) and (values < 1.3).all()
        assert (values > 0.4).float().mean() > 0.9


def test_a_step_has_the_size_of_one_of_adamw() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((32, 96), (16, 8, 3, 3)):
        parameter = torch.nn.Parameter(torch.zeros(shape))
        parameter.grad = torch.randn(shape, generator=generator)
        Muon([parameter], lr=1.0).step()
        assert 0.1 < parameter.square().mean().sqrt() < 0.3
        assert (parameter * parameter.grad).sum() < 0


def test_weights_decay_and_the_average_is_part_of_the_state() -> None:
    parameter = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = Muon([parameter], lr=0.1, weight_decay=1.0)
    parameter.grad = torch.zeros(4, 4)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.full((4, 4), 0.9))
    assert optimizer.state_dict()["state"][0]["average"].shape == (4, 4)
