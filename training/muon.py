"""Muon, an optimiser for weight matrices: each step is made orthogonal, so that all directions learn equally fast.

Unusual: convolutions count as matrices, `(out, in * height * width)`, which torch's own Muon refuses; and matrices of
one shape are made orthogonal together, since a CPU multiplies small matrices slowly.

Source: Jordan et al., *Muon* (2024), with the step size of Liu et al., *Muon is scalable for LLM training* (2025), so
that AdamW's learning rates suit it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch

__all__ = ["Muon", "orthogonalize"]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the Newton-Schulz iteration; they bring singular values near 1 in few steps."""


def orthogonalize(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Bring the singular values of matrices near 1: `(n, rows, columns)` -> the same shape, in bfloat16."""
    a, b, c = COEFFICIENTS
    turned = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if turned else matrices).bfloat16()
    x = x / x.float().norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7).to(x.dtype)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if turned else x


class Muon(torch.optim.Optimizer):
    """Muon for parameters with two or more dimensions.

    Args:
        params: parameters; dimensions after the first are flattened.
        lr: learning rate, in the units of AdamW.
        momentum: decay of the average of the gradients, with Nesterov's correction.
        weight_decay: decoupled decay of the weights.
        steps: steps of the Newton-Schulz iteration.
        blocks: number of blocks of rows that count as matrices of their own.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        steps: int = 5,
        blocks: int = 1,
    ) -> None:
        options = {"momentum": momentum, "weight_decay": weight_decay, "steps": steps, "blocks": blocks}
        super().__init__(params, {"lr": lr, **options})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take a step."""
        loss = closure() if closure else None
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    average = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
                    average.lerp_(parameter.grad, 1 - group["momentum"])
                    update = parameter.grad.lerp(average, group["momentum"]).flatten(1)
                    # (rows, columns) -> (blocks, rows / blocks, columns)
                    update = update.unflatten(0, (group["blocks"], -1))
                    by_shape[tuple(update.shape)].append((parameter, update))
            for (_, rows, columns), pairs in by_shape.items():
                updates = orthogonalize(torch.stack([update for _, update in pairs]), group["steps"])
                size = 0.2 * max(rows, columns) ** 0.5
                for (parameter, _), update in zip(pairs, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.reshape(parameter.shape), alpha=-group["lr"] * size)
        return loss
