"""What a checkpoint is and what it will become, determined before a tensor is read.

Unusual: nothing here reads or downloads tensor data. Names, shapes, dtypes and the files beside the tensors suffice to
recognise the layout, to infer the configuration and to refuse checkpoints that cannot be converted.
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
from .key_mapping import map_keys, source_shapes
from .key_tables import KeyRow, KeyTable, prefixed
from .layouts import LAYOUTS, Layout, recognize
from .report import NOT_A_PART
from .targets import TARGETS, Target

__all__ = ["ConversionPlan", "dtype_name", "plan_conversion", "read_dtype"]


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


def _find_assumed(layout: Layout, checkpoint: Checkpoint, config: Any, values: Mapping[str, Any]) -> dict[str, str]:
    if not layout.assumed:
        return {}
    tower = getattr(config, "clip_config", config)
    known = set(values) | set(layout.family.read_hints(checkpoint, tower.hidden_size, TowerPart.CLIP))
    return {name: reason for name, reason in layout.assumed if name not in known}


def plan_conversion(
    checkpoint: Checkpoint, dtype: Any = "auto", layouts: Sequence[Layout] = LAYOUTS, **values: Any
) -> ConversionPlan:
    """Determine what a checkpoint is and what it will become.

    Args:
        checkpoint: from [`open_checkpoint`].
        dtype: dtype of the model. `"auto"` keeps the checkpoint's, or the narrowest one that holds the values of all
            its tensors.
        layouts: layouts to recognise.
        values: see [`convert_checkpoint`].

    Raises:
        `ValueError`: the layout is unknown or ambiguous, the encoder has an unknown or a quantised tensor or lacks a
            part, or a size is unknown.
    """
    _check_values(values)
    _check_foreign(checkpoint)
    layout, prefix = recognize(checkpoint, layouts)
    table, target = prefixed(layout.table, there=prefix), TARGETS[layout.model_type]
    rows, unused = _map_encoder(checkpoint, layout, prefix, table)
    needed = _names_there(rows)
    common = _common_dtype(checkpoint, needed)
    empty = [name for name in needed if 0 in checkpoint.shapes[name]]
    if empty:
        raise ValueError(f"{empty[0]} is empty: it has shape {checkpoint.shapes[empty[0]]}.")
    config = target.infer_config(layout, source_shapes(rows, checkpoint.shapes), checkpoint, **values)
    return ConversionPlan(
        checkpoint=checkpoint,
        layout=layout,
        prefix=prefix,
        target=target,
        table=table,
        rows=rows,
        unused=unused,
        config=config,
        dtype=read_dtype(dtype) or common,
        assumed=_find_assumed(layout, checkpoint, config, values),
    )
