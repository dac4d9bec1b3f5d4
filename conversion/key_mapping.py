"""Renaming tensors by the rows of a key table, in both directions."""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

import torch

from .key_tables import TRANSPOSED, KeyTable

__all__ = ["convert_state_dict", "map_keys", "revert_state_dict", "source_shapes"]


@lru_cache
def _pattern(name: str) -> re.Pattern[str]:
    escaped = re.escape(name.removesuffix(TRANSPOSED))
    return re.compile(escaped.replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\*", "(?P<rest>.+)"))


def _fill(name: str, match: re.Match[str]) -> str:
    for field, value in match.groupdict().items():
        name = name.replace({"i": "{i}", "rest": "*"}[field], value)
    return name


def map_keys(keys: Iterable[str], table: KeyTable) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Find out what keys of other code are called here.

    Args:
        keys: names there.
        table (`KeyTable`): its rows.

    Returns:
        a dict from each name here to the names there that make it up, and the list of keys that no row knows.

    Raises:
        `ValueError`: a key that two rows know, or a tensor of which only some parts are there.
    """
    keys = list(keys)
    found: dict[str, tuple[str, ...]] = {}
    unknown = []
    for key in keys:
        matches = [(row, match) for row in table for name in row[1:] if (match := _pattern(name).fullmatch(key))]
        if not matches:
            unknown.append(key)
            continue
        if len(matches) > 1:
            raise ValueError(f"{key!r} matches {len(matches)} rows: {[row for row, _ in matches]}.")
        row, match = matches[0]
        found[_fill(row[0], match)] = tuple(_fill(name, match) for name in row[1:])
    missing = sorted({name.removesuffix(TRANSPOSED) for names in found.values() for name in names} - set(keys))
    if missing:
        raise ValueError(f"Parts of a joined tensor are missing: {', '.join(missing)}.")
    return found, unknown


def convert_state_dict(
    state_dict: Mapping[str, torch.Tensor], table: KeyTable, target: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Give the tensors of other code our names and shapes.

    Args:
        state_dict: tensors by their names there.
        table (`KeyTable`): what they are called here.
        target: tensors, on the meta device if you like, with the names and shapes wanted. Axes of length 1 may differ.

    Returns:
        the tensors by their names here, and the list of names there that nothing was made of.

    Raises:
        `ValueError`: a tensor of another shape than wanted.
    """
    names, unused = map_keys(state_dict, table)
    converted = {}
    for name, sources in names.items():
        if name not in target:
            unused += [source.removesuffix(TRANSPOSED) for source in sources]
            continue
        parts = [_read(state_dict, source) for source in sources]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        shape = target[name].shape
        if [side for side in tensor.shape if side != 1] != [side for side in shape if side != 1]:
            raise ValueError(
                f"{' + '.join(sources)} has shape {tuple(tensor.shape)}, but {name} needs {tuple(shape)}."
            )
        converted[name] = tensor.reshape(shape)
    return converted, unused


def _read(state_dict: Mapping[str, torch.Tensor], source: str) -> torch.Tensor:
    tensor = state_dict[source.removesuffix(TRANSPOSED)]
    return tensor.T.contiguous() if source.endswith(TRANSPOSED) else tensor


def source_shapes(
    names: Mapping[str, tuple[str, ...]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes that tensors will have here, from [`map_keys`]' names and the shapes there."""
    found = {}
    for name, sources in names.items():
        first = shapes[sources[0].removesuffix(TRANSPOSED)]
        if sources[0].endswith(TRANSPOSED):
            first = first[::-1]
        found[name] = (first[0] * len(sources), *first[1:]) if first else first
    return found


def revert_state_dict(state_dict: Mapping[str, torch.Tensor], table: KeyTable) -> dict[str, torch.Tensor]:
    """Give our tensors the names of other code: [`convert_state_dict`] backwards, but for axes of length 1.

    Raises:
        `ValueError`: a tensor that no row knows, or that two rows know.
    """
    reverted = {}
    for name, tensor in state_dict.items():
        matches = [(row, match) for row in table if (match := _pattern(row[0]).fullmatch(name))]
        if len(matches) != 1:
            raise ValueError(f"{name!r} matches {len(matches)} rows of the table.")
        row, match = matches[0]
        for source, part in zip(row[1:], tensor.chunk(len(row) - 1), strict=True):
            whole = part.T if source.endswith(TRANSPOSED) else part
            reverted[_fill(source, match).removesuffix(TRANSPOSED)] = whole.contiguous()
    return reverted
