"""`deepencoder info`: what a model is and what it costs, without loading its weights."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..processing.modes import modes_of
from .errors import reported_as
from .models import Source, load_config, load_processor, name_source
from .options import RevisionOption, TrustOption
from .terminal import make_console

__all__ = ["info"]

A4_AT_150_DPI = {"height": 1754, "width": 1240}


def info(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Folder or Hub id of a model. Default: the page reader that ships with the package.",
            show_default=False,
        ),
    ] = None,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Show the parts and the size of a model, and for each mode the number of vision tokens and what a page costs.

    Costs are shown for models of a size that was measured. Reads the configuration and, of the weights, only headers.
    For a checkpoint of other code, shows the model that `convert` would make of it.
    """
    import torch
    from transformers import AutoModel

    from ..configuration.composite import reads_pages
    from ..sharing.model_facts import MEASURED_ON, measurements_of

    console = make_console()
    source = name_source(model, trust_remote_code, revision, notice=False)
    config = _read_config(source, console)
    with reported_as(f"{source.name!r} is not a model that can be built", Exception), torch.device("meta"):
        built = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    count = built.num_parameters()
    console.print(f"{source.name}: {type(built).__name__}, {count:,} parameters")
    console.print(_describe_size(source, config, count), soft_wrap=True)
    console.print(_list_parts(built))
    if reads_pages(config):
        measured = measurements_of(config, count)
        processor = load_processor(source)
        console.print(f"image processor: {f'mode {processor.mode}' if processor.mode else 'fields of no mode'}")
        console.print(_list_modes(config, processor, measured))
        console.print(_describe_outputs(config), soft_wrap=True)
        if measured:
            costs = f"Time and memory of a page on {MEASURED_ON}, without the weights; gundam with 6 tiles."
            console.print(f"{costs} deepencoder benchmark measures this machine.", soft_wrap=True)
        where = "processor.get_token_layout(height, width) says where each token lies on the page; see docs/tokens.md."
        console.print(where, soft_wrap=True)


def _read_config(source: Source, console: Console) -> Any:
    """Read or infer a model's configuration; print what a checkpoint of other code was recognised as."""
    from ..conversion.from_original import plan_original

    if not source.is_original:
        return load_config(source)
    with reported_as(f"{source.model!r} cannot be loaded", OSError, ValueError):
        plan = plan_original(source.model, revision=source.revision)
    console.print(
        f"{source.model}: {plan.layout.name}, {len(plan.needed)} of {len(plan.checkpoint)} tensors", soft_wrap=True
    )
    return plan.config


def _describe_size(source: Source, config: Any, num_parameters: int) -> str:
    """Return the size of the weights in each dtype, and how those of a folder are stored."""
    from ..sharing.model_facts import describe_stored, describe_weights

    text = f"weights: {describe_weights(num_parameters)}"
    stored = None
    if os.path.isdir(source.model) and not source.is_original:
        stored = describe_stored(Path(source.model))
    if stored is not None:
        return f"{text}; stored: {stored}"
    dtype = str(config.dtype or "").removeprefix("torch.")
    return f"{text}; stored in {dtype}" if dtype else text


def _describe_outputs(config: Any) -> str:
    """Return how long the vectors of each output are, for example `pooled 1024, tokens 2048`."""
    from ..extraction.outputs import OUTPUTS
    from ..processing.token_pooling import VectorOptions

    widths = ", ".join(
        f"{kind.name} {kind.width(config, VectorOptions())}"
        for kind in OUTPUTS.values()
        if not (kind.needs_cells and config.token_scheme == "queries")
    )
    return f"values in a vector of each output: {widths}"


def _list_parts(model: Any) -> Table:
    table = Table("part", "kind", "parameters", box=None, pad_edge=False)
    for name, part in model.named_children():
        table.add_row(name, type(part).__name__, f"{sum(weight.numel() for weight in part.parameters()):,}")
    for name, weight in model.named_parameters(recurse=False):
        table.add_row(name, "parameter", f"{weight.numel():,}")
    return table


def _list_modes(config: Any, processor: Any, measured: dict[str, Any]) -> Table:
    """Return the modes with their tokens, and with what a page costs in each dtype where that was measured."""
    dtypes = list(next(iter(measured.values()))) if measured else []
    table = Table("mode", "view", "tiles", "vision tokens", *dtypes, box=None, pad_edge=False)
    for name, fields in modes_of(config.token_scheme).items():
        side = fields["size"]["height"]
        shape = "padded" if fields["do_pad"] else "squashed"
        tiles, tokens = "-", str(processor.get_number_of_image_tokens(side, side, mode=name))
        if fields["crop_to_patches"]:
            fewest, most = (fields.get(field, getattr(processor, field)) for field in ("min_patches", "max_patches"))
            tiles = f"{fewest} to {most} of {fields['tile_size']}"
            page = processor.get_number_of_image_tokens(**A4_AT_150_DPI, mode=name)
            tokens = f"{page} for an A4 page at 150 dpi"
        costs = [measured[name][dtype] for dtype in dtypes]
        cells = [f"{cost.seconds:.2f} s, {cost.gigabytes:.2f} GB" for cost in costs]
        table.add_row(name, f"{side} x {side}, {shape}", tiles, tokens, *cells)
    return table
