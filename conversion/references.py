"""What a converted model computes, and what transformers' class for the original computes from the same tensors.

Unusual: a class that contains a SAM encoder gets its weights by transformers' own renaming, which is independent of
our key tables; CLIP and ViT towers have no such renaming, so their weights pass through our tables. Weights of half
precision are computed with in float32, one layer at a time.
"""

import importlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn
from transformers.utils import logging

from ..modeling.catalog import MODELS
from .key_mapping import convert_state_dict, names_there, revert_state_dict
from .key_tables import (
    CLIP_PROJECTED_TRANSFORMERS,
    CLIP_TRANSFORMERS,
    DEEPENCODER_UNLIMITED_OCR_VISION,
    VIT_TRANSFORMERS,
    KeyTable,
)

if TYPE_CHECKING:
    from .planning import ConversionPlan

__all__ = [
    "CLIP_REFERENCE",
    "DEEPENCODER_REFERENCE",
    "DEEPENCODER_V2_REFERENCE",
    "SAM_REFERENCE",
    "Outputs",
    "Reference",
    "computing_in_float32",
]

Outputs = dict[str, torch.Tensor]
COMMON_FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps")
SAM_FIELDS = (
    *COMMON_FIELDS,
    "num_channels",
    "image_size",
    "patch_size",
    "window_size",
    "global_attn_indexes",
    "output_channels",
    "downsample_channels",
)
QUERY_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "hidden_act",
    "rms_norm_eps",
)
V2_QUERIES = (144, 256)
SMALLEST_LANGUAGE_MODEL = {
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 1,
    "vocab_size": 1,
    "bos_token_id": None,
    "eos_token_id": None,
    "mlp_layer_types": ["dense"],
}
CLIP_FIELDS = (*COMMON_FIELDS, "intermediate_size", "num_channels", "image_size", "patch_size")


@dataclass(frozen=True)
class Reference:
    """How a converted model is compared with the original.

    Args:
        ours: computes the outputs of the converted model; takes the model, the pixels and the names of newly
            initialised tensors, on which no output may depend.
        theirs: computes the same outputs with transformers' class; takes the plan and the pixels, and returns the name
            of the class, too.
        original: name of the model in transformers that is compared with.
        find_original: raises `ModuleNotFoundError` if this version of transformers lacks it.
        reason_against: returns why a model with a certain configuration cannot be compared, or None.
    """

    ours: Callable[[Any, torch.Tensor, Collection[str]], Outputs]
    theirs: Callable[["ConversionPlan", torch.Tensor], tuple[str, Outputs]]
    original: str
    find_original: Callable[[], Any]
    reason_against: Callable[[Any], str | None] = lambda config: None


@contextmanager
def computing_in_float32(model: nn.Module) -> Iterator[None]:
    """Make each module compute in float32, with a copy of its own parameters that exists during its forward only."""
    kept: dict[nn.Module, list[tuple[nn.Parameter, torch.Tensor]]] = {}

    def widen(value: Any) -> Any:
        return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        own = [parameter for parameter in module.parameters(recurse=False) if parameter.dtype != torch.float32]
        kept[module] = [(parameter, parameter.data) for parameter in own]
        for parameter in own:
            parameter.data = parameter.data.float()
        return tuple(widen(value) for value in args), {name: widen(value) for name, value in kwargs.items()}

    def after(module: nn.Module, args: Any, output: Any) -> None:
        for parameter, data in kept.pop(module, []):
            parameter.data = data

    hooks: list[Any] = []
    for module in model.modules():
        if any(True for _ in module.parameters(recurse=False)):
            hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
            hooks.append(module.register_forward_hook(after, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _captured(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    outputs: list[torch.Tensor] = []
    hook = module.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()


@contextmanager
def _quiet() -> Iterator[None]:
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _has_none(names: Collection[str], prefixes: tuple[str, ...]) -> bool:
    return not any(name.startswith(prefixes) for name in names)


def _pick(config: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names}


def _sam_fields(config: Any) -> dict[str, Any]:
    return _pick(config, SAM_FIELDS) | {"mlp_dim": config.intermediate_size}


def _load(
    model_class: Any, config: Any, state_dict: Mapping[str, torch.Tensor], plan: "ConversionPlan", **kwargs: Any
) -> Any:
    """Load transformers' class with tensors to which its own renaming applies."""
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in model_class(config, **kwargs).state_dict().items()}
    # Tensors that already have transformers' names may still differ by axes of length 1.
    whole = {name: tensor.reshape(shapes.get(name, tensor.shape)) for name, tensor in state_dict.items()}
    with _quiet():  # transformers warns that CLIP's patch embedding is missing, which is never used.
        return model_class.from_pretrained(None, config=config, state_dict=whole, dtype=plan.dtype, **kwargs).eval()


def _renamed(plan: "ConversionPlan") -> dict[str, torch.Tensor]:
    """Return the checkpoint's tensors for transformers' class: only the prefixes of their names are replaced."""
    source = plan.state_dict()
    return {
        new + name.removeprefix(plan.prefix + old): source[name]
        for name in source
        for old, new in plan.layout.reference_prefixes
        if name.startswith(plan.prefix + old)
    }


def _renamed_by_tables(plan: "ConversionPlan", table: KeyTable) -> dict[str, torch.Tensor]:
    """Return the checkpoint's tensors for transformers' class by way of our own names, those that `table` has."""
    with torch.device("meta"):
        target = MODELS[plan.layout.model_type].model_class(plan.config).state_dict()
    converted, _ = convert_state_dict(plan.state_dict(), plan.table, target)
    return revert_state_dict({name: tensor for name, tensor in converted.items() if names_there(name, table)}, table)


def _find_unlimited_ocr() -> Any:
    return importlib.import_module("transformers.models.unlimited_ocr.modeling_unlimited_ocr")


def _deepencoder_ours(model: Any, pixels: torch.Tensor, initialized: Collection[str]) -> Outputs:
    output = model(pixels)
    outputs = {"fused tokens": output.last_hidden_state[0]}
    if _has_none(initialized, ("projector.", "image_", "view_")):
        outputs["vision tokens"] = output.vision_tokens[0]
    return outputs


def _lay_out(tokens: torch.Tensor, newline: torch.Tensor, separator: torch.Tensor) -> torch.Tensor:
    """Append a newline to each row of a square view's tokens `(rows * rows, dim)`, and the separator at the end."""
    rows = round(len(tokens) ** 0.5)
    lines = [part for line in tokens.split(rows) for part in (line, newline[None])]
    return torch.cat([*lines, separator[None]])  # (rows * (rows + 1) + 1, dim)


def _deepencoder_theirs(plan: "ConversionPlan", pixels: torch.Tensor) -> tuple[str, Outputs]:
    module = _find_unlimited_ocr()
    config = module.UnlimitedOcrVisionConfig(
        sam_config=_sam_fields(plan.config.sam_config), encoder_config=_pick(plan.config.clip_config, CLIP_FIELDS)
    )
    if plan.layout.reference_prefixes:
        tensors = _renamed(plan)
    else:  # transformers does not know these names.
        tensors = _renamed_by_tables(plan, DEEPENCODER_UNLIMITED_OCR_VISION)
    model = _load(module.UnlimitedOcrVisionModel, config, tensors, plan)
    with computing_in_float32(model):
        fused = model(pixels).last_hidden_state[0]
    outputs = {"fused tokens": fused}
    source = plan.state_dict()
    names = [plan.prefix + name for name in plan.layout.reference_projection]
    if names and set(names) <= set(source):
        weight, bias, newline, separator = (source[name].float() for name in names)
        outputs["vision tokens"] = _lay_out(nn.functional.linear(fused, weight, bias), newline, separator)
    return type(model).__name__, outputs


def _find_deepseek_ocr2() -> Any:
    return importlib.import_module("transformers.models.deepseek_ocr2.modeling_deepseek_ocr2")


def _v2_reason_against(config: Any) -> str | None:
    if config.query_counts == V2_QUERIES:
        return None
    return f"transformers' class has {' and '.join(map(str, V2_QUERIES))} queries, not {config.query_counts}"


def _v2_ours(model: Any, pixels: torch.Tensor, initialized: Collection[str]) -> Outputs:
    output = model(pixels)
    outputs = {"queries": output.last_hidden_state[0]}
    if _has_none(initialized, ("projector.", "view_")):
        outputs["vision tokens"] = output.vision_tokens[0]
    return outputs


def _v2_theirs(plan: "ConversionPlan", pixels: torch.Tensor) -> tuple[str, Outputs]:
    """Compute with the vision half of transformers' whole model, whose language model is as small as can be."""
    module, config = _find_deepseek_ocr2(), plan.config
    encoder = _pick(config.query_config, QUERY_FIELDS) | {"rope_parameters": dict(config.query_config.rope_parameters)}
    sam = _sam_fields(config.sam_config) | {"downsample_channels": list(config.sam_config.downsample_channels)}
    vision = {"sam_config": sam, "encoder_config": encoder}
    text = {"hidden_size": config.projection_dim, **SMALLEST_LANGUAGE_MODEL}
    whole = module.DeepseekOcr2Config(vision_config=vision, text_config=text, image_token_id=0)
    model = _load(module.DeepseekOcr2Model, whole, _renamed(plan), plan)
    with computing_in_float32(model):
        features = model.get_image_features(pixels)
    outputs = {"queries": features.last_hidden_state[0]}
    if not any(name.startswith(("projector.", "view_")) for name in plan.absent):
        outputs["vision tokens"] = features.pooler_output[0]
    return type(model).__name__, outputs


def _sam_ours(model: Any, pixels: torch.Tensor, initialized: Collection[str]) -> Outputs:
    with _captured(model.neck) as neck:
        output = model(pixels)
    outputs = {"neck": neck[0]}
    if _has_none(initialized, ("compressor.",)):
        outputs["map"] = output.last_hidden_state
    return outputs


def _sam_theirs(plan: "ConversionPlan", pixels: torch.Tensor) -> tuple[str, Outputs]:
    module = _find_unlimited_ocr()
    config = module.UnlimitedOcrSamVisionConfig(**_sam_fields(plan.config))
    model = _load(module.UnlimitedOcrSamVisionEncoder, config, _renamed(plan), plan)
    with computing_in_float32(model), _captured(model.neck) as neck:
        compressed = model(pixels).last_hidden_state
    outputs = {"neck": neck[0]}
    if any(name.startswith("compressor.") for name in plan.rows):
        outputs["map"] = compressed
    return type(model).__name__, outputs


def _clip_reason_against(config: Any) -> str | None:
    return None if config.use_patch_embedding else "the tower has no patch embedding, so it cannot read pixels"


def _clip_ours(model: Any, pixels: torch.Tensor, initialized: Collection[str]) -> Outputs:
    output = model(pixels)
    outputs = {"tokens": output.last_hidden_state[0], "class token": output.pooler_output[0]}
    return outputs | ({} if output.image_embeds is None else {"projection": output.image_embeds[0]})


def _tower_class(config: Any) -> tuple[Any, Any, KeyTable, dict[str, Any]]:
    """Return transformers' class for a tower, its configuration, its tensor names and further arguments."""
    fields = _pick(config, CLIP_FIELDS)
    if config.post_norm == "all":
        return transformers.ViTModel, transformers.ViTConfig(**fields), VIT_TRANSFORMERS, {"add_pooling_layer": False}
    if config.projection_dim is None:
        return transformers.CLIPVisionModel, transformers.CLIPVisionConfig(**fields), CLIP_TRANSFORMERS, {}
    projected = transformers.CLIPVisionConfig(**fields, projection_dim=config.projection_dim)
    return transformers.CLIPVisionModelWithProjection, projected, CLIP_PROJECTED_TRANSFORMERS, {}


def _clip_theirs(plan: "ConversionPlan", pixels: torch.Tensor) -> tuple[str, Outputs]:
    model_class, config, table, kwargs = _tower_class(plan.config)
    model = _load(model_class, config, _renamed_by_tables(plan, table), plan, **kwargs)
    with computing_in_float32(model):
        output = model(pixels)
    outputs = {"tokens": output.last_hidden_state[0]}
    if plan.config.projection_dim is not None:
        outputs["projection"] = output.image_embeds[0]
    elif plan.config.post_norm == "pooled":
        outputs["class token"] = output.pooler_output[0]
    return type(model).__name__, outputs


DEEPENCODER_REFERENCE = Reference(_deepencoder_ours, _deepencoder_theirs, "Unlimited-OCR", _find_unlimited_ocr)
SAM_REFERENCE = Reference(_sam_ours, _sam_theirs, "Unlimited-OCR", _find_unlimited_ocr)
DEEPENCODER_V2_REFERENCE = Reference(
    _v2_ours,
    _v2_theirs,
    "DeepSeek-OCR-2",
    _find_deepseek_ocr2,
    reason_against=_v2_reason_against,
)
CLIP_REFERENCE = Reference(
    _clip_ours,
    _clip_theirs,
    "CLIP",
    lambda: transformers.CLIPVisionModel,
    reason_against=_clip_reason_against,
)
