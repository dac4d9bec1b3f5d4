"""Exporting: a model as one graph for onnxruntime or for torch, for pages of one size and batches of any.

Unusual: the position tables are resized before, once, so that the graph has no resizing in it, whose antialiased
kernel other runtimes do not have. That changes no number.
"""

import copy
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import __version__
from ..modeling import ClipVisionEncoder, DeepEncoder, SamEncoder
from ..modeling.catalog import MODELS, model_kind
from ..modeling.positions import resize_position_grid, resize_relative_positions

__all__ = ["FORMATS", "OPSET", "TOLERANCE", "export_model", "fix_image_size"]

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
OPSET = 18
TOLERANCE = 1e-4  # between the exported graph and the model, in float32


class _View(nn.Module):
    """What is exported: pixels in, plain tensors out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        model: Any = self.model
        if model.config.model_type == "deepencoder_sam":
            return (model(pixel_values).last_hidden_state,)
        if model.config.model_type == "deepencoder_clip_vision":
            output = model(pixel_values)
            return output.last_hidden_state, output.pooler_output
        fused, tokens, clip_output = model.encode_view(pixel_values)  # tokens: (batch, rows, columns, dim)
        batch, rows = tokens.shape[:2]
        newlines = model.image_newline.expand(batch, rows, 1, -1)
        laid_out = torch.cat([tokens, newlines], dim=2).flatten(1, 2)
        separator = model.view_separator.expand(batch, 1, -1)
        return fused, clip_output.pooler_output, tokens.flatten(1, 2), torch.cat([laid_out, separator], dim=1)


def _resized_sam(state_dict: Mapping[str, torch.Tensor], prefix: str, grid_size: int, config: Any) -> dict[str, Any]:
    name = f"{prefix}embeddings.position_embedding"
    found = {name: resize_position_grid(state_dict[name], (grid_size, grid_size))}
    for index in config.global_attn_indexes:
        for side in ("rel_pos_h", "rel_pos_w"):
            name = f"{prefix}layers.{index}.attn.{side}"
            found[name] = resize_relative_positions(state_dict[name], 2 * grid_size - 1)
    return found


def _resized_clip(state_dict: Mapping[str, torch.Tensor], prefix: str, grid_size: int) -> dict[str, Any]:
    name = f"{prefix}embeddings.position_embedding"
    table = state_dict[name]
    old = round((len(table) - 1) ** 0.5)
    # (1 + g * g, dim) -> (1, g, g, dim) -> (1 + n * n, dim)
    grid = resize_position_grid(table[1:].view(1, old, old, -1), (grid_size, grid_size))
    return {name: torch.cat([table[:1], grid.flatten(0, 2)])}


@torch.no_grad()
def fix_image_size(model: Any, image_size: int, attn_implementation: Any = None) -> Any:
    """Return a copy of a model in float32 on the CPU whose tables of positions are those of one image size.

    Args:
        model: a [`DeepEncoder`], [`SamEncoder`] or [`ClipVisionEncoder`].
        image_size: side of the pages, in pixels.
        attn_implementation: of the copy.

    Raises:
        `ValueError`: it is no multiple of the patch size.
    """
    config = copy.deepcopy(model.config)
    main = getattr(config, "sam_config", config)
    if image_size <= 0 or image_size % main.patch_size:
        raise ValueError(f"image_size must be a positive multiple of {main.patch_size}, got {image_size}.")
    state_dict = {name: tensor.detach().float().cpu() for name, tensor in model.state_dict().items()}
    model_class: Any
    if config.model_type == "deepencoder_clip_vision":
        resized = _resized_clip(state_dict, "", image_size // config.patch_size)
        model_class, config.image_size = ClipVisionEncoder, image_size
    elif config.model_type == "deepencoder_sam":
        resized = _resized_sam(state_dict, "", image_size // config.patch_size, config)
        model_class, config.image_size = SamEncoder, image_size
    else:
        sam, clip = config.sam_config, config.clip_config
        tokens = -(-image_size // sam.total_stride)
        resized = _resized_sam(state_dict, "sam_encoder.", image_size // sam.patch_size, sam)
        resized |= _resized_clip(state_dict, "clip_encoder.", tokens)
        model_class, sam.image_size, clip.image_size = DeepEncoder, image_size, tokens * clip.patch_size
    fixed = model_class.from_pretrained(
        None,
        config=config,
        state_dict=state_dict | resized,
        dtype=torch.float32,
        attn_implementation=attn_implementation,
    )
    return fixed.eval()


def _describe(model: Any, image_size: int, format: str) -> dict[str, str]:
    config = model.config
    main = getattr(config, "sam_config", config)
    side = f"(batch, {main.num_channels}, {image_size}, {image_size})"
    facts: dict[str, Any] = {
        "package": f"deepencoder {__version__}",
        "model_type": config.model_type,
        "image_size": image_size,
        "tolerance": TOLERANCE,
        "inputs": {"pixel_values": f"{side}, float32: normalised pixels, any batch"},
        "outputs": MODELS[config.model_type].exported_outputs,
    }
    if format == "onnx":
        facts["opset"] = OPSET
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}


def _check_exportable(model: Any) -> None:
    """Raise `ValueError` for a model that is not just one of the three classes with its weights at hand."""
    name = type(model).__name__
    kind = model_kind(model)
    if kind is None or name != kind.name:
        raise ValueError(f"A {name} cannot be exported, but a {', '.join(item.name for item in MODELS.values())}.")
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError(f"A quantised {name} cannot be exported: export it as it was before.")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(f"A {name} whose weights are offloaded cannot be exported: load it without a device map.")
    if not getattr(model.config, "use_patch_embedding", True):
        raise ValueError(f"A {name} without patch embedding takes no pixels: export the DeepEncoder that it is of.")
    with torch.device("meta"):
        names = set(kind.model_class(model.config).state_dict())
    if set(model.state_dict()) != names:
        raise ValueError(f"The {name} has other weights than its configuration says: merge adapters into it before.")


@torch.no_grad()
def _check(model: nn.Module, run: Any, shape: tuple[int, ...]) -> float:
    """Compare a graph with the model, for one image and for three; returns the largest difference."""
    largest = 0.0
    for batch in (1, 3):
        generator = torch.Generator().manual_seed(batch)
        pixels = torch.randn(batch, *shape, generator=generator)
        expected = model(pixels)
        for ours, theirs in zip(run(pixels), expected, strict=True):
            largest = max(largest, (torch.as_tensor(ours) - theirs).abs().max().item())
    if not largest <= TOLERANCE:
        raise ValueError(f"The exported graph differs from the model by {largest:.1e}, more than {TOLERANCE:.0e}.")
    return largest


def export_model(model: Any, path: str | Path, image_size: int, format: str = "onnx") -> dict[str, Any]:
    """Export a model as a graph for pages of one size and batches of any size, and compare the two.

    Args:
        model: a [`DeepEncoder`], [`SamEncoder`] or [`ClipVisionEncoder`].
        path: the file, which appears when all went well; ONNX keeps the weights beside it, in `path` + `.data`.
        image_size: side of the pages (or of the tiles), in pixels.
        format: `"onnx"`, or `"torch"` for `torch.export`.

    Returns:
        the metadata in the file, and `max_difference` to the model (None where onnxruntime is missing).

    Raises:
        `ValueError`: an unknown format, an image size with a part of a patch, or a graph that differs.
        `ImportError`: onnx or onnxscript is missing.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(map(repr, FORMATS))}, got {format!r}.")
    path = Path(path)
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    _check_exportable(model)
    # CLIP's sdpa is transformers', which exports with the strides of the kernel that it was traced with.
    attention: Any = {"deepencoder": {"sam_config": "sdpa", "clip_config": "eager"}, "deepencoder_sam": "sdpa"}
    view = _View(fix_image_size(model, image_size, attention.get(model.config.model_type, "eager")))
    main = getattr(model.config, "sam_config", model.config)
    shape = (main.num_channels, image_size, image_size)
    facts = _describe(model, image_size, format)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        temporary = Path(folder) / path.name
        write = _write_onnx if format == "onnx" else _write_torch
        # Against the model as it was given, where that computes in float32, too.
        parameter = next(model.parameters())
        plain = parameter.dtype == torch.float32 and parameter.device.type == "cpu" and not model.training
        difference = write(view, _View(model) if plain else view, shape, temporary, facts)
        for file in sorted(Path(folder).iterdir(), key=lambda file: file == temporary):  # the graph last
            os.replace(file, path.parent / file.name)
    return {**facts, "max_difference": difference}


def _write_onnx(
    view: _View, reference: _View, shape: tuple[int, ...], path: Path, facts: dict[str, str]
) -> float | None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("Exporting to ONNX takes onnx and onnxscript: pip install 'deepencoder[onnx]'") from error
    names = list(MODELS[view.model.config.model_type].exported_outputs)  # type: ignore[union-attr, index]
    with warnings.catch_warnings(), _silenced("torch.onnx"):  # about the exporter's own insides
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
    program.model.metadata_props.update(facts)
    program.save(path, external_data=True)
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return _check(reference, lambda pixels: session.run(names, {"pixel_values": pixels.numpy()}), shape)


@contextmanager
def _silenced(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _write_torch(view: _View, reference: _View, shape: tuple[int, ...], path: Path, facts: dict[str, str]) -> float:
    dynamic_shapes = {"pixel_values": {0: torch.export.Dim("batch", min=1)}}
    program = torch.export.export(view, (torch.zeros(2, *shape),), dynamic_shapes=dynamic_shapes)
    torch.export.save(program, path, extra_files={"metadata.json": json.dumps(facts)})
    return _check(reference, torch.export.load(path).module(), shape)
