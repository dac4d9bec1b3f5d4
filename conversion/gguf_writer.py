"""Writing a DeepEncoder as the `mmproj` file of llama.cpp.

Unusual: llama.cpp takes some sizes as given, such as pages of 1024 pixels, and some as constants of its code, such as
the layers of SAM that attend globally. A model that differs in those is refused, since it would give other numbers.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..configuration.atomic_files import replaced_file
from .key_mapping import revert_state_dict
from .key_tables import DEEPENCODER_LLAMA_CPP
from .layouts import GGUF_TYPES

__all__ = ["GGUF_TYPES", "GgufReport", "write_gguf"]

PROJECTOR_TYPE = "deepseekocr"
SEPARATOR = "v.view_seperator"  # llama.cpp reads it as a matrix with one row.
GLOBAL_LAYERS = (2, 5, 8, 11)
# Tensors that stay in float32 in every file: llama.cpp adds them to float32, or convolves with them.
KEPT_IN_FLOAT32 = ("embd", "attn.pos_", ".neck.", ".net_", "newline", "seperator")


UNUSED_PATCHES, PATCH_SIZE = "v.patch_embd.weight", 14


@dataclass
class GgufReport:
    """What was written into a file.

    Args:
        types: the type of each tensor, by its name in the file.
        zeros: tensors that the model does not have, and the reason why they were written as zeros.
    """

    types: dict[str, str] = field(default_factory=dict)
    zeros: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _metadata(config: Any, max_tiles: int) -> dict[str, Any]:
    sam, clip = config.sam_config, config.clip_config
    return {
        "clip.has_vision_encoder": True,
        "clip.projector_type": PROJECTOR_TYPE,
        "clip.use_gelu": True,
        "clip.vision.image_size": sam.image_size,
        "clip.vision.patch_size": sam.patch_size,
        "clip.vision.image_mean": [0.5, 0.5, 0.5],
        "clip.vision.image_std": [0.5, 0.5, 0.5],
        "clip.vision.embedding_length": clip.hidden_size,
        "clip.vision.feed_forward_length": clip.intermediate_size,
        "clip.vision.block_count": clip.num_hidden_layers,
        "clip.vision.attention.head_count": clip.num_attention_heads,
        "clip.vision.attention.layer_norm_epsilon": sam.layer_norm_eps,
        "clip.vision.projection_dim": config.projection_dim,
        "clip.vision.window_size": sam.window_size,
        "clip.vision.preproc_min_tiles": 2,
        "clip.vision.preproc_max_tiles": max_tiles,
        "clip.vision.sam.block_count": sam.num_hidden_layers,
        "clip.vision.sam.embedding_length": sam.hidden_size,
        "clip.vision.sam.head_count": sam.num_attention_heads,
    }


def _check(model: Any) -> None:
    """Raise `ValueError` if llama.cpp would compute something else than the model."""
    config = model.config
    sam, clip = config.sam_config, config.clip_config
    wanted = {
        "image_size": (sam.image_size, 1024),
        "patch_size": (sam.patch_size, 16),
        "global_attn_indexes": (tuple(sam.global_attn_indexes), GLOBAL_LAYERS),
        "num_hidden_layers of SAM": (sam.num_hidden_layers, GLOBAL_LAYERS[-1] + 1),
        "layer_norm_eps of SAM": (sam.layer_norm_eps, 1e-6),
        "layer_norm_eps of CLIP": (clip.layer_norm_eps, 1e-5),
        "hidden_act of SAM": (sam.hidden_act, "gelu"),
        "hidden_act of CLIP": (clip.hidden_act, "quick_gelu"),
    }
    for name, (found, only) in wanted.items():
        if found != only:
            raise ValueError(f"model has {name} {found}, but llama.cpp computes with {only}.")


def _encode(name: str, tensor: torch.Tensor, gguf_type: str) -> tuple[np.ndarray, Any]:
    """Return the bytes of a tensor, as an array, and the type in which they are stored."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    values = tensor.detach().float().cpu().numpy()
    kept = values.ndim == 1 or any(part in name for part in KEPT_IN_FLOAT32)
    stored = GGMLQuantizationType["F32" if kept else gguf_type.upper()]
    return quantize(values, stored), stored


def _tensors(model: Any, report: GgufReport) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors by their names in the file."""
    for key, tensor in revert_state_dict(model.state_dict(), DEEPENCODER_LLAMA_CPP).items():
        yield key, tensor[None] if key == SEPARATOR else tensor
    clip = model.config.clip_config
    report.zeros[UNUSED_PATCHES] = "CLIP's patch embedding, which files have and nothing uses: CLIP reads SAM's map"
    yield UNUSED_PATCHES, torch.zeros(clip.hidden_size, clip.num_channels, PATCH_SIZE, PATCH_SIZE)


def write_gguf(model: Any, path: str | Path, gguf_type: str = "f32", max_tiles: int = 9) -> GgufReport:
    """Write a DeepEncoder as an `mmproj` file, which llama.cpp loads beside DeepSeek-OCR's language model.

    Args:
        model: a [`DeepEncoder`] of the published architecture. Widths may differ.
        path: the file, which appears only if it is complete.
        gguf_type: type of the matrices: `"f32"`, `"f16"`, `"bf16"` or `"q8_0"`. Others are written in float32.
        max_tiles: number of tiles that llama.cpp may cut a page into: 9 for DeepSeek-OCR, 32 for Unlimited-OCR.

    Returns:
        what was written. CLIP's patch embedding, which neither the model nor llama.cpp uses, is written as zeros.

    Raises:
        `ValueError`: the type is unknown, or llama.cpp would compute something else than the model.
        `ImportError`: gguf is not installed.
    """
    if gguf_type not in GGUF_TYPES:
        raise ValueError(f"gguf_type must be one of {', '.join(map(repr, GGUF_TYPES))}, got {gguf_type!r}.")
    _check(model)
    try:
        from gguf import GGUFWriter
    except ImportError as error:
        raise ImportError('Writing a file for llama.cpp needs gguf: pip install "deepencoder[gguf]"') from error
    report = GgufReport()
    with replaced_file(Path(path)) as temporary:
        writer = GGUFWriter(temporary, "clip")
        writer.add_type("mmproj")
        adders: dict[type, Any] = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
        }
        for key, value in _metadata(model.config, max_tiles).items():
            adders.get(type(value), writer.add_array)(key, value)
        for key, tensor in _tensors(model, report):
            values, stored = _encode(key, tensor, gguf_type)
            report.types[key] = stored.name.lower()
            writer.add_tensor(key, values, raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return report
