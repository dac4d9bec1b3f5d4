"""Encodes pages in the mode gundam with two exported graphs and ONNX Runtime, without PyTorch's models.

    deepencoder export my-encoder view.onnx --mode base
    deepencoder export my-encoder tiles.onnx --mode small
    python examples/onnx_pages.py view.onnx tiles.onnx page.png other.png --output tokens.safetensors

The first graph encodes the global views, the second one the tiles. The file holds the vision tokens of each page under
its position: `0`, `1` and so on.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from safetensors.numpy import save_file

from deepencoder import DeepEncoderImageProcessor, stitch_vision_tokens


class OnnxPages:
    """The graphs for the global view and for the tiles of one model.

    Args:
        view_graph, tile_graph: files that `deepencoder export` wrote.
        processor: prepares the pages; the default is DeepSeek-OCR's.
    """

    def __init__(self, view_graph: Path, tile_graph: Path, processor: DeepEncoderImageProcessor | None = None) -> None:
        self.view, self.tile = self._open(view_graph), self._open(tile_graph)
        self.processor = processor or DeepEncoderImageProcessor(
            mode="gundam", size=self._size(self.view), tile_size=self._size(self.tile)["height"]
        )

    @staticmethod
    def _open(path: Path) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(str(path), providers=onnxruntime.get_available_providers())

    @staticmethod
    def _size(graph: onnxruntime.InferenceSession) -> dict[str, int]:
        side = int(graph.get_modelmeta().custom_metadata_map["image_size"])
        return {"height": side, "width": side}

    def encode(self, pages: list[Any], tile_batch: int = 8) -> list[np.ndarray]:
        """Return the vision tokens of each page, `(length, dim)`.

        Args:
            pages: paths or images.
            tile_batch: how many tiles to encode at a time, which bounds the memory.
        """
        inputs = self.processor(pages, return_tensors="np")
        outputs = ["projected_tokens", "image_newline", "view_separator"]
        view_tokens, newline, separator = self.view.run(outputs, {"pixel_values": inputs["pixel_values"]})
        tiles = inputs.get("pixel_values_local", np.empty((0,)))
        parts = [
            self.tile.run(outputs[:1], {"pixel_values": tiles[first : first + tile_batch]})[0]
            for first in range(0, len(tiles), tile_batch)
        ]
        tile_tokens = np.concatenate(parts) if parts else None
        return stitch_vision_tokens(view_tokens, tile_tokens, inputs["patches_grid"], newline, separator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("view_graph", type=Path)
    parser.add_argument("tile_graph", type=Path)
    parser.add_argument("pages", nargs="+")
    parser.add_argument("--output", type=Path, default=Path("tokens.safetensors"))
    options = parser.parse_args()
    tokens = OnnxPages(options.view_graph, options.tile_graph).encode(options.pages)
    save_file({str(index): page for index, page in enumerate(tokens)}, options.output)
    for name, page in zip(options.pages, tokens, strict=True):
        print(f"{name}: {len(page)} vision tokens")


if __name__ == "__main__":
    main()
