"""DeepSeek-OCR's modes: named sets of the image processor's ordinary fields.

Unusual: help texts read this table, so the module imports neither torch nor transformers.
"""

from typing import Any

__all__ = ["MODES", "mode_fields"]


def _mode(side: int, do_pad: bool, crop_to_patches: bool = False) -> dict[str, Any]:
    return {
        "size": {"height": side, "width": side},
        "do_pad": do_pad,
        "crop_to_patches": crop_to_patches,
        "tile_size": 640,
    }


MODES: dict[str, dict[str, Any]] = {
    "tiny": _mode(512, do_pad=False),
    "small": _mode(640, do_pad=False),
    "base": _mode(1024, do_pad=True),
    "large": _mode(1280, do_pad=True),
    "gundam": _mode(1024, do_pad=True, crop_to_patches=True),
}
"""The fields that each mode sets."""


def mode_fields(mode: str | None) -> dict[str, Any]:
    """Return a copy of the fields that `mode` sets; None sets none.

    Raises:
        `ValueError`: `mode` is neither None nor one of [`MODES`].
    """
    if mode is None:
        return {}
    if not isinstance(mode, str) or mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(map(repr, MODES))}, got {mode!r}.")
    return {name: dict(value) if isinstance(value, dict) else value for name, value in MODES[mode].items()}
