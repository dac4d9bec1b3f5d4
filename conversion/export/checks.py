"""What is checked of an export: that the model can be exported, and that the graph gives its numbers."""

from typing import Any

import torch
from torch import nn

from ...modeling.catalog import MODELS, model_kind

__all__ = ["TOLERANCE", "check_exportable", "compare"]

TOLERANCE = 1e-4  # Largest difference between the exported graph and the model, in float32.


def check_exportable(model: Any) -> None:
    """Raise `ValueError` if a model is not exactly one of our classes with all of its weights."""
    name, kind = type(model).__name__, model_kind(model)
    if kind is None or name != kind.name:
        raise ValueError(f"A {name} cannot be exported, only a {', '.join(item.name for item in MODELS.values())}.")
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError(f"A quantised {name} cannot be exported: export the original model.")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(f"A {name} with offloaded weights cannot be exported: load it without a device map.")
    if not getattr(model.config, "use_patch_embedding", True):
        raise ValueError(f"A {name} without patch embedding takes no pixels: export the DeepEncoder it belongs to.")
    with torch.device("meta"):
        names = set(kind.model_class(model.config).state_dict())
    if set(model.state_dict()) != names:
        raise ValueError(f"The {name} has other weights than its configuration describes: merge adapters first.")


@torch.no_grad()
def compare(model: nn.Module, run: Any, shape: tuple[int, ...], tolerance: float) -> float:
    """Return the largest difference between a graph and a model, for a page by itself and in a batch of two.

    The model sees the page once, since it takes as long as the graph.

    Raises:
        `ValueError`: it is larger than `tolerance`.
    """
    page, other = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(1))
    expected = model(page)
    largest = 0.0
    for pixels, row in ((page, 0), (torch.cat([other, page]), 1)):
        for ours, theirs in zip(run(pixels), expected, strict=True):
            ours = torch.as_tensor(ours)
            # Outputs that do not depend on the page have no batch dimension.
            ours = ours[row : row + 1] if theirs.ndim > 1 else ours
            largest = max(largest, (ours - theirs).abs().max().item())
    if not largest <= tolerance:
        raise ValueError(f"The exported graph differs from the model by {largest:.1e}, more than {tolerance:.0e}.")
    return largest
