"""Every kernel of the table computes what eager attention does, and is chosen where it suits."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deepencoder.modeling import attention_kernels
from deepencoder.modeling.attention import eager_attention
from deepencoder.modeling.attention_kernels import ATTENTION_KERNELS, AttentionKernel, choose_kernel
from deepencoder.modeling.attention_schedules import attend_with_kernel

from .relative_attention import (
    GRIDS,
    by_definition,
    first_queries,
    make_inputs,
    tensors_of,
    with_gradients,
)

KERNELS = {kernel.name: kernel for kernel in ATTENTION_KERNELS}
every_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())


@every_kernel
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_kernels_equal_eager_with_its_gradients(kernel: AttentionKernel, grid: tuple[int, int]) -> None:
    results = []
    for attend in (lambda inputs: eager_attention(inputs)[0], lambda inputs: kernel.attend(inputs, None)):
        inputs = with_gradients(make_inputs(grid))
        output = attend(inputs)
        output = output if len(results) == 0 else output.transpose(1, 2)
        (output * torch.arange(output.numel()).view_as(output).sin()).sum().backward()
        results.append([output.detach(), *(tensor.grad for tensor in tensors_of(inputs))])
    for ours, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, expected)


@every_kernel
@pytest.mark.parametrize("size", [(3, 5), (4, 2), (1, 7)], ids=str)
def test_kernels_attend_from_the_first_rows_and_columns(kernel: AttentionKernel, size: tuple[int, int]) -> None:
    inputs = first_queries(make_inputs((4, 7)), size)
    expected, _ = eager_attention(inputs)
    torch.testing.assert_close(kernel.attend(inputs, None).transpose(1, 2), expected)
    if kernel.reuses_memory:
        memory = torch.full((inputs.query[..., 0].numel() * kernel.elements_per_query(inputs) + 5,), torch.nan)
        output = kernel.attend(inputs, memory.double())
        torch.testing.assert_close(output.transpose(1, 2), expected)


@every_kernel
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("grid", [(6, 6), (4, 7)], ids=str)
def test_kernels_are_as_exact_as_a_bias_in_half_precision(
    kernel: AttentionKernel, dtype: torch.dtype, grid: tuple[int, int]
) -> None:
    inputs = make_inputs(grid, dim=64)._replace(scaling=0.125)
    exact, half = by_definition(inputs), inputs.to(dtype)
    errors = [(attend_with_kernel(half, some).double() - exact).norm().item() for some in (kernel, KERNELS["bias"])]
    assert errors[0] < 1.05 * errors[1] and errors[1] < 0.1 * exact.norm()


@pytest.mark.parametrize("name", [name for name in KERNELS if name != "recomputed"])
def test_kernels_pass_dropout_on(name: str) -> None:
    kernel, inputs = KERNELS[name], make_inputs((4, 4))
    plain, dropped = (kernel.attend(inputs._replace(dropout=rate), None) for rate in (0.0, 0.5))
    assert not torch.allclose(plain, dropped)


def describe(device: str, dtype: torch.dtype, grid: tuple[int, int]) -> Any:
    query = SimpleNamespace(device=torch.device(device), dtype=dtype, shape=(1, 12, grid[0] * grid[1], 64))
    return SimpleNamespace(query=query, key_grid=grid, needs_grad=False)


@pytest.fixture(autouse=True)
def processor_without_preference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the choice of a kernel not depend on the processor that runs the tests."""
    monkeypatch.setattr(attention_kernels, "products_are_faster", lambda: False)


@pytest.mark.parametrize("grid, fits", [((64, 64), True), ((14, 14), True), ((96, 96), True), ((97, 96), False)])
def test_augmented_queries_must_fit_a_flash_kernel(
    grid: tuple[int, int], fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_kernels, "_slow_dtypes", lambda: frozenset())
    for device, dtype, suits in (
        ("cuda", torch.bfloat16, fits),
        ("cuda", torch.float16, fits),
        ("cuda", torch.float32, False),
        ("cpu", torch.bfloat16, fits),
        ("cpu", torch.float16, False),
        ("cpu", torch.float32, False),
        ("mps", torch.bfloat16, False),
    ):
        assert choose_kernel(describe(device, dtype, grid), "sdpa").name == ("augmented" if suits else "bias")


def test_a_cpu_without_matrix_instructions_attends_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_kernels, "_slow_dtypes", lambda: frozenset({torch.bfloat16}))
    names = {
        (device, dtype): choose_kernel(describe(device, dtype, (8, 8)), "sdpa").name
        for device in ("cpu", "cuda")
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
    }
    assert names.pop(("cpu", torch.bfloat16)) == "bias in float32"
    assert "bias in float32" not in names.values()


def test_where_products_are_faster_attention_is_not_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_kernels, "products_are_faster", lambda: True)
    unfused = {
        (device, dtype, side)
        for device in ("cpu", "cuda")
        for dtype in (torch.bfloat16, torch.float32, torch.float64)
        for side in (14, 32)
        if choose_kernel(describe(device, dtype, (side, side)), "sdpa").name == "unfused"
    }
    assert unfused == {("cpu", torch.bfloat16, 32), ("cpu", torch.float32, 32)}
    training = describe("cpu", torch.float32, (32, 32))
    training.needs_grad, training.dropout = True, 0.5
    assert choose_kernel(training, "sdpa").name == "bias"


@pytest.mark.parametrize("kernel_name", ["unfused", "bias in float32"])
def test_memory_of_narrow_inputs_holds_wide_scores(kernel_name: str) -> None:
    """The memory has the dtype of the inputs, which a kernel that computes in float32 has to reinterpret."""
    inputs = make_inputs((6, 6), dim=64)._replace(scaling=0.125)
    exact = by_definition(inputs)
    output = attend_with_kernel(inputs.to(torch.bfloat16), KERNELS[kernel_name])
    assert (output.double() - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize(
    ("found", "slow"),
    [
        ({"architecture": "x86_64", "amx_bf16": True, "amx_fp16": False}, {torch.float16}),
        ({"architecture": "x86_64", "avx512_bf16": True}, {torch.bfloat16, torch.float16}),
        ({"architecture": "aarch64"}, set()),
    ],
)
def test_what_the_processor_tells(found: dict[str, Any], slow: set[torch.dtype], monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert attention_kernels._slow_dtypes.__wrapped__() == slow


@pytest.mark.parametrize(("tiles", "slow"), [(True, set()), (False, {torch.bfloat16, torch.float16})])
def test_what_older_versions_of_torch_tell(tiles: bool, slow: set[torch.dtype], monkeypatch: Any) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles, raising=False)
    assert attention_kernels._slow_dtypes.__wrapped__() == slow
