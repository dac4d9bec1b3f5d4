"""Carrying out a plan: the model, its image processor and the report are made from tensors read one by one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from ..modeling.catalog import MODELS
from .checkpoint import open_checkpoint
from .key_mapping import convert_state_dict
from .planning import ConversionPlan, dtype_name, plan_conversion
from .readers.hub import HubOptions
from .report import ConversionReport

__all__ = ["Conversion", "convert_checkpoint", "execute_conversion", "save_converted"]

logger = logging.get_logger("transformers.deepencoder")


@dataclass
class Conversion:
    """A converted model, its image processor and the report."""

    model: PreTrainedModel
    image_processor: Any
    report: ConversionReport


def _give_own_memory(tensors: dict[str, torch.Tensor], mapped: bool) -> None:
    """Copy tensors that share memory with one another or, if they are `mapped`, with a file."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        if mapped or place in seen:
            tensors[name] = tensor.clone()
        seen.add(place)


def _convert_tensors(plan: ConversionPlan, model_class: Any, config: Any) -> dict[str, torch.Tensor]:
    """Read the model's tensors."""
    with torch.device("meta"):
        target = model_class(config).state_dict()
    return convert_state_dict(plan.state_dict(), plan.table, target)[0]


def _make_report(plan: ConversionPlan, source: str, dtype: torch.dtype, not_finite: list[str]) -> ConversionReport:
    tensors, new = plan.checkpoint.tensors, dtype_name(dtype)
    dtypes = {name: dtype_name(tensors[name].dtype) for name in plan.needed}
    return ConversionReport(
        source=source,
        commit=plan.checkpoint.commit,
        layout=plan.layout.name,
        model_type=plan.layout.model_type,
        dtype=new,
        mapped={name: list(row.there) for name, row in sorted(plan.rows.items())},
        unused=dict(sorted(plan.unused.items())),
        initialized=plan.absent,
        dtype_changes={name: [old, new] for name, old in dtypes.items() if old != new},
        not_finite=not_finite,
        assumed=plan.assumed,
        license=plan.checkpoint.read_license(),
    )


def execute_conversion(
    plan: ConversionPlan, source: str, model_class: Any = None, own_memory: bool = True, **kwargs: Any
) -> Conversion:
    """Read the tensors that a plan needs, and make the model.

    Args:
        plan: from [`plan_conversion`].
        source: name of the checkpoint in the report.
        model_class: class of the model, if it is not the one of this package.
        own_memory: whether the model must stay the same when the file changes; tensors of a pickle are mapped.
        kwargs: for transformers' `from_pretrained`, such as `device_map` and `attn_implementation`.

    Raises:
        `OSError`, `ValueError`: a tensor cannot be read or downloaded.
    """
    model_class = model_class or MODELS[plan.layout.model_type].model_class
    config = model_class.config_class.from_dict(plan.config.to_dict())
    converted = _convert_tensors(plan, model_class, config)
    if plan.absent:
        logger.warning(
            f"{source} has no tensors for {', '.join(plan.absent)}: they are newly initialised and must be trained."
        )
    _give_own_memory(converted, plan.checkpoint.mapped and own_memory)
    not_finite = sorted(name for name, tensor in converted.items() if not tensor.isfinite().all())
    kwargs["dtype"] = plan.dtype
    model = model_class.from_pretrained(None, config=config, state_dict=converted, **kwargs)
    report = _make_report(plan, source, model.dtype, not_finite)
    return Conversion(model, plan.image_processor, report)


def convert_checkpoint(
    source: str | Path, hub: HubOptions | None = None, dtype: Any = "auto", **values: Any
) -> Conversion:
    """Make one of our models from a checkpoint of other code.

    Args:
        source: see [`open_checkpoint`].
        hub ([`HubOptions`], *optional*): how to reach the Hub.
        dtype: dtype of the model; see [`plan_conversion`].
        values: fields of a CLIP or ViT tower that its tensors do not determine: `num_attention_heads`, `hidden_act` or
            `layer_norm_eps`.

    Returns:
        A [`DeepEncoder`], [`SamEncoder`] or [`ClipVisionEncoder`], its image processor and the report.

    Raises:
        `ValueError`: the layout is unknown or ambiguous, the encoder has an unknown tensor or one of a wrong shape, or
            a size is unknown.
        `OSError`: the source does not exist, or cannot be read.
    """
    checkpoint = open_checkpoint(source, hub)
    with checkpoint.lock():
        return execute_conversion(plan_conversion(checkpoint, dtype, **values), str(source))


def save_converted(conversion: Conversion, folder: str | Path, **kwargs: Any) -> None:
    """Write a model, its image processor and the report to an existing folder.

    Args:
        conversion: the result of a conversion.
        folder: the folder.
        kwargs: for `save_pretrained`, such as `max_shard_size`.
    """
    conversion.model.save_pretrained(folder, **kwargs)
    conversion.image_processor.save_pretrained(folder)
    conversion.report.save(folder)
