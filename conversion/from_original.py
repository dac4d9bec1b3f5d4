"""From a checkpoint of other code to a model in one step: convert, prove, keep.

Unusual: what is made of a checkpoint on the Hub is kept in the Hub's cache, by repository, commit and version of the
converter; the second time nothing but the commit is asked for. A local checkpoint is converted in memory each time.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from transformers.utils import IMAGE_PROCESSOR_NAME

from ..configuration.atomic_files import new_folder
from ..modeling.catalog import MODELS
from ..processing import DeepEncoderImageProcessor
from .checkpoint import open_checkpoint, open_remote
from .converter import execute_conversion, save_converted
from .infer_image_processor import infer_image_processor
from .planning import ConversionPlan, plan_conversion, read_dtype
from .readers.hub import HubOptions, RemoteFiles, looks_like_hub_id, model_cache
from .report import CONVERTER_VERSION, REPORT_NAME, ConversionReport
from .verification import compare, compute_converted, compute_reference, why_not

__all__ = ["convert_to_folder", "load_original", "load_original_image_processor", "plan_original"]

HUB_FIELDS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "full_download")
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
        target: the folder, which appears whole or not at all; it must not be there yet.
        hub ([`HubOptions`], *optional*): how to reach the Hub.
        verify: compare the model with transformers' class for the original on the same input. None: where there is
            one and the checkpoint is complete.
        dtype: of the weights; `"auto"` keeps the checkpoint's.
        max_shard_size: as in transformers' `save_pretrained`.
        values: see [`convert_checkpoint`].

    Raises:
        `ValueError`: see [`convert_checkpoint`]; or the model differs from the original; or `verify=True` and it
            cannot be verified.
        `OSError`: the source is not there, or cannot be read.
        `FileExistsError`: there is something at `target` already.
    """
    target = Path(target)
    if target.exists():
        raise FileExistsError(f"target: {target} is there already.")
    if not _is_remote(source):
        checkpoint = open_checkpoint(source, hub)
        return _convert(plan_conversion(checkpoint, dtype, **values), str(source), target, verify, max_shard_size)
    remote = RemoteFiles(str(source), hub or HubOptions())
    kept = _kept_folder(remote, values)
    if read_dtype(dtype) is None and max_shard_size is None and _serves(kept, verify, remote.options):
        with new_folder(target) as temporary:
            shutil.copytree(kept, temporary, dirs_exist_ok=True)
        return ConversionReport(**json.loads((kept / REPORT_NAME).read_text(encoding="utf-8")))
    with remote.lock():
        plan = plan_conversion(open_remote(remote), dtype, **values)
        return _convert(plan, remote.repo_id, target, verify, max_shard_size)


def _convert(
    plan: ConversionPlan, source: str, target: Path, verify: bool | None, max_shard_size: int | str | None = None
) -> ConversionReport:
    sharding = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    with new_folder(target) as temporary:
        conversion = execute_conversion(plan, source, own_memory=False)
        save_converted(conversion, temporary, **sharding)
        report = conversion.report
        reason = _why_not(plan, report, source, verify)
        if reason is None:
            ours = compute_converted(conversion.model, report.initialized)
            del conversion  # there is memory for one model
            reference, theirs = compute_reference(plan)
            report.verification = compare(reference, ours, theirs, plan)
        else:
            report.verification = {"not_run": reason}
        (temporary / REPORT_NAME).write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    plan.checkpoint.forget()
    return report


def _why_not(plan: ConversionPlan, report: ConversionReport, source: str, verify: bool | None) -> str | None:
    reason = why_not(plan, report.not_finite)
    if verify and reason is not None:
        raise ValueError(f"{source} cannot be verified: {reason}.")
    return "not wanted" if verify is False else reason


def _split(options: dict[str, Any]) -> tuple[HubOptions, dict[str, Any]]:
    """Take what is about the Hub and about the tower out of keywords."""
    hub = HubOptions(**{name: options.pop(name) for name in HUB_FIELDS if options.get(name) is not None})
    values = {name: options.pop(name) for name in TOWER_FIELDS if options.get(name) is not None}
    for name in (*HUB_FIELDS, *TOWER_FIELDS):
        options.pop(name, None)
    return hub, values


def _kept_folder(remote: RemoteFiles, values: dict[str, Any]) -> Path:
    name = f"v{CONVERTER_VERSION}"
    if values:
        name += "-" + hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
    return model_cache(remote.repo_id, remote.commit, remote.options) / name


def _serves(kept: Path, verify: bool | None, options: HubOptions) -> bool:
    """Tell whether a finished conversion is there, whole, and verified if that is demanded."""
    if options.force_download or not kept.is_dir():
        return False
    try:
        report = json.loads((kept / REPORT_NAME).read_text(encoding="utf-8"))
        open_checkpoint(kept)
        json.loads((kept / IMAGE_PROCESSOR_NAME).read_bytes())
    except (OSError, ValueError):  # damaged
        return False
    return not verify or "outputs" in (report.get("verification") or {})


def _convert_from_hub(remote: RemoteFiles, values: dict[str, Any], verify: bool | None, model_class: Any) -> Path:
    """Return the folder of a converted model, converting it if that has not been done."""
    kept = _kept_folder(remote, values)
    if _serves(kept, verify, remote.options):
        return kept
    with remote.lock():
        if not _serves(kept, verify, remote.options):  # another process may have been at it
            plan = plan_conversion(open_remote(remote), **values)
            _check_class(plan.layout.model_type, model_class, remote.repo_id)
            shutil.rmtree(kept, ignore_errors=True)
            _convert(plan, remote.repo_id, kept, verify)
    return kept


def _is_remote(source: str | Path) -> bool:
    return not Path(source).exists() and looks_like_hub_id(str(source))


def _check_class(model_type: str, model_class: Any, source: str | Path) -> Any:
    if model_class is None:
        return MODELS[model_type].model_class
    wanted = model_class.config_class.model_type
    if model_type != wanted:
        raise ValueError(f"source: {source} holds a {model_type!r}, not a {wanted!r}.")
    return model_class


def load_original(model_class: Any, source: str | Path, verify: bool | None = None, **kwargs: Any) -> Any:
    """Load a model from a checkpoint of other code; see `from_original` of the models.

    Args:
        model_class: the class of the model; None for whichever it is.
        source: see [`open_checkpoint`].
        verify: see [`convert_to_folder`]; a local checkpoint is verified with True only.
        kwargs: fields of [`HubOptions`]; fields of the tower that its tensors do not tell; the rest is for
            `from_pretrained`.

    Raises:
        `ValueError`, `OSError`: see [`convert_to_folder`]; and a checkpoint that holds a model of another class.
    """
    return load_original_with_report(model_class, source, verify, **kwargs)[0]


def load_original_with_report(
    model_class: Any, source: str | Path, verify: bool | None = None, **kwargs: Any
) -> tuple[Any, ConversionReport]:
    """Load a model as [`load_original`] does, and tell what became of the checkpoint."""
    hub, values = _split(kwargs)
    if _is_remote(source):
        remote = RemoteFiles(str(source), hub)
        folder = _convert_from_hub(remote, values, verify, model_class)
        report = ConversionReport(**json.loads((folder / REPORT_NAME).read_text(encoding="utf-8")))
        model_class = _check_class(report.model_type, model_class, source)
        return model_class.from_pretrained(folder, **kwargs), report
    plan = plan_conversion(open_checkpoint(source, hub), kwargs.pop("dtype", "auto"), **values)
    model_class = _check_class(plan.layout.model_type, model_class, source)
    if verify:
        conversion = execute_conversion(plan, str(source), own_memory=False)
        _why_not(plan, conversion.report, str(source), verify)
        ours = compute_converted(conversion.model, conversion.report.initialized)
        del conversion
        reference, theirs = compute_reference(plan)
        compare(reference, ours, theirs, plan)
    conversion = execute_conversion(plan, str(source), model_class=model_class, **kwargs)
    return conversion.model, conversion.report


def plan_original(source: str | Path, **kwargs: Any) -> ConversionPlan:
    """Find out what a checkpoint of other code is, without reading or downloading a tensor.

    Args:
        source: see [`open_checkpoint`].
        kwargs: fields of [`HubOptions`], and of the tower that its tensors do not tell.
    """
    hub, values = _split(kwargs)
    return plan_conversion(open_checkpoint(source, hub), **values)


def load_original_image_processor(source: str | Path, **kwargs: Any) -> Any:
    """Make the image processor of a checkpoint of other code; see `from_original` of the image processor."""
    hub, values = _split(kwargs)
    if kwargs:
        raise TypeError(f"from_original of an image processor knows no {', '.join(map(repr, kwargs))}.")
    if _is_remote(source):
        remote = RemoteFiles(str(source), hub)
        folder = _kept_folder(remote, values)
        if folder.exists() and DeepEncoderImageProcessor.__name__ in (folder / "preprocessor_config.json").read_text():
            return DeepEncoderImageProcessor.from_pretrained(folder)
        plan = plan_conversion(open_remote(remote), **values)
    else:
        plan = plan_conversion(open_checkpoint(source, hub), **values)
    return infer_image_processor(plan.layout, plan.checkpoint, plan.config)
