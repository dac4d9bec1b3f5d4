"""What a checkpoint is and what will become of it, before a tensor is read."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import reduce
from typing import Any

import torch

from ..modeling.catalog import MODELS
from .checkpoint import Checkpoint
from .infer_config import infer_config, read_hints
from .key_mapping import map_keys, source_shapes
from .key_tables import TRANSPOSED, prefixed
from .layouts import Layout, recognize
from .report import NOT_A_PART

__all__ = ["ConversionPlan", "dtype_name", "plan_conversion", "read_dtype"]


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
