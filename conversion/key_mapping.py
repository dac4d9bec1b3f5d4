"""Renaming, joining and splitting tensors by the rows of a key table, in both directions."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import torch

from .key_tables import KeyRow, KeyTable

__all__ = [
    "check_shape",
    "convert_state_dict",
    "joined_shape",
    "map_keys",
    "names_there",
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


def check_shape(row: KeyRow, found: Sequence[int], wanted: Sequence[int]) -> None:
    """Check that a tensor has the shape that it has in our model, apart from axes of length 1.

    Args:
        row: with complete names, from [`map_keys`].
        found: shape of the other code's tensors, joined.
        wanted: shape in our model.

    Raises:
        `ValueError`: it has another shape.
    """
    if not same_sides(found, wanted):
        raise ValueError(f"{' + '.join(row.there)} has shape {tuple(found)}, but {row.here} needs {tuple(wanted)}.")


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
        check_shape(row, tensor.shape, target[name].shape)
        converted[name] = tensor.reshape(target[name].shape)
    return converted, unused


def joined_shape(row: KeyRow, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape that a tensor gets in our model, apart from axes of length 1.

    Args:
        row: with complete names, from [`map_keys`].
        shapes: shapes by their names in the other code.

    Raises:
        `ValueError`: tensors that are to be joined have different shapes.
    """
    shape = shapes[row.there[0]]
    for name in row.there[1:]:
        if shapes[name] != shape:
            raise ValueError(f"{row.there[0]} and {name} must have the same shape, not {shape} and {shapes[name]}.")
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


def _rows_of(name: str, table: KeyTable) -> list[KeyRow]:
    """Return the rows of one of our tensors, with complete names."""
    return [_fill(row, match) for row in table if (match := _pattern(row.here).fullmatch(name))]


def names_there(name: str, table: KeyTable) -> list[str]:
    """Return what one of our tensors is called in the other code: no name if it has no such tensor."""
    return [there for row in _rows_of(name, table) for there in row.there]


def revert_state_dict(state_dict: Mapping[str, torch.Tensor], table: KeyTable) -> dict[str, torch.Tensor]:
    """Give our tensors the names of other code: the reverse of [`convert_state_dict`], apart from axes of length 1.

    Raises:
        `ValueError`: no row, or more than one, matches a tensor.
    """
    reverted = {}
    for name, tensor in state_dict.items():
        rows = _rows_of(name, table)
        if len(rows) != 1:
            raise ValueError(f"{name!r} matches {len(rows)} rows of the table.")
        for source, part in split_tensor(rows[0], tensor):
            reverted[source] = part.contiguous()
    return reverted
