"""llama.cpp's `libmtmd`, by its internal functions that take pixels; `python benchmarks/peers/build_llama_cpp.py`.

Unusual: llama.cpp encodes the tiles of a page row by row of tiles, and writes the newlines and the separator among its
tokens. So its output is compared with our `vision_tokens`.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from .files import gguf_path

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / ".cache" / "llama.cpp" / "build" / "bin" / "libshim.so"
WIDTH = 1280
TOKEN_STRIDE = 64


def _load_library() -> Any:
    library = ctypes.CDLL(str(LIBRARY))
    library.shim_load.restype = ctypes.c_void_p
    library.shim_load.argtypes = [ctypes.c_char_p]
    number, pointer = ctypes.c_int, ctypes.c_void_p
    library.shim_encode.argtypes = [pointer, pointer, *[number] * 5, pointer, ctypes.c_long]
    return library


def rows_of_tiles(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Put the tiles of each row below each other: `(rows * columns, 3, t, t) -> (rows, columns * t, t, 3)`."""
    tile = tiles.shape[-1]
    return tiles.transpose(0, 2, 3, 1).reshape(-1, columns * tile, tile, 3)


def open_llama_cpp(folder: str, sides: Sequence[int], threads: int, gguf_type: str) -> Any:
    library = _load_library()
    model = library.shim_load(str(gguf_path(Path(folder), gguf_type)).encode())
    if not model:
        raise OSError("llama.cpp cannot load the file")

    def encode(images: np.ndarray, is_view: bool) -> np.ndarray:
        """Encode images `(images, height, width, 3)`, and return their tokens with a newline after each row."""
        images = np.ascontiguousarray(images)
        count, height, width, _ = images.shape
        side = width // TOKEN_STRIDE
        length = side * (height // TOKEN_STRIDE + 1) + is_view
        tokens = np.empty((count, length, WIDTH), np.float32)
        code = library.shim_encode(
            model, images.ctypes.data, count, height, width, is_view, threads, tokens.ctypes.data, tokens.size
        )
        if code:
            raise OSError("llama.cpp cannot encode the page")
        return tokens.reshape(-1, WIDTH)

    def run(pixel_values: np.ndarray, pixel_values_local: np.ndarray | None = None, patches_grid: Any = None) -> Any:
        parts = [encode(pixel_values.transpose(0, 2, 3, 1), True)]
        if pixel_values_local is not None:
            parts.insert(0, encode(rows_of_tiles(pixel_values_local, patches_grid[0][0]), False))
        return SimpleNamespace(vision_tokens=[np.concatenate(parts)])

    return run
