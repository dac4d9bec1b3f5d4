"""`deepencoder export`: a model as one graph for other runtimes."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..conversion.export import FORMATS, export_model
from ..processing.modes import MODES
from .common import (
    Dtype,
    RevisionOption,
    Source,
    TrustOption,
    UserError,
    check_target,
    load_any_model,
    make_console,
    one_line,
)

__all__ = ["export"]

Format = Enum("Format", {name: name for name in FORMATS}, type=str)  # type: ignore[misc]
SIDES = {name: fields["size"]["height"] for name, fields in MODES.items() if not fields["crop_to_patches"]}
ViewMode = Enum("ViewMode", {name: name for name in SIDES}, type=str)  # type: ignore[misc]


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder or a Hub id; an original, too.")],
    output: Annotated[Path, typer.Argument(metavar="FILE", help="FILE.onnx or FILE.pt2.")],
    format: Annotated[Format | None, typer.Option(help="Default: what FILE ends in.", show_default=False)] = None,
    mode: Annotated[
        ViewMode | None,
        typer.Option(help="Of the pages. Default: base. gundam is two graphs: base, and small for the tiles."),
    ] = None,
    size: Annotated[int | None, typer.Option(help="Side of the pages in pixels, instead of a mode.")] = None,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Export a model to ONNX or with torch.export, for pages of one size and batches of any.

    The graph is compared with the model, and written only if they agree. What it takes and gives is in its metadata.
    FILE.onnx has its weights beside it, in FILE.onnx.data.
    """
    suffixes = tuple(FORMATS.values()) if format is None else (FORMATS[format.value],)
    check_target(output, "FILE", suffixes)
    if mode is not None and size is not None:
        raise UserError("export takes --mode or --size, not both.")
    chosen = next(name for name, suffix in FORMATS.items() if suffix == output.suffix.lower())
    loaded: Any = load_any_model(Source(model, trust_remote_code, revision), Dtype.float32)
    if mode is not None and loaded.config.model_type == "deepencoder_clip_vision":
        raise UserError("--mode is for pages; a tower has its own size, or --size.")
    side = size
    if side is None:
        side = (
            loaded.config.image_size
            if loaded.config.model_type == "deepencoder_clip_vision"
            else SIDES[mode.value if mode else "base"]
        )
    try:
        facts = export_model(loaded, output, side, chosen)
    except (ImportError, OSError, ValueError) as error:
        raise UserError(f"{model!r} cannot be exported: {one_line(error)}") from error
    difference = facts["max_difference"]
    checked = "not compared: onnxruntime is missing" if difference is None else f"differs by at most {difference:.1e}"
    console = make_console()
    console.print(
        f"{output}: {loaded.config.model_type}, {side} x {side} pixels, any batch; {checked}", soft_wrap=True
    )
