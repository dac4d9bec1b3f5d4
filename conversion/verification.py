"""Proof that a converted model computes what the original does: transformers' own class on the same input.

Unusual: the two models are never in memory at the same time, and weights of half precision are widened one layer at a
time, so the proof of a conversion needs little more memory than the conversion.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
import transformers

from .planning import ConversionPlan
from .references import Outputs, computing_in_float32

__all__ = ["TOLERANCE", "compare_with_reference", "compute_converted", "reason_not_to_verify"]

LARGEST_SIDE = 384  # Pixels: enough for padded windows and resized position tables, in little memory.
TOLERANCE = 2e-4  # Relative to the largest value of an output.


def make_input(config: Any) -> torch.Tensor:
    """Return seeded pixels `(1, channels, side, side)` for a model, with values that bfloat16 represents exactly."""
    main = getattr(config, "sam_config", config)
    side = min(main.image_size, LARGEST_SIDE)
    side -= side % main.patch_size
    side = min(getattr(config, "query_sizes", (side,)))  # Other sizes have no learned queries.
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, main.num_channels, side, side, generator=generator).to(torch.bfloat16).float()


def reason_not_to_verify(plan: ConversionPlan, not_finite: Collection[str]) -> str | None:
    """Return the reason why a conversion cannot be verified, or None if it can."""
    if not_finite:
        return f"{len(not_finite)} tensors are not finite"
    against = plan.target.reference.reason_against(plan.config)
    if against is not None:
        return against
    try:
        plan.target.reference.find_original()
    except ModuleNotFoundError:
        return f"transformers {transformers.__version__} has no {plan.target.reference.original} to compare with"
    return None


@torch.no_grad()
def compute_converted(plan: ConversionPlan, model: Any, initialized: Collection[str]) -> Outputs:
    """Compute the outputs that are compared with the original's.

    Args:
        plan: what the model was made from.
        model: the converted model.
        initialized: names of its tensors that are random.
    """
    with computing_in_float32(model):
        return plan.target.reference.ours(model.eval(), make_input(model.config), initialized)


def _figures(name: str, ours: Outputs, expected: torch.Tensor, reference: str) -> dict[str, float]:
    if name not in ours or ours[name].shape != expected.shape:
        raise ValueError(f"The converted model's {name} cannot be compared with {reference}'s: nothing is written.")
    difference = (ours[name].double() - expected.double()).abs()
    largest = expected.abs().max().item()
    if not difference.max().item() <= TOLERANCE * largest:
        raise ValueError(
            f"The converted model's {name} differ from {reference}'s by up to {difference.max():.2e} (values "
            f"up to {largest:.2e}, tolerance {TOLERANCE * largest:.2e}): nothing is written."
        )
    return {
        "max_difference": difference.max().item(),
        "mean_difference": difference.mean().item(),
        "largest_value": largest,
        "tolerance": TOLERANCE * largest,
    }


@torch.no_grad()
def compare_with_reference(plan: ConversionPlan, ours: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Compute the outputs of transformers' class for the original, and compare them with the converted model's.

    Args:
        plan: what the model was made from.
        ours: outputs from [`compute_converted`].

    Returns:
        What the report says about the verification.

    Raises:
        `ValueError`: the outputs differ by more than rounding.
    """
    pixels = make_input(plan.config)
    name, theirs = plan.target.reference.theirs(plan, pixels)
    return {
        "reference": f"{name} of transformers {transformers.__version__}",
        "input": list(pixels.shape),
        "weights_renamed_by": plan.layout.renamed_by,
        "outputs": {output: _figures(output, dict(ours), expected, name) for output, expected in theirs.items()},
    }
