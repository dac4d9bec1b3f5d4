"""The models of other code whose vision tower we can replace: where its halves are, and how they are called.

Unusual: a host is recognised from the names of its attributes, never from its class, as the classes of code on the Hub
are not ours to import.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from ..conversion.infer_config import clip_config_from_shapes, sam_config_from_shapes
from ..conversion.key_tables import CLIP_DEEPSEEK_OCR, CLIP_TRANSFORMERS, SAM_META, SAM_TRANSFORMERS, KeyTable
from ..modeling.clip_vision_encoder import ClipVisionEncoder
from ..modeling.inputs import check_pixel_values
from ..modeling.memory_budgets import split_views
from ..modeling.sam_encoder import SamEncoder

__all__ = ["HOSTS", "Half", "Host", "find_halves"]

HINTS = (
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "attention_dropout",
    "window_size",
    "global_attn_indexes",
)


@dataclass(frozen=True)
class Half:
    """One half of the vision tower of other code.

    Args:
        place: path of its module in the host.
        mark: path of a tensor or module in it that tells it from others of the same name.
        table: names of its tensors.
        build: makes our model, from the module and the shapes of its tensors by our names.
        run: calls our model, as its first argument, with the arguments of the other code; returns what that expects.
        unused: prefixes of tensors that neither model uses. They are kept.
    """

    place: str
    mark: str
    table: KeyTable
    build: Callable[[nn.Module, Mapping[str, tuple[int, ...]]], Any]
    run: Callable[..., Any]
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Host:
    """A model of other code whose vision tower we can replace.

    Args:
        name: its name in errors.
        halves: the modules that are replaced.
    """

    name: str
    halves: tuple[Half, ...]


def _hints(module: nn.Module) -> dict[str, Any]:
    """Return what a module of transformers has in its configuration and the shapes of its tensors do not tell."""
    config: Any = getattr(module, "config", None)
    return {name: getattr(config, name) for name in HINTS if getattr(config, name, None) is not None}


def _build(model_class: Any, config: Any, module: nn.Module) -> Any:
    with torch.device("meta"):
        model = model_class(config)
    if getattr(getattr(module, "config", None), "_attn_implementation", None) == "eager":
        model.set_attn_implementation("eager")
    return model


def _build_sam(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    hints = _hints(module)
    blocks: Any = getattr(module, "blocks", ())  # of DeepSeek's code, which has no configuration
    if blocks:
        sizes = [block.window_size for block in blocks]
        hints["window_size"] = max(sizes)
        hints["global_attn_indexes"] = [index for index, size in enumerate(sizes) if not size]
    config = sam_config_from_shapes(shapes, hints)
    config.attention_dropout = hints.get("attention_dropout", 0.0)
    return _build(SamEncoder, config, module)


def _build_clip(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    hints = _hints(module)
    transformer: Any = getattr(module, "transformer", None)  # of DeepSeek's code, which has no configuration
    if transformer is not None:
        hints["num_attention_heads"] = transformer.layers[0].self_attn.num_heads
    return _build(ClipVisionEncoder, clip_config_from_shapes(shapes, hints), module)


def _compress(encoder: SamEncoder, pixel_values: torch.Tensor) -> torch.Tensor:
    """Run SAM; in inference in parts of bounded memory, as a [`DeepEncoder`] does."""
    budgets: Any = encoder.layers[0].memory_budgets
    check_pixel_values(pixel_values, "pixel_values", encoder.config.num_channels, encoder.config.patch_size)
    parts = split_views(pixel_values, encoder.config, encoder.dtype, budgets)
    maps = [encoder(part, return_dict=True).last_hidden_state for part in parts]
    return maps[0] if len(maps) == 1 else torch.cat(maps)


def _run_sam_in_transformers(encoder: SamEncoder, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutput:
    # The flags of the vision tower are CLIP's: SAM's attention weights would have 4096 x 4096 values for each head.
    return BaseModelOutput(last_hidden_state=_compress(encoder, pixel_values))


def _run_clip_in_transformers(
    encoder: ClipVisionEncoder, patch_embeds: torch.Tensor, **kwargs: Any
) -> BaseModelOutput:
    output = encoder(patch_embeds=patch_embeds, **kwargs | {"return_dict": True})
    return BaseModelOutput(
        last_hidden_state=output.last_hidden_state, hidden_states=output.hidden_states, attentions=output.attentions
    )


def _run_sam_in_deepseek_ocr(encoder: SamEncoder, x: torch.Tensor) -> torch.Tensor:
    return _compress(encoder, x)


def _run_clip_in_deepseek_ocr(encoder: ClipVisionEncoder, x: torch.Tensor, patch_embeds: torch.Tensor) -> torch.Tensor:
    """Return CLIP's tokens with the class token; `x`, the pixels, is not used there either."""
    return encoder(patch_embeds=patch_embeds, return_dict=True).last_hidden_state


_SAM_IN_TRANSFORMERS = Half(
    "vision_tower.sam_encoder", "pos_embed", SAM_TRANSFORMERS, _build_sam, _run_sam_in_transformers
)

HOSTS: tuple[Host, ...] = (
    Host(
        "Unlimited-OCR in transformers",
        (
            _SAM_IN_TRANSFORMERS,
            Half(
                "vision_tower.vision_encoder",
                "embeddings.class_embedding",
                CLIP_TRANSFORMERS,
                _build_clip,
                _run_clip_in_transformers,
                unused=("embeddings.patch_embedding.",),
            ),
        ),
    ),
    Host("DeepSeek-OCR-2 in transformers", (_SAM_IN_TRANSFORMERS,)),
    Host(
        "DeepSeek-OCR with its own code",
        (
            Half("sam_model", "blocks", SAM_META, _build_sam, _run_sam_in_deepseek_ocr),
            Half(
                "vision_model",
                "embeddings.class_embedding",
                CLIP_DEEPSEEK_OCR,
                _build_clip,
                _run_clip_in_deepseek_ocr,
                unused=("embeddings.patch_embedding.",),
            ),
        ),
    ),
)
"""The models whose vision tower we can replace. The first row that matches is used."""


def _has(module: Any, path: str) -> bool:
    try:
        return attrgetter(path)(module) is not None
    except AttributeError:
        return False


def find_halves(model: nn.Module) -> list[tuple[nn.Module, Half]]:
    """Find the halves of a vision tower in a model, or in any module of it.

    Returns:
        the modules to replace, with the rows that describe them.

    Raises:
        `ValueError`: no host matches.
    """
    for host in HOSTS:
        for module in model.modules():
            if all(_has(module, f"{half.place}.{half.mark}") for half in host.halves):
                return [(attrgetter(half.place)(module), half) for half in host.halves]
    known = ", ".join(host.name for host in HOSTS)
    raise ValueError(f"model: {type(model).__name__} has no vision tower that can be replaced. Known are: {known}.")
