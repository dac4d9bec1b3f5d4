"""Exporting a model as one graph for ONNX Runtime or torch, for pages of one size and batches of any size.

Unusual: the position tables are resized before the export, because other runtimes lack the antialiased resizing
kernel. This does not change the numbers.
"""

import copy
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import __version__
from ..configuration.atomic_files import full_disk_reported
from ..modeling.catalog import MODELS, model_kind
from ..modeling.positions import resize_position_grid, resize_relative_positions

__all__ = ["FORMATS", "OPSET", "TOLERANCE", "export_model", "fix_image_size"]

OPSET = 18
TOLERANCE = 1e-4  # Largest difference between the exported graph and the model, in float32.
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class _Graph:
    """How one of our models is exported.

    Args:
        forward: computes the outputs from the model and `pixel_values`, in the order of `exported_outputs`.
        resize: resizes the position tables for one image size, which it sets in the configuration; takes both and the
            state dict, and returns the tensors that change.
        attn_implementation: attention of the exported model.
    """

    forward: Callable[[Any, torch.Tensor], tuple[torch.Tensor, ...]]
    resize: Callable[[Any, Tensors, int], dict[str, torch.Tensor]]
    attn_implementation: Any


def _forward_deepencoder(model: Any, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    fused, tokens, clip_output = model.encode_view(pixel_values)  # tokens: (batch, rows, columns, dim)
    batch, rows = tokens.shape[:2]
    newlines = model.image_newline.expand(batch, rows, 1, -1)
    # (batch, rows, columns + 1, dim) -> (batch, rows * (columns + 1), dim)
    laid_out = torch.cat([tokens, newlines], dim=2).flatten(1, 2)
    separator = model.view_separator.expand(batch, 1, -1)
    return fused, clip_output.pooler_output, tokens.flatten(1, 2), torch.cat([laid_out, separator], dim=1)


def _forward_sam(model: Any, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (model(pixel_values).last_hidden_state,)


def _forward_clip(model: Any, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    output = model(pixel_values)
    return output.last_hidden_state, output.pooler_output


def _sam_tables(state_dict: Tensors, prefix: str, grid_size: int, config: Any) -> dict[str, torch.Tensor]:
    name = f"{prefix}embeddings.position_embedding"
    found = {name: resize_position_grid(state_dict[name], (grid_size, grid_size))}
    for index in config.global_attn_indexes:
        for side in ("rel_pos_h", "rel_pos_w"):
            name = f"{prefix}layers.{index}.attn.{side}"
            found[name] = resize_relative_positions(state_dict[name], 2 * grid_size - 1)
    return found


def _clip_table(state_dict: Tensors, prefix: str, grid_size: int) -> dict[str, torch.Tensor]:
    name = f"{prefix}embeddings.position_embedding"
    table = state_dict[name]
    old = round((len(table) - 1) ** 0.5)
    # (1 + old * old, dim) -> (1, old, old, dim) -> (1 + new * new, dim)
    grid = resize_position_grid(table[1:].view(1, old, old, -1), (grid_size, grid_size))
    return {name: torch.cat([table[:1], grid.flatten(0, 2)])}


def _resize_deepencoder(config: Any, state_dict: Tensors, image_size: int) -> dict[str, torch.Tensor]:
    sam, clip = config.sam_config, config.clip_config
    tokens = -(-image_size // sam.total_stride)
    sam.image_size, clip.image_size = image_size, tokens * clip.patch_size
    return _sam_tables(state_dict, "sam_encoder.", image_size // sam.patch_size, sam) | _clip_table(
        state_dict, "clip_encoder.", tokens
    )


def _resize_sam(config: Any, state_dict: Tensors, image_size: int) -> dict[str, torch.Tensor]:
    config.image_size = image_size
    return _sam_tables(state_dict, "", image_size // config.patch_size, config)


def _resize_clip(config: Any, state_dict: Tensors, image_size: int) -> dict[str, torch.Tensor]:
    config.image_size = image_size
    return _clip_table(state_dict, "", image_size // config.patch_size)


# CLIP's sdpa is that of transformers, whose export keeps the strides of the kernel that it was traced with.
GRAPHS = {
    "deepencoder": _Graph(_forward_deepencoder, _resize_deepencoder, {"sam_config": "sdpa", "clip_config": "eager"}),
    "deepencoder_sam": _Graph(_forward_sam, _resize_sam, "sdpa"),
    "deepencoder_clip_vision": _Graph(_forward_clip, _resize_clip, "eager"),
}


class _View(nn.Module):
    """The module that is exported: it takes pixels and returns plain tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._compute = GRAPHS[model.config.model_type].forward

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self._compute(self.model, pixel_values)


@torch.no_grad()
def fix_image_size(model: Any, image_size: int, attn_implementation: Any = None) -> Any:
    """Return a copy of a model, in float32 on the CPU, whose position tables are those of one image size.

    Args:
        model: a [`DeepEncoder`], [`SamEncoder`] or [`ClipVisionEncoder`].
        image_size: side of the pages, in pixels.
        attn_implementation: attention of the copy.

    Raises:
        `ValueError`: `image_size` is not a multiple of the patch size.
    """
    config = copy.deepcopy(model.config)
    main = getattr(config, "sam_config", config)
    if image_size <= 0 or image_size % main.patch_size:
        raise ValueError(f"image_size must be a positive multiple of {main.patch_size}, got {image_size}.")
    state_dict = {name: tensor.detach().float().cpu() for name, tensor in model.state_dict().items()}
    resized = GRAPHS[config.model_type].resize(config, state_dict, image_size)
    model_class: Any = MODELS[config.model_type].model_class
    fixed = model_class.from_pretrained(
        None,
        config=config,
        state_dict=state_dict | resized,
        dtype=torch.float32,
        attn_implementation=attn_implementation,
    )
    return fixed.eval()


def _check_exportable(model: Any) -> None:
    """Raise `ValueError` if a model is not exactly one of our classes with all of its weights."""
    name, kind = type(model).__name__, model_kind(model)
    if kind is None or name != kind.name:
        raise ValueError(f"A {name} cannot be exported, only a {', '.join(item.name for item in MODELS.values())}.")
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError(f"A quantised {name} cannot be exported: export the original model.")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(f"A {name} with offloaded weights cannot be exported: load it without a device map.")
    if not getattr(model.config, "use_patch_embedding", True):
        raise ValueError(f"A {name} without patch embedding takes no pixels: export the DeepEncoder it belongs to.")
    with torch.device("meta"):
        names = set(kind.model_class(model.config).state_dict())
    if set(model.state_dict()) != names:
        raise ValueError(f"The {name} has other weights than its configuration describes: merge adapters first.")


@torch.no_grad()
def _compare(model: nn.Module, run: Any, shape: tuple[int, ...], tolerance: float) -> float:
    """Return the largest difference between a graph and a model, for one image and for three.

    Raises:
        `ValueError`: it is larger than `tolerance`.
    """
    largest = 0.0
    for batch in (1, 3):
        generator = torch.Generator().manual_seed(batch)
        pixels = torch.randn(batch, *shape, generator=generator)
        expected = model(pixels)
        for ours, theirs in zip(run(pixels), expected, strict=True):
            largest = max(largest, (torch.as_tensor(ours) - theirs).abs().max().item())
    if not largest <= tolerance:
        raise ValueError(f"The exported graph differs from the model by {largest:.1e}, more than {tolerance:.0e}.")
    return largest


@contextmanager
def _silenced(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _write_onnx(view: _View, shape: tuple[int, ...], path: Path, metadata: dict[str, str]) -> Any:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("ONNX export needs onnx and onnxscript: pip install onnx onnxscript onnxruntime") from error
    names = list(MODELS[view.model.config.model_type].exported_outputs)
    with warnings.catch_warnings(), _silenced("torch.onnx"):  # They are about the exporter's own code.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            view,
            (torch.zeros(2, *shape),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["pixel_values"],
            output_names=names,
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch", min=1)}},
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata)
    program.save(path, external_data=True)
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(names, {"pixel_values": pixels.numpy()})


def _write_torch(view: _View, shape: tuple[int, ...], path: Path, metadata: dict[str, str]) -> Any:
    dynamic_shapes = {"pixel_values": {0: torch.export.Dim("batch", min=1)}}
    program = torch.export.export(view, (torch.zeros(2, *shape),), dynamic_shapes=dynamic_shapes)
    torch.export.save(program, path, extra_files={"metadata.json": json.dumps(metadata)})
    return torch.export.load(path).module()


@dataclass(frozen=True)
class _Format:
    """A format of exported graphs.

    Args:
        suffix: file suffix.
        write: writes the graph, with metadata, and returns a function that runs it; None if that is not possible here.
        metadata: further metadata.
    """

    suffix: str
    write: Callable[[_View, tuple[int, ...], Path, dict[str, str]], Any]
    metadata: Mapping[str, str] = field(default_factory=dict)


_FORMATS = {
    "onnx": _Format(".onnx", _write_onnx, {"opset": str(OPSET)}),
    "torch": _Format(".pt2", _write_torch),
}
FORMATS = {name: item.suffix for name, item in _FORMATS.items()}
"""File suffixes of the formats."""


def _describe(config: Any, shape: tuple[int, ...], tolerance: float) -> dict[str, str]:
    size = ", ".join(map(str, shape))
    return {
        "package": f"deepencoder {__version__}",
        "model_type": config.model_type,
        "image_size": str(shape[-1]),
        "tolerance": str(tolerance),
        "inputs": json.dumps({"pixel_values": f"(batch, {size}), float32: normalised pixels, any batch size"}),
        "outputs": json.dumps(MODELS[config.model_type].exported_outputs),
    }


def _reference(model: Any, view: _View) -> _View:
    """Return what a graph is compared with: the model as it was given if it computes in float32 on the CPU, too."""
    parameter = next(model.parameters())
    plain = parameter.dtype == torch.float32 and parameter.device.type == "cpu" and not model.training
    return _View(model) if plain else view


def export_model(
    model: Any, path: str | Path, image_size: int, format: str = "onnx", tolerance: float = TOLERANCE
) -> dict[str, Any]:
    """Export a model as a graph for pages of one size and batches of any size, and compare the two.

    Args:
        model: a [`DeepEncoder`], [`SamEncoder`] or [`ClipVisionEncoder`].
        path: the file, which appears only if the export succeeds. ONNX keeps the weights beside it, in `path` +
            `.data`.
        image_size: side of the pages (or of the tiles), in pixels.
        format: `"onnx"`, or `"torch"` for `torch.export`.
        tolerance: largest difference allowed between the graph and the model.

    Returns:
        The metadata of the file, and `max_difference` from the model (None if onnxruntime is not installed).

    Raises:
        `ValueError`: the format is unknown, the image size is not a multiple of the patch size, or the graph differs.
        `ImportError`: onnx or onnxscript is not installed.
    """
    if format not in _FORMATS:
        raise ValueError(f"format must be one of {', '.join(map(repr, _FORMATS))}, got {format!r}.")
    path, chosen = Path(path), _FORMATS[format]
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    _check_exportable(model)
    attn_implementation = GRAPHS[model.config.model_type].attn_implementation
    view = _View(fix_image_size(model, image_size, attn_implementation))
    main = getattr(model.config, "sam_config", model.config)
    shape = (main.num_channels, image_size, image_size)
    metadata = _describe(model.config, shape, tolerance) | dict(chosen.metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem[:64]}.", suffix=".tmp")
    with temporary as folder, full_disk_reported(path):
        run = chosen.write(view, shape, Path(folder) / path.name, metadata)
        difference = None if run is None else _compare(_reference(model, view), run, shape, tolerance)
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):  # The graph comes last.
            os.replace(file, path.parent / file.name)
    return {**metadata, "max_difference": difference}
