"""`deepencoder export`: a model as one graph for other runtimes, or as a folder for a runtime or transformers.js."""

import json
import os
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..processing.modes import MODES
from .errors import UserError, reported_as
from .files import check_target, files_of_model
from .models import Source, load_any_model, load_processor
from .options import Dtype, Mode, RevisionOption, TrustOption
from .terminal import make_console

if TYPE_CHECKING:
    import torch

__all__ = ["export"]

SIDES = {name: fields["size"]["height"] for name, fields in MODES.items() if not fields["crop_to_patches"]}
FOLDER_FORMATS = ("onnx", "openvino")
COMPRESSIONS = ("int8",)


class Layout(str, Enum):
    """What is written: one graph, or a folder of several, or a folder that transformers.js loads."""

    graph = "graph"
    transformers_js = "transformers.js"


def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder or Hub id of a model of this package, or of an original.")
    ],
    output: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="File to write: FILE.onnx, FILE.xml or FILE.pt2; or a folder, with --format onnx or openvino, which "
            "encode and extract take as a model; for transformers.js a new folder.",
        ),
    ],
    layout: Annotated[
        Layout, typer.Option(help="One graph in FILE, or in the folder FILE what transformers.js loads.")
    ] = Layout.graph,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="[onnx|openvino|torch]",
            help="Format of the graph. Default: the one of the suffix of FILE. A folder needs it.",
            show_default=False,
        ),
    ] = None,
    mode: Annotated[
        Mode | None,
        typer.Option(
            help="Resolution mode of the pages. Default: base. gundam needs a folder, which then holds two graphs: "
            "for global views and for tiles.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Side of the pages in pixels, instead of a mode.", show_default=False)
    ] = None,
    compress: Annotated[
        str | None,
        typer.Option(
            metavar="[int8]",
            help="Quantise OpenVINO graphs to 8 bits with the pages of --calibration.",
            show_default=False,
        ),
    ] = None,
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            metavar="IMAGE",
            help="A page like those that will be encoded, for --compress. Repeat it: some dozens are good. A fifth "
            "of them is held back to measure the accuracy.",
            show_default=False,
        ),
    ] = None,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Export a model to ONNX or OpenVINO, with torch.export, or for transformers.js. Graphs take any batch size.

    The graph is compared with the model, and is written only if the two agree. Its metadata describe its inputs and
    outputs, and where the tokens lie. The weights of FILE.onnx lie beside it, in FILE.onnx.data, and those of FILE.xml
    in FILE.bin.

    A folder holds a graph for each size of pages, and what encode and extract need to run it with --model FOLDER. More
    sizes are added by the same command.
    """
    if mode is not None and size is not None:
        raise UserError("export takes --mode or --size, not both.")
    source = Source(model, trust_remote_code, revision)
    pages = _check_compression(compress, calibration)
    if layout is Layout.transformers_js:
        if pages:
            raise UserError("--compress is for OpenVINO graphs, not for --layout transformers.js.")
        _check_folder(output, format)
        loaded = load_any_model(source, Dtype.float32)
        chosen_mode, side = _choose_view(loaded.config, mode, size)
        results = {side: _export_for_javascript(source, loaded, output, chosen_mode, side)}
    elif format in FOLDER_FORMATS and output.suffix.lower() not in _suffixes():
        loaded = load_any_model(source, Dtype.float32)
        results = _export_folder(source, loaded, output, format, mode, size, pages)
    else:
        chosen = _choose_format(output, format)
        for path in (output, _weights_path(output, chosen)):
            check_target(path, "FILE", (path.suffix.lower(),), files_of_model(model))
        loaded = load_any_model(source, Dtype.float32)
        chosen_mode, side = _choose_view(loaded.config, mode, size)
        tensors = _prepare_pages(source, pages, chosen_mode, [side])
        results = {side: _export_graph(source, loaded, output, chosen, side, tensors.get(side))}
    for side, facts in results.items():
        make_console().print(
            f"{output}: {loaded.config.model_type}, {side} x {side} pixels, any batch; {_describe(facts)}",
            soft_wrap=True,
        )


def _describe(facts: dict[str, Any]) -> str:
    """Return how close a graph is to the model."""
    if "compression" in facts:
        found = json.loads(facts["compression"])
        return (
            f"{found['method']}: cosine similarity to the model's tokens {found['mean_cosine']:.4f} on average, "
            f"{found['worst_cosine']:.4f} at worst, on {found['compared_pages']} pages"
        )
    difference = facts["max_difference"]
    return "not compared: onnxruntime is missing" if difference is None else f"differs by at most {difference:.1e}"


def _check_compression(compress: str | None, calibration: list[str] | None) -> list[str]:
    """Return the pages for a compression, which are none without one."""
    if compress is not None and compress not in COMPRESSIONS:
        raise UserError(f"--compress must be {' or '.join(COMPRESSIONS)}, got {compress!r}.")
    if (compress is None) != (not calibration):
        raise UserError("--compress int8 and --calibration IMAGE need each other.")
    if calibration is not None and len(calibration) < 2:
        raise UserError("--calibration must be given for two or more pages.")
    return calibration or []


def _prepare_pages(source: Source, pages: list[str], mode: str | None, sides: list[int]) -> "dict[int, torch.Tensor]":
    """Return the views and tiles of calibration pages, by the sides that graphs are exported for."""
    if not pages:
        return {}
    fields = {"mode": mode} if mode is not None else {"size": dict.fromkeys(("height", "width"), sides[0])}
    with reported_as("--calibration cannot be used", OSError, ValueError):
        inputs = load_processor(source)(pages, return_tensors="pt", **fields)
    found = {inputs[name].shape[-1]: inputs[name] for name in inputs if name.startswith("pixel_values")}
    if missing := [side for side in sides if side not in found]:
        raise UserError(f"--calibration gives no tiles of {missing[0]} pixels: the pages are too small.")
    return found


def _export_folder(
    source: Source, model: Any, output: Path, format: str, mode: Mode | None, size: int | None, pages: list[str]
) -> dict[int, dict[str, Any]]:
    from ..conversion.export import export_folder

    name = mode.value if mode is not None else "base"
    fields = MODES[name]
    sides = [fields["size"]["height"]] + [fields["tile_size"]] * bool(fields["crop_to_patches"])
    chosen_mode, sides = (name, sides) if size is None else (None, [size])
    processor = load_processor(source)
    tensors = _prepare_pages(source, pages, chosen_mode, sides)
    with reported_as(f"{source.model!r} cannot be exported", ImportError, OSError, ValueError):
        return export_folder(model, output, sides, format, processor, tensors or None, release=True)


def _suffixes() -> list[str]:
    from ..conversion.export import FORMATS

    return [item.suffix for item in FORMATS.values()]


def _weights_path(output: Path, format: str) -> Path:
    from ..conversion.export import FORMATS

    return FORMATS[format].weights_path(output) or output


def _export_graph(
    source: Source, model: Any, output: Path, format: str, side: int, calibration: "torch.Tensor | None"
) -> dict[str, Any]:
    from ..conversion.export import export_model

    with reported_as(f"{source.model!r} cannot be exported", ImportError, OSError, ValueError):
        return export_model(model, output, side, format, calibration=calibration, release=True)


def _export_for_javascript(source: Source, model: Any, output: Path, mode: str | None, side: int) -> dict[str, Any]:
    from .. import DeepEncoderImageProcessor
    from ..conversion.export import export_for_transformers_js

    processor = DeepEncoderImageProcessor.from_dict(load_processor(source).to_dict(), mode=mode)
    with reported_as(f"{source.model!r} cannot be exported", ImportError, OSError, ValueError):
        return export_for_transformers_js(model, output, processor, side)


def _check_folder(output: Path, format: str | None) -> None:
    if format not in (None, "onnx"):
        raise UserError(f"--format must be onnx for --layout transformers.js, got {format!r}.")
    if os.path.lexists(output):
        raise UserError(f"FILE: {output} exists already.")


def _choose_format(output: Path, format: str | None) -> str:
    """Return the format that the suffix of `output` stands for; the suffix must be that of `format`, where given."""
    from ..conversion.export import FORMATS

    if format is not None and format not in FORMATS:
        raise UserError(f"--format must be {' or '.join(FORMATS)}, got {format!r}.")
    suffixes = {item.suffix: name for name, item in FORMATS.items() if format in (None, name)}
    check_target(output, "FILE", tuple(suffixes))
    return suffixes[output.suffix.lower()]


def _choose_view(config: Any, mode: Mode | None, size: int | None) -> tuple[str | None, int]:
    """Return the mode of the pages, if one applies, and their side in pixels.

    A size stands for itself. A CLIP or ViT tower has no modes, but a size of its own.
    """
    from .. import ClipVisionEncoderConfig

    if size is not None:
        return None, size
    if config.model_type != ClipVisionEncoderConfig.model_type:
        name = "base" if mode is None else mode.value
        if name not in SIDES:
            raise UserError(f"--mode {name} needs two graphs: name a folder, and --format onnx or openvino.")
        return name, SIDES[name]
    if mode is not None:
        raise UserError("--mode does not apply to a CLIP or ViT tower, which has a size of its own; see --size.")
    return None, int(config.image_size)
