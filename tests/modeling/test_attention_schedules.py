"""Schedules: every way to cut images, heads and rows gives the numbers of eager attention, in bounded memory."""

from dataclasses import replace

import pytest
import torch

from deepencoder.modeling.attention import AttentionInputs, eager_attention
from deepencoder.modeling.attention_kernels import ATTENTION_KERNELS, AttentionKernel
from deepencoder.modeling.attention_schedules import attend, attend_with_kernel
from deepencoder.modeling.memory_budgets import MEMORY_BUDGETS

from .relative_attention import by_definition, first_queries, make_inputs, tensors_of, with_gradients

KERNELS = {kernel.name: kernel for kernel in ATTENTION_KERNELS}
every_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())


def with_budget(kernel: AttentionKernel, budget: int) -> AttentionKernel:
    return replace(kernel, budget=lambda inputs, budgets, needs_grad: budget)


@every_kernel
@pytest.mark.parametrize("budget", [1, 1_600, 12_000, 40_000, 10**9])
@pytest.mark.parametrize("grad", [False, True])
def test_blocks_equal_eager(kernel: AttentionKernel, budget: int, grad: bool) -> None:
    results = []
    for function in (lambda inputs: eager_attention(inputs)[0], None):
        inputs = with_gradients(make_inputs((4, 7))) if grad else make_inputs((4, 7))
        output = function(inputs) if function else attend_with_kernel(inputs, with_budget(kernel, budget))
        if grad:
            (output * torch.arange(output.numel()).view_as(output).sin()).sum().backward()
        results.append([output.detach(), *(tensor.grad for tensor in tensors_of(inputs) if grad)])
    assert len(results[0]) == (6 if grad else 1) and results[1][0].is_contiguous()
    for ours, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, expected)


@every_kernel
@pytest.mark.parametrize("size", [(3, 5), (4, 2), (1, 7)], ids=str)
@pytest.mark.parametrize("budget", [1, 2_400, 10**9])
def test_blocks_of_the_first_rows_and_columns(kernel: AttentionKernel, size: tuple[int, int], budget: int) -> None:
    inputs = first_queries(make_inputs((4, 7)), size)
    output = attend_with_kernel(inputs, with_budget(kernel, budget))
    torch.testing.assert_close(output, eager_attention(inputs)[0])


@pytest.mark.parametrize(
    "kernel",
    [kernel for kernel in KERNELS.values() if kernel.attend_in_blocks is None],
    ids=lambda kernel: kernel.name,
)
def test_no_block_exceeds_its_budget(kernel: AttentionKernel) -> None:
    inputs = make_inputs((6, 5), batch=3, heads=4)
    row = 5 * kernel.elements_per_query(inputs) * 8
    for budget in (1, row, 2 * row, 6 * row, 13 * row, 24 * row, 50 * row, 10**9):
        held = []

        def attend_block(block: AttentionInputs, memory: torch.Tensor | None, held: list[int] = held) -> torch.Tensor:
            held.append(block.query[..., 0].numel() * kernel.elements_per_query(block) * 8)
            return kernel.attend(block, memory)

        spied = replace(with_budget(kernel, budget), attend=attend_block)
        attend_with_kernel(inputs, spied)
        assert max(held) <= max(budget, row) and sum(held) == 3 * 4 * 6 * row
        assert len(held) == 1 or max(held) > budget / 2 or budget < 2 * row  # And none is needlessly small.


def test_global_attention_never_holds_the_bias_of_all_heads() -> None:
    sizes = []

    def attend_block(block: AttentionInputs, memory: torch.Tensor | None) -> torch.Tensor:
        sizes.append(block.query[..., 0].numel() * 1600 * 4)
        return KERNELS["bias"].attend(block, memory)

    spied, heads = replace(KERNELS["bias"], attend=attend_block), 12
    inputs = make_inputs((40, 40), batch=1, heads=heads)
    inputs = AttentionInputs(*(tensor.float() for tensor in tensors_of(inputs)), scaling=inputs.scaling)
    attend_with_kernel(inputs, spied)
    budgets = MEMORY_BUDGETS
    limit = max(budgets.long_bias_block, budgets.bias_block_per_thread * torch.get_num_threads())
    assert len(sizes) > 1 and max(sizes) <= limit and sum(sizes) == 4 * heads * 1600**2
    sizes.clear()
    attend_with_kernel(inputs._replace(query=inputs.query.requires_grad_()), spied)
    assert max(sizes) <= budgets.large_bias_block < 4 * heads * 1600**2


@every_kernel
def test_an_empty_batch_gives_an_empty_output(kernel: AttentionKernel) -> None:
    for inputs in (make_inputs((4, 7), batch=0), with_gradients(make_inputs((4, 7), batch=0))):
        assert attend_with_kernel(inputs, kernel).shape == (0, 28, 3, 8)


def test_implementations_are_those_of_the_table() -> None:
    inputs = make_inputs((4, 7))
    output, weights = attend(inputs, None)
    assert weights is not None and torch.equal(output, eager_attention(inputs)[0])
    fused, nothing = attend(inputs, "sdpa")
    torch.testing.assert_close(fused, output)
    assert nothing is None
    with pytest.raises(ValueError, match="'eager', 'sdpa', got 'flash_attention_2'"):
        attend(inputs, "flash_attention_2")


IN_FLOAT32 = KERNELS["bias in float32"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_kernel_computes_in_a_wider_dtype(dtype: torch.dtype) -> None:
    inputs = make_inputs((6, 6), batch=3, dim=64)._replace(scaling=0.125)
    exact, half = by_definition(inputs), inputs.to(dtype)
    for budgets in (MEMORY_BUDGETS, replace(MEMORY_BUDGETS, converted_attention=1)):
        outputs = [attend_with_kernel(half, kernel, budgets) for kernel in (IN_FLOAT32, KERNELS["bias"])]
        errors = [(output.double() - exact).norm().item() for output in outputs]
        assert outputs[0].dtype == dtype and outputs[0].is_contiguous() and outputs[0].shape == exact.shape
        assert errors[0] < 0.9 * errors[1]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attend_with_kernel(half, IN_FLOAT32), outputs[0])
    assert attend_with_kernel(half.block(slice(0, 0), slice(None), slice(0, 6)), IN_FLOAT32).shape == (0, 36, 3, 64)


def test_a_wider_dtype_has_the_gradients() -> None:
    gradients = []
    for convert, kernel in ((False, KERNELS["bias"]), (True, IN_FLOAT32)):
        inputs = with_gradients(make_inputs((4, 7)))
        half = inputs.to(torch.bfloat16) if convert else inputs
        output = attend_with_kernel(half, kernel).double()
        (output * torch.arange(output.numel()).view_as(output).sin()).sum().backward()
        gradients.append([tensor.grad for tensor in tensors_of(inputs)])
    for exact, ours in zip(*gradients, strict=True):
        assert (ours - exact).norm() < 0.02 * exact.norm()


def test_a_narrower_dtype_is_never_used() -> None:
    inputs = make_inputs((4, 7))
    assert attend_with_kernel(inputs, IN_FLOAT32).dtype == torch.float64
