"""A DeepEncoder from two halves that were trained apart, to be trained together.

Unusual: this is how the paper begins, too: a SAM and a CLIP that exist, and a compressor, a projector, a newline and a
separator that know nothing yet. The result is a beginning, and its tokens mean nothing before it is trained.
"""

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..configuration import DeepEncoderConfig
from ..modeling import ClipVisionEncoder, DeepEncoder, SamEncoder
from .from_original import load_original_with_report

__all__ = ["HalvesReport", "join_halves"]

COMPRESSOR = "compressor."
# Of a CLIP: what pixels and the pooled token need, which a DeepEncoder does not have.
NOT_TAKEN = ("embeddings.patch_embedding.", "post_layernorm.", "visual_projection.")


@dataclass
class HalvesReport:
    """Where the tensors of a DeepEncoder came from.

    Args:
        sam: names of the tensors that are those of the SAM.
        clip: names of the tensors that are those of the CLIP.
        left_behind: names of tensors of either that the model has no place for.
        initialized: names of the tensors that are newly initialised.
    """

    sam: list[str]
    clip: list[str]
    left_behind: list[str]
    initialized: list[str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _load(model_class: Any, source: Any, argument: str) -> tuple[Any, list[str]]:
    """Return a half, and its tensors that the checkpoint lacked."""
    if isinstance(source, model_class):
        return source, []
    if not isinstance(source, (str, Path)):
        name = model_class.__name__
        raise TypeError(f"{argument} must be a {name} or the name of a checkpoint, got a {type(source).__name__}.")
    try:
        loaded, report = load_original_with_report(model_class, source)
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from error
    return loaded, list(report.initialized)


def join_halves(sam: Any, clip: Any, **values: Any) -> tuple[DeepEncoder, HalvesReport]:
    """Build a DeepEncoder for training from a SAM and a CLIP; see [`DeepEncoder.from_halves`]."""
    sam_half, absent = _load(SamEncoder, sam, "sam")
    clip_half, _ = _load(ClipVisionEncoder, clip, "clip")
    sam_config, clip_config = copy.deepcopy(sam_half.config), copy.deepcopy(clip_half.config)
    width = clip_config.hidden_size
    has_compressor = sam_config.out_hidden_size == width and not any(name.startswith(COMPRESSOR) for name in absent)
    if sam_config.out_hidden_size != width:
        sam_config.downsample_channels = (*sam_config.downsample_channels[:-1], width)
    clip_config.post_norm, clip_config.projection_dim = "none", None
    clip_config.use_patch_embedding = clip_config.use_patch_bias = False
    model = DeepEncoder(DeepEncoderConfig(sam_config=sam_config, clip_config=clip_config, **values))
    parts = {"sam_encoder.": sam_half.state_dict(), "clip_encoder.": clip_half.state_dict()}
    skipped = {"sam_encoder.": () if has_compressor else (COMPRESSOR,), "clip_encoder.": NOT_TAKEN}
    taken: dict[str, list[str]] = {}
    left_behind: list[str] = []
    own = model.state_dict()
    with torch.no_grad():
        for prefix, tensors in parts.items():
            taken[prefix] = [name for name in tensors if not name.startswith(skipped[prefix])]
            left_behind += [prefix + name for name in tensors if name.startswith(skipped[prefix])]
            for name in taken[prefix]:
                own[prefix + name].copy_(tensors[name])
    names = [[prefix + name for name in taken[prefix]] for prefix in parts]
    initialized = sorted(set(own) - {name for some in names for name in some})
    return model, HalvesReport(names[0], names[1], left_behind, initialized)
