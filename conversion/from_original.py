"""From a checkpoint of other code to a model in one step: convert, verify and cache.

Unusual: a conversion of a checkpoint on the Hub is kept in the Hub's cache, by repository, commit and converter
version; the next time only the commit is requested. A local checkpoint is converted in memory each time.
"""

import hashlib
import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers.utils import IMAGE_PROCESSOR_NAME

from ..configuration.atomic_files import new_folder
from ..modeling.catalog import MODELS
from ..processing import DeepEncoderImageProcessor
from .checkpoint import open_checkpoint, open_remote
from .converter import execute_conversion, save_converted
from .copies import copy_into
from .planning import ConversionPlan, plan_conversion, read_dtype
from .readers.hub import HubOptions, RemoteFiles, looks_like_hub_id, model_cache
from .report import CONVERTER_VERSION, ConversionReport
from .verification import compare_with_reference, compute_converted, reason_not_to_verify

__all__ = [
    "convert_to_folder",
    "load_original",
    "load_original_image_processor",
    "load_original_with_report",
    "plan_original",
    "write_conversion",
]

HUB_FIELDS = tuple(field.name for field in fields(HubOptions))
TOWER_FIELDS = ("num_attention_heads", "hidden_act", "layer_norm_eps")


def convert_to_folder(
    source: str | Path,
    target: str | Path,
    hub: HubOptions | None = None,
    verify: bool | None = None,
    dtype: Any = "auto",
    max_shard_size: int | str | None = None,
    **values: Any,
) -> ConversionReport:
    """Convert a checkpoint, and write the model, its image processor and the report to a folder.

    Args:
        source: see [`open_checkpoint`].
        target: the folder. It appears complete or not at all, and must not exist yet.
        hub ([`HubOptions`], *optional*): how to reach the Hub.
        verify: whether to compare the model with transformers' class for the original on the same input. None does so
            if transformers has one and all values are finite.
        dtype: dtype of the weights; `"auto"` keeps the checkpoint's.
        max_shard_size: as in transformers' `save_pretrained`.
        values: see [`convert_checkpoint`].

    Raises:
        `ValueError`: see [`convert_checkpoint`]; or the model differs from the original; or `verify=True` and the
            model cannot be verified.
        `OSError`: the source does not exist, or cannot be read.
        `FileExistsError`: `target` exists already.
    """
    target = Path(target)
    if target.exists():
        raise FileExistsError(f"target: {target} exists already.")
    if not _is_remote(source):
        plan = plan_conversion(open_checkpoint(source, hub), dtype, **values)
        return write_conversion(plan, str(source), target, verify, max_shard_size)
    remote = RemoteFiles(str(source), hub or HubOptions())
    cached = _cached_folder(remote, values)
    if read_dtype(dtype) is None and max_shard_size is None and _is_usable(cached, verify, remote.options):
        with new_folder(target) as temporary:
            copy_into(cached, temporary)
        return ConversionReport.load(cached)
    with remote.lock():
        plan = plan_conversion(open_remote(remote), dtype, **values)
        return write_conversion(plan, remote.repo_id, target, verify, max_shard_size)


def write_conversion(
    plan: ConversionPlan,
    source: str,
    target: Path,
    verify: bool | None = None,
    max_shard_size: int | str | None = None,
) -> ConversionReport:
    """Carry out a plan and write its result to a folder; see [`convert_to_folder`]."""
    sharding = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    with new_folder(target) as temporary:
        conversion = execute_conversion(plan, source, own_memory=False)
        save_converted(conversion, temporary, **sharding)
        report = conversion.report
        reason = _reason_not_to_verify(plan, report, source, verify)
        if reason is None:
            ours = compute_converted(plan, conversion.model, report.initialized)
            del conversion  # There may be memory for one model only.
            report.verification = compare_with_reference(plan, ours)
        else:
            report.verification = {"not_run": reason}
        report.save(temporary)
    plan.checkpoint.forget()
    return report


def _reason_not_to_verify(
    plan: ConversionPlan, report: ConversionReport, source: str, verify: bool | None
) -> str | None:
    reason = reason_not_to_verify(plan, report.not_finite)
    if verify and reason is not None:
        raise ValueError(f"{source} cannot be verified: {reason}.")
    return "not wanted" if verify is False else reason


def _split_options(options: dict[str, Any]) -> tuple[HubOptions, dict[str, Any]]:
    """Remove the options of the Hub and the fields of the tower from keyword arguments, and return both."""
    hub = HubOptions(**{name: options.pop(name) for name in HUB_FIELDS if options.get(name) is not None})
    values = {name: options.pop(name) for name in TOWER_FIELDS if options.get(name) is not None}
    for name in (*HUB_FIELDS, *TOWER_FIELDS):
        options.pop(name, None)
    return hub, values


def _cached_folder(remote: RemoteFiles, values: dict[str, Any], part: str | None = None) -> Path:
    """Return the folder of a conversion in the cache; `part` is the `model_type` of a part that is a model."""
    name = f"v{CONVERTER_VERSION}" + (f"-{part}" if part else "")
    if values:
        name += "-" + hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
    return model_cache(remote.repo_id, remote.commit, remote.options) / name


def _is_usable(cached: Path, verify: bool | None, options: HubOptions) -> bool:
    """Tell whether a finished conversion is cached, complete and, if that is demanded, verified."""
    if options.force_download or not cached.is_dir():
        return False
    try:
        report = ConversionReport.load(cached)
        open_checkpoint(cached)
        json.loads((cached / IMAGE_PROCESSOR_NAME).read_bytes())
    except (OSError, ValueError):  # It is damaged.
        return False
    return not verify or "outputs" in (report.verification or {})


def _convert_from_hub(remote: RemoteFiles, values: dict[str, Any], verify: bool | None, model_class: Any) -> Path:
    """Return the folder of a converted model in the cache, converting it first if necessary."""
    wanted = _type_of(model_class)
    for cached in (_cached_folder(remote, values), _cached_folder(remote, values, wanted)):
        if _is_usable(cached, verify, remote.options):
            if wanted in (None, ConversionReport.load(cached).model_type):
                return cached
    with remote.lock():
        plan = plan_conversion(open_remote(remote), model_type=wanted, **values)
        _check_class(plan.layout.model_type, model_class, remote.repo_id)
        cached = _cached_folder(remote, values, wanted if plan.layout.part_of else None)
        if not _is_usable(cached, verify, remote.options):  # Another process may have converted it meanwhile.
            shutil.rmtree(cached, ignore_errors=True)
            write_conversion(plan, remote.repo_id, cached, verify)
    return cached


def _is_remote(source: str | Path) -> bool:
    return not Path(source).exists() and looks_like_hub_id(str(source))


def _type_of(model_class: Any) -> str | None:
    """Return the `model_type` of a class of models; None for a base class of several, and for any class."""
    return getattr(getattr(model_class, "config_class", None), "model_type", None) or None


def _check_class(model_type: str, model_class: Any, source: str | Path) -> Any:
    """Return the class of a model of this type that suits `model_class`; see [`load_original`]."""
    found = MODELS[model_type].model_class
    if model_class is None:
        return found
    wanted = _type_of(model_class)
    if wanted is None and issubclass(found, model_class):
        return found
    if wanted == model_type:
        return model_class
    suiting = [kind.model_type for kind in MODELS.values() if issubclass(kind.model_class, model_class)]
    names = " or a ".join(map(repr, [wanted] if wanted else suiting))
    raise ValueError(f"source: {source} holds a {model_type!r}, not a {names}.")


def load_original(model_class: Any, source: str | Path, verify: bool | None = None, **kwargs: Any) -> Any:
    """Load a model from a checkpoint of other code; see `from_original` of the models.

    Args:
        model_class: class of the model, or a base class of several; None accepts any.
        source: see [`open_checkpoint`].
        verify: see [`convert_to_folder`]. A local checkpoint is verified only if this is True.
        kwargs: fields of [`HubOptions`]; fields of the tower that its tensors do not determine; everything else is
            passed to `from_pretrained`.

    Raises:
        `ValueError`, `OSError`: see [`convert_to_folder`]; or the checkpoint holds a model of another class.
    """
    return load_original_with_report(model_class, source, verify, **kwargs)[0]


def load_original_with_report(
    model_class: Any, source: str | Path, verify: bool | None = None, **kwargs: Any
) -> tuple[Any, ConversionReport]:
    """Load a model as [`load_original`] does, and return the report of its conversion, too."""
    hub, values = _split_options(kwargs)
    if _is_remote(source):
        folder = _convert_from_hub(RemoteFiles(str(source), hub), values, verify, model_class)
        report = ConversionReport.load(folder)
        model_class = _check_class(report.model_type, model_class, source)
        return model_class.from_pretrained(folder, **kwargs), report
    wanted = _type_of(model_class)
    plan = plan_conversion(open_checkpoint(source, hub), kwargs.pop("dtype", "auto"), model_type=wanted, **values)
    model_class = _check_class(plan.layout.model_type, model_class, source)
    if verify:
        _verify_in_memory(plan, str(source))
    conversion = execute_conversion(plan, str(source), model_class=model_class, **kwargs)
    return conversion.model, conversion.report


def _verify_in_memory(plan: ConversionPlan, source: str) -> None:
    conversion = execute_conversion(plan, source, own_memory=False)
    _reason_not_to_verify(plan, conversion.report, source, verify=True)
    ours = compute_converted(plan, conversion.model, conversion.report.initialized)
    del conversion  # There may be memory for one model only.
    compare_with_reference(plan, ours)


def plan_original(source: str | Path, **kwargs: Any) -> ConversionPlan:
    """Determine what a checkpoint of other code is, without reading or downloading a tensor.

    Args:
        source: see [`open_checkpoint`].
        kwargs: fields of [`HubOptions`], and of the tower that its tensors do not determine.
    """
    hub, values = _split_options(kwargs)
    return plan_conversion(open_checkpoint(source, hub), **values)


def load_original_image_processor(source: str | Path, **kwargs: Any) -> Any:
    """Make the image processor of a checkpoint of other code; see `from_original` of the image processor.

    Args:
        source: see [`open_checkpoint`].
        kwargs: fields of [`HubOptions`], and of the tower that its tensors do not determine.
    """
    hub, values = _split_options(kwargs)
    if kwargs:
        raise TypeError(f"from_original of an image processor got unknown arguments: {', '.join(map(repr, kwargs))}.")
    if _is_remote(source):
        remote = RemoteFiles(str(source), hub)
        folder = _cached_folder(remote, values)
        if folder.exists() and DeepEncoderImageProcessor.__name__ in (folder / IMAGE_PROCESSOR_NAME).read_text():
            return DeepEncoderImageProcessor.from_pretrained(folder)
        plan = plan_conversion(open_remote(remote), **values)
    else:
        plan = plan_conversion(open_checkpoint(source, hub), **values)
    return plan.image_processor
