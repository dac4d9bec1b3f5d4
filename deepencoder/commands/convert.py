"""`deepencoder convert`: models of checkpoints of other code, and back."""

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from transformers import AutoConfig, AutoModel

from ..conversion.from_original import convert_to_folder
from ..conversion.layouts import LAYOUTS
from ..conversion.readers.hub import HubOptions
from ..conversion.report import NOT_A_PART, ConversionReport
from ..conversion.restoration import RestorationReport, restore_checkpoint
from .common import (
    Dtype,
    FullDownloadOption,
    RevisionOption,
    UserError,
    check_target,
    make_console,
    one_line,
    written_whole,
)

__all__ = ["convert"]

Slug = Enum("Slug", {layout.slug: layout.slug for layout in LAYOUTS}, type=str)  # type: ignore[misc]


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A Hub id, a folder, or a .safetensors, .pth, .pt or .bin file. With --to: the encoder.",
            show_default=False,
        ),
    ],
    second: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="The folder to write; it must not be there yet.", show_default=False),
    ],
    third: Annotated[
        Path | None,
        typer.Argument(metavar="", help="With --to, the three are ENCODER ORIGINAL TARGET.", show_default=False),
    ] = None,
    to: Annotated[
        Slug | None,
        typer.Option(help="Write a copy of ORIGINAL, laid out like this, with ENCODER in it.", show_default=False),
    ] = None,
    verify: Annotated[
        bool | None,
        typer.Option(
            help="Compare with transformers' class for the original. Default: where there is one.", show_default=False
        ),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write what became of each tensor to FILE.json.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="Of the weights; auto keeps the checkpoint's.")] = Dtype.auto,
    max_shard_size: Annotated[str | None, typer.Option(help="Such as 1GB. Default: transformers' own.")] = None,
    num_attention_heads: Annotated[
        int | None, typer.Option(help="Heads of a CLIP or ViT tower, where the checkpoint does not tell.")
    ] = None,
    hidden_act: Annotated[str | None, typer.Option(help="Activation of a CLIP or ViT tower, likewise.")] = None,
    revision: RevisionOption = None,
    full_download: FullDownloadOption = False,
) -> None:
    """Make a model of a checkpoint of DeepSeek-OCR, GOT-OCR-2.0, SAM, CLIP or ViT; or, with --to, put one back.

    What it is is told by the names of its tensors. Only the encoder's are read, or downloaded; no code of a pickle is
    run.

    deepencoder convert SOURCE TARGET

    deepencoder convert --to deepseek-ocr ENCODER ORIGINAL TARGET
    """
    check_target(report, "--report", (".json",))
    if (third is None) != (to is None):
        raise UserError("convert takes SOURCE TARGET, or --to LAYOUT ENCODER ORIGINAL TARGET.")
    target = Path(second) if third is None else third
    if target.exists():
        raise UserError(f"TARGET: {target} is there already.")
    hub = HubOptions(revision=revision, full_download=full_download)
    console = make_console()
    try:
        if to is not None:
            restored = restore_checkpoint(source, second, target, to.value, hub)
            facts = restored.to_dict()
            _print_restored(console, restored, target)
        else:
            given = {"num_attention_heads": num_attention_heads, "hidden_act": hidden_act}
            values = {name: value for name, value in given.items() if value is not None}
            result = convert_to_folder(source, target, hub, verify, dtype.value, max_shard_size, **values)
            facts = result.to_dict()
            _print_converted(console, result, target)
    except (OSError, ValueError) as error:
        raise UserError(f"{source} cannot be converted: {one_line(error)}") from error
    if report is not None:
        with written_whole(report) as temporary:
            temporary.write_text(json.dumps(facts, indent=2) + "\n")


def _print_converted(console: Console, result: ConversionReport, target: Path) -> None:
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.from_pretrained(target))
    console.print(
        f"{result.layout} -> {type(model).__name__}, {model.num_parameters():,} parameters, {result.dtype}: {target}",
        soft_wrap=True,
    )
    others = len(result.unused) - len(result.left_behind)
    console.print(
        f"{sum(map(len, result.mapped.values()))} tensors used, {others} others are {NOT_A_PART}", soft_wrap=True
    )
    for label, names in (
        ("left behind", [f"{name} ({reason})" for name, reason in result.left_behind.items()]),
        ("newly initialised", result.initialized),
        ("assumed", [f"{name}: {reason}" for name, reason in result.assumed.items()]),
        ("NOT FINITE", result.not_finite),
    ):
        for name in names:
            console.print(f"{label}: {name}", soft_wrap=True)
    if result.dtype_changes:
        console.print(f"dtype changed: {len(result.dtype_changes)} tensors", soft_wrap=True)
    verification = result.verification or {}
    if "not_run" in verification:
        console.print(f"not verified: {verification['not_run']}", soft_wrap=True)
    for name, figures in verification.get("outputs", {}).items():
        console.print(
            f"verified against {verification['reference']}: {name} differ by at most {figures['max_difference']:.1e}, "
            f"{figures['mean_difference']:.1e} on average (values up to {figures['largest_value']:.1f})",
            soft_wrap=True,
        )


def _print_restored(console: Console, result: RestorationReport, target: Path) -> None:
    console.print(
        f"{result.layout}: {len(result.replaced)} tensors replaced, {result.unchanged} as they were: {target}",
        soft_wrap=True,
    )
    if result.dtype_changes:
        name, (ours, theirs) = next(iter(result.dtype_changes.items()))
        console.print(
            f"dtype changed: {len(result.dtype_changes)} tensors, such as {name} from {ours} to {theirs}",
            soft_wrap=True,
        )
