"""What a checkpoint is and what it will become, determined before a tensor is read.

Unusual: nothing here reads or downloads tensor data. Names, shapes, dtypes and the files beside the tensors suffice to
recognise the layout, to infer the configuration and the image processor, and to refuse checkpoints that cannot be
converted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import reduce
from typing import Any

import torch

from ..modeling.catalog import MODELS
from .checkpoint import Checkpoint
from .config_hints import TowerPart
from .infer_image_processor import infer_image_processor
from .key_mapping import check_shape, map_keys, names_there, source_shapes
from .key_tables import KeyRow, KeyTable, prefixed
from .layouts import LAYOUTS, Layout, recognize
from .report import NOT_A_PART
from .targets import TARGETS, Target

__all__ = ["ConversionPlan", "dtype_name", "plan_conversion", "read_dtype"]

LIKENESS = 0.85  # From this ratio of difflib, a name counts as another spelling of one that is missing.
LONGEST_SPELLING = 100  # Characters: longer names are not compared, as the time grows with their square.


class _Selection(Mapping[str, torch.Tensor]):
    """Some tensors of a checkpoint, each of which is read when it is asked for."""

    def __init__(self, checkpoint: Checkpoint, names: list[str], dtype: torch.dtype) -> None:
        self._checkpoint, self._names, self._dtype = checkpoint, names, dtype

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._checkpoint[name].to(self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass
class ConversionPlan:
    """What a checkpoint is and what it will become; no tensor has been read yet.

    Args:
        checkpoint: the checkpoint.
        layout ([`Layout`]): its layout.
        prefix: the prefix that all names of the layout have in this checkpoint.
        target ([`Target`]): how its model is made and verified.
        table: the layout's rows, with that prefix.
        rows: the rows that apply, with complete names, by the name in our model.
        unused: names in the checkpoint that the model has no use for, with the reason.
        config: configuration of the model.
        absent: sorted names of the model's tensors that the checkpoint lacks. They are newly initialised.
        image_processor: the image processor that belongs to the checkpoint.
        dtype: dtype of the model.
        assumed: fields of the configuration that are right for most checkpoints of the layout but not for all, with
            the reason.
    """

    checkpoint: Checkpoint
    layout: Layout
    prefix: str
    target: Target
    table: KeyTable
    rows: dict[str, KeyRow]
    unused: dict[str, str]
    config: Any
    absent: list[str]
    image_processor: Any
    dtype: torch.dtype
    assumed: dict[str, str]

    @property
    def needed(self) -> list[str]:
        """Names in the checkpoint of the tensors that the model is made from."""
        return _names_there(self.rows)

    def state_dict(self) -> Mapping[str, torch.Tensor]:
        """Return the tensors that are needed, by their names in the checkpoint, in the model's dtype.

        They are downloaded now if necessary, but each of them is read when it is asked for: there may be memory for
        one model only.
        """
        self.checkpoint.fetch(self.needed)
        return _Selection(self.checkpoint, self.needed, self.dtype)


def _names_there(rows: Mapping[str, KeyRow]) -> list[str]:
    return [name for row in rows.values() for name in row.there]


def dtype_name(dtype: torch.dtype | None) -> str:
    """Return the name of a dtype in reports."""
    return str(dtype).removeprefix("torch.")


def read_dtype(dtype: Any) -> torch.dtype | None:
    """Return the dtype that a name or a `torch.dtype` stands for; None for `"auto"` and None.

    Raises:
        `ValueError`: it is not a floating dtype.
    """
    if dtype in (None, "auto"):
        return None
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype must be 'auto' or a floating dtype, got {dtype!r}.")
    return found


def _common_dtype(checkpoint: Checkpoint, names: list[str]) -> torch.dtype:
    """Return the narrowest dtype that holds the values of all of these tensors."""
    dtypes = set()
    for name in names:
        dtype = checkpoint.tensors[name].dtype
        if dtype is None:
            raise ValueError(f"{name} is not a dense tensor of a dtype that torch knows.")
        if not dtype.is_floating_point or dtype.itemsize < 2:
            raise ValueError(f"{name} has dtype {dtype_name(dtype)}: quantised checkpoints cannot be converted.")
        dtypes.add(dtype)
    return reduce(torch.promote_types, dtypes)


def _check_values(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if not isinstance(value, (bool, int, float, str)):
            raise ValueError(f"{name} must be a number or a name, got {value!r}.")


def _check_foreign(checkpoint: Checkpoint) -> None:
    model_type = checkpoint.config.get("model_type")
    if isinstance(model_type, str) and model_type in MODELS:
        raise ValueError(f"It is a model of this package ({model_type!r}) already: from_pretrained loads it.")


def _reason_left_behind(layout: Layout, key: str) -> str | None:
    for pattern, reason in layout.left_behind:
        if key == pattern or (pattern.endswith("*") and key.startswith(pattern[:-1])):
            return reason
    return None


def _map_encoder(
    checkpoint: Checkpoint, layout: Layout, prefix: str, table: KeyTable
) -> tuple[dict[str, KeyRow], dict[str, str]]:
    """Assign each tensor of a checkpoint to the model, or to the unused ones with the reason."""
    claims = tuple(prefix + claim for claim in layout.claims)
    unused, mapped = {}, []
    for key in checkpoint:
        reason = _reason_left_behind(layout, key.removeprefix(prefix)) if key.startswith(claims) else NOT_A_PART
        if reason is None:
            mapped.append(key)
        else:
            unused[key] = reason
    rows, unknown = map_keys(mapped, table)
    if unknown:
        near = get_close_matches(unknown[0], _names_there(rows), n=3)
        hint = f" The nearest known ones are {', '.join(near)}." if near else ""
        raise ValueError(f"{layout.name} has no tensor {unknown[0]!r}.{hint}")
    return rows, unused


def _compare_with_model(layout: Layout, rows: Mapping[str, KeyRow], checkpoint: Checkpoint, config: Any) -> list[str]:
    """Check that each tensor has its place in the model, and return the names of those that the checkpoint lacks."""
    with torch.device("meta"):
        model = MODELS[layout.model_type].model_class(config).state_dict()
    for name, shape in source_shapes(rows, checkpoint.shapes).items():
        if name not in model:
            raise ValueError(f"{layout.name}: the configuration has no place for {' + '.join(rows[name].there)}.")
        check_shape(rows[name], shape, model[name].shape)
    absent = sorted(set(model) - set(rows))
    required = [name for name in absent if not name.startswith(TARGETS[layout.model_type].optional_parts)]
    if required:
        raise ValueError(
            f"{layout.name}: the checkpoint is incomplete: it has no tensors for {', '.join(required[:3])}."
        )
    return absent


def _check_spelling(layout: Layout, prefix: str, absent: Sequence[str], unused: Mapping[str, str]) -> None:
    """Check that no tensor that would be newly initialised is in the checkpoint under a slightly different name.

    Raises:
        `ValueError`: there is one, such as `view_separator` for `view_seperator`.
    """
    others = [name for name, reason in unused.items() if reason == NOT_A_PART and len(name) <= LONGEST_SPELLING]
    for name in (there for here in absent for there in names_there(here, layout.table)):
        # The prefix may be another one, too, so only the last parts of the names are compared.
        ends = {".".join(other.split(".")[-name.count(".") - 1 :]): other for other in others}
        near = get_close_matches(name, ends, n=1, cutoff=LIKENESS)
        if near:
            raise ValueError(
                f"{layout.name}: the checkpoint has no tensor {prefix + name!r}, but one named {ends[near[0]]!r}. "
                "If they are the same, rename it; otherwise remove it."
            )


def _find_assumed(layout: Layout, checkpoint: Checkpoint, config: Any, values: Mapping[str, Any]) -> dict[str, str]:
    if not layout.assumed:
        return {}
    tower = getattr(config, "clip_config", config)
    known = set(values) | set(layout.family.read_hints(checkpoint, tower.hidden_size, TowerPart.CLIP))
    return {name: reason for name, reason in layout.assumed if name not in known}


def plan_conversion(
    checkpoint: Checkpoint,
    dtype: Any = "auto",
    layouts: Sequence[Layout] = LAYOUTS,
    model_type: str | None = None,
    **values: Any,
) -> ConversionPlan:
    """Determine what a checkpoint is and what it will become.

    Args:
        checkpoint: from [`open_checkpoint`].
        dtype: dtype of the model. `"auto"` keeps the checkpoint's, or the narrowest one that holds the values of all
            its tensors.
        layouts: layouts to recognise.
        model_type: `model_type` of the model that is wanted, if only a part of the checkpoint may be; see
            [`recognize`].
        values: see [`convert_checkpoint`].

    Raises:
        `ValueError`: the layout is unknown or ambiguous, the encoder has an unknown or a quantised tensor, one of a
            wrong shape, lacks a part or has it under a misspelt name, a size is unknown, or the image processor's file
            is damaged.
    """
    _check_values(values)
    _check_foreign(checkpoint)
    layout, prefix = recognize(checkpoint, layouts, model_type)
    table, target = prefixed(layout.table, there=prefix), TARGETS[layout.model_type]
    rows, unused = _map_encoder(checkpoint, layout, prefix, table)
    needed = _names_there(rows)
    common = _common_dtype(checkpoint, needed)
    empty = [name for name in needed if 0 in checkpoint.shapes[name]]
    if empty:
        raise ValueError(f"{empty[0]} is empty: it has shape {checkpoint.shapes[empty[0]]}.")
    config = target.infer_config(layout, source_shapes(rows, checkpoint.shapes), checkpoint, **values)
    absent = _compare_with_model(layout, rows, checkpoint, config)
    _check_spelling(layout, prefix, absent, unused)
    return ConversionPlan(
        checkpoint=checkpoint,
        layout=layout,
        prefix=prefix,
        target=target,
        table=table,
        rows=rows,
        unused=unused,
        config=config,
        absent=absent,
        image_processor=infer_image_processor(layout, checkpoint, config),
        dtype=read_dtype(dtype) or common,
        assumed=_find_assumed(layout, checkpoint, config, values),
    )
