"""The way back: a copy of an original checkpoint with our encoder's tensors in place of its own.

Unusual: the files are copied as they are, and only the bytes of the encoder's tensors are overwritten, one tensor at a
time. So names, order, dtypes and every other byte stay the same.
"""

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from huggingface_hub import snapshot_download

from ..configuration.atomic_files import new_folder
from ..modeling.catalog import MODELS
from .checkpoint import Checkpoint, open_checkpoint
from .copies import copy_into
from .key_mapping import joined_shape, same_sides, split_tensor
from .planning import ConversionPlan, dtype_name, plan_conversion
from .readers.folders import find_files
from .readers.formats import format_of, open_file
from .readers.hub import HubOptions, looks_like_hub_id
from .readers.stored_tensors import StoredTensor, join_shards

__all__ = ["RestorationReport", "restore_checkpoint"]


@dataclass
class RestorationReport:
    """What was written into the copy of a checkpoint.

    Args:
        layout: name of the layout that the original was recognised as.
        replaced: names of the original's tensors that were overwritten.
        unchanged: number of its other tensors.
        dtype_changes: names of the original's tensors whose dtype is not the encoder's, with both dtypes; the
            encoder's values were rounded.
    """

    layout: str
    replaced: list[str] = field(default_factory=list)
    unchanged: int = 0
    dtype_changes: dict[str, list[str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Original:
    """An original checkpoint on this machine.

    Args:
        path: its folder, or its only file.
        plan: what it is.
        tensors: where each of its tensors lies in its file.
        files: the name of the file that each tensor is in.
    """

    path: Path
    plan: ConversionPlan
    tensors: Mapping[str, StoredTensor]
    files: Mapping[str, str]


def _download(original: str | Path, hub: HubOptions) -> Path:
    """Return the path of an original, after downloading it if it is a Hub id."""
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


def _tower_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of our model's second part that an original need not contain."""
    nested = config.get("clip_config", config.get("query_config"))
    tower = nested if isinstance(nested, Mapping) else config
    return {name: tower[name] for name in ("num_attention_heads", "hidden_act") if name in tower}


def _open_original(original: str | Path, to: str, hub: HubOptions, config: Mapping[str, Any]) -> _Original:
    """Open an original for the model with this configuration, which may be a part of it."""
    path = _download(original, hub)
    files, weight_map = find_files(path)
    if not format_of(files[0].name).in_place:
        raise ValueError(f"ORIGINAL: {files[0]} is not a safetensors file; only those can be written into.")
    shards = {file.name: open_file(file) for file in files}
    tensors = join_shards(shards, weight_map)
    plan = plan_conversion(open_checkpoint(path), model_type=config.get("model_type"), **_tower_fields(config))
    if to not in (plan.layout.slug, plan.layout.part_of, *plan.layout.also_written_for):
        raise ValueError(f"ORIGINAL: {original} has the layout {plan.layout.name} ({plan.layout.slug!r}), not {to!r}.")
    return _Original(path, plan, tensors, {name: file for file, names in shards.items() for name in names})


def _check_names(encoder: Collection[str], original: Collection[str]) -> None:
    for one, other, message in (
        (encoder, original, "ORIGINAL has no place for the encoder's"),
        (original, encoder, "ENCODER lacks"),
    ):
        lost = sorted(set(one) - set(other))
        if lost:
            raise ValueError(f"{message} {len(lost)} tensors: {', '.join(lost[:3])}.")


def _check_match(encoder: Checkpoint, original: _Original) -> None:
    """Check that every tensor of the encoder has its place in the original, and vice versa."""
    absent = original.plan.layout.family.absent_parts
    _check_names([name for name in encoder if not name.startswith(absent)], original.plan.rows)
    shapes = {name: tensor.shape for name, tensor in original.tensors.items()}
    for name, row in original.plan.rows.items():
        ours, theirs = encoder.shapes[name], joined_shape(row, shapes)
        if not same_sides(ours, theirs):
            raise ValueError(
                f"{name} of ENCODER has shape {ours}, but {' + '.join(row.there)} of ORIGINAL has {theirs}."
            )


def _overwrite(file: BinaryIO, place: StoredTensor, tensor: torch.Tensor, name: str) -> None:
    assert place.dtype is not None
    content = tensor.to(place.dtype)
    if tensor.isfinite().all() and not content.isfinite().all():
        raise ValueError(f"{name} of ENCODER has values too large for ORIGINAL's dtype {dtype_name(place.dtype)}.")
    content = content.contiguous().flatten().view(torch.uint8)
    assert content.nbytes == place.end - place.start
    file.seek(place.start)
    file.write(content.numpy().data)


def _write_encoder(encoder: Checkpoint, original: _Original, folder: Path) -> RestorationReport:
    """Overwrite the encoder's tensors in a copy of an original."""
    plan = original.plan
    report = RestorationReport(plan.layout.name, unchanged=len(original.tensors) - len(plan.needed))
    with ExitStack() as stack:
        files = {
            file: stack.enter_context(open(folder / file, "r+b")) for file in sorted(set(original.files.values()))
        }
        for name, row in plan.rows.items():
            tensor = encoder[name]
            for there, part in split_tensor(row, tensor):
                place = original.tensors[there]
                _overwrite(files[original.files[there]], place, part, name)
                report.replaced.append(there)
                if tensor.dtype != place.dtype:
                    report.dtype_changes[there] = [dtype_name(tensor.dtype), dtype_name(place.dtype)]
    return report


def restore_checkpoint(
    encoder: str | Path, original: str | Path, target: str | Path, to: str, hub: HubOptions | None = None
) -> RestorationReport:
    """Write a copy of an original checkpoint that contains our encoder instead of its own.

    Args:
        encoder: a folder or a Hub id of one of our models.
        original: a folder or a Hub id of a checkpoint in safetensors files, or one such file.
        target: the folder to write, or the file if `original` is a file, too. It appears complete or not at all, and
            must not exist yet.
        to: the `slug` of the layout that `original` must have.
        hub ([`HubOptions`], *optional*): how to reach the Hub.

    Raises:
        `ValueError`: `encoder` is not one of our models, `original` has another layout or other sizes, or a file is
            damaged.
        `OSError`: a source does not exist, or cannot be reached.
        `FileExistsError`: `target` exists already.
    """
    target = Path(target)
    if target.exists():
        raise FileExistsError(f"target: {target} exists already.")
    hub = hub or HubOptions()
    ours = open_checkpoint(encoder, hub)
    if ours.config.get("model_type") not in list(MODELS):
        raise ValueError(f"ENCODER: {encoder} is not a model of this package, judging by its config.json.")
    theirs = _open_original(original, to, hub, ours.config)
    _check_match(ours, theirs)
    path = theirs.path
    if path.is_dir() and target.resolve().is_relative_to(path.resolve()):
        raise ValueError(f"TARGET: {target} is inside ORIGINAL, which it is to be a copy of.")
    ours.fetch(list(theirs.plan.rows))
    with new_folder(target, path.name if path.is_file() and target.suffix == path.suffix else None) as temporary:
        copy_into(path, temporary)
        return _write_encoder(ours, theirs, temporary)
