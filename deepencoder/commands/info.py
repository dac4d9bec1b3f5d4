"""`deepencoder info`: what a model is, without its weights."""

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..processing.modes import MODES
from .errors import reported_as
from .models import Source, load_config, load_processor
from .options import RevisionOption, TrustOption
from .terminal import make_console

__all__ = ["info"]

A4_AT_150_DPI = {"height": 1754, "width": 1240}


def info(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Folder or Hub id of a model. Default: the tiny demo model.",
            show_default=False,
        ),
    ] = None,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Show the parts and parameters of a model, and the number of vision tokens in each mode.

    Reads the configuration and not the weights. For a checkpoint of other code, shows the model that `convert` would
    make of it.
    """
    import torch
    from transformers import AutoModel

    from .. import DeepEncoderConfig

    console = make_console()
    source = None if model is None else Source(model, trust_remote_code, revision)
    config = _read_config(source, console)
    with reported_as(f"{model!r} is not a model that can be built", Exception), torch.device("meta"):
        built = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    console.print(f"{model or 'demo model'}: {type(built).__name__}, {built.num_parameters():,} parameters")
    console.print(_list_parts(built))
    if config.model_type == DeepEncoderConfig.model_type:
        console.print(_list_modes(load_processor(source)))


def _read_config(source: Source | None, console: Console) -> Any:
    """Read or infer a model's configuration; print what a checkpoint of other code was recognised as."""
    from .. import DeepEncoderConfig
    from ..conversion.from_original import plan_original

    if source is None:
        return DeepEncoderConfig.tiny()
    if not source.is_original:
        return load_config(source)
    with reported_as(f"{source.model!r} cannot be loaded", OSError, ValueError):
        plan = plan_original(source.model, revision=source.revision)
    console.print(
        f"{source.model}: {plan.layout.name}, {len(plan.needed)} of {len(plan.checkpoint)} tensors", soft_wrap=True
    )
    return plan.config


def _list_parts(model: Any) -> Table:
    table = Table("part", "kind", "parameters", box=None, pad_edge=False)
    for name, part in model.named_children():
        table.add_row(name, type(part).__name__, f"{sum(weight.numel() for weight in part.parameters()):,}")
    for name, weight in model.named_parameters(recurse=False):
        table.add_row(name, "parameter", f"{weight.numel():,}")
    return table


def _list_modes(processor: Any) -> Table:
    table = Table("mode", "view", "tiles", "vision tokens", box=None, pad_edge=False)
    for name, fields in MODES.items():
        side = fields["size"]["height"]
        shape = "padded" if fields["do_pad"] else "squashed"
        tiles, tokens = "-", str(processor.get_number_of_image_tokens(side, side, mode=name))
        if fields["crop_to_patches"]:
            tiles = f"{processor.min_patches} to {processor.max_patches} of {fields['tile_size']}"
            page = processor.get_number_of_image_tokens(**A4_AT_150_DPI, mode=name)
            tokens = f"{page} for an A4 page at 150 dpi"
        table.add_row(name, f"{side} x {side}, {shape}", tiles, tokens)
    return table
