"""What reduced precision costs in reading and in finding pages, form by form.

Unusual: these forms are compared on a model whose tokens mean something, so the cost is given in characters and in
pages that are found, not as a similarity of vectors.
"""

import copy
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel, TorchAoConfig

from deepencoder import DeepEncoderImageProcessor, ExportedDeepEncoder, render_text

from .corpus import make_batch
from .evaluation import edit_distance, read_tokens
from .finding import PAGES, QUERIES, Vectors, compare, recall, vectors_in_batches
from .materials import Materials
from .pages import Page, PageStyle, draw_page
from .reader import ReadingObjective
from .targets import token_texts

__all__ = ["FORMS", "measure_precision"]

SIDE = 512
SIZES = (18, 24)
"""Sizes of print that are read, in pixels."""
QUERIED = ("degraded copy", "photograph")
"""Queries by which pages are searched, by late interaction."""
READ, SEARCHED = 10, 150
"""Pages that are read for each size of print, and pages that are searched."""

Encode = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""From normalised pixels `(n, 3, height, width)` to pooled vectors and tokens `(n, t, p)` in float32."""


def _with_torch(model: Any) -> Encode:
    def encode(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _, tokens, output = model.encode_view(pixels.to(model.dtype))
        return output.pooler_output.float(), tokens.flatten(1, 2).float()

    return encode


def _in_dtype(dtype: torch.dtype) -> Callable[[ReadingObjective, Path], Encode]:
    return lambda reader, folder: _with_torch(copy.deepcopy(reader.encoder).to(dtype))


def _quantized(name: str) -> Callable[[ReadingObjective, Path], Encode]:
    def load(reader: ReadingObjective, folder: Path) -> Encode:
        from torchao import quantization

        config = TorchAoConfig(getattr(quantization, name)())
        return _with_torch(AutoModel.from_pretrained(folder, quantization_config=config).eval())

    return load


def _exported(runtime: str, calibrate: bool = False) -> Callable[[ReadingObjective, Path], Encode]:
    """Export to a runtime for one size of page; with calibration, in 8 bits."""

    def load(reader: ReadingObjective, folder: Path) -> Encode:
        from deepencoder.conversion.export import export_folder

        temporary = tempfile.TemporaryDirectory()
        graphs = Path(temporary.name) / "graphs"
        processor = DeepEncoderImageProcessor.from_pretrained(folder)
        calibration = {SIDE: _calibration_pages()} if calibrate else None
        export_folder(reader.encoder, graphs, [SIDE], EXPORTS[runtime], processor, calibration)
        encode = _with_torch(ExportedDeepEncoder.from_pretrained(graphs, runtime=runtime))
        weakref.finalize(encode, temporary.cleanup)  # The runtime reads from the files as long as it is used.
        return encode

    return load


def _calibration_pages(count: int = 10) -> torch.Tensor:
    """Return printed pages, normalised: `(count, 3, SIDE, SIDE)`."""
    text = (Path(__file__).parents[1] / "LICENSE").read_text()
    pages = render_text(text, (SIDE, SIDE), font_size=20)[:count]
    pixels = np.stack([np.asarray(page.image) for page in pages])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


EXPORTS = {"onnxruntime": "onnx", "openvino": "openvino"}
"""The formats of the runtimes."""
FORMS: dict[str, Callable[[ReadingObjective, Path], Encode]] = {
    "float32": _in_dtype(torch.float32),
    "bfloat16": _in_dtype(torch.bfloat16),
    "float16": _in_dtype(torch.float16),
    "int8 weights (torchao)": _quantized("Int8WeightOnlyConfig"),
    "int8 weights and activations (torchao)": _quantized("Int8DynamicActivationInt8WeightConfig"),
    "ONNX Runtime, float32": _exported("onnxruntime"),
    "OpenVINO, float32": _exported("openvino"),
    "OpenVINO, int8 (NNCF)": _exported("openvino", calibrate=True),
}
"""The forms in which a model can run, and how each is made."""


def _read(reader: ReadingObjective, encode: Encode, pages: list[Page]) -> float:
    """Return the character accuracy of tokens."""
    errors = characters = 0
    for page in pages:
        _, tokens = encode(make_batch([page])["pixels"].float() / 127.5 - 1)
        read = read_tokens(reader.head(tokens[0]).float())
        for ours, theirs in zip(read, (text for row in token_texts(page) for text in row), strict=True):
            errors += edit_distance(ours, theirs)
            characters += len(theirs)
    return 1 - errors / characters


def _vectors(encode: Encode, images: list[Image.Image]) -> Vectors:
    def encode_images(some: list[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = np.stack([np.asarray(image) for image in some])
        return encode(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1)

    return vectors_in_batches(encode_images, images, batch_size=4)


@torch.no_grad()
def measure_precision(reader: ReadingObjective, folder: Path, materials_folder: str) -> list[dict[str, object]]:
    """Return for each form the accuracy of reading, and recall at 1 of degraded copies and photographs."""
    materials = Materials(materials_folder, "test")
    pages = {
        size: [
            draw_page(4 * 10**12 + number, materials, PageStyle(SIDE, SIDE, (size, size), cut=False, varied=False))
            for number in range(READ)
        ]
        for size in SIZES
    }
    images = {kind: [QUERIES[kind](number, materials) for number in range(SEARCHED)] for kind in (PAGES, *QUERIED)}
    rows: list[dict[str, object]] = []
    for name, make in FORMS.items():
        rows.append({"form": name, **_measure(reader, make(reader, folder), pages, images)})
        print(rows[-1], flush=True)
    return rows


def _measure(
    reader: ReadingObjective, encode: Encode, pages: dict[int, list[Page]], images: dict[str, list[Image.Image]]
) -> dict[str, float]:
    found = {f"reading, {size} px": _read(reader, encode, some) for size, some in pages.items()}
    vectors = {kind: _vectors(encode, some) for kind, some in images.items()}
    for kind in QUERIED:
        found[kind] = recall(compare(vectors[kind], vectors[PAGES])["late interaction"])[0]
    return {name: round(share, 4) for name, share in found.items()}
