"""From a checkpoint of other code to a model in one step: convert, prove, keep.

Unusual: what is made of a checkpoint on the Hub is kept in the Hub's cache, by repository, commit and version of the
converter; the second time nothing but the commit is asked for. A local checkpoint is converted in memory each time.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub.utils import WeakFileLock

from ..processing import DeepEncoderImageProcessor
from .checkpoints import (
    CONVERTER_VERSION,
    MODELS,
    REPORT_NAME,
    ConversionPlan,
    ConversionReport,
    execute_conversion,
    new_folder,
    plan_conversion,
    save_converted,
)
from .image_processors import infer_image_processor
from .remote import HubOptions, RemoteFiles, looks_like_hub_id, model_cache
from .sources import Checkpoint, open_checkpoint, open_remote
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
    checkpoint = open_checkpoint(source, hub)
    return _convert(checkpoint, str(source), target, verify, dtype, max_shard_size, values)


def _convert(
    checkpoint: Checkpoint,
    source: str,
    target: Path,
    verify: bool | None,
    dtype: Any,
    max_shard_size: int | str | None,
    values: dict[str, Any],
) -> ConversionReport:
    plan = plan_conversion(checkpoint, **values)
    sharding = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    with new_folder(target) as temporary:
        conversion = execute_conversion(plan, source, dtype=dtype)
        save_converted(conversion, temporary, **sharding)
        report = conversion.report
        reason = why_not(plan, report.initialized, report.not_finite)
        if verify and reason is not None:
            raise ValueError(f"{source} cannot be verified: {reason}.")
        if verify is False or reason is not None:
            report.verification = {"not_run": reason or "not wanted"}
        else:
            ours = compute_converted(conversion.model, report.initialized)
            del conversion  # there is memory for one model
            reference, theirs = compute_reference(plan)
            report.verification = compare(reference, ours, theirs, plan)
        (temporary / REPORT_NAME).write_text(json.dumps(report.to_dict(), indent=2) + "\n")
    checkpoint.forget()
    return report


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


def _convert_from_hub(remote: RemoteFiles, values: dict[str, Any], verify: bool | None) -> Path:
    """Return the folder of a converted model, converting it if that has not been done."""
    folder = _kept_folder(remote, values)
    with WeakFileLock(folder.with_name(f"{folder.name}.lock")):
        if remote.options.force_download:
            shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            _convert(open_remote(remote), remote.repo_id, folder, verify, "auto", None, values)
    return folder


def _is_remote(source: str | Path) -> bool:
    return not Path(source).exists() and looks_like_hub_id(str(source))


def _check_class(model_type: str, model_class: Any, source: str | Path) -> Any:
    if model_class is None:
        return MODELS[model_type]
    wanted = model_class.config_class.model_type
    if model_type != wanted:
        raise ValueError(f"source: {source} holds a {model_type!r}, not a {wanted!r}.")
    return model_class


def load_original(model_class: Any, source: str | Path, verify: bool | None = None, **kwargs: Any) -> Any:
    """Load a model from a checkpoint of other code; see `from_original` of the models.

    Args:
        model_class: the class of the model; None for whichever it is.
        source: see [`open_checkpoint`].
        verify: see [`convert_to_folder`]; a local checkpoint is not verified.
        kwargs: fields of [`HubOptions`]; fields of the tower that its tensors do not tell; the rest is for
            `from_pretrained`.

    Raises:
        `ValueError`, `OSError`: see [`convert_to_folder`]; and a checkpoint that holds a model of another class.
    """
    hub, values = _split(kwargs)
    if _is_remote(source):
        remote = RemoteFiles(str(source), hub)
        folder = _convert_from_hub(remote, values, verify)
        model_type = json.loads((folder / "config.json").read_text())["model_type"]
        model_class = _check_class(model_type, model_class, source)
        return model_class.from_pretrained(folder, **kwargs)
    plan = plan_conversion(open_checkpoint(source, hub), **values)
    model_class = _check_class(plan.layout.model_type, model_class, source)
    return execute_conversion(plan, str(source), model_class=model_class, **kwargs).model


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
    hub, values = _split(dict(kwargs))
    if _is_remote(source):
        remote = RemoteFiles(str(source), hub)
        folder = _kept_folder(remote, values)
        if folder.exists() and DeepEncoderImageProcessor.__name__ in (folder / "preprocessor_config.json").read_text():
            return DeepEncoderImageProcessor.from_pretrained(folder)
        plan = plan_conversion(open_remote(remote), **values)
    else:
        plan = plan_conversion(open_checkpoint(source, hub), **values)
    return infer_image_processor(plan.layout, plan.checkpoint, plan.config)
