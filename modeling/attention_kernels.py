"""The kernels that compute `attention.py` faster, as rows of one table.

Unusual: a fused kernel has no argument for SAM's position terms. Either they are added up to a bias, for a block of
queries at a time; or queries and keys are augmented, so that their plain product contains the terms and a flash kernel
needs no bias. A row may compute in a wider dtype than that of its inputs, since torch's attention in bfloat16 is slow
on a CPU without matrix instructions; and one row has no fused kernel at all, since its products are so much faster by
another library. To add a kernel, write its function and its row; `attention_schedules.py` bounds its memory.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.nn.functional import dropout, pad, scaled_dot_product_attention

from .attention import AttentionInputs, relative_position_scores
from .attention_training import can_recompute, recomputed_attention
from .memory_budgets import MemoryBudgets
from .onednn import linear, products_are_faster
from .slow_dtypes import is_slow_here

__all__ = [
    "ATTENTION_KERNELS",
    "AttentionKernel",
    "augmented_attention",
    "bias_attention",
    "choose_kernel",
    "unfused_attention",
]

LARGEST_HEAD_SIZE = 256  # of CUDA's flash kernels


@dataclass(frozen=True)
class AttentionKernel:
    """A way to compute attention with relative positions.

    Args:
        name (`str`): what it is called in tests and measurements.
        implementation (`str`): the `attn_implementation` that may choose it.
        suits: whether to use it for these inputs; the first row of the table that suits them is used.
        elements_per_query: elements that it holds in memory for each query of each head.
        budget: bytes that its blocks may hold, given whether gradients are needed; None if it needs no blocks.
        attend: computes the output, `(batch, heads, rows * columns, head_dim)`. Its second argument is memory for
            `elements_per_query` elements of each query, or None.
        reuses_memory (`bool`): whether `attend` uses that argument.
        compute_dtype (`torch.dtype`, *optional*): the dtype to which narrower inputs are converted.
        attend_in_blocks (*optional*): computes all blocks of a budget by itself, and returns what `attend` returns.
    """

    name: str
    implementation: str
    suits: Callable[[AttentionInputs], bool]
    elements_per_query: Callable[[AttentionInputs], int]
    budget: Callable[[AttentionInputs, MemoryBudgets, bool], int | None]
    attend: Callable[[AttentionInputs, torch.Tensor | None], torch.Tensor]
    reuses_memory: bool = False
    compute_dtype: torch.dtype | None = None
    attend_in_blocks: Callable[[AttentionInputs, int | None], torch.Tensor] | None = None


def augmented_attention(inputs: AttentionInputs, memory: torch.Tensor | None = None) -> torch.Tensor:
    """Attend with augmented queries and keys, without any N x N tensor.

    The scores are `q'·k'` with `q' = [scaling * q, q·Rh, q·Rw]` and `k' = [k, one-hot row, one-hot column]`.
    """
    batch, heads, _, head_dim = inputs.query.shape
    height, width = inputs.key_grid
    row_scores, column_scores = relative_position_scores(inputs)
    # Kernels want head sizes that are multiples of 8, and values as wide as queries and keys.
    padding = -(head_dim + height + width) % 8
    device, dtype = inputs.key.device, inputs.key.dtype
    rows = torch.eye(height, device=device, dtype=dtype).repeat_interleave(width, dim=0)
    columns = torch.eye(width, width + padding, device=device, dtype=dtype).repeat(height, 1)
    # (height * width, height + width + padding) -> (batch, heads, height * width, height + width + padding)
    places = torch.cat([rows, columns], dim=1).expand(batch, heads, -1, -1)
    terms = [row_scores.flatten(2, 3), pad(column_scores.flatten(2, 3), (0, padding))]
    query = torch.cat([inputs.query * inputs.scaling, *terms], dim=-1)
    key = torch.cat([inputs.key, places], dim=-1)
    value = pad(inputs.value, (0, query.shape[-1] - head_dim))
    output = scaled_dot_product_attention(query, key, value, dropout_p=inputs.dropout, scale=1.0)
    return output[..., :head_dim]


def bias_attention(inputs: AttentionInputs, memory: torch.Tensor | None = None) -> torch.Tensor:
    """Attend with the sum of both position terms as the kernel's additive mask."""
    row_scores, column_scores = relative_position_scores(inputs)
    bias = None
    if memory is not None:
        # Contiguous, as `out` of the sum: it would take over the strides of its terms, and flattening would copy it.
        shape = (*row_scores.shape, column_scores.shape[-1])
        bias = memory[: row_scores.numel() * shape[-1]].view(shape)
    bias = torch.add(row_scores[..., :, None], column_scores[..., None, :], out=bias)
    # (batch, heads, rows, columns, height, width) -> (batch, heads, rows * columns, height * width)
    bias = bias.flatten(4).flatten(2, 3)
    return scaled_dot_product_attention(
        inputs.query, inputs.key, inputs.value, attn_mask=bias, dropout_p=inputs.dropout, scale=inputs.scaling
    )


def unfused_attention(inputs: AttentionInputs, memory: torch.Tensor | None = None) -> torch.Tensor:
    """Attend in three steps, head by head: scores, softmax, sum of values.

    Scores are float32 whatever the inputs are, or float64; weights take the dtype of the values where that is fast.
    """
    wide, narrow = torch.promote_types(inputs.query.dtype, torch.float32), _weight_dtype(inputs.value.dtype)
    wide_queries = inputs._replace(
        query=inputs.query.to(wide),
        relative_height=inputs.relative_height.to(wide),
        relative_width=inputs.relative_width.to(wide),
    )
    row_scores, column_scores = relative_position_scores(wide_queries)
    queries, keys, values = wide_queries.query * inputs.scaling, inputs.key.to(wide), inputs.value.to(narrow)
    if not len(keys):
        return torch.empty_like(inputs.query)
    attended = []
    for image, head in itertools.product(range(keys.shape[0]), range(keys.shape[1])):
        scores = linear(queries[image, head], keys[image, head])  # (rows * columns, height * width)
        terms = scores.unflatten(1, inputs.key_grid).unflatten(0, inputs.query_grid)
        terms.add_(row_scores[image, head][..., :, None]).add_(column_scores[image, head][..., None, :])
        out = None if memory is None else _view_memory(memory, scores)
        weights = dropout(torch.softmax(scores, dim=-1, out=out), p=inputs.dropout)
        attended.append(linear(weights.to(narrow), values[image, head].t()))
    return torch.stack(attended).unflatten(0, keys.shape[:2]).to(inputs.query.dtype)


def _view_memory(memory: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return the beginning of some memory of any dtype as a tensor of the shape and dtype of `like`."""
    return memory[: like.numel() * like.element_size() // memory.element_size()].view(like.dtype).view_as(like)


def _weight_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the product of attention weights and values, for values of a dtype."""
    if dtype == torch.bfloat16 and not is_slow_here(dtype):
        return dtype
    return torch.promote_types(dtype, torch.float32)


@lru_cache(maxsize=1)
def _slow_dtypes() -> frozenset[torch.dtype]:
    """Return the 16-bit dtypes in which this CPU has no instructions for products of matrices.

    Only x86 processors are known: those with AMX have them. torch's flash attention is several times slower without.
    """
    if not hasattr(torch.cpu, "get_capabilities"):  # torch before 2.11
        has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: True)()
        return frozenset() if has_tiles else frozenset({torch.bfloat16, torch.float16})
    found = torch.cpu.get_capabilities()
    if found.get("architecture") != "x86_64":
        return frozenset()
    instructions = {torch.bfloat16: "amx_bf16", torch.float16: "amx_fp16"}
    return frozenset(dtype for dtype, name in instructions.items() if not found.get(name))


@torch.compiler.assume_constant_result
def attends_slowly_in(dtype: torch.dtype) -> bool:
    """Return whether this CPU attends faster in float32 than in `dtype`. It is looked up when it is first needed."""
    return dtype in _slow_dtypes()


FEWEST_UNFUSED_KEYS = 512
"""Keys below which the steps of unfused attention are too small: windows, for one."""


def _suits_unfused(inputs: AttentionInputs) -> bool:
    in_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
    on_cpu = inputs.query.device.type == "cpu"
    if not on_cpu or in_graph or inputs.needs_grad or not products_are_faster():
        return False
    return _bias_elements(inputs) >= FEWEST_UNFUSED_KEYS and inputs.query.dtype != torch.float64


def _unfused_elements(inputs: AttentionInputs) -> int:
    """Scores and weights in float32, in elements of the inputs."""
    return 2 * _bias_elements(inputs) * torch.float32.itemsize // inputs.query.element_size()


def _suits_float32(inputs: AttentionInputs) -> bool:
    return inputs.query.device.type == "cpu" and attends_slowly_in(inputs.query.dtype)


def _suits_recomputed(inputs: AttentionInputs) -> bool:
    dtype = inputs.query.dtype
    suits = dtype in (torch.float32, torch.float64) or attends_slowly_in(dtype)
    return inputs.query.device.type == "cpu" and suits and can_recompute(inputs)


def _recomputed_budget(inputs: AttentionInputs, budgets: MemoryBudgets, needs_grad: bool) -> int:
    return budgets.recomputed_block_per_thread * torch.get_num_threads()


def _suits_augmented(inputs: AttentionInputs) -> bool:
    """Augmented queries must fit a flash kernel, and products must be cheaper than the sums of a bias.

    They are in half precision on CUDA, and in bfloat16 on a CPU; in float16 and float32 a CPU sums faster.
    """
    dtypes = {"cuda": (torch.float16, torch.bfloat16), "cpu": (torch.bfloat16,)}
    fits = inputs.query.shape[-1] + sum(inputs.key_grid) <= LARGEST_HEAD_SIZE
    return fits and inputs.query.dtype in dtypes.get(inputs.query.device.type, ())


def _augmented_elements(inputs: AttentionInputs) -> int:
    return inputs.query.shape[-1] + sum(inputs.key_grid)


def _augmented_budget(inputs: AttentionInputs, budgets: MemoryBudgets, needs_grad: bool) -> int | None:
    in_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if needs_grad or in_graph or inputs.query.device.type != "cpu":
        return None  # Its memory grows with the number of queries only.
    return budgets.augmented_block


def _bias_elements(inputs: AttentionInputs) -> int:
    height, width = inputs.key_grid
    return height * width


def _bias_budget(inputs: AttentionInputs, budgets: MemoryBudgets, needs_grad: bool) -> int:
    query, in_graph = inputs.query, torch.compiler.is_compiling()
    if in_graph and (query.device.type != "cpu" or not isinstance(query.shape[0], int)):
        # At least a whole head, since each block becomes nodes of the graph.
        return max(budgets.large_bias_block, query.shape[2] ** 2 * query.element_size())
    if needs_grad or query.device.type != "cpu":
        return budgets.large_bias_block
    budget = budgets.bias_block if query.shape[2] <= 1024 else budgets.long_bias_block
    return budget if in_graph else max(budget, budgets.bias_block_per_thread * torch.get_num_threads())


ATTENTION_KERNELS: tuple[AttentionKernel, ...] = (
    AttentionKernel(
        name="recomputed",
        implementation="sdpa",
        suits=_suits_recomputed,
        elements_per_query=_bias_elements,
        budget=_recomputed_budget,
        attend=lambda inputs, memory: recomputed_attention(inputs),
        compute_dtype=torch.float32,
        attend_in_blocks=recomputed_attention,
    ),
    AttentionKernel(
        name="unfused",
        implementation="sdpa",
        suits=_suits_unfused,
        elements_per_query=_unfused_elements,
        budget=lambda inputs, budgets, needs_grad: budgets.unfused_block,
        attend=unfused_attention,
        reuses_memory=True,
    ),
    AttentionKernel(
        name="bias in float32",
        implementation="sdpa",
        suits=_suits_float32,
        elements_per_query=_bias_elements,
        budget=_bias_budget,
        attend=bias_attention,
        reuses_memory=True,
        compute_dtype=torch.float32,
    ),
    AttentionKernel(
        name="augmented",
        implementation="sdpa",
        suits=_suits_augmented,
        elements_per_query=_augmented_elements,
        budget=_augmented_budget,
        attend=augmented_attention,
    ),
    AttentionKernel(
        name="bias",
        implementation="sdpa",
        suits=lambda inputs: True,
        elements_per_query=_bias_elements,
        budget=_bias_budget,
        attend=bias_attention,
        reuses_memory=True,
    ),
)


def choose_kernel(inputs: AttentionInputs, implementation: str) -> AttentionKernel:
    """Return the first kernel of an `attn_implementation` that suits the inputs."""
    for kernel in ATTENTION_KERNELS:
        if kernel.implementation == implementation and kernel.suits(inputs):
            return kernel
    raise AssertionError(f"no kernel of {implementation!r} suits these inputs")
