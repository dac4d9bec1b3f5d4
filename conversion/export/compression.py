"""Graphs in 8 bits: quantised with pages, and compared with the model on pages that were held back."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from .tracing import quiet_exporters, without_telemetry

__all__ = ["measure_accuracy", "quantize_openvino", "split_calibration"]


def split_calibration(pixel_values: torch.Tensor, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Split pages into those that set the ranges of 8 bits, and a fifth that shows what they cost.

    Args:
        pixel_values (`torch.Tensor` of shape `(pages, channels, height, width)`): normalised pixels.
        shape: `(channels, height, width)` of the graph.

    Raises:
        `ValueError`: fewer than two pages, or pages of another shape.
    """
    if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != shape or len(pixel_values) < 2:
        expected = ", ".join(map(str, shape))
        raise ValueError(
            f"calibration must hold two or more pages, (pages, {expected}), got shape {tuple(pixel_values.shape)}."
        )
    held_back = -(-len(pixel_values) // 5)
    return pixel_values[:-held_back].float(), pixel_values[-held_back:].float()


def quantize_openvino(graph: Any, pixel_values: torch.Tensor) -> Any:
    """Quantise weights and activations of a graph to 8 bits, with pages that show the ranges of activations.

    Raises:
        `ImportError`: nncf is not installed.
    """
    with quiet_exporters("nncf"), without_telemetry():
        try:
            import nncf
        except ImportError as error:
            raise ImportError("Compression to 8 bits needs nncf: pip install nncf") from error
        pages = nncf.Dataset([page.numpy() for page in pixel_values.split(1)])
        return nncf.quantize(graph, pages, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(pixel_values))


@torch.no_grad()
def measure_accuracy(
    model: nn.Module, run: Callable[[torch.Tensor], Any], pixel_values: torch.Tensor
) -> dict[str, float]:
    """Return the mean and the least cosine similarity of the graph's tokens and the model's, over all pages."""
    found = []
    for page in pixel_values.split(1):
        ours, theirs = torch.as_tensor(run(page)[0]), model(page)[0]
        # The tokens are the last dimension but one, or those of a map, (batch, channels, rows, columns).
        dim = 1 if theirs.ndim == 4 else -1
        found.append(cosine_similarity(ours.double(), theirs.double(), dim=dim).flatten())
    similarity = torch.cat(found)
    return {"mean_cosine": round(similarity.mean().item(), 6), "worst_cosine": round(similarity.min().item(), 6)}
