"""`deepencoder convert`: models of this package from checkpoints of other code, and back.

Unusual: `--to` has two meanings. An encoder is put back into a copy of an original; or, for formats in which that is
impossible, a new file is written.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..configuration.atomic_files import write_text
from ..conversion.layouts import GGUF_TYPES, LAYOUTS
from .dataclass_options import takes_options
from .errors import UserError, reported_as
from .files import check_target, files_of_model
from .models import Source, load_any_model
from .options import Dtype, FullDownloadOption, RevisionOption
from .terminal import make_console

if TYPE_CHECKING:
    from ..conversion.report import ConversionReport
    from ..conversion.restoration import RestorationReport

__all__ = ["ConvertOptions", "convert"]

GGUF = "gguf"
SLUGS = (*(layout.slug for layout in LAYOUTS if not layout.is_gguf), GGUF)
Slug = Enum("Slug", {slug: slug for slug in SLUGS}, type=str)  # type: ignore[misc]
OutType = Enum("OutType", {name: name for name in GGUF_TYPES}, type=str)  # type: ignore[misc]


@dataclass(frozen=True)
class ConvertOptions:
    """The arguments and options of the command."""

    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Checkpoint to convert: a Hub id, a folder, or a .safetensors, .pth, .pt, .bin or .gguf file. With "
            "--to: the encoder to put back, or to write.",
            show_default=False,
        ),
    ]
    second: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="Folder to write; it must not exist yet. With --to LAYOUT: the original checkpoint to copy. With "
            "--to gguf: the file to write.",
            show_default=False,
        ),
    ]
    third: Annotated[
        Path | None,
        typer.Argument(
            metavar="TARGET",
            help="With --to LAYOUT: the folder to write. The arguments are then ENCODER ORIGINAL TARGET.",
            show_default=False,
        ),
    ] = None
    to: Annotated[
        Slug | None,
        typer.Option(
            metavar="LAYOUT",
            help="Put an encoder back: write a copy of ORIGINAL, which has this layout, with the weights of ENCODER. "
            f"Layouts: {', '.join(SLUGS[:-1])}. Or gguf: write ENCODER as the mmproj file of llama.cpp.",
            show_default=False,
        ),
    ] = None
    outtype: Annotated[
        OutType | None,
        typer.Option(help="With --to gguf: type of the matrices. Default: f32.", show_default=False),
    ] = None
    verify: Annotated[
        bool | None,
        typer.Option(
            help="Compare the model with the class that transformers has for the original. Default: compare if there "
            "is such a class.",
            show_default=False,
        ),
    ] = None
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write what became of each tensor to FILE.json.")
    ] = None
    dtype: Annotated[Dtype, typer.Option(help="Dtype of the weights; auto keeps the dtype of the checkpoint.")] = (
        Dtype.auto
    )
    max_shard_size: Annotated[
        str | None,
        typer.Option(help="Largest size of a file of weights, such as 1GB. Default: the limit of transformers."),
    ] = None
    num_attention_heads: Annotated[
        int | None,
        typer.Option(help="Number of attention heads of a CLIP or ViT tower, if the checkpoint does not record it."),
    ] = None
    hidden_act: Annotated[
        str | None,
        typer.Option(help="Activation function of a CLIP or ViT tower, if the checkpoint does not record it."),
    ] = None
    revision: RevisionOption = None
    full_download: FullDownloadOption = False


@takes_options(ConvertOptions)
def convert(options: ConvertOptions) -> None:
    """Convert a checkpoint of DeepSeek-OCR, GOT-OCR-2.0, SAM, CLIP or ViT; with --to, put an encoder back into one.

    The format is recognised from the tensor names. Only the encoder's tensors are read or downloaded, and no code in
    a pickle is run.

    deepencoder convert SOURCE TARGET

    deepencoder convert --to deepseek-ocr ENCODER ORIGINAL TARGET

    deepencoder convert --to gguf ENCODER TARGET.gguf
    """
    is_gguf = options.to is not None and options.to.value == GGUF
    if (options.third is None) != (options.to is None or is_gguf):
        raise UserError(
            "convert takes SOURCE TARGET, or --to LAYOUT ENCODER ORIGINAL TARGET, or --to gguf ENCODER TARGET.gguf."
        )
    if options.outtype is not None and not is_gguf:
        raise UserError("--outtype is for --to gguf only.")
    target = options.third or Path(options.second)
    if is_gguf:
        check_target(target, "TARGET", (".gguf",))
    if target.exists():
        raise UserError(f"TARGET: {target} exists already.")
    original = options.second if options.third is not None else None
    inputs = [target, *files_of_model(options.source), *files_of_model(original)]
    check_target(options.report, "--report", (".json",), inputs)
    work = _write_gguf if is_gguf else _convert if options.to is None else _restore
    with reported_as(f"{options.source} cannot be converted", OSError, ValueError, ImportError):
        result, lines = work(options, target)
    if options.report is not None:
        write_text(options.report, json.dumps(result.to_dict(), indent=2) + "\n")
    console = make_console()
    for line in lines:
        console.print(line, soft_wrap=True)


def _convert(options: ConvertOptions, target: Path) -> tuple[Any, Iterator[str]]:
    """Convert a checkpoint. Return the report, and the lines to print, which are made when they are asked for."""
    from ..conversion.from_original import convert_to_folder
    from ..conversion.readers.hub import HubOptions

    given = {"num_attention_heads": options.num_attention_heads, "hidden_act": options.hidden_act}
    values = {name: value for name, value in given.items() if value is not None}
    hub = HubOptions(revision=options.revision, full_download=options.full_download)
    report = convert_to_folder(
        options.source, target, hub, options.verify, options.dtype.value, options.max_shard_size, **values
    )
    return report, _describe_converted(report, target)


def _restore(options: ConvertOptions, target: Path) -> tuple[Any, Iterator[str]]:
    """Put an encoder back into a copy of a checkpoint. Return the report, and the lines to print."""
    from ..conversion.readers.hub import HubOptions
    from ..conversion.restoration import restore_checkpoint

    assert options.to is not None
    hub = HubOptions(revision=options.revision, full_download=options.full_download)
    report = restore_checkpoint(options.source, options.second, target, options.to.value, hub)
    return report, _describe_restored(report, target)


def _write_gguf(options: ConvertOptions, target: Path) -> tuple[Any, Iterator[str]]:
    """Write an encoder as a file for llama.cpp. Return the report, and the lines to print."""
    from ..conversion.gguf_writer import write_gguf

    model = load_any_model(Source(options.source, False, options.revision, options.full_download), options.dtype)
    outtype = "f32" if options.outtype is None else str(options.outtype.value)
    report = write_gguf(model, target, outtype)
    kinds = ", ".join(f"{count} in {kind}" for kind, count in Counter(report.types.values()).items())
    lines = [f"{type(model).__name__} -> llama.cpp, {len(report.types)} tensors, {kinds}: {target}"]
    return report, iter([*lines, *(f"zeros: {name} ({reason})" for name, reason in report.zeros.items())])


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
