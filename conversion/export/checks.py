"""What is checked of an export: that the model can be exported, and that the graph gives its numbers."""

from collections.abc import Iterable
from typing import Any

import torch

from ...modeling.catalog import MODELS, model_kind

__all__ = ["TOLERANCE", "check_exportable", "compare", "make_page"]

TOLERANCE = 1e-4
"""Largest difference between the exported graph and the model in float32, for outputs whose largest value is 1."""


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


def make_page(shape: tuple[int, ...]) -> torch.Tensor:
    """Return the page `(1, channels, height, width)` on which graphs are compared.

    It is a batch of one, since graphs are traced with a batch of two: a size that the trace took for a constant shows.
    """
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))


def compare(outputs: Iterable[Any], expected: Iterable[torch.Tensor], tolerance: float) -> float:
    """Return the largest difference between the outputs of a graph and those of the model.

    The difference of an output with values larger than 1 is given in units of its largest value, as rounding errors
    grow with the values, and those of trained models are larger than those of random weights.

    Raises:
        `ValueError`: it is larger than `tolerance`.
    """
    differences = [
        (torch.as_tensor(ours) - theirs).abs().max() / theirs.abs().max().clamp_min(1)
        for ours, theirs in zip(outputs, expected, strict=True)
    ]
    largest = torch.stack(differences).max().item()  # NaN if any of them is, unlike Python's `max`.
    if not largest <= tolerance:
        raise ValueError(f"The exported graph differs from the model by {largest:.1e}, more than {tolerance:.0e}.")
    return largest
