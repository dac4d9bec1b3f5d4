"""Linear layers compute the same numbers and gradients by either library, and take torch's own where it must be."""

from typing import Any

import pytest
import torch
from torch import nn

from deepencoder.modeling import onednn
from deepencoder.modeling.onednn import Linear, linear, products_are_faster

needs_operator = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this build of torch has no oneDNN"
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Make oneDNN the faster library for products of any size, and note the shapes that it multiplies."""
    shapes: list[tuple[int, ...]] = []
    multiply = onednn._multiply

    def note(features: torch.Tensor, *others: Any) -> torch.Tensor:
        shapes.append(tuple(features.shape))
        return multiply(features, *others)

    monkeypatch.setattr(onednn, "products_are_faster", lambda: True)
    monkeypatch.setattr(onednn, "FEWEST_PRODUCTS", 0)
    monkeypatch.setattr(onednn, "_multiply", note)
    return shapes


def run_with_gradients(layer: nn.Linear, features: torch.Tensor) -> list[torch.Tensor]:
    features = features.detach().requires_grad_()
    output = layer(features)
    (output * torch.arange(output.numel()).view_as(output).sin()).sum().backward()
    gradients = [features.grad, *(parameter.grad for parameter in layer.parameters())]
    layer.zero_grad()
    return [output.detach(), *gradients]


@needs_operator
@pytest.mark.parametrize("shape", [(5, 48), (2, 3, 4, 48), (1, 48)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_both_libraries_agree_with_gradients(calls: list[Any], shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer, features = Linear(48, 32, bias=bias), torch.randn(shape)
    ours = run_with_gradients(layer, features)
    assert len(calls) == 3  # The output, and the gradients of the features and of the weight.
    with torch.backends.mkldnn.flags(enabled=False):
        expected = run_with_gradients(layer, features)
    assert len(calls) == 3
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@needs_operator
def test_strided_factors_and_second_derivatives(calls: list[Any]) -> None:
    torch.manual_seed(0)
    features, weight = torch.randn(6, 96)[:, :48], torch.randn(48, 32).t()
    with torch.no_grad():
        torch.testing.assert_close(linear(features, weight), features @ weight.t())
    features = features.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(linear(features, weight).pow(3).sum(), features, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), features)
    (first,) = torch.autograd.grad((features @ weight.t()).pow(3).sum(), features, create_graph=True)
    torch.testing.assert_close(second, torch.autograd.grad(first.sum(), features)[0], atol=1e-2, rtol=1e-4)
    assert len(calls) > 3


@needs_operator
def test_frozen_weights_get_no_gradient(calls: list[Any]) -> None:
    layer = Linear(48, 32).requires_grad_(False)
    features = torch.randn(5, 48, requires_grad=True)
    layer(features).sum().backward()
    torch.testing.assert_close(features.grad, layer.weight.sum(0).expand(5, -1))
    assert layer.weight.grad is None and len(calls) == 2


class Tagged(torch.Tensor):
    """A subclass of tensors, as quantised and distributed weights are."""


@needs_operator
def test_torch_chooses_where_the_operator_has_no_rule(calls: list[Any]) -> None:
    layer, features = Linear(48, 32), torch.randn(5, 48)
    with torch.no_grad():
        layer.double()(features.double())
        layer.bfloat16()(features.bfloat16())
        layer.float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(features).dtype == torch.bfloat16
        layer(features.as_subclass(Tagged))
        layer.to("meta")(features.to("meta"))
        torch.export.export(Linear(48, 32), (features,))
        torch.jit.trace(Linear(48, 32), (features,), check_trace=False)
    assert not calls


@needs_operator
def test_transforms_of_torch_func_use_torch(calls: list[Any]) -> None:
    torch.manual_seed(0)
    layer, features = Linear(48, 32), torch.randn(5, 48)
    tangent = torch.randn_like(features)
    gradient = torch.func.grad(lambda x: layer(x).pow(2).sum())(features)
    mapped = torch.func.vmap(layer)(features[:, None])[:, 0]
    _, forward = torch.func.jvp(layer, (features,), (tangent,))
    with torch.no_grad():
        _, without_grad = torch.func.jvp(layer, (features,), (tangent,))
    assert not calls
    expected = features @ layer.weight.t() + layer.bias
    torch.testing.assert_close(gradient, 2 * expected @ layer.weight)
    torch.testing.assert_close(mapped, expected)
    for found in (forward, without_grad):
        torch.testing.assert_close(found, tangent @ layer.weight.t())


def test_small_products_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "products_are_faster", lambda: pytest.fail("a small product asked for the processor"))
    Linear(48, 32)(torch.randn(5, 48))


@needs_operator
@pytest.mark.parametrize(("name", "faster"), [("AMD EPYC", True), ("Intel(R) Xeon(R) Processor", False)])
def test_what_the_processor_tells(name: str, faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": name}, raising=False)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert products_are_faster.__wrapped__() is faster


def test_builds_without_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not products_are_faster.__wrapped__()
    monkeypatch.undo()
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)  # torch before 2.11
    assert not products_are_faster.__wrapped__()
