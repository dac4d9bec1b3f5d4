"""`deepencoder convert`: models of this package from checkpoints of other code, and back."""

import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..configuration.atomic_files import write_text
from ..conversion.layouts import LAYOUTS
from .errors import UserError, reported_as
from .files import check_target
from .options import Dtype, FullDownloadOption, RevisionOption
from .terminal import make_console

if TYPE_CHECKING:
    from ..conversion.report import ConversionReport
    from ..conversion.restoration import RestorationReport

__all__ = ["convert"]

Slug = Enum("Slug", {layout.slug: layout.slug for layout in LAYOUTS}, type=str)  # type: ignore[misc]


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Checkpoint to convert: a Hub id, a folder, or a .safetensors, .pth, .pt or .bin file. With --to: "
            "the encoder to put back.",
            show_default=False,
        ),
    ],
    second: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="Folder to write; it must not exist yet. With --to: the original checkpoint to copy.",
            show_default=False,
        ),
    ],
    third: Annotated[
        Path | None,
        typer.Argument(
            metavar="TARGET",
            help="With --to: the folder to write. The arguments are then ENCODER ORIGINAL TARGET.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        Slug | None,
        typer.Option(
            metavar="LAYOUT",
            help="Put an encoder back: write a copy of ORIGINAL, which has this layout, with the weights of ENCODER. "
            f"Layouts: {', '.join(slug.value for slug in Slug)}.",
            show_default=False,
        ),
    ] = None,
    verify: Annotated[
        bool | None,
        typer.Option(
            help="Compare the model with the class that transformers has for the original. Default: compare if there "
            "is such a class.",
            show_default=False,
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write what became of each tensor to FILE.json.")
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="Dtype of the weights; auto keeps the dtype of the checkpoint.")
    ] = Dtype.auto,
    max_shard_size: Annotated[
        str | None,
        typer.Option(help="Largest size of a file of weights, such as 1GB. Default: the limit of transformers."),
    ] = None,
    num_attention_heads: Annotated[
        int | None,
        typer.Option(help="Number of attention heads of a CLIP or ViT tower, if the checkpoint does not record it."),
    ] = None,
    hidden_act: Annotated[
        str | None,
        typer.Option(help="Activation function of a CLIP or ViT tower, if the checkpoint does not record it."),
    ] = None,
    revision: RevisionOption = None,
    full_download: FullDownloadOption = False,
) -> None:
    """Convert a checkpoint of DeepSeek-OCR, GOT-OCR-2.0, SAM, CLIP or ViT; with --to, put an encoder back into one.

    The format is recognised from the tensor names. Only the encoder's tensors are read or downloaded, and no code in
    a pickle is run.

    deepencoder convert SOURCE TARGET

    deepencoder convert --to deepseek-ocr ENCODER ORIGINAL TARGET
    """
    check_target(report, "--report", (".json",))
    if (third is None) != (to is None):
        raise UserError("convert takes SOURCE TARGET, or --to LAYOUT ENCODER ORIGINAL TARGET.")
    target = Path(second) if third is None else third
    if target.exists():
        raise UserError(f"TARGET: {target} exists already.")
    from ..conversion.from_original import convert_to_folder
    from ..conversion.readers.hub import HubOptions
    from ..conversion.restoration import restore_checkpoint

    hub = HubOptions(revision=revision, full_download=full_download)
    result: Any
    with reported_as(f"{source} cannot be converted", OSError, ValueError):
        if to is not None:
            result = restore_checkpoint(source, second, target, to.value, hub)
            lines = list(_describe_restored(result, target))
        else:
            given = {"num_attention_heads": num_attention_heads, "hidden_act": hidden_act}
            values = {name: value for name, value in given.items() if value is not None}
            result = convert_to_folder(source, target, hub, verify, dtype.value, max_shard_size, **values)
            lines = list(_describe_converted(result, target))
    console = make_console()
    for line in lines:
        console.print(line, soft_wrap=True)
    if report is not None:
        write_text(report, json.dumps(result.to_dict(), indent=2) + "\n")


def _describe_converted(result: "ConversionReport", target: Path) -> Iterator[str]:
    """Yield the lines that say what was made of a checkpoint."""
    import torch
    from transformers import AutoConfig, AutoModel

    from ..conversion.report import NOT_A_PART

    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.from_pretrained(target))
    yield f"{result.layout} -> {type(model).__name__}, {model.num_parameters():,} parameters, {result.dtype}: {target}"
    others = len(result.unused) - len(result.left_behind)
    yield f"{sum(map(len, result.mapped.values()))} tensors used, {others} others are {NOT_A_PART}"
    for name, reason in result.left_behind.items():
        yield f"left behind: {name} ({reason})"
    for name in result.initialized:
        yield f"newly initialised: {name}"
    for name, reason in result.assumed.items():
        yield f"assumed: {name}: {reason}"
    for name in result.not_finite:
        yield f"NOT FINITE: {name}"
    if result.dtype_changes:
        yield f"dtype changed: {len(result.dtype_changes)} tensors"
    yield from _describe_verification(result.verification or {})


def _describe_verification(verification: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that say how far the model is from the original."""
    if "not_run" in verification:
        yield f"not verified: {verification['not_run']}"
    for name, figures in verification.get("outputs", {}).items():
        yield (
            f"verified against {verification['reference']}: {name} differ by at most {figures['max_difference']:.1e}, "
            f"{figures['mean_difference']:.1e} on average (values up to {figures['largest_value']:.1f})"
        )


def _describe_restored(result: "RestorationReport", target: Path) -> Iterator[str]:
    """Yield the lines that say what was put back into a checkpoint."""
    yield f"{result.layout}: {len(result.replaced)} tensors replaced, {result.unchanged} unchanged: {target}"
    if result.dtype_changes:
        name, (ours, theirs) = next(iter(result.dtype_changes.items()))
        yield f"dtype changed: {len(result.dtype_changes)} tensors, such as {name} from {ours} to {theirs}"
