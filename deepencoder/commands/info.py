"""`deepencoder info`: what a model is, without its weights."""

from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from transformers import AutoModel

from .. import DeepEncoderConfig
from ..conversion.from_original import plan_original
from ..processing.modes import MODES
from .common import RevisionOption, Source, TrustOption, UserError, load_config, load_processor, make_console, one_line

__all__ = ["info"]


def info(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A folder or a Hub id. Default: the demo model.")
    ] = None,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Show a model's parts and parameters, and the tokens of each mode. Reads the configuration, not the weights.

    Of a checkpoint of other code, it shows what the encoder in it would become.
    """
    console = make_console()
    source = None if model is None else Source(model, trust_remote_code, revision)
    if source is None:
        config: Any = DeepEncoderConfig.tiny()
    elif source.is_original:
        try:
            plan = plan_original(source.model, revision=revision)
        except (OSError, ValueError) as error:
            raise UserError(f"{model!r} cannot be loaded: {one_line(error)}") from error
        config = plan.config
        console.print(
            f"{model}: {plan.layout.name}, {len(plan.needed)} of {len(plan.checkpoint)} tensors", soft_wrap=True
        )
    else:
        config = load_config(source)
    try:
        with torch.device("meta"):
            built = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise UserError(f"{model!r} is not a model that can be built: {one_line(error)}") from error
    console.print(f"{model or 'demo model'}: {type(built).__name__}, {built.num_parameters():,} parameters")
    parts = Table("part", "kind", "parameters", box=None, pad_edge=False)
    for name, part in built.named_children():
        parts.add_row(name, type(part).__name__, f"{sum(weight.numel() for weight in part.parameters()):,}")
    for name, weight in built.named_parameters(recurse=False):
        parts.add_row(name, "parameter", f"{weight.numel():,}")
    console.print(parts)
    if config.model_type != DeepEncoderConfig.model_type:
        return
    processor = load_processor(source)
    modes = Table("mode", "view", "tiles", "vision tokens", box=None, pad_edge=False)
    for name, fields in MODES.items():
        side = fields["size"]["height"]
        tokens = str(processor.get_number_of_image_tokens(side, side, mode=name))
        tiles = "-"
        if fields["crop_to_patches"]:
            fewest, most = processor.min_patches, processor.max_patches
            tiles = f"{fewest} to {most} of {fields['tile_size']}"
            page = processor.get_number_of_image_tokens(1754, 1240, mode=name)
            tokens = f"{page} for an A4 page at 150 dpi"
        shape = "padded" if fields["do_pad"] else "squashed"
        modes.add_row(name, f"{side} x {side}, {shape}", tiles, tokens)
    console.print(modes)
