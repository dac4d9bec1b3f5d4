"""Position tables, resized to the grid of the input.

Unusual: the two-dimensional tables are resized with `antialias=True`, whose kernel differs from plain bicubic even
when it enlarges. Resized tables are cached, because the parameters they come from do not change in inference.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import nn

__all__ = ["PositionTableCache", "relative_positions", "resize_position_grid", "resize_relative_positions"]


def resize_position_grid(table: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize a table of absolute positions, bicubic and antialiased, in float32.

    Args:
        table (`torch.Tensor` of shape `(1, height, width, dim)`): positions of the grid that the model was trained on.
        size (`tuple[int, int]`): rows and columns of the result.

    Returns:
        `torch.Tensor` of shape `(1, *size, dim)`, in the table's dtype and on its device.
    """
    if tuple(table.shape[1:3]) == tuple(size):
        return table
    # MPS has no antialiased bicubic kernel.
    working_device = torch.device("cpu") if table.device.type == "mps" else table.device
    image = table.to(working_device, torch.float32).permute(0, 3, 1, 2)  # -> (1, dim, height, width)
    image = nn.functional.interpolate(image, size=size, mode="bicubic", align_corners=False, antialias=True)
    return image.permute(0, 2, 3, 1).to(table.device, table.dtype)


def resize_relative_positions(table: torch.Tensor, length: int) -> torch.Tensor:
    """Resize a table of relative positions along its first axis, linear with half-pixel centres, in float32.

    Args:
        table (`torch.Tensor` of shape `(2 * n - 1, dim)`): one row for each distance from `-(n - 1)` to `n - 1`.
        length (`int`): rows of the result.

    Returns:
        `torch.Tensor` of shape `(length, dim)`, in the table's dtype.
    """
    if table.shape[0] == length:
        return table
    rows = table.to(torch.float32).transpose(0, 1)[None]  # (rows, dim) -> (1, dim, rows)
    return nn.functional.interpolate(rows, size=length, mode="linear")[0].transpose(0, 1).to(table.dtype)


def relative_positions(table: torch.Tensor, size: int) -> torch.Tensor:
    """Look up the relative position of every query and key along one axis of `size` positions.

    Args:
        table (`torch.Tensor` of shape `(2 * n - 1, dim)`): one row for each distance; resized to `2 * size - 1` rows.
        size (`int`): positions along the axis.

    Returns:
        `torch.Tensor` of shape `(size, size, dim)`: entry `[i, k]` belongs to the distance `i - k`.
    """
    table = resize_relative_positions(table, 2 * size - 1)
    positions = torch.arange(size, device=table.device)
    return table[positions[:, None] - positions[None, :] + size - 1]


class _Entry(NamedTuple):
    parameter: torch.Tensor  # Not a weak reference, as torch.utils.swap_tensors refuses tensors that have one.
    state: tuple[int, int]
    source: torch.Tensor | None
    table: torch.Tensor


class PositionTableCache:
    """Caches tables that are computed from a position parameter, for inference.

    An entry is computed again when its parameter was replaced or written to, so loading or training weights needs no
    call here. (On other devices than the CPU, a write through `.data` goes unnoticed until a step trains the
    parameter.) Nothing is cached where gradients must reach the parameter or while a graph is traced. Threads may
    share a cache.

    Args:
        max_entries (`int`, defaults to 8): grids to keep. The least recently used one is dropped first.
    """

    def __init__(self, max_entries: int = 8) -> None:
        self.max_entries = max_entries
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def __deepcopy__(self, memo: dict[int, Any]) -> "PositionTableCache":
        return PositionTableCache(self.max_entries)

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return (PositionTableCache, (self.max_entries,))

    def get(
        self, parameter: torch.Tensor, size: Hashable, build: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Return `build(parameter)`, from the cache if a call with the same `size`, dtype and device stored it."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return build(parameter)
        if parameter.requires_grad and torch.is_grad_enabled():
            with self._lock:
                self._entries.clear()  # The parameter is about to change.
            return build(parameter)
        state = self._state(parameter)
        if state is None:
            return build(parameter)
        key = (size, parameter.dtype, parameter.device)
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
        if entry is not None and self._is_current(entry, parameter, state):
            return entry.table
        # Outside of inference mode, so that a later training step can save the table for its backward pass.
        with torch.inference_mode(False), torch.no_grad():
            table = build(parameter).detach()
            # Writes through `.data` do not change the version. On the CPU a comparison finds them at little cost;
            # on other devices it would wait for the device.
            source = parameter.detach().clone() if parameter.device.type == "cpu" else None
        with self._lock:
            self._entries[key] = _Entry(parameter, state, source, table)
            self._entries.move_to_end(key)
            while len(self._entries) > self.max_entries:
                self._entries.popitem(last=False)
        return table

    @staticmethod
    def _state(parameter: torch.Tensor) -> tuple[int, int] | None:
        """Return a state that changes when the parameter is written to, or None if nothing may be cached for it."""
        # Tensors created in inference mode do not count versions; subclasses may have no memory of their own.
        if type(parameter) not in (torch.Tensor, nn.Parameter) or parameter.is_meta or parameter.is_inference():
            return None
        try:
            return parameter.data_ptr(), parameter._version
        except RuntimeError:  # In a transform of torch.func.
            return None

    @staticmethod
    def _is_current(entry: _Entry, parameter: torch.Tensor, state: tuple[int, int]) -> bool:
        if entry.parameter is not parameter or entry.state != state:
            return False
        return entry.source is None or torch.equal(entry.source, parameter)
