"""Making our models of checkpoints of other code.

Unusual: all that can be known before a tensor is read, is: what the checkpoint is, the model's sizes, and what becomes
of each name. Only then the tensors that are needed are read, or downloaded.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from ..modeling.catalog import MODELS
from .checkpoint import open_checkpoint
from .infer_image_processor import infer_image_processor
from .key_mapping import convert_state_dict
from .key_tables import TRANSPOSED
from .planning import ConversionPlan, dtype_name, plan_conversion
from .readers.hub import HubOptions
from .report import REPORT_NAME, ConversionReport

__all__ = ["Conversion", "convert_checkpoint", "execute_conversion", "save_converted"]

# What may be missing as a whole; a tensor that is missing anywhere else is a damaged checkpoint.
WHOLE_PARTS = ("projector.", "compressor.", "image_newline", "view_separator")
logger = logging.get_logger("transformers.deepencoder")


@dataclass
class Conversion:
    """A model, its image processor, and the report."""

    model: PreTrainedModel
    image_processor: Any
    report: ConversionReport


def _give_own_memory(tensors: dict[str, torch.Tensor], mapped: bool) -> None:
    """Copy tensors that share memory with another one, or, if they are `mapped`, with a file."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        if mapped or place in seen:
            tensors[name] = tensor.clone()
        seen.add(place)


def execute_conversion(
    plan: ConversionPlan, source: str, model_class: Any = None, own_memory: bool = True, **kwargs: Any
) -> Conversion:
    """Read the tensors that a plan needs, and make the model.

    Args:
        plan: of [`plan_conversion`].
        source: what to call the checkpoint in the report.
        model_class: of the model, where it is not the one of this package.
        own_memory: whether the model must stay as it is when the file changes. A pickle's tensors are mapped.
        kwargs: for transformers' `from_pretrained`: `device_map`, `attn_implementation` and so on.

    Raises:
        `ValueError`: a tensor of a wrong shape, or one that is missing inside of a part.
    """
    model_class = model_class or MODELS[plan.layout.model_type].model_class
    config = model_class.config_class.from_dict(plan.config.to_dict())
    with torch.device("meta"):
        target = model_class(config).state_dict()
    converted, unused = convert_state_dict(plan.state_dict(), plan.table, target)
    if unused:
        raise ValueError(
            f"{plan.layout.name} has tensors for which a model of its sizes has no place: {', '.join(sorted(unused))}."
        )
    absent = sorted(set(target) - set(converted))
    inner = [name for name in absent if not name.startswith(WHOLE_PARTS)]
    if inner:
        raise ValueError(f"{plan.layout.name} lacks what would become {', '.join(inner[:3])}: it is not whole.")
    if absent:
        logger.warning(f"{source} has nothing for {', '.join(absent)}: newly initialised, and to be trained.")
    _give_own_memory(converted, plan.checkpoint.mapped and own_memory)
    kwargs["dtype"] = plan.dtype
    not_finite = sorted(name for name, tensor in converted.items() if not tensor.isfinite().all())
    model = model_class.from_pretrained(None, config=config, state_dict=converted, **kwargs)
    tensors = plan.checkpoint.tensors
    dtypes = {name: dtype_name(tensors[name].dtype) for name in plan.needed}
    report = ConversionReport(
        source=source,
        commit=plan.checkpoint.commit,
        layout=plan.layout.name,
        model_type=plan.layout.model_type,
        dtype=dtype_name(model.dtype),
        mapped={name: [part.removesuffix(TRANSPOSED) for part in parts] for name, parts in sorted(plan.names.items())},
        unused=dict(sorted(plan.unused.items())),
        initialized=absent,
        dtype_changes={
            name: [old, dtype_name(model.dtype)] for name, old in dtypes.items() if old != dtype_name(model.dtype)
        },
        not_finite=not_finite,
        assumed=plan.assumed,
        license=plan.checkpoint.read_license(),
    )
    return Conversion(model, infer_image_processor(plan.layout, plan.checkpoint, plan.config), report)


def convert_checkpoint(
    source: str | Path, hub: HubOptions | None = None, dtype: Any = "auto", **values: Any
) -> Conversion:
    """Make one of our models of a checkpoint of other code.

    Args:
        source: see [`open_checkpoint`].
        hub ([`HubOptions`], *optional*): how to reach the Hub.
        dtype: of the model; see [`plan_conversion`].
        values: fields of the CLIP tower that its tensors cannot tell, `num_attention_heads`, `hidden_act` or
            `layer_norm_eps`.

    Returns:
        a [`DeepEncoder`], [`SamEncoder`] or [`ClipVisionEncoder`] in the dtype of its tensors, its image processor,
        and the report.

    Raises:
        `ValueError`: an unknown or ambiguous layout, an unknown name in a part that is the encoder's, a tensor of a
            wrong shape, or a size that nothing tells.
        `OSError`: the source is not there, or cannot be read.
    """
    checkpoint = open_checkpoint(source, hub)
    with checkpoint.lock():
        return execute_conversion(plan_conversion(checkpoint, dtype, **values), str(source))


def save_converted(conversion: Conversion, folder: str | Path, **kwargs: Any) -> None:
    """Write a model, its image processor and the report to a folder that is there.

    Args:
        kwargs: for `save_pretrained`, such as `max_shard_size`.
    """
    conversion.model.save_pretrained(folder, **kwargs)
    conversion.image_processor.save_pretrained(folder)
    (Path(folder) / REPORT_NAME).write_text(json.dumps(conversion.report.to_dict(), indent=2) + "\n")
