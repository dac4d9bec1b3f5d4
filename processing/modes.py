"""DeepSeek-OCR's modes, and the one of DeepSeek-OCR-2: named sets of the image processor's ordinary fields.

Unusual: help texts read this table, so the module imports neither torch nor transformers.
"""

from typing import Any

__all__ = ["MODES", "mode_fields", "mode_for", "modes_of"]


def _mode(
    side: int, do_pad: bool, crop_to_patches: bool = False, tile_size: int = 640, **others: Any
) -> dict[str, Any]:
    return {
        "size": {"height": side, "width": side},
        "do_pad": do_pad,
        "crop_to_patches": crop_to_patches,
        "tile_size": tile_size,
        **others,
    }


MODES: dict[str, dict[str, Any]] = {
    "tiny": _mode(512, do_pad=False),
    "small": _mode(640, do_pad=False),
    "base": _mode(1024, do_pad=True),
    "large": _mode(1280, do_pad=True),
    "gundam": _mode(1024, do_pad=True, crop_to_patches=True),
    "v2": _mode(
        1024, do_pad=True, crop_to_patches=True, tile_size=768, min_patches=2, max_patches=6, token_scheme="queries"
    ),
}
"""The fields that each mode sets. What tokens are follows from the model, so that only DeepSeek-OCR-2's mode says so:
a processor of that model keeps its `token_scheme` in every mode."""


def modes_of(token_scheme: str) -> dict[str, dict[str, Any]]:
    """Return the modes that are meant for models with tokens of this kind; see `tiling.py::TOKEN_SCHEMES`."""
    return {name: fields for name, fields in MODES.items() if fields.get("token_scheme", "cells") == token_scheme}


def mode_for(config: Any) -> str:
    """Return the mode in which a model with this configuration gets pages if nothing else is said."""
    return "v2" if getattr(config, "token_scheme", "cells") == "queries" else "base"


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
