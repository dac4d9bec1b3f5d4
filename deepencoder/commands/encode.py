"""`deepencoder encode`: images in, vision tokens out.

Unusual: a bad image is reported in one line and the others are still encoded.
"""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from rich.progress import Progress
from rich.table import Table
from safetensors.torch import save_file

from ..processing.images import to_rgb
from ..processing.visualization import draw_encoding, stitch_tiles
from .common import (
    DEMO_NOTICE,
    Dtype,
    FullDownloadOption,
    Mode,
    ModelOption,
    RevisionOption,
    Source,
    TrustOption,
    check_target,
    load_model,
    load_processor,
    make_console,
    one_line,
    pick_device,
    written_whole,
)

__all__ = ["encode"]


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
    revision: RevisionOption = None,
    full_download: FullDownloadOption = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Turn images into vision tokens.

    Prints a table. FILE.safetensors holds, for the image at position I, `I.vision_tokens`, `I.last_hidden_state` and
    `I.pooler_output` (with tiles `I.local_last_hidden_state`), and as metadata under `I` its name, size and grids.
    """
    console, errors = make_console(), make_console(stderr=True)
    check_target(output, "--output", (".safetensors",))
    check_target(picture, "--picture", (".png",))
    target_device = pick_device(device)
    if model is None:
        errors.print(DEMO_NOTICE, style="yellow", soft_wrap=True)
    source = None if model is None else Source(model, trust_remote_code, revision, full_download)
    encoder = load_model(source, dtype, target_device)
    processor = load_processor(source)
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
                errors.print(f"Error: {one_line(error)}", style="red", soft_wrap=True)
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
        with written_whole(output) as temporary:
            save_file(tensors, temporary, metadata)
        console.print(f"Features: {output}", soft_wrap=True)
    for path, drawing in pictures:
        with written_whole(path) as temporary:
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
