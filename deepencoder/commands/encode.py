"""`deepencoder encode`: images in, features out.

Unusual: an image that cannot be used costs one line on stderr, and the others are still encoded.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from ..configuration.atomic_files import replaced_file
from ..extraction.outputs import take_outputs
from .dataclass_options import takes_options
from .errors import UserError, one_line, reported_as
from .files import check_target, files_of_model
from .models import PAGE_READER, Source, load_model, load_processor, name_source, pick_device
from .options import (
    DeviceOption,
    Dtype,
    FullDownloadOption,
    ModelOption,
    ModeOption,
    RevisionOption,
    RuntimeOption,
    TrustOption,
)
from .terminal import make_console

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from ..processing.token_layout import TokenLayout
    from ..reading.page_text import PageText
    from ..reading.reading_head import ReadingHead

__all__ = ["EncodeOptions", "encode"]

PICTURE_HEIGHT = 768


@dataclass(frozen=True)
class _Encoding:
    """One image, and the model's output for it.

    Args:
        name: path or URL of the image.
        page: the image.
        inputs: what the image processor made of it.
        outputs: the model's output.
        layout: where the tokens lie on the page.
        chosen: the token that the picture compares with all others; None for the most salient one.
        seconds: how long preparing and encoding took.
        read: what was read of the page, with `--read`.
    """

    name: str
    page: "Image.Image"
    inputs: Any
    outputs: Any
    layout: "TokenLayout"
    chosen: int | None
    seconds: float
    read: "PageText | None"

    @property
    def view_grid(self) -> tuple[int, int]:
        """Columns and rows of tokens of the global view."""
        rows, columns = self.layout.view_index.shape
        return columns, rows

    @property
    def tile_grid(self) -> tuple[int, int]:
        """Columns and rows of tiles; `(1, 1)` without tiles."""
        columns, rows = self.inputs["patches_grid"][0].tolist()
        return columns, rows


@dataclass(frozen=True)
class _Encoder:
    """A model with its image processor, the mode to use instead of the processor's own, and what else is wanted.

    Args:
        point: the point of `--similar-to`.
        head: the head for `--read`.
    """

    model: Any
    processor: Any
    mode: str | None
    point: tuple[int, int] | None
    head: "ReadingHead | None"

    @property
    def mode_name(self) -> str | None:
        """The mode of the views; None if the processor has the fields of no mode."""
        return self.mode or self.processor.mode

    def encode(self, name: str, index: int) -> _Encoding:
        """Encode the image at a position of the command line.

        Raises:
            `OSError`, `ValueError`: the image cannot be used.
        """
        import torch

        from ..processing.images import to_rgb
        from ..reading.page_text import read_page

        start = time.perf_counter()
        page = to_rgb(name, index)
        mode = {} if self.mode is None else {"mode": self.mode}
        inputs = self.processor(page, return_tensors="pt", **mode)
        layout = self._lay_out(page, mode)
        chosen = self._choose(layout, f"images[{index}] ({name})")
        device = self.model.device
        on_device = {key: inputs[key].to(device) for key in inputs if key.startswith("pixel_values")}
        with torch.inference_mode():
            outputs = self.model(**on_device, patches_grid=inputs["patches_grid"].tolist())
        tokens = outputs.vision_tokens[0].cpu()  # Waits for the device.
        seconds = time.perf_counter() - start
        read = None if self.head is None else read_page(self.head, tokens, layout)
        return _Encoding(name, page, inputs, outputs, layout, chosen, seconds, read)

    def _lay_out(self, page: "Image.Image", mode: dict[str, str]) -> Any:
        from ..processing.placement import cell_fields

        cells = cell_fields(self.model.config)
        return self.processor.get_token_layout(page.height, page.width, **mode, **cells)

    def _choose(self, layout: "TokenLayout", label: str) -> int | None:
        """Return the token at the point of `--similar-to`: of a tile if there are any, since these are smaller."""
        if self.point is None:
            return None
        try:
            return layout.find_token(*self.point, "tile" if layout.tile_index.size else "view")
        except ValueError as error:
            raise ValueError(f"{label}: --similar-to: {error}") from error


@dataclass
class _Results:
    """What the command prints and writes in the end.

    Args:
        table: one row per image.
        tensors, metadata: content of the file of features.
        pictures: drawings, and the files that they go to.
        texts: names of images, and what was read of them.
    """

    table: Table
    tensors: "dict[str, torch.Tensor]" = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=lambda: {"format": "pt"})
    pictures: "list[tuple[Path, Image.Image]]" = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)

    def add_row(self, encoding: _Encoding) -> None:
        name, (width, height), (columns, rows) = encoding.name, encoding.page.size, encoding.tile_grid
        self.table.add_row(
            Path(name).name if len(name) < 256 else name[:40] + "...",
            f"{width} x {height}",
            f"{columns} x {rows}" if (columns, rows) != (1, 1) else "-",
            str(len(encoding.outputs.vision_tokens[0])),
            f"{encoding.seconds:.2f}",
        )
        if encoding.read is not None:
            self.texts.append((name, encoding.read.text))

    def add_features(self, index: int, encoding: _Encoding, facts: dict[str, Any]) -> None:
        import torch

        (outputs,) = take_outputs(encoding.outputs, encoding.inputs["num_local_patches"].tolist())
        for name, tensor in outputs.items():
            self.tensors[f"{index}.{name}"] = tensor.detach().cpu().contiguous().clone()  # Files take no views.
        boxes, is_padding = encoding.layout.boxes, encoding.layout.is_padding
        self.tensors[f"{index}.boxes"] = torch.from_numpy(boxes).float()
        self.tensors[f"{index}.is_padding"] = torch.from_numpy(is_padding)
        width, height = encoding.page.size
        if encoding.read is not None:
            facts |= {"text": encoding.read.text, "token_texts": encoding.read.tokens}
        self.metadata[str(index)] = json.dumps(
            {
                "image": encoding.name,
                "width": width,
                "height": height,
                "view_grid": encoding.view_grid,
                "tile_grid": encoding.tile_grid,
                **facts,
            }
        )

    def write_features(self, path: Path) -> None:
        from safetensors.torch import save_file

        with replaced_file(path) as temporary:
            save_file(self.tensors, temporary, self.metadata)

    def write_pictures(self) -> None:
        for path, drawing in self.pictures:
            with replaced_file(path) as temporary:
                drawing.save(temporary)


def _to_image(pixel_values: "torch.Tensor", processor: Any) -> "Image.Image":
    """Turn normalised values `(3, height, width)` back into the image that the encoder saw."""
    from PIL import Image

    return Image.fromarray(processor.denormalize_pixels(pixel_values).permute(1, 2, 0).cpu().numpy())


def _draw_views(encoding: _Encoding, processor: Any) -> "Image.Image":
    """Draw the views of an image beside their features."""
    from ..processing.visualization import draw_encoding, stitch_tiles

    inputs, outputs, layout = encoding.inputs, encoding.outputs, encoding.layout
    view = _to_image(inputs["pixel_values"][0], processor)
    # (1, rows * columns, dim) -> (rows, columns, dim)
    features = outputs.last_hidden_state[0].unflatten(0, layout.view_index.shape)
    padding = layout.is_padding[layout.view_index]
    if outputs.local_last_hidden_state is None:
        return draw_encoding(view, features, height=PICTURE_HEIGHT, view_padding=padding)
    # (tiles, 3, tile_size, tile_size) -> (3, mosaic_height, mosaic_width)
    mosaic = stitch_tiles(inputs["pixel_values_local"].permute(0, 2, 3, 1), encoding.tile_grid).permute(2, 0, 1)
    # (tiles, side * side, dim) -> (mosaic_rows, mosaic_columns, dim)
    local = outputs.local_last_hidden_state.unflatten(1, layout.tile_index.shape[1:])
    drawn = _to_image(mosaic, processor), stitch_tiles(local, encoding.tile_grid), encoding.tile_grid
    return draw_encoding(view, features, *drawn, height=PICTURE_HEIGHT, view_padding=padding)


def _draw(encoding: _Encoding, processor: Any) -> "Image.Image":
    """Draw the views of an image, their features, and how similar the tokens are to one of them."""
    from PIL import Image

    from ..processing.placement import contain_page
    from ..processing.visualization import draw_similarity, find_salient_token, join_panels

    tokens, layout, page = encoding.outputs.vision_tokens[0], encoding.layout, encoding.page
    index = find_salient_token(tokens, layout) if encoding.chosen is None else encoding.chosen
    views = _draw_views(encoding, processor)
    if index is None:  # The page is so thin that no token shows it.
        return views
    place = contain_page((page.height, page.width), (PICTURE_HEIGHT, 2 * PICTURE_HEIGHT))
    page = page.resize((max(1, place.width), max(1, place.height)), Image.Resampling.LANCZOS)
    return join_panels([views, draw_similarity(page, tokens, index, layout)])


@dataclass(frozen=True)
class EncodeOptions:
    """The arguments and options of the command."""

    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help="Image files or URLs.", show_default=False)]
    model: ModelOption = None
    mode: ModeOption = None
    device: DeviceOption = None
    runtime: RuntimeOption = None
    dtype: Annotated[
        Dtype,
        typer.Option(
            help="Dtype in which the model computes; auto is the dtype of the checkpoint, or float32 on a CPU without "
            "instructions for that."
        ),
    ] = Dtype.auto
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.safetensors", help="Write the features to FILE.safetensors."),
    ] = None
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Draw what the encoder sees to FILE.png (FILE-0.png, FILE-1.png, ... for several images).",
        ),
    ] = None
    similar_to: Annotated[
        tuple[int, int] | None,
        typer.Option(
            metavar="X Y",
            help="A point of the page in pixels, from its left and its top: the picture compares the token there with "
            "all others. It is a token of a tile if the page has tiles, else of the view. Default: the token that is "
            "least similar to the page's mean.",
            show_default=False,
        ),
    ] = None
    read: Annotated[
        bool,
        typer.Option(
            "--read",
            help="Print the text of the pages as the model's reading head reads it from the vision tokens. The model "
            "that ships with the package has one. This shows what tokens carry; it is no OCR.",
        ),
    ] = False
    revision: RevisionOption = None
    full_download: FullDownloadOption = False
    trust_remote_code: TrustOption = False


@takes_options(EncodeOptions)
def encode(options: EncodeOptions) -> None:
    """Turn images into features: a pooled vector, fused tokens and vision tokens.

    Prints a table. FILE.safetensors holds, for the image at position I, `I.pooled`, `I.tokens` (the fused tokens of
    the global view, then those of each tile) and `I.vision_tokens`, and in its metadata under `I` the name, size and
    grids of the image as JSON. `I.boxes` holds left, top, right and bottom of each vision token in pixels of the image
    (NaN for newlines and the separator), and `I.is_padding` whether no pixel of the image is in it. With --read, the
    metadata has the `text` of the page and `token_texts`, the text in the box of each vision token.

    FILE.png shows the views with their token grids, the features of each token as colours, and a heat map of the
    tokens that are similar to one of them.
    """
    console = make_console()
    pictures = _name_pictures(options)
    _check_targets(options, pictures)
    encoder = _load_encoder(options)
    if pictures and encoder.model.config.token_scheme == "queries":
        raise UserError("--picture shows cells of the page, and the tokens of this model are learned queries.")
    results = _Results(Table("image", "size", "tiles", "vision tokens", "seconds", box=None, pad_edge=False))
    failures = 0
    for index, encoding in _encode_all(encoder, options.images):
        if encoding is None:
            failures += 1
            continue
        results.add_row(encoding)
        if options.output is not None:
            results.add_features(index, encoding, {"mode": encoder.mode_name, "model": options.model or PAGE_READER})
        if pictures:
            results.pictures.append((pictures[index], _draw(encoding, encoder.processor)))

    # All is written before anything is printed.
    if results.tensors and options.output is not None:
        results.write_features(options.output)
    results.write_pictures()
    if results.table.row_count:
        console.print(results.table)
    if results.tensors:
        console.print(f"Features: {options.output}", soft_wrap=True)
    for name, text in results.texts:
        lines = ["", *([f"{name}:", ""] if len(options.images) > 1 else []), *text.splitlines()]
        for line in lines:
            console.print(line, soft_wrap=True, markup=False, highlight=False)
    for path, _ in results.pictures:
        console.print(f"Picture: {path}", soft_wrap=True)
    if failures:
        raise typer.Exit(2)


def _name_pictures(options: EncodeOptions) -> list[Path]:
    """Return the file of each image's picture; none if no pictures are wanted."""
    path, count = options.picture, len(options.images)
    check_target(path, "--picture", (".png",))
    if path is None:
        return []
    return [path] if count == 1 else [path.with_stem(f"{path.stem}-{index}") for index in range(count)]


def _check_targets(options: EncodeOptions, pictures: list[Path]) -> None:
    if options.similar_to is not None and not pictures:
        raise UserError("--similar-to is about the picture: add --picture FILE.png.")
    inputs: list[str | Path] = [*options.images, *files_of_model(options.model)]
    check_target(options.output, "--output", (".safetensors",), inputs)
    for path in pictures:
        check_target(path, "--picture", (".png",), inputs)


def _load_encoder(options: EncodeOptions) -> _Encoder:
    device = pick_device(options.device)
    source = name_source(options.model, options.trust_remote_code, options.revision, options.full_download)
    model, processor = load_model(source, options.dtype, device, options.runtime), load_processor(source)
    mode = None if options.mode is None else options.mode.value
    head = _load_head(source) if options.read else None
    return _Encoder(model, processor, mode, options.similar_to, head)


def _load_head(source: Source) -> "ReadingHead":
    from ..reading.reader import load_head

    with reported_as("--read", ValueError, OSError):
        return load_head(source.model, revision=source.revision)


def _encode_all(encoder: _Encoder, images: list[str]) -> Iterator[tuple[int, _Encoding | None]]:
    """Yield each position and its encoding, or None for an image that cannot be used, which is reported."""
    errors = make_console(stderr=True)
    with Progress(console=errors, transient=True, disable=len(images) < 2 or not errors.is_terminal) as progress:
        for index, name in enumerate(progress.track(images, description="Encoding")):
            encoding = None
            try:
                encoding = encoder.encode(name, index)
            except (ValueError, OSError) as error:
                errors.print(f"Error: {one_line(error)}", style="red", soft_wrap=True)
            yield index, encoding
