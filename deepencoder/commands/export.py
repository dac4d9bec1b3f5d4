"""`deepencoder export`: a model as one graph for other runtimes, or as a folder for transformers.js."""

import os
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..processing.modes import MODES
from .errors import UserError, reported_as
from .files import check_target, files_of_model
from .models import Source, load_any_model, load_processor
from .options import Dtype, RevisionOption, TrustOption
from .terminal import make_console

__all__ = ["export"]

SIDES = {name: fields["size"]["height"] for name, fields in MODES.items() if not fields["crop_to_patches"]}
ViewMode = Enum("ViewMode", {name: name for name in SIDES}, type=str)  # type: ignore[misc]


class Layout(str, Enum):
    """What is written: one graph, or a folder that a library loads."""

    graph = "graph"
    transformers_js = "transformers.js"


def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder or Hub id of a model of this package, or of an original.")
    ],
    output: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="File to write: FILE.onnx or FILE.pt2; for transformers.js a new folder."),
    ],
    layout: Annotated[
        Layout, typer.Option(help="One graph in FILE, or in the folder FILE what transformers.js loads.")
    ] = Layout.graph,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="[onnx|torch]",
            help="Format of the graph. Default: the one that the suffix of FILE stands for.",
            show_default=False,
        ),
    ] = None,
    mode: Annotated[
        ViewMode | None,
        typer.Option(
            help="Resolution mode of the pages. Default: base. For gundam export two graphs: base for the global view "
            "and small for the tiles.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Side of the pages in pixels, instead of a mode.", show_default=False)
    ] = None,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Export a model to ONNX, with torch.export or for transformers.js, for pages of one size and batches of any size.

    The graph is compared with the model, and is written only if the two agree. Its metadata describe its inputs and
    outputs, and where the tokens lie. The weights of FILE.onnx lie beside it, in FILE.onnx.data.
    """
    if mode is not None and size is not None:
        raise UserError("export takes --mode or --size, not both.")
    source = Source(model, trust_remote_code, revision)
    if layout is Layout.transformers_js:
        _check_folder(output, format)
        loaded = load_any_model(source, Dtype.float32)
        chosen_mode, side = _choose_view(loaded.config, mode, size)
        facts = _export_folder(source, loaded, output, chosen_mode, side)
    else:
        chosen = _choose_format(output, format)
        inputs = files_of_model(model)
        for path in (output, Path(f"{output}.data")):  # The second holds the weights of an ONNX graph.
            check_target(path, "FILE", (path.suffix.lower(),), inputs)
        loaded = load_any_model(source, Dtype.float32)
        _, side = _choose_view(loaded.config, mode, size)
        facts = _export_graph(source, loaded, output, chosen, side)
    difference = facts["max_difference"]
    checked = "not compared: onnxruntime is missing" if difference is None else f"differs by at most {difference:.1e}"
    make_console().print(
        f"{output}: {loaded.config.model_type}, {side} x {side} pixels, any batch; {checked}", soft_wrap=True
    )


def _export_graph(source: Source, model: Any, output: Path, format: str, side: int) -> dict[str, Any]:
    from ..conversion.export import export_model

    with reported_as(f"{source.model!r} cannot be exported", ImportError, OSError, ValueError):
        return export_model(model, output, side, format)


def _export_folder(source: Source, model: Any, output: Path, mode: str | None, side: int) -> dict[str, Any]:
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


def _choose_view(config: Any, mode: ViewMode | None, size: int | None) -> tuple[str | None, int]:
    """Return the mode of the pages, if one applies, and their side in pixels.

    A size stands for itself. A CLIP or ViT tower has no modes, but a size of its own.
    """
    from .. import ClipVisionEncoderConfig

    if size is not None:
        return None, size
    if config.model_type != ClipVisionEncoderConfig.model_type:
        name = "base" if mode is None else mode.value
        return name, SIDES[name]
    if mode is not None:
        raise UserError("--mode does not apply to a CLIP or ViT tower, which has a size of its own; see --size.")
    return None, int(config.image_size)
