"""The command line: `deepencoder encode`, `deepencoder info` and `deepencoder convert`.

Unusual: without `--model` a tiny model with fixed random weights stands in, so that everything can be tried at once;
it says so. A bad image is reported in one line and the others are still encoded; files appear whole or not at all.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import IMAGE_PROCESSOR_NAME, cached_file, logging

from . import DeepEncoder, DeepEncoderConfig, DeepEncoderImageProcessor
from .processing.image_processing import MODES
from .processing.images import to_rgb
from .processing.visualization import draw_encoding, stitch_tiles

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="DeepSeek-OCR's vision encoder: pages in, vision tokens out.",
)
DEMO_NOTICE = "No --model given: using a tiny demo model with fixed random weights. Its features mean nothing."

Mode = Enum("Mode", {name: name for name in MODES}, type=str)  # type: ignore[misc]


class Dtype(str, Enum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


ModelOption = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A folder or a Hub id. Default: the demo model.", show_default=False),
]
TrustOption = Annotated[bool, typer.Option("--trust-remote-code", help="Allow code that comes with the model to run.")]


class UserError(Exception):
    """A mistake of the user's: one line, exit code 2."""


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextmanager
def _written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`, which takes its place when all went well and is removed when not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files that only their owner reads
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _console(stderr: bool = False) -> Console:
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)  # file names are no markup


def _check_target(path: Path | None, option: str, suffixes: tuple[str, ...]) -> None:
    """Refuse a file that cannot be written before the work is done, not after."""
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{option} must end in {' or '.join(suffixes)}, got {path.name!r}.")
    if os.path.isdir(path):
        raise UserError(f"{option}: {path} is a folder.")
    try:
        path.lstat()  # fails for a name that is too long, which the temporary one would not
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"{option}: cannot write {path}: {error.strerror}.") from error
    try:
        with tempfile.TemporaryFile(dir=next(parent for parent in path.absolute().parents if parent.exists())):
            pass
    except OSError as error:
        raise UserError(f"{option}: cannot write {path}: {error.strerror}.") from error


def _pick_device(device: str | None) -> torch.device:
    if device is not None:
        try:
            chosen = torch.device(device)
            torch.zeros(1, device=chosen).cpu()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise UserError(f"--device {device!r} cannot be used here: {_one_line(error)}") from error
        return chosen
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")  # type: ignore[return-value]


def _demo_model() -> DeepEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DeepEncoder(DeepEncoderConfig.tiny())


def _load_model(model: str | None, dtype: Dtype, trust_remote_code: bool) -> Any:
    if model is None:
        demo = _demo_model()
        return demo if dtype is Dtype.auto else demo.to(getattr(torch, dtype.value))
    config = _load_config(model, trust_remote_code)
    if config.model_type != DeepEncoderConfig.model_type:
        raise UserError(
            f"--model {model!r} is a {config.model_type!r}; encode needs a {DeepEncoderConfig.model_type!r}."
        )
    try:
        loaded, facts = AutoModel.from_pretrained(
            model, dtype=dtype.value, trust_remote_code=trust_remote_code, output_loading_info=True
        )
    except Exception as error:  # a damaged checkpoint may raise anything
        raise UserError(f"--model {model!r} cannot be loaded: {_one_line(error)}") from error
    missing = sorted(facts["missing_keys"])
    if missing:
        raise UserError(f"--model {model!r} lacks {len(missing)} tensors: {', '.join(missing[:3])}.")
    return loaded


def _load_config(model: str, trust_remote_code: bool) -> Any:
    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    except Exception as error:  # so may a damaged configuration
        raise UserError(f"{model!r} cannot be loaded: {_one_line(error)}") from error


def _load_processor(model: str | None, trust_remote_code: bool) -> Any:
    """Return the model's own image processor, or one with the defaults where it comes without."""
    if model is None:
        return DeepEncoderImageProcessor()
    try:
        if cached_file(model, IMAGE_PROCESSOR_NAME, _raise_exceptions_for_missing_entries=False) is None:
            return DeepEncoderImageProcessor()
        processor = AutoImageProcessor.from_pretrained(model, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise UserError(f"The image processor of {model!r} cannot be loaded: {_one_line(error)}") from error
    # By name: code that comes with a model makes a class of its own.
    if type(processor).__name__ != DeepEncoderImageProcessor.__name__:
        raise UserError(f"The image processor of {model!r} is a {type(processor).__name__}, which makes no tiles.")
    return processor


def _to_image(pixels: torch.Tensor, processor: Any) -> Image.Image:
    """Undo the normalisation: `(3, height, width)` -> the image that the encoder saw."""
    mean, std = (torch.tensor(value).expand(3)[:, None, None] for value in (processor.image_mean, processor.image_std))
    scaled = (pixels.float().cpu() * std + mean) * 255
    return Image.fromarray(scaled.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy())


def _draw(inputs: Any, outputs: Any, processor: Any, view_grid: tuple[int, int], tile_grid: tuple[int, int]) -> Any:
    columns, rows = view_grid
    view = _to_image(inputs["pixel_values"][0], processor)
    features = outputs.last_hidden_state[0].unflatten(0, (rows, columns))
    if outputs.local_last_hidden_state is None:
        return draw_encoding(view, features)
    tiles = inputs["pixel_values_local"].permute(0, 2, 3, 1)
    mosaic = _to_image(stitch_tiles(tiles, tile_grid).permute(2, 0, 1), processor)
    side = round(outputs.local_last_hidden_state.shape[1] ** 0.5)
    local = stitch_tiles(outputs.local_last_hidden_state.unflatten(1, (side, side)), tile_grid)
    return draw_encoding(view, features, mosaic, local, tile_grid)


@app.command()
def encode(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help="Image files or URLs.", show_default=False)],
    model: ModelOption = None,
    mode: Annotated[Mode | None, typer.Option(help="Resolution. Default: the model's own, else base.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps. Default: the fastest there is.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="Precision of the weights; auto keeps the checkpoint's.")] = Dtype.auto,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write features to FILE.safetensors.")] = None,
    picture: Annotated[
        Path | None,
        typer.Option(help="Draw what the encoder saw to FILE.png (FILE-0.png, FILE-1.png, ... for several images)."),
    ] = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Turn images into vision tokens.

    Prints a table. FILE.safetensors holds, for the image at position I, `I.vision_tokens`, `I.last_hidden_state` and
    `I.pooler_output` (with tiles `I.local_last_hidden_state`), and as metadata under `I` its name, size and grids.
    """
    console, errors = _console(), _console(stderr=True)
    _check_target(output, "--output", (".safetensors",))
    _check_target(picture, "--picture", (".png",))
    target_device = _pick_device(device)
    if model is None:
        errors.print(DEMO_NOTICE, style="yellow")
    encoder = _load_model(model, dtype, trust_remote_code).to(target_device).eval()
    processor = _load_processor(model, trust_remote_code)
    fields: dict[str, Any] = {} if mode is None else {"mode": mode.value}

    table = Table("image", "size", "tiles", "vision tokens", "seconds", box=None, pad_edge=False)
    tensors: dict[str, torch.Tensor] = {}
    metadata: dict[str, str] = {"format": "pt"}
    pictures: list[tuple[Path, Image.Image]] = []
    failures = 0
    with Progress(console=errors, transient=True, disable=len(images) < 2 or not errors.is_terminal) as progress:
        for index, name in enumerate(progress.track(images, description="Encoding")):
            start = time.perf_counter()
            try:
                image = to_rgb(name, index)
                inputs = processor(image, return_tensors="pt", **fields)
                columns, rows = inputs["patches_grid"][0].tolist()
                on_device = {key: inputs[key].to(target_device) for key in inputs if key.startswith("pixel_values")}
                with torch.inference_mode():
                    outputs = encoder(**on_device, patches_grid=[(columns, rows)])
            except (ValueError, OSError) as error:
                errors.print(f"Error: {_one_line(error)}", style="red", soft_wrap=True)
                failures += 1
                continue
            tokens = outputs.vision_tokens[0].cpu()
            seconds = time.perf_counter() - start
            tiles = int(inputs["num_local_patches"][0])
            table.add_row(
                Path(name).name if len(name) < 256 else name[:40] + "...",
                f"{image.width} x {image.height}",
                f"{columns} x {rows}" if tiles else "-",
                str(len(tokens)),
                f"{seconds:.2f}",
            )
            stride = encoder.config.sam_config.total_stride
            height, width = inputs["pixel_values"].shape[2:]
            view_grid = (-(-width // stride), -(-height // stride))
            if output is not None:
                tensors |= _collect(index, outputs)
                metadata[str(index)] = json.dumps(
                    {
                        "image": name,
                        "width": image.width,
                        "height": image.height,
                        "view_grid": view_grid,
                        "tile_grid": (columns, rows),
                        "mode": mode.value if mode is not None else processor.mode,
                        "model": model,
                    }
                )
            if picture is not None:
                path = picture if len(images) == 1 else picture.with_stem(f"{picture.stem}-{index}")
                pictures.append((path, _draw(inputs, outputs, processor, view_grid, (columns, rows))))

    if table.row_count:
        console.print(table)
    if tensors and output is not None:
        with _written_whole(output) as temporary:
            save_file(tensors, temporary, metadata)
        console.print(f"Features: {output}", soft_wrap=True)
    for path, drawing in pictures:
        with _written_whole(path) as temporary:
            drawing.save(temporary)
        console.print(f"Picture: {path}", soft_wrap=True)
    if failures:
        raise typer.Exit(2)


def _collect(index: int, outputs: Any) -> dict[str, torch.Tensor]:
    """Return what is written of one image, in memory of its own."""
    found = {
        "vision_tokens": outputs.vision_tokens[0],
        "last_hidden_state": outputs.last_hidden_state[0],
        "pooler_output": outputs.pooler_output[0],
        "local_last_hidden_state": outputs.local_last_hidden_state,
    }
    return {
        f"{index}.{name}": tensor.detach().cpu().contiguous().clone()
        for name, tensor in found.items()
        if tensor is not None
    }


@app.command()
def info(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A folder or a Hub id. Default: the demo model.")
    ] = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Show a model's parts and parameters, and the tokens of each mode. Reads the configuration, not the weights."""
    console = _console()
    config = DeepEncoderConfig.tiny() if model is None else _load_config(model, trust_remote_code)
    try:
        with torch.device("meta"):
            built = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise UserError(f"{model!r} is not a model that can be built: {_one_line(error)}") from error
    console.print(f"{model or 'demo model'}: {type(built).__name__}, {built.num_parameters():,} parameters")
    parts = Table("part", "kind", "parameters", box=None, pad_edge=False)
    for name, part in built.named_children():
        parts.add_row(name, type(part).__name__, f"{sum(weight.numel() for weight in part.parameters()):,}")
    for name, weight in built.named_parameters(recurse=False):
        parts.add_row(name, "parameter", f"{weight.numel():,}")
    console.print(parts)
    if config.model_type != DeepEncoderConfig.model_type:
        return
    processor = _load_processor(model, trust_remote_code)
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


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A folder, or a .safetensors, .pth, .pt or .bin file.")
    ],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The folder to write; it must not be there yet.")],
    report: Annotated[Path | None, typer.Option(help="Write what became of each tensor to FILE.json.")] = None,
    num_attention_heads: Annotated[
        int | None, typer.Option(help="Heads of a CLIP or ViT tower, where the checkpoint does not tell.")
    ] = None,
    hidden_act: Annotated[str | None, typer.Option(help="Activation of a CLIP or ViT tower, likewise.")] = None,
) -> None:
    """Make a model of a checkpoint of DeepSeek-OCR, GOT-OCR-2.0, SAM, CLIP or ViT.

    What it is is told by the names of its tensors. Only the encoder's are read; no code of a pickle is run.
    """
    # Here, as no other command needs it.
    from .conversion.checkpoints import convert_checkpoint, save_converted

    console = _console()
    _check_target(report, "--report", (".json",))
    if target.exists():
        raise UserError(f"TARGET: {target} is there already.")
    given = {"num_attention_heads": num_attention_heads, "hidden_act": hidden_act}
    try:
        model, result = convert_checkpoint(
            source, **{name: value for name, value in given.items() if value is not None}
        )
        save_converted(model, target)
    except (OSError, ValueError) as error:
        raise UserError(f"{source} cannot be converted: {_one_line(error)}") from error
    console.print(
        f"{result.layout} -> {type(model).__name__}, {model.num_parameters():,} parameters, {result.dtype}: {target}",
        soft_wrap=True,
    )
    for label, names in (
        ("left behind", [f"{name} ({reason})" for name, reason in result.left_behind.items()]),
        ("newly initialised", result.initialized),
        ("NOT FINITE", result.not_finite),
    ):
        for name in names:
            console.print(f"{label}: {name}", soft_wrap=True)
    if report is not None:
        with _written_whole(report) as temporary:
            temporary.write_text(json.dumps(result.to_dict(), indent=2) + "\n")


def main() -> None:
    """Run the command line; mistakes of the user's end with one line and exit code 2."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        app(prog_name="deepencoder")
    except (UserError, OSError) as error:  # OSError: a full disk, say
        _console(stderr=True).print(f"Error: {error}", style="red", soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
