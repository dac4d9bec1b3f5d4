"""Proof that a converted model computes what the original does, on the same input, with transformers' own class.

Unusual: weights of half precision are computed with in float32, a layer at a time, and never two models are in memory
at once: the proof of a conversion costs little more memory than the conversion. The reference gets its weights by
transformers' own renaming where there is one (all that has a SAM encoder), else by our tables.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import nn
from transformers.utils import logging

from ..modeling.catalog import MODELS
from .key_mapping import convert_state_dict, revert_state_dict
from .key_tables import CLIP_TRANSFORMERS, VIT_TRANSFORMERS, KeyTable, prefixed
from .planning import ConversionPlan

__all__ = ["compare", "compute_reference", "compute_converted", "computing_in_float32", "why_not"]

LARGEST_SIDE = 384  # pixels: windows are padded and every table is resized, in little memory
TOLERANCE = 2e-4  # of the largest value
COMMON_FIELDS = "hidden_size num_hidden_layers num_attention_heads hidden_act layer_norm_eps"
# What transformers' vision model has not: apart from the tables on purpose, as these are what is to be proved.
PROJECTION = {
    "deepseek-ocr": ("projector.layers.weight", "projector.layers.bias", "image_newline", "view_seperator"),
    "unlimited-ocr": (
        "multi_modal_projector.weight",
        "multi_modal_projector.bias",
        "image_newline",
        "view_separator",
    ),
}
Outputs = dict[str, torch.Tensor]


def _unlimited_ocr() -> Any:
    return importlib.import_module("transformers.models.unlimited_ocr.modeling_unlimited_ocr")


def why_not(plan: ConversionPlan, not_finite: list[str]) -> str | None:
    """Return why a conversion cannot be verified, or None."""
    if not_finite:
        return f"{len(not_finite)} tensors are not finite"
    if plan.layout.pixels not in ("clip", "vit"):
        try:
            _unlimited_ocr()
        except ModuleNotFoundError:
            return f"transformers {transformers.__version__} has no Unlimited-OCR to compare with"
    return None


@contextmanager
def computing_in_float32(model: nn.Module) -> Iterator[None]:
    """Have each module compute in float32, with a copy of its own parameters that lasts as long as its forward."""
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


def make_input(config: Any) -> torch.Tensor:
    """Make seeded pixels for a model, of values that half precision holds exactly."""
    main = getattr(config, "sam_config", config)
    side = min(main.image_size, LARGEST_SIDE)
    side -= side % main.patch_size
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, main.num_channels, side, side, generator=generator).to(torch.bfloat16).float()


@torch.no_grad()
def compute_converted(model: Any, initialized: list[str]) -> Outputs:
    """Compute the outputs that are compared, with a converted model."""
    pixels = make_input(model.config)
    with computing_in_float32(model):
        if model.config.model_type == "deepencoder":
            output = model.eval()(pixels)
            complete = not any(name.startswith(("projector.", "image_", "view_")) for name in initialized)
            outputs = {"fused tokens": output.last_hidden_state[0]}
            return outputs | ({"vision tokens": output.vision_tokens[0]} if complete else {})
        if model.config.model_type == "deepencoder_sam":
            with _captured(model.neck) as neck:
                output = model.eval()(pixels)
            compressed = not any(name.startswith("compressor.") for name in initialized)
            return {"neck": neck[0]} | ({"map": output.last_hidden_state} if compressed else {})
        output = model.eval()(pixels)
        outputs = {"tokens": output.last_hidden_state[0], "class token": output.pooler_output[0]}
        return outputs | ({} if output.image_embeds is None else {"projection": output.image_embeds[0]})


@torch.no_grad()
def compute_reference(plan: ConversionPlan) -> tuple[str, Outputs]:
    """Compute the same with transformers' class, on the checkpoint's own tensors.

    Returns:
        the class's name, and the outputs.
    """
    compute: Callable[[ConversionPlan, torch.Tensor], tuple[str, Outputs]] = {
        "deepencoder": _compute_unlimited_ocr,
        "deepencoder_sam": _compute_sam,
        "deepencoder_clip_vision": _compute_tower,
    }[plan.layout.model_type]
    return compute(plan, make_input(plan.config))


def compare(reference: str, ours: Outputs, theirs: Outputs, plan: ConversionPlan) -> dict[str, Any]:
    """Compare outputs, and tell what was compared with what.

    Raises:
        `ValueError`: they differ by more than rounding.
    """
    found: dict[str, Any] = {
        "reference": f"{reference} of transformers {transformers.__version__}",
        "input": list(make_input(plan.config).shape),
        "weights_renamed_by": "this package" if plan.layout.pixels in ("clip", "vit") else "transformers",
        "outputs": {},
    }
    for name, expected in theirs.items():
        if name not in ours or ours[name].shape != expected.shape:
            raise ValueError(
                f"The converted model's {name} cannot be compared with {reference}'s: nothing is written."
            )
        difference = (ours[name].double() - expected.double()).abs()
        largest = expected.abs().max().item()
        found["outputs"][name] = {
            "max_difference": difference.max().item(),
            "mean_difference": difference.mean().item(),
            "largest_value": largest,
            "tolerance": TOLERANCE * largest,
        }
        if not difference.max().item() <= TOLERANCE * largest:
            raise ValueError(
                f"The converted model's {name} differ from {reference}'s by up to {difference.max():.2e} (values "
                f"up to {largest:.2e}, tolerance {TOLERANCE * largest:.2e}): nothing is written."
            )
    return found


@contextmanager
def _captured(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    outputs: list[torch.Tensor] = []
    hook = module.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()


def _load(
    model_class: Any, config: Any, state_dict: Mapping[str, torch.Tensor], plan: ConversionPlan, **kwargs: Any
) -> Any:
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in model_class(config, **kwargs).state_dict().items()}
    # Tables whose names are transformers' already may still differ by axes of length 1.
    whole = {name: tensor.reshape(shapes.get(name, tensor.shape)) for name, tensor in state_dict.items()}
    with _quiet():  # CLIP's unused patch embedding is missing, and that is as it should be
        return model_class.from_pretrained(None, config=config, state_dict=whole, dtype=plan.dtype, **kwargs).eval()


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


def _stripped(plan: ConversionPlan, renamed: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Return the checkpoint's tensors below some prefixes, with others instead; nothing else of the names changes."""
    source = plan.state_dict()
    prefix = plan.prefix
    return {
        new + name.removeprefix(prefix + old): source[name]
        for name in source
        for old, new in renamed.items()
        if name.startswith(prefix + old)
    }


def _pick(config: Any, names: str) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names.split()}


def _sam_fields(config: Any) -> dict[str, Any]:
    names = "num_channels image_size patch_size window_size global_attn_indexes output_channels downsample_channels"
    return _pick(config, f"{COMMON_FIELDS} {names}") | {"mlp_dim": config.intermediate_size}


def _clip_fields(config: Any) -> dict[str, Any]:
    return _pick(config, f"{COMMON_FIELDS} intermediate_size num_channels image_size patch_size")


def _compute_unlimited_ocr(plan: ConversionPlan, pixels: torch.Tensor) -> tuple[str, Outputs]:
    module = _unlimited_ocr()
    config = module.UnlimitedOcrVisionConfig(
        sam_config=_sam_fields(plan.config.sam_config), encoder_config=_clip_fields(plan.config.clip_config)
    )
    prefixes = {"sam_model.": "sam_encoder.", "vision_model.": "vision_encoder.", "vision_tower.": ""}
    model = _load(module.UnlimitedOcrVisionModel, config, _stripped(plan, prefixes), plan)
    with computing_in_float32(model):
        fused = model(pixels).last_hidden_state[0]
    outputs = {"fused tokens": fused}
    source = plan.state_dict()
    there = [source.get(plan.prefix + name) for name in PROJECTION[plan.layout.slug]]
    if all(tensor is not None for tensor in there):
        weight, bias, newline, separator = (tensor.float() for tensor in there if tensor is not None)
        tokens = nn.functional.linear(fused, weight, bias)
        side = round(len(tokens) ** 0.5)
        rows = [row for line in tokens.split(side) for row in (line, newline[None])]
        outputs["vision tokens"] = torch.cat([*rows, separator[None]])
    return type(model).__name__, outputs


def _compute_sam(plan: ConversionPlan, pixels: torch.Tensor) -> tuple[str, Outputs]:
    module = _unlimited_ocr()
    config = module.UnlimitedOcrSamVisionConfig(**_sam_fields(plan.config))
    # Where the encoder of each layout is; GOT keeps the compressor elsewhere in transformers.
    prefixes = {claim: "" for claim in plan.layout.claims if claim.endswith(".")}
    prefixes |= {"multi_modal_projector.conv_upsampler": "proj.conv"}
    model = _load(module.UnlimitedOcrSamVisionEncoder, config, _stripped(plan, prefixes), plan)
    with computing_in_float32(model), _captured(model.neck) as neck:
        compressed = model(pixels).last_hidden_state
    outputs = {"neck": neck[0]}
    if any(name.startswith("compressor.") for name in plan.names):
        outputs["map"] = compressed
    return type(model).__name__, outputs


def _compute_tower(plan: ConversionPlan, pixels: torch.Tensor) -> tuple[str, Outputs]:
    with torch.device("meta"):
        target = MODELS[plan.layout.model_type].model_class(plan.config).state_dict()
    converted, _ = convert_state_dict(plan.state_dict(), plan.table, target)
    fields, projection_dim = _clip_fields(plan.config), plan.config.projection_dim
    if plan.config.post_norm == "all":
        there = revert_state_dict(converted, VIT_TRANSFORMERS)
        model = _load(transformers.ViTModel, transformers.ViTConfig(**fields), there, plan, add_pooling_layer=False)
    elif projection_dim is None:
        there = revert_state_dict(converted, CLIP_TRANSFORMERS)
        model = _load(transformers.CLIPVisionModel, transformers.CLIPVisionConfig(**fields), there, plan)
    else:
        table: KeyTable = (*prefixed(CLIP_TRANSFORMERS[:-1], there="vision_model."), CLIP_TRANSFORMERS[-1])
        config = transformers.CLIPVisionConfig(**fields, projection_dim=projection_dim)
        there = revert_state_dict(converted, table)
        model = _load(transformers.CLIPVisionModelWithProjection, config, there, plan)
    with computing_in_float32(model):
        output = model(pixels)
    outputs = {"tokens": output.last_hidden_state[0]}
    if plan.config.post_norm == "pooled" and projection_dim is None:
        outputs["class token"] = output.pooler_output[0]
    if projection_dim is not None:
        outputs["projection"] = output.image_embeds[0]
    return type(model).__name__, outputs
