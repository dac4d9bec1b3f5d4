"""`deepencoder export`: a model as one graph for other runtimes."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..processing.modes import MODES
from .errors import UserError, reported_as
from .files import check_target, files_of_model
from .models import Source, load_any_model
from .options import Dtype, RevisionOption, TrustOption
from .terminal import make_console

__all__ = ["export"]

SIDES = {name: fields["size"]["height"] for name, fields in MODES.items() if not fields["crop_to_patches"]}
ViewMode = Enum("ViewMode", {name: name for name in SIDES}, type=str)  # type: ignore[misc]


def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder or Hub id of a model of this package, or of an original.")
    ],
    output: Annotated[Path, typer.Argument(metavar="FILE", help="File to write: FILE.onnx or FILE.pt2.")],
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
    """Export a model to ONNX or with torch.export, for pages of one size and batches of any size.

    The graph is compared with the model, and is written only if the two agree. Its metadata describe its inputs and
    outputs. The weights of FILE.onnx lie beside it, in FILE.onnx.data.
    """
    from ..conversion.export import export_model

    chosen = _choose_format(output, format)
    inputs = files_of_model(model)
    for path in (output, Path(f"{output}.data")):  # The second holds the weights of an ONNX graph.
        check_target(path, "FILE", (path.suffix.lower(),), inputs)
    if mode is not None and size is not None:
        raise UserError("export takes --mode or --size, not both.")
    loaded: Any = load_any_model(Source(model, trust_remote_code, revision), Dtype.float32)
    side = _choose_side(loaded.config, mode) if size is None else size
    with reported_as(f"{model!r} cannot be exported", ImportError, OSError, ValueError):
        facts = export_model(loaded, output, side, chosen)
    difference = facts["max_difference"]
    checked = "not compared: onnxruntime is missing" if difference is None else f"differs by at most {difference:.1e}"
    make_console().print(
        f"{output}: {loaded.config.model_type}, {side} x {side} pixels, any batch; {checked}", soft_wrap=True
    )


def _choose_format(output: Path, format: str | None) -> str:
    """Return the format that the suffix of `output` stands for; the suffix must be that of `format`, where given."""
    from ..conversion.export import FORMATS

    if format is not None and format not in FORMATS:
        raise UserError(f"--format must be {' or '.join(FORMATS)}, got {format!r}.")
    check_target(output, "FILE", tuple(FORMATS.values()) if format is None else (FORMATS[format],))
    return next(name for name, suffix in FORMATS.items() if suffix == output.suffix.lower())


def _choose_side(config: Any, mode: ViewMode | None) -> int:
    """Return the side of a mode's pages in pixels; for a CLIP or ViT tower, which has no modes, its own size."""
    from .. import ClipVisionEncoderConfig

    if config.model_type != ClipVisionEncoderConfig.model_type:
        return SIDES["base" if mode is None else mode.value]
    if mode is not None:
        raise UserError("--mode does not apply to a CLIP or ViT tower, which has a size of its own; see --size.")
    return int(config.image_size)
