"""Renaming, joining and splitting tensors by the rows of a key table, in both directions."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import torch

from .key_tables import KeyRow, KeyTable

__all__ = [
    "convert_state_dict",
    "joined_shape",
    "map_keys",
    "revert_state_dict",
    "same_sides",
    "source_shapes",
    "split_tensor",
]


@lru_cache
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\*", "(?P<rest>.+)"))


def _fill(row: KeyRow, match: re.Match[str]) -> KeyRow:
    """Return a row with the number of a block and the rest of a name in place of `{i}` and `*`."""
    values = match.groupdict()

    def filled(name: str) -> str:
        return name.replace("{i}", values.get("i", "{i}")).replace("*", values.get("rest", "*"))

    return replace(row, here=filled(row.here), there=tuple(map(filled, row.there)))


def map_keys(keys: Iterable[str], table: KeyTable) -> tuple[dict[str, KeyRow], list[str]]:
    """Look up what tensors of other code are called in our model.

    Args:
        keys: their names in the other code.
        table (`KeyTable`): rows of both names.

    Returns:
        The rows that apply, with complete names, by the name in our model; and a list of the keys that no row matches.

    Raises:
        `ValueError`: two rows match the same key, or some of the tensors that are to be joined are missing.
    """
    keys = list(keys)
    found: dict[str, KeyRow] = {}
    unknown = []
    for key in keys:
        matches = [(row, match) for row in table for name in row.there if (match := _pattern(name).fullmatch(key))]
        if not matches:
            unknown.append(key)
            continue
        if len(matches) > 1:
            raise ValueError(f"{key!r} matches {len(matches)} rows: {[row for row, _ in matches]}.")
        row = _fill(*matches[0])
        found[row.here] = row
    missing = sorted({name for row in found.values() for name in row.there} - set(keys))
    if missing:
        raise ValueError(f"Parts of a joined tensor are missing: {', '.join(missing)}.")
    return found, unknown


def same_sides(one: Sequence[int], other: Sequence[int]) -> bool:
    """Tell whether two shapes are the same apart from axes of length 1."""
    return [side for side in one if side != 1] == [side for side in other if side != 1]


def _join(row: KeyRow, state_dict: Mapping[str, torch.Tensor]) -> torch.Tensor:
    parts = [state_dict[name].T.contiguous() if row.transposed else state_dict[name] for name in row.there]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def convert_state_dict(
    state_dict: Mapping[str, torch.Tensor], table: KeyTable, target: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Give tensors of other code our names and shapes.

    Args:
        state_dict: tensors by their names in the other code.
        table (`KeyTable`): rows of both names.
        target: tensors with the names and shapes of our model; they may be on the meta device. Shapes may differ from
            the other code's by axes of length 1.

    Returns:
        The tensors by our names, and a list of the names in the other code that `target` has no place for.

    Raises:
        `ValueError`: a tensor has another shape than its target.
    """
    rows, unused = map_keys(state_dict, table)
    converted = {}
    for name, row in rows.items():
        if name not in target:
            unused += row.there
            continue
        tensor = _join(row, state_dict)
        shape = target[name].shape
        if not same_sides(tensor.shape, shape):
            raise ValueError(
                f"{' + '.join(row.there)} has shape {tuple(tensor.shape)}, but {name} needs {tuple(shape)}."
            )
        converted[name] = tensor.reshape(shape)
    return converted, unused


def joined_shape(row: KeyRow, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape that a tensor gets in our model, apart from axes of length 1.

    Args:
        row: with complete names, from [`map_keys`].
        shapes: shapes by their names in the other code.
    """
    shape = shapes[row.there[0]]
    if row.transposed:
        shape = shape[::-1]
    return (shape[0] * len(row.there), *shape[1:]) if shape else shape


def source_shapes(rows: Mapping[str, KeyRow], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes that tensors get in our model, by their names there; see [`joined_shape`]."""
    return {name: joined_shape(row, shapes) for name, row in rows.items()}


def split_tensor(row: KeyRow, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Split one of our tensors into the tensors of the other code.

    Args:
        row: with complete names, from [`map_keys`].
        tensor: the tensor of our model.

    Yields:
        Names in the other code, and views of `tensor`.
    """
    for name, part in zip(row.there, tensor.chunk(len(row.there)), strict=True):
        yield name, part.T if row.transposed else part


def revert_state_dict(state_dict: Mapping[str, torch.Tensor], table: KeyTable) -> dict[str, torch.Tensor]:
    """Give our tensors the names of other code: the reverse of [`convert_state_dict`], apart from axes of length 1.

    Raises:
        `ValueError`: no row, or more than one, matches a tensor.
    """
    reverted = {}
    for name, tensor in state_dict.items():
        matches = [(row, match) for row in table if (match := _pattern(row.here).fullmatch(name))]
        if len(matches) != 1:
            raise ValueError(f"{name!r} matches {len(matches)} rows of the table.")
        for source, part in split_tensor(_fill(*matches[0]), tensor):
            reverted[source] = part.contiguous()
    return reverted
