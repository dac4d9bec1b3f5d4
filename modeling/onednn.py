"""Products of matrices by oneDNN, on processors where torch's own choice of library is several times slower.

Unusual: torch computes float32 products on x86 with MKL, which on AMD's processors reaches less than half the rate of
oneDNN, which torch contains as well. The only operator that reaches oneDNN with plain float32 tensors is a private
one, so everything that calls it goes through this file, and falls back to torch's public operator where the private
one is missing, has no rule (graphs, autocast, torch.func, subclasses of tensors) or is not known to be faster.

Both libraries compute in float32 and differ by rounding. `torch.backends.mkldnn.flags(enabled=False)` switches the
operator off.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear as torch_linear

__all__ = ["Linear", "is_plain", "linear", "products_are_faster"]

FEWEST_PRODUCTS = 2**20
"""Multiplications below which the two libraries do not differ, or the call itself takes longer."""


@lru_cache(maxsize=1)
def products_are_faster() -> bool:
    """Return whether oneDNN multiplies float32 matrices faster than what torch calls; looked up when first needed.

    It is so on AMD's processors, where torch was built with both libraries. `get_capabilities` is of torch 2.11.
    """
    is_built = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    if not is_built or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "AMD" in str(capabilities.get("cpu_name"))


def is_plain(tensor: torch.Tensor) -> bool:
    """Return whether only reverse differentiation is going on: no transform of torch.func, no tangent."""
    try:
        tensor.data_ptr()
    except RuntimeError:
        return False
    return torch.autograd.forward_ad.unpack_dual(tensor).tangent is None


def _suits(features: torch.Tensor, weight: torch.Tensor) -> bool:
    """Return whether [`_multiply`] may replace `torch.nn.functional.linear` here, and is worth it.

    Args:
        features (`torch.Tensor` of shape `(..., in_features)`): the first factor.
        weight (`torch.Tensor` of shape `(out_features, in_features)`): the second factor, not yet transposed.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_autocast_enabled("cpu"):
        return False  # First, since in a graph of any batch size the next lines would ask for the size.
    return (
        features.dtype == torch.float32 == weight.dtype
        and features.device.type == "cpu" == weight.device.type
        and features.numel() * weight.shape[0] >= FEWEST_PRODUCTS
        and type(features) is torch.Tensor
        and type(weight) in (torch.Tensor, nn.Parameter)
        and bool(torch.backends.mkldnn.enabled)
        and products_are_faster()
        and is_plain(features)
        and is_plain(weight)
    )


def _multiply(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Compute `features @ weight.T + bias` by oneDNN: `(..., in_features)` -> `(..., out_features)`.

    The operator has no gradient; [`linear`] adds one, and asks first whether this suits.
    """
    return torch.ops.mkldnn._linear_pointwise(features, weight, bias, "none", [], "")


class _LinearFunction(torch.autograd.Function):
    """[`_multiply`] with gradients, which are products of the same kind and may be differentiated again."""

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(features, weight)
        return _multiply(features, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        features, weight = ctx.saved_tensors
        for_features = for_weight = for_bias = None
        flat = grad.flatten(0, -2)  # (..., out_features) -> (rows, out_features)
        if ctx.needs_input_grad[0]:
            for_features = linear(grad, weight.t())
        if ctx.needs_input_grad[1]:
            for_weight = linear(flat.t(), features.flatten(0, -2).t())
        if ctx.needs_input_grad[2]:
            for_bias = flat.sum(0)
        return for_features, for_weight, for_bias


def linear(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Compute what `torch.nn.functional.linear` computes, by the faster library."""
    if not _suits(features, weight):
        return torch_linear(features, weight, bias)
    if torch.is_grad_enabled():
        return _LinearFunction.apply(features, weight, bias)
    return _multiply(features, weight, bias)


class Linear(nn.Linear):
    """A linear layer like any other, computed by the faster library."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.weight, self.bias)
