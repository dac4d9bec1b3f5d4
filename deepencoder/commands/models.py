"""How models are named on the command line, and how they are loaded.

Unusual: a model may be a checkpoint of other code, which is converted while it is loaded. Without a name, the small
page reader that ships with the package is used, so that every command can be tried at once.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..reading.shipped import page_reader
from .errors import UserError, reported_as
from .options import Dtype, Runtime
from .terminal import print_warning

if TYPE_CHECKING:
    import torch

__all__ = [
    "Source",
    "load_any_model",
    "load_config",
    "load_model",
    "load_processor",
    "name_source",
    "pick_device",
    "runtime_of",
]

PAGE_READER = "page-reader"
"""What the model that ships with the package is called."""


@dataclass(frozen=True)
class Source:
    """Where a model is, and how to reach it.

    Args:
        model: a folder, a file or a Hub id.
        trust_remote_code: allow Python code from the model's repository to run.
        revision: branch, tag or commit of a model on the Hub.
        full_download: download the whole files of an original, not only the encoder's tensors.
    """

    model: str
    trust_remote_code: bool = False
    revision: str | None = None
    full_download: bool = False

    def __post_init__(self) -> None:
        from ..conversion.readers.hub import looks_like_hub_id

        if not os.path.exists(self.model) and not looks_like_hub_id(self.model):
            raise UserError(f"{self.model!r} cannot be loaded: there is no such file or folder.")

    @property
    def name(self) -> str:
        """What to call the model: its folder, file or Hub id, and the shipped one by its name."""
        return PAGE_READER if self.model == page_reader() else self.model

    def find(self, name: str) -> str | None:
        """Return the path of a file of the model, downloaded if need be, or None if the model has no such file."""
        from transformers.utils import cached_file

        found = cached_file(self.model, name, revision=self.revision, _raise_exceptions_for_missing_entries=False)
        return None if found is None else str(found)

    @property
    def is_original(self) -> bool:
        """Whether this is a checkpoint of other code, according to its configuration."""
        if os.path.isfile(self.model):
            return True
        with reported_as(f"{self.model!r} cannot be loaded", OSError, ValueError, RecursionError):
            path = self.find("config.json")
            if path is None:
                return True
            fields = json.loads(Path(path).read_bytes())
        return not (isinstance(fields, dict) and str(fields.get("model_type")).startswith("deepencoder"))

    @property
    def original_options(self) -> dict[str, Any]:
        """The keyword arguments for reading a checkpoint of other code."""
        return {"revision": self.revision, "full_download": self.full_download}

    @property
    def own_options(self) -> dict[str, Any]:
        """The keyword arguments for loading a model of this package."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}


def name_source(
    model: str | None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    full_download: bool = False,
    notice: bool = True,
) -> Source:
    """Return the source that the options of a command name.

    Without `--model` it is the page reader that ships with the package; unless `notice` is off, a notice says so.
    """
    if model is None:
        if notice:
            print_warning(f"No --model given: using {PAGE_READER}, the small model that ships with the package.")
        return Source(page_reader())
    return Source(model, trust_remote_code, revision, full_download)


def pick_device(device: str | None) -> "torch.device":
    """Return a device that was checked to work; by default an accelerator if there is one, else the CPU."""
    import torch

    if device is None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    with reported_as(f"--device {device!r} cannot be used here", RuntimeError, AssertionError, NotImplementedError):
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).cpu()
    return chosen


def load_model(source: Source, dtype: Dtype, device: "torch.device", runtime: Runtime | None = None) -> Any:
    """Load a [`DeepEncoder`], ready for inference on a device.

    With a runtime other than torch, and for a folder of exported graphs, it is an [`ExportedDeepEncoder`]. With
    `Dtype.auto` torch computes in the dtype of the checkpoint, or in float32 on a CPU without instructions for that.
    """
    if runtime_of(source, runtime) != "torch":
        return _load_exported(source, dtype, device, runtime)
    import torch

    from ..modeling.slow_dtypes import is_slow_here

    model = _load_deepencoder(source, dtype)
    if dtype is Dtype.auto and is_slow_here(model.dtype, device):
        print_warning(
            f"This processor has no instructions for the model's {str(model.dtype).removeprefix('torch.')}: computing "
            "in float32 (--dtype of encode and --model-dtype of extract choose another dtype)."
        )
        model = model.to(torch.float32)
    return model.to(device).eval()


def runtime_of(source: Source, runtime: Runtime | None) -> str:
    """Return what computes a model: the runtime that was asked for, or the one that its folder is for."""
    if runtime is not None:
        return str(runtime.value)
    if not os.path.isdir(source.model):
        return "torch"
    from ..runtimes.graph_folders import choose_runtime, find_exported

    folder = find_exported(source.model)
    if folder is None:
        return "torch"
    with reported_as(f"--model {source.model!r} cannot be loaded", ImportError):
        return choose_runtime(None, folder).name


def _load_exported(source: Source, dtype: Dtype, device: "torch.device", runtime: Runtime | None) -> Any:
    if device.type != "cpu":
        print_warning(f"Exported graphs run on the CPU, not on {device}.")
    from ..runtimes import ExportedDeepEncoder

    name = None if runtime is None else runtime.value
    options: dict[str, Any] = {"revision": source.revision, "full_download": source.full_download}
    with reported_as(f"--model {source.model!r} cannot be loaded", ImportError, OSError, ValueError):
        return ExportedDeepEncoder.from_pretrained(source.model, runtime=name, dtype=dtype.value, **options)


def _load_deepencoder(source: Source, dtype: Dtype) -> Any:
    from .. import DeepEncoderConfig
    from ..configuration.composite import reads_pages

    if source.is_original:
        return _load_original_deepencoder(source, dtype)
    config, wanted = load_config(source), DeepEncoderConfig.model_type
    if not reads_pages(config):
        raise UserError(f"--model {source.model!r} is a {config.model_type!r}; this command needs a {wanted!r}.")
    return _load_own(source, dtype)


def _load_original_deepencoder(source: Source, dtype: Dtype) -> Any:
    from ..conversion.from_original import load_original_with_report
    from ..modeling.pages import PagePreTrainedModel

    with reported_as(f"--model {source.model!r} cannot be loaded", OSError, ValueError):
        loaded, report = load_original_with_report(
            PagePreTrainedModel, source.model, dtype=dtype.value, **source.original_options
        )
    if report.initialized:
        raise UserError(f"--model {source.model!r} has no tensors for {', '.join(report.initialized)}.")
    return loaded


def load_any_model(source: Source, dtype: Dtype) -> Any:
    """Load a model of any class of this package."""
    from ..conversion.from_original import load_original

    if not source.is_original:
        return _load_own(source, dtype)
    with reported_as(f"{source.model!r} cannot be loaded", OSError, ValueError):
        return load_original(None, source.model, dtype=dtype.value, **source.original_options)


def _load_own(source: Source, dtype: Dtype) -> Any:
    from transformers import AutoModel

    with reported_as(f"--model {source.model!r} cannot be loaded", Exception):  # Damaged files raise anything.
        loaded, facts = AutoModel.from_pretrained(
            source.model, dtype=dtype.value, output_loading_info=True, **source.own_options
        )
    missing = sorted(facts["missing_keys"])
    if missing:
        raise UserError(f"--model {source.model!r} lacks {len(missing)} tensors: {', '.join(missing[:3])}.")
    return loaded


def load_config(source: Source) -> Any:
    """Load the configuration of a model of this package."""
    from transformers import AutoConfig

    with reported_as(f"{source.model!r} cannot be loaded", Exception):  # Damaged files raise anything.
        return AutoConfig.from_pretrained(source.model, **source.own_options)


def load_processor(source: Source) -> Any:
    """Load the model's own image processor; one with the default fields if the model comes without."""
    from transformers.models.auto.image_processing_auto import AutoImageProcessor
    from transformers.utils import IMAGE_PROCESSOR_NAME

    from .. import DeepEncoderImageProcessor
    from ..processing.modes import mode_for

    with reported_as(f"The image processor of {source.model!r} cannot be loaded", Exception):
        if source.is_original:
            return DeepEncoderImageProcessor.from_original(source.model, **source.original_options)
        if source.find(IMAGE_PROCESSOR_NAME) is None:
            return DeepEncoderImageProcessor(mode=mode_for(load_config(source)))
        processor = AutoImageProcessor.from_pretrained(source.model, **source.own_options)
    # Compared by name, since code that comes with a model defines a class of its own.
    if type(processor).__name__ != DeepEncoderImageProcessor.__name__:
        raise UserError(
            f"The image processor of {source.model!r} is a {type(processor).__name__}, which makes no tiles."
        )
    return processor
