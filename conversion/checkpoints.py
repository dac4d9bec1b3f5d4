"""Making our models of checkpoints of other code.

Unusual: all that can be known before a tensor is read, is: what the checkpoint is, the model's sizes, and what becomes
of each name. Only then the tensors that are needed are read, or downloaded.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from ..modeling import ClipVisionEncoder, DeepEncoder, SamEncoder
from .image_processors import infer_image_processor
from .keys import TRANSPOSED, convert_state_dict, map_keys, prefixed, source_shapes
from .layouts import Layout, recognize
from .remote import HubOptions
from .sizes import infer_config, read_hints
from .sources import Checkpoint, open_checkpoint

__all__ = [
    "CONVERTER_VERSION",
    "REPORT_NAME",
    "Conversion",
    "ConversionPlan",
    "ConversionReport",
    "convert_checkpoint",
    "dtype_name",
    "execute_conversion",
    "plan_conversion",
    "save_converted",
    "new_folder",
]

# To be raised when a conversion comes to give something else: finished ones are kept by it.
CONVERTER_VERSION = "1"
REPORT_NAME = "conversion_report.json"
MODELS: dict[str, type[PreTrainedModel]] = {
    "deepencoder": DeepEncoder,
    "deepencoder_sam": SamEncoder,
    "deepencoder_clip_vision": ClipVisionEncoder,
}
NOT_A_PART = "not a part of the encoder"
# What may be missing as a whole; a tensor that is missing anywhere else is a damaged checkpoint.
WHOLE_PARTS = ("projector.", "compressor.", "image_newline", "view_separator")
logger = logging.get_logger("transformers.deepencoder")


@dataclass
class ConversionReport:
    """What became of a checkpoint.

    Args:
        source: where it is.
        commit: of a checkpoint on the Hub.
        layout: what it was recognised as.
        model_type: what it became.
        dtype: of the model.
        converter_version: of the code that converted it.
        mapped: for each name here, the names there that it was made of.
        unused: names there that nothing was made of, with the reason.
        initialized: names here for which the checkpoint has nothing: their values are random.
        dtype_changes: names there whose dtype is not the model's, with both.
        not_finite: names here that hold infinities or NaNs.
        assumed: fields of the configuration that are true of most such checkpoints, with the reason.
        verification: differences to the original on the same input, where that was looked at.
        license: what the checkpoint's own model card says it is under.
    """

    source: str
    commit: str | None
    layout: str
    model_type: str
    dtype: str
    converter_version: str = CONVERTER_VERSION
    mapped: dict[str, list[str]] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    initialized: list[str] = field(default_factory=list)
    dtype_changes: dict[str, list[str]] = field(default_factory=dict)
    not_finite: list[str] = field(default_factory=list)
    assumed: dict[str, str] = field(default_factory=dict)
    verification: dict[str, Any] | None = None
    license: str | None = None

    @property
    def left_behind(self) -> dict[str, str]:
        """Of `unused`, the names in the encoder's own parts."""
        return {name: reason for name, reason in self.unused.items() if reason != NOT_A_PART}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class ConversionPlan:
    """What a checkpoint is and what will become of it; nothing has been read yet.

    Args:
        checkpoint: the tensors.
        layout: what it is.
        prefix: what all its names there begin with, in this checkpoint.
        table: the layout's rows, with that prefix.
        names: for each name here, the names there.
        unused: names there that nothing will be made of, with the reason.
        config: of the model.
        dtype: of the model: one that holds every tensor's values.
        assumed: see [`ConversionReport`].
    """

    checkpoint: Checkpoint
    layout: Layout
    prefix: str
    table: tuple[tuple[str, ...], ...]
    names: dict[str, tuple[str, ...]]
    unused: dict[str, str]
    config: Any
    dtype: torch.dtype
    assumed: dict[str, str]

    @property
    def needed(self) -> list[str]:
        return [name.removesuffix(TRANSPOSED) for names in self.names.values() for name in names]

    def state_dict(self) -> Mapping[str, torch.Tensor]:
        """The tensors that are needed, by their names there and still unread; of the model's dtype when they are."""
        self.checkpoint.fetch(self.needed)
        return _Selection(self.checkpoint, self.needed, self.dtype)


@dataclass
class Conversion:
    """A model, its image processor, and the report."""

    model: PreTrainedModel
    image_processor: Any
    report: ConversionReport


class _Selection(Mapping[str, torch.Tensor]):
    """Some tensors of a checkpoint, still unread."""

    def __init__(self, checkpoint: Checkpoint, names: list[str], dtype: torch.dtype) -> None:
        self._checkpoint, self._names, self._dtype = checkpoint, names, dtype

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._checkpoint[name].to(self._dtype)  # one by one: there is memory for one model

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _reason(layout: Layout, key: str) -> str | None:
    for pattern, reason in layout.left_behind:
        if key == pattern or (pattern.endswith("*") and key.startswith(pattern[:-1])):
            return reason
    return None


def _common_dtype(checkpoint: Checkpoint, names: list[str]) -> torch.dtype:
    dtypes = set()
    for name in names:
        dtype = checkpoint.tensors[name].dtype
        if dtype is None:
            raise ValueError(f"{name} is not a dense tensor of a dtype that torch knows.")
        if not dtype.is_floating_point or dtype.itemsize < 2:
            raise ValueError(f"{name} is of dtype {dtype_name(dtype)}: a quantised checkpoint cannot be converted.")
        dtypes.add(dtype)
    return reduce(torch.promote_types, dtypes)


def dtype_name(dtype: torch.dtype | None) -> str:
    """Return what a dtype is called in reports."""
    return str(dtype).removeprefix("torch.")


def read_dtype(dtype: Any) -> torch.dtype | None:
    """Return the dtype that is meant by `dtype`, a name or a `torch.dtype`; None for `"auto"` and None.

    Raises:
        `ValueError`: it is no floating dtype.
    """
    if dtype in (None, "auto"):
        return None
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype must be 'auto' or a floating dtype, got {dtype!r}.")
    return found


def plan_conversion(checkpoint: Checkpoint, dtype: Any = "auto", **values: Any) -> ConversionPlan:
    """Find out what a checkpoint is and what will become of it.

    Args:
        checkpoint: of [`open_checkpoint`].
        dtype: of the model. `"auto"`: the checkpoint's, or the one that holds the values of all that it has.
        values: see [`convert_checkpoint`].

    Raises:
        `ValueError`: an unknown or ambiguous layout, an unknown name in a part that is the encoder's, a part that is
            missing, a size that nothing tells, or a quantised tensor.
    """
    for name, value in values.items():
        if not isinstance(value, (bool, int, float, str)):
            raise ValueError(f"{name} must be a number or a name, got {value!r}.")
    model_type = checkpoint.config.get("model_type")
    if isinstance(model_type, str) and model_type in MODELS:
        raise ValueError(f"It is a {model_type!r} already: from_pretrained loads it.")
    layout, prefix = recognize(checkpoint)
    claims = tuple(prefix + claim for claim in layout.claims)
    table = prefixed(layout.table, there=prefix)
    claimed = [key for key in checkpoint if key.startswith(claims)]
    reasons = {key: _reason(layout, key.removeprefix(prefix)) for key in claimed}
    left_behind = {key: reason for key, reason in reasons.items() if reason is not None}
    names, unknown = map_keys([key for key in claimed if key not in left_behind], table)
    if unknown:
        near = get_close_matches(unknown[0], [name for parts in names.values() for name in parts], n=3)
        hint = f" The nearest known ones are {', '.join(near)}." if near else ""
        raise ValueError(f"{layout.name} has no tensor {unknown[0]!r}.{hint}")
    needed = [name.removesuffix(TRANSPOSED) for parts in names.values() for name in parts]
    common = _common_dtype(checkpoint, needed)
    empty = [name for name in needed if 0 in checkpoint.shapes[name]]
    if empty:
        raise ValueError(f"{empty[0]} is empty, of shape {checkpoint.shapes[empty[0]]}.")
    config = infer_config(layout, source_shapes(names, checkpoint.shapes), checkpoint, **values)
    tower = getattr(config, "clip_config", config)
    return ConversionPlan(
        checkpoint=checkpoint,
        layout=layout,
        prefix=prefix,
        table=table,
        names=names,
        unused=left_behind | {key: NOT_A_PART for key in checkpoint if key not in reasons},
        config=config,
        dtype=read_dtype(dtype) or common,
        assumed=_find_assumed(layout, checkpoint, tower, values),
    )


def _find_assumed(layout: Layout, checkpoint: Checkpoint, tower: Any, values: Mapping[str, Any]) -> dict[str, str]:
    told = set(values) | set(read_hints(layout, checkpoint, tower.hidden_size, "clip"))
    return {name: reason for name, reason in layout.assumed if name not in told}


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
    model_class = model_class or MODELS[plan.layout.model_type]
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


@contextmanager
def new_folder(target: Path, file: str | None = None) -> Iterator[Path]:
    """Give a temporary folder beside `target`, which takes its place when all went well and is removed when not.

    Args:
        file: name of the one file in it that takes the place of `target` instead.

    Raises:
        `FileExistsError`: there is something at `target` already.
    """
    if target.exists():
        raise FileExistsError(f"target: {target} is there already.")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield temporary
        temporary.chmod(0o755)
        (temporary if file is None else temporary / file).replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_converted(conversion: Conversion, folder: str | Path, **kwargs: Any) -> None:
    """Write a model, its image processor and the report to a folder that is there.

    Args:
        kwargs: for `save_pretrained`, such as `max_shard_size`.
    """
    conversion.model.save_pretrained(folder, **kwargs)
    conversion.image_processor.save_pretrained(folder)
    (Path(folder) / REPORT_NAME).write_text(json.dumps(conversion.report.to_dict(), indent=2) + "\n")
