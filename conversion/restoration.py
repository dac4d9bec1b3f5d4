"""The way back: a copy of an original checkpoint, with our encoder's tensors in place of its own.

Unusual: the files are copied as they are, and only the bytes of the encoder's tensors are written over, one tensor at
a time. So names, order, dtypes and every other byte stay what they were.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from huggingface_hub import snapshot_download

from ..configuration.atomic_files import new_folder
from ..modeling.catalog import MODELS
from .checkpoint import Checkpoint, open_checkpoint
from .key_tables import TRANSPOSED
from .planning import dtype_name, plan_conversion
from .readers.folders import find_files
from .readers.formats import format_of, open_file
from .readers.hub import HubOptions, looks_like_hub_id
from .readers.stored_tensors import StoredTensor, join_shards

__all__ = ["RestorationReport", "restore_checkpoint"]

# transformers writes Unlimited-OCR under DeepSeek-OCR's names.
ALSO = {"unlimited-ocr": "deepseek-ocr"}


@dataclass
class RestorationReport:
    """What was written into the copy of a checkpoint.

    Args:
        layout: what the original was recognised as.
        replaced: names there that were written over.
        unchanged: how many others there are.
        dtype_changes: names there whose dtype is not the encoder's, with both: values were rounded to the original's.
    """

    layout: str
    replaced: list[str] = field(default_factory=list)
    unchanged: int = 0
    dtype_changes: dict[str, list[str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _find_original(original: str | Path, hub: HubOptions) -> Path:
    path = Path(original)
    if path.exists() or not looks_like_hub_id(str(original)):
        return path
    return Path(
        snapshot_download(
            str(original),
            revision=hub.revision,
            token=hub.token,
            cache_dir=hub.cache_dir,
            local_files_only=hub.local_files_only,
            force_download=hub.force_download,
        )
    )


def _match(
    encoder: Checkpoint,
    wanted: set[str],
    names: Mapping[str, tuple[str, ...]],
    stored: Mapping[str, StoredTensor],
) -> None:
    """Insist that every tensor of the encoder has its place in the original, and the other way round."""
    for one, other, message in (
        (wanted, set(names), "ORIGINAL has no place for the encoder's"),
        (set(names), wanted, "ENCODER lacks"),
    ):
        lost = sorted(one - other)
        if lost:
            raise ValueError(f"{message} {len(lost)} tensors: {', '.join(lost[:3])}.")
    for name, parts in names.items():
        shape = list(stored[parts[0].removesuffix(TRANSPOSED)].shape)
        if parts[0].endswith(TRANSPOSED):
            shape.reverse()
        if shape:
            shape[0] *= len(parts)
        ours = encoder.shapes[name]
        if [side for side in shape if side != 1] != [side for side in ours if side != 1]:
            raise ValueError(
                f"{name} of ENCODER has shape {ours}, but {' + '.join(parts)} of ORIGINAL {tuple(shape)}."
            )


def _copy_folder(source: Path, target: Path) -> None:
    try:
        shutil.copytree(source, target, dirs_exist_ok=True, copy_function=shutil.copyfile)
    except shutil.Error as error:  # a list of all that went wrong
        name, _, reason = error.args[0][0]
        raise OSError(f"{name} cannot be copied: {reason}") from error


def _overwrite(file: BinaryIO, place: StoredTensor, tensor: torch.Tensor, name: str) -> None:
    assert place.dtype is not None
    content = tensor.to(place.dtype)
    if tensor.isfinite().all() and not content.isfinite().all():
        raise ValueError(f"{name} of ENCODER has values too large for {dtype_name(place.dtype)}, which ORIGINAL has.")
    content = content.contiguous().flatten().view(torch.uint8)
    assert content.nbytes == place.end - place.start
    file.seek(place.start)
    file.write(content.numpy().data)


def restore_checkpoint(
    encoder: str | Path, original: str | Path, target: str | Path, to: str, hub: HubOptions | None = None
) -> RestorationReport:
    """Write a copy of an original checkpoint in which the encoder is ours.

    Args:
        encoder: a folder or a Hub id of one of our models.
        original: a folder or a Hub id of a checkpoint in safetensors files, or one such file.
        target: the folder to write, or the file where `original` is a file too; it appears whole or not at all, and
            must not be there yet.
        to: the layout that `original` must have, by its `slug`.
        hub ([`HubOptions`], *optional*): how to reach the Hub.

    Raises:
        `ValueError`: no encoder of ours, an original of another layout or other sizes, or a damaged file.
        `OSError`: there is no such source, or it cannot be reached.
        `FileExistsError`: there is something at `target` already.
    """
    target = Path(target)
    if target.exists():
        raise FileExistsError(f"target: {target} is there already.")
    hub = hub or HubOptions()
    ours = open_checkpoint(encoder, hub)
    if ours.config.get("model_type") not in list(MODELS):
        raise ValueError(f"ENCODER: {encoder} is not a model of this package: its config.json does not say so.")
    path = _find_original(original, hub)
    files, weight_map = find_files(path)
    if not format_of(files[0].name).in_place:
        raise ValueError(f"ORIGINAL: {files[0]} is a pickle; only safetensors files can be written into.")
    shards = {file.name: open_file(file) for file in files}
    stored = join_shards(shards, weight_map)
    tower = {name: ours.config[name] for name in ("num_attention_heads", "hidden_act") if name in ours.config}
    nested = ours.config.get("clip_config")
    if isinstance(nested, Mapping):
        tower = {name: nested[name] for name in ("num_attention_heads", "hidden_act") if name in nested}
    plan = plan_conversion(open_checkpoint(path), **tower)
    if plan.layout.slug not in (to, ALSO.get(to)):
        raise ValueError(
            f"ORIGINAL: {original} is laid out as {plan.layout.name} ({plan.layout.slug!r}), not as {to!r}."
        )
    ours_there = set(ours)
    if plan.layout.pixels == "sam":  # which has no compressor to go back to
        ours_there = {name for name in ours_there if not name.startswith("compressor.")}
    _match(ours, ours_there, plan.names, stored)

    report = RestorationReport(plan.layout.name, unchanged=len(stored) - len(plan.needed))
    places = {name: file for file, tensors in shards.items() for name in tensors}
    if path.is_dir() and target.resolve().is_relative_to(path.resolve()):
        raise ValueError(f"TARGET: {target} is inside of ORIGINAL, of which it is to be a copy.")
    ours.fetch(list(plan.names))
    with new_folder(target, path.name if path.is_file() and target.suffix == path.suffix else None) as temporary:
        if path.is_dir():
            _copy_folder(path, temporary)
        else:
            shutil.copyfile(path, temporary / path.name)
        opened = {file: open(temporary / file, "r+b") for file in shards}
        try:
            for name, parts in plan.names.items():
                tensor = ours[name]
                for there, part in zip(parts, tensor.chunk(len(parts)), strict=True):
                    key = there.removesuffix(TRANSPOSED)
                    _overwrite(opened[places[key]], stored[key], part.T if there.endswith(TRANSPOSED) else part, name)
                    report.replaced.append(key)
                    if tensor.dtype != stored[key].dtype:
                        report.dtype_changes[key] = [dtype_name(tensor.dtype), dtype_name(stored[key].dtype)]
        finally:
            for file in opened.values():
                file.close()
    return report
