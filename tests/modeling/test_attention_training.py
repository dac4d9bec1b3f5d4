"""Attention in training: its gradients, in blocks of any size, and where it is not used."""

from typing import Any

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from deepencoder import SamEncoder, SamEncoderConfig
from deepencoder.modeling import attention_training, onednn
from deepencoder.modeling.attention import AttentionInputs, eager_attention
from deepencoder.modeling.attention_kernels import ATTENTION_KERNELS, choose_kernel
from deepencoder.modeling.attention_schedules import attend_with_kernel
from deepencoder.modeling.attention_training import can_recompute, recomputed_attention
from deepencoder.modeling.memory_budgets import MemoryBudgets, set_memory_budgets

from ..conftest import randomize
from .relative_attention import SCALING, first_queries, make_inputs, tensors_of, with_gradients

BUDGETS = [1, 300, 1000, None]
"""Bytes: one row of one head of the inputs below, two rows, several heads, everything."""


def small_inputs() -> AttentionInputs:
    return with_gradients(first_queries(make_inputs((2, 3), batch=2, heads=2, dim=2), (2, 2)))


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_gradients_are_the_derivatives(budget: int | None) -> None:
    def attend(*tensors: torch.Tensor) -> torch.Tensor:
        return recomputed_attention(AttentionInputs(*tensors, scaling=SCALING), budget)

    tensors = tuple(tensor.detach().requires_grad_() for tensor in tensors_of(small_inputs()))
    assert gradcheck(attend, tensors)
    assert gradgradcheck(attend, tensors)


def by_eager_attention(inputs: AttentionInputs) -> torch.Tensor:
    return eager_attention(inputs)[0].transpose(1, 2)


def gradients_of(inputs: AttentionInputs, output: torch.Tensor) -> list[torch.Tensor]:
    (output * torch.arange(output.numel()).view_as(output).sin()).sum().backward()
    return [tensor.grad for tensor in tensors_of(inputs) if tensor.grad is not None]


def compare(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("grid", [(32, 32), (14, 14)], ids=str)
@pytest.mark.parametrize("by_onednn", [True, False])
def test_float32_is_as_exact_as_the_definition(
    grid: tuple[int, int], by_onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_operator = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    monkeypatch.setattr(onednn, "products_are_faster", lambda: by_onednn and has_operator)
    exact = make_inputs(grid, batch=1, heads=2, dim=64)
    exact = exact._replace(relative_height=exact.relative_height / 8, relative_width=exact.relative_width / 8)
    results = []
    for inputs, attend in ((exact, by_eager_attention), (exact.to(torch.float32), recomputed_attention)):
        inputs = with_gradients(inputs)._replace(scaling=0.125)
        results.append(gradients_of(inputs, attend(inputs)))
    for expected, ours in zip(*results, strict=True):
        assert (ours - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("frozen", range(5))
def test_what_is_frozen_gets_no_gradient(frozen: int) -> None:
    results = []
    for attend in (by_eager_attention, recomputed_attention):
        inputs = small_inputs()
        tensors_of(inputs)[frozen].requires_grad_(False)
        results.append(gradients_of(inputs, attend(inputs)))
        assert len(results[-1]) == 4 and tensors_of(inputs)[frozen].grad is None
    compare(results[1], results[0])


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_compute_it_again(reentrant: bool) -> None:
    results = []
    for again in (False, True):
        inputs = small_inputs()

        def attend(*tensors: torch.Tensor) -> torch.Tensor:
            return recomputed_attention(AttentionInputs(*tensors, scaling=SCALING), 300)

        tensors = tensors_of(inputs)
        output = checkpoint(attend, *tensors, use_reentrant=reentrant) if again else attend(*tensors)
        results.append(gradients_of(inputs, output))
    compare(results[1], results[0])


def test_autocast_changes_nothing() -> None:
    results = []
    for enabled in (False, True):
        inputs = with_gradients(small_inputs().to(torch.float32))
        tensors = [tensor.detach().requires_grad_() for tensor in tensors_of(inputs)]
        inputs = AttentionInputs(*tensors, scaling=SCALING)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            results.append(gradients_of(inputs, recomputed_attention(inputs, 300)))
    compare(results[1], results[0])


def test_it_is_used_where_gradients_are_needed() -> None:
    plain, trained = make_inputs((4, 7)), with_gradients(make_inputs((4, 7)))
    assert choose_kernel(trained, "sdpa").name == "recomputed"
    assert choose_kernel(plain, "sdpa").name != "recomputed"
    with torch.no_grad():
        assert choose_kernel(trained, "sdpa").name != "recomputed"
    assert choose_kernel(trained._replace(dropout=0.5), "sdpa").name != "recomputed"
    assert not can_recompute(AttentionInputs(*(tensor.to("meta") for tensor in tensors_of(plain)), scaling=1.0))


def test_transforms_of_torch_use_another_kernel() -> None:
    inputs = make_inputs((4, 7))

    def total(query: torch.Tensor) -> torch.Tensor:
        some = inputs._replace(query=query)
        return attend_with_kernel(some, choose_kernel(some, "sdpa")).sin().sum()

    query = inputs.query.clone().requires_grad_()
    total(query).backward()
    torch.testing.assert_close(torch.func.grad(total)(inputs.query), query.grad)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(
            inputs.query.clone().requires_grad_(), torch.ones_like(inputs.query)
        )
        assert not can_recompute(inputs._replace(query=dual))


@pytest.fixture
def trained_model() -> Any:
    model = randomize(SamEncoder(SamEncoderConfig.tiny(image_size=128))).train()
    model.set_attn_implementation("sdpa")
    return model


def parameter_gradients(model: Any, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(pixels).last_hidden_state.square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_a_model_is_trained_in_blocks(trained_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.randn(2, 3, 128, 96)
    trained_model.set_attn_implementation("eager")
    expected = parameter_gradients(trained_model, pixels)
    trained_model.set_attn_implementation("sdpa")
    set_memory_budgets(trained_model, MemoryBudgets(recomputed_block_per_thread=1))
    cut: list[int] = []
    original = attention_training._blocks
    monkeypatch.setattr(
        attention_training, "_blocks", lambda inputs, budget: cut.append(budget) or original(inputs, budget)
    )
    found = parameter_gradients(trained_model, pixels)
    assert set(cut) == {torch.get_num_threads()}
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_a_compiled_model_uses_another_kernel(trained_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.randn(1, 3, 64, 64)
    expected = parameter_gradients(trained_model, pixels)
    trained_model.zero_grad()
    monkeypatch.setattr(attention_training, "_attend", None)
    torch.compile(trained_model, backend="aot_eager")(pixels).last_hidden_state.square().mean().backward()
    for name, parameter in trained_model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-4, msg=name)


def test_no_block_exceeds_its_budget() -> None:
    inputs = make_inputs((6, 5), batch=3, heads=4)
    row = 5 * 30 * 8
    for budget in (1, row, 2 * row, 6 * row, 13 * row, 24 * row, 50 * row, 10**9):
        blocks = attention_training._blocks(inputs, budget)
        held = [
            (images.stop - images.start) * (heads.stop - heads.start) * (rows.stop - rows.start) * row
            for images, heads, row_blocks in blocks
            for rows in row_blocks
        ]
        assert max(held) <= max(budget, row) and sum(held) == 3 * 4 * 6 * row


def test_the_row_of_the_table_converts_bfloat16() -> None:
    kernel = next(kernel for kernel in ATTENTION_KERNELS if kernel.name == "recomputed")
    results = []
    for convert in (False, True):
        inputs = with_gradients(make_inputs((4, 7)))
        output = attend_with_kernel(inputs.to(torch.bfloat16) if convert else inputs, kernel)
        assert output.dtype == (torch.bfloat16 if convert else torch.float64)
        results.append(gradients_of(inputs, output.double()))
    for exact, ours in zip(*results, strict=True):
        assert (ours - exact).norm() < 0.02 * exact.norm()
