"""Reading checkpoints of other code, and making our models of them.

Unusual: a checkpoint may be far larger than the encoder in it, so files are opened lazily, and a tensor is read when
a row of the table asks for it. Checkpoints are untrusted: no pickle runs code, and an index names files of its own
folder only.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from ..configuration import ClipVisionEncoderConfig, DeepEncoderConfig, SamEncoderConfig
from ..modeling import ClipVisionEncoder, DeepEncoder, SamEncoder
from ..processing import DeepEncoderImageProcessor
from .keys import convert_state_dict, map_keys, prefixed, source_shapes
from .layouts import Layout, recognize

__all__ = ["Checkpoint", "ConversionReport", "convert_checkpoint", "open_checkpoint", "save_converted"]

Shapes = Mapping[str, tuple[int, ...]]
MODELS: dict[str, type[PreTrainedModel]] = {
    "deepencoder": DeepEncoder,
    "deepencoder_sam": SamEncoder,
    "deepencoder_clip_vision": ClipVisionEncoder,
}
PICKLES = (".pth", ".pt", ".bin")
# Attention heads of towers whose checkpoint does not tell: width -> heads, of ViT-Ti to ViT-bigG and SAM's.
KNOWN_HEADS = {192: 3, 384: 6, 512: 8, 640: 10, 768: 12, 1024: 16, 1152: 16, 1280: 16, 1408: 16, 1664: 16}


class Checkpoint(Mapping[str, torch.Tensor]):
    """Tensors by name, read from their files one by one.

    Args:
        readers: for each name, a function that reads the tensor.
        shapes: for each name, the tensor's shape.
        config: what the `config.json` beside the files says, if there is one.
    """

    def __init__(
        self, readers: Mapping[str, Callable[[], torch.Tensor]], shapes: Shapes, config: Mapping[str, Any]
    ) -> None:
        self._readers = readers
        self.shapes = shapes
        self.config = config

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


@dataclass
class ConversionReport:
    """What became of a checkpoint: names there, by what was done with them."""

    layout: str
    model_type: str
    dtype: str
    mapped: int = 0
    left_behind: dict[str, str] = field(default_factory=dict)
    initialized: list[str] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _find_files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise FileNotFoundError(f"source: there is no file or folder {str(source)!r}.")
    for index in sorted(source.glob("*.index.json")):
        try:
            names = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{index} is not an index of shards: {error!r}.") from error
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise ValueError(f"{index} names files outside of its folder: {', '.join(sorted(outside))}.")
        missing = [name for name in names if not (source / name).is_file()]
        if missing:
            raise ValueError(f"{index} names shards that are not there: {', '.join(sorted(missing))}.")
        return [source / name for name in sorted(names)]
    for suffix in (".safetensors", *PICKLES):
        files = sorted(source.glob(f"*{suffix}"))
        if files:
            return files
    raise ValueError(f"source: {source} holds neither safetensors nor {', '.join(PICKLES)} files.")


def _open_safetensors(path: Path) -> tuple[dict[str, Callable[[], torch.Tensor]], dict[str, tuple[int, ...]]]:
    try:
        file = safe_open(path, framework="pt")
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}.") from error
    return {name: partial(file.get_tensor, name) for name in shapes}, shapes


def _open_pickle(path: Path) -> tuple[dict[str, Callable[[], torch.Tensor]], dict[str, tuple[int, ...]]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises whatever the file makes it raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} cannot be read without running its code, or is damaged: {reason}") from error
    for name in ("state_dict", "model", "module"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no dict of tensors.")
    return {name: partial(tensors.__getitem__, name) for name in tensors}, {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Open a checkpoint without reading its tensors.

    Args:
        source: a folder (with an index of shards, safetensors files or pickles), or one such file. Pickles are read
            with `weights_only=True`.

    Raises:
        `FileNotFoundError`: there is no such file or folder.
        `ValueError`: a damaged file, a missing shard, a name in two shards, a pickle that wants to run code.
    """
    source = Path(source)
    readers: dict[str, Callable[[], torch.Tensor]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in _find_files(source):
        found, found_shapes = (_open_pickle if path.suffix in PICKLES else _open_safetensors)(path)
        twice = sorted(set(found) & set(readers))
        if twice:
            raise ValueError(f"{path} holds tensors that another shard holds too: {', '.join(twice[:3])}.")
        readers |= found
        shapes |= found_shapes
    config_file = (source if source.is_dir() else source.parent) / "config.json"
    config: Any = {}
    if config_file.is_file():
        try:
            config = json.loads(config_file.read_text())
        except ValueError as error:
            raise ValueError(f"{config_file} is not JSON: {error}.") from error
    return Checkpoint(readers, shapes, config if isinstance(config, Mapping) else {})


def _part(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _count_layers(shapes: Shapes) -> int:
    return 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("layers."))


def infer_sam_config(shapes: Shapes) -> SamEncoderConfig:
    """Read a SAM encoder's sizes off the shapes of its tensors.

    Raises:
        `ValueError`: windows and whole maps have tables of one length, so that blocks cannot be told apart.
    """
    hidden_size, num_channels, patch_size, _ = shapes["embeddings.patch_embedding.weight"]
    grid_size = shapes["embeddings.position_embedding"][-2]
    num_layers = _count_layers(shapes)
    rows = [shapes[f"layers.{index}.attn.rel_pos_h"] for index in range(num_layers)]
    global_rows = 2 * grid_size - 1
    windowed = {length for length, _ in rows if length != global_rows}
    if len(windowed) != 1:
        raise ValueError(
            f"Cannot tell windowed from global blocks by the lengths of their position tables: {sorted(set(rows))}."
        )
    convolutions = sorted(name for name in shapes if name.startswith("compressor.convs."))
    return SamEncoderConfig(
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // rows[0][1],
        intermediate_size=shapes["layers.0.mlp.lin1.weight"][0],
        num_channels=num_channels,
        image_size=grid_size * patch_size,
        patch_size=patch_size,
        window_size=(windowed.pop() + 1) // 2,
        global_attn_indexes=tuple(index for index, (length, _) in enumerate(rows) if length == global_rows),
        output_channels=shapes["neck.conv1.weight"][0],
        # A plain SAM has none: the published compressor is added, newly initialised.
        downsample_channels=tuple(shapes[name][0] for name in convolutions) or (512, 1024),
    )


def infer_clip_config(
    shapes: Shapes, config: Mapping[str, Any], defaults: Mapping[str, Any], **values: Any
) -> ClipVisionEncoderConfig:
    """Read a tower's sizes off the shapes of its tensors, and what they do not tell off the source's config.

    Args:
        shapes: shapes by their names here.
        config: the source's `config.json`; a nested `vision_config` comes first.
        defaults: fields that neither tells.
        values: fields that overrule all else.

    Raises:
        `ValueError`: the number of heads is nowhere to be found.
    """
    nested = config.get("vision_config")
    hints = nested if isinstance(nested, Mapping) else config
    positions, hidden_size = shapes["embeddings.position_embedding"][-2:]
    grid_size = round((positions - 1) ** 0.5)
    if grid_size**2 + 1 != positions:
        raise ValueError(f"{positions} positions are not a square and a class token.")
    found: dict[str, Any] = {
        "hidden_size": hidden_size,
        "num_hidden_layers": _count_layers(shapes),
        "intermediate_size": shapes["layers.0.mlp.fc1.weight"][0],
        "use_pre_norm": "pre_layernorm.weight" in shapes,
        "use_patch_embedding": "embeddings.patch_embedding.weight" in shapes,
        "use_patch_bias": "embeddings.patch_embedding.bias" in shapes,
        "patch_size": 14,
        "num_attention_heads": KNOWN_HEADS.get(hidden_size),
    }
    if found["use_patch_embedding"]:
        _, found["num_channels"], found["patch_size"], _ = shapes["embeddings.patch_embedding.weight"]
    if "visual_projection.weight" in shapes:
        found["projection_dim"] = shapes["visual_projection.weight"][0]
    found |= defaults
    for name in ("num_attention_heads", "hidden_act", "layer_norm_eps"):
        if hints.get("hidden_size") == hidden_size and name in hints:
            found[name] = hints[name]
    found |= values
    if found["num_attention_heads"] is None:
        raise ValueError(f"num_attention_heads of a tower of width {hidden_size} is not known: pass it.")
    return ClipVisionEncoderConfig(image_size=grid_size * found["patch_size"], **found)


def _infer_config(layout: Layout, shapes: Shapes, config: Mapping[str, Any], values: dict[str, Any]) -> Any:
    if layout.model_type == SamEncoderConfig.model_type:
        return infer_sam_config(shapes)
    if layout.model_type == ClipVisionEncoderConfig.model_type:
        return infer_clip_config(shapes, config, dict(layout.defaults), **values)
    clip_config = infer_clip_config(_part(shapes, "clip_encoder."), {}, {}, **values)
    width = shapes.get("projector.layers.0.weight", shapes.get("image_newline", (1280,)))[0]
    sam_config = infer_sam_config(_part(shapes, "sam_encoder."))
    return DeepEncoderConfig(sam_config=sam_config, clip_config=clip_config, projection_dim=width)


def _reason(layout: Layout, key: str) -> str | None:
    for pattern, reason in layout.left_behind:
        if key == pattern or (pattern.endswith("*") and key.startswith(pattern[:-1])):
            return reason
    return None


def convert_checkpoint(source: str | Path, **values: Any) -> tuple[PreTrainedModel, ConversionReport]:
    """Make one of our models of a checkpoint of other code.

    Args:
        source: see [`open_checkpoint`].
        values: fields of the CLIP tower that its tensors cannot tell, `num_attention_heads`, `hidden_act` or
            `layer_norm_eps`.

    Returns:
        a [`DeepEncoder`], [`SamEncoder`] or [`ClipVisionEncoder`] in the dtype of its tensors, and the report.

    Raises:
        `ValueError`: an unknown or ambiguous layout, an unknown name in a part that is the encoder's, a tensor of a
            wrong shape, or a size that nothing tells.
    """
    checkpoint = open_checkpoint(source)
    layout, prefix = recognize(checkpoint)
    claims = tuple(prefix + claim for claim in layout.claims)
    table = prefixed(layout.table, there=prefix)
    claimed = [key for key in checkpoint if key.startswith(claims)]
    reasons = {key: _reason(layout, key.removeprefix(prefix)) for key in claimed}
    left_behind = {key: reason for key, reason in reasons.items() if reason is not None}
    names, unknown = map_keys([key for key in claimed if key not in left_behind], table)
    if unknown:
        near = get_close_matches(unknown[0], [name for parts in names.values() for name in parts], n=3)
        hint = f" The nearest known ones are {', '.join(near)}." if near else ""
        raise ValueError(f"{layout.name} has no tensor {unknown[0]!r}.{hint}")
    config = _infer_config(layout, source_shapes(names, checkpoint.shapes), checkpoint.config, values)
    model_class = MODELS[layout.model_type]
    with torch.device("meta"):
        target = model_class(config).state_dict()
    needed = {key.removesuffix("^T") for parts in names.values() for key in parts}
    converted, unused = convert_state_dict(_Selection(checkpoint, needed), table, target)
    if unused:
        raise ValueError(
            f"{layout.name} has tensors for which a model of its sizes has no place: {', '.join(unused)}."
        )
    dtype = next(iter(converted.values())).dtype
    model = model_class.from_pretrained(None, config=config, state_dict=converted, dtype=dtype)
    report = ConversionReport(
        layout=layout.name,
        model_type=layout.model_type,
        dtype=str(dtype).removeprefix("torch."),
        mapped=len(needed),
        left_behind=left_behind,
        initialized=sorted(set(target) - set(converted)),
        not_finite=sorted(name for name, tensor in converted.items() if not tensor.isfinite().all()),
    )
    return model, report


class _Selection(Mapping[str, torch.Tensor]):
    """Some tensors of a checkpoint, still unread."""

    def __init__(self, checkpoint: Checkpoint, names: set[str]) -> None:
        self._checkpoint, self._names = checkpoint, names

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._checkpoint[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def save_converted(model: PreTrainedModel, target: str | Path) -> None:
    """Write a model and an image processor to a folder, which appears whole or not at all.

    Raises:
        `FileExistsError`: there is something at `target` already.
    """
    target = Path(target)
    if target.exists():
        raise FileExistsError(f"target: {target} is there already.")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        model.save_pretrained(temporary)
        DeepEncoderImageProcessor().save_pretrained(temporary)
        temporary.chmod(0o755)
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
