"""What the commands share: how models are named and loaded, how mistakes are told, how files are written."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from transformers import AutoConfig, AutoModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import IMAGE_PROCESSOR_NAME, cached_file

from .. import DeepEncoder, DeepEncoderConfig, DeepEncoderImageProcessor
from ..conversion.from_original import load_original, load_original_with_report
from ..processing.modes import MODES

__all__ = [
    "DEMO_NOTICE",
    "Dtype",
    "FullDownloadOption",
    "Mode",
    "ModelOption",
    "RevisionOption",
    "Source",
    "TrustOption",
    "UserError",
    "check_target",
    "load_any_model",
    "load_config",
    "load_model",
    "load_processor",
    "make_console",
    "one_line",
    "pick_device",
    "written_whole",
]


DEMO_NOTICE = "No --model given: using a tiny demo model with fixed random weights. Its features mean nothing."
Mode = Enum("Mode", {name: name for name in MODES}, type=str)  # type: ignore[misc]


class Dtype(str, Enum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="A folder or a Hub id, of this package's or of an original such as deepseek-ai/DeepSeek-OCR. "
        "Default: the demo model.",
        show_default=False,
    ),
]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the Hub.")]
FullDownloadOption = Annotated[
    bool, typer.Option("--full-download", help="Download whole files of an original, not the encoder's ranges only.")
]
TrustOption = Annotated[bool, typer.Option("--trust-remote-code", help="Allow code that comes with the model to run.")]


class UserError(Exception):
    """A mistake of the user's: one line, exit code 2."""


def one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`, which takes its place when all went well and is removed when not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files that only their owner reads
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def make_console(stderr: bool = False) -> Console:
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)  # file names are no markup


def check_target(path: Path | None, option: str, suffixes: tuple[str, ...]) -> None:
    """Refuse a file that cannot be written before the work is done, not after."""
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{option} must end in {' or '.join(suffixes)}, got {path.name!r}.")
    if os.path.isdir(path):
        raise UserError(f"{option}: {path} is a folder.")
    try:
        path.lstat()  # fails for a name that is too long, which the temporary one would not
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"{option}: cannot write {path}: {error.strerror}.") from error
    try:
        with tempfile.TemporaryFile(dir=next(parent for parent in path.absolute().parents if parent.exists())):
            pass
    except OSError as error:
        raise UserError(f"{option}: cannot write {path}: {error.strerror}.") from error


def pick_device(device: str | None) -> torch.device:
    if device is not None:
        try:
            chosen = torch.device(device)
            torch.zeros(1, device=chosen).cpu()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise UserError(f"--device {device!r} cannot be used here: {one_line(error)}") from error
        return chosen
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")  # type: ignore[return-value]


def _demo_model() -> DeepEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DeepEncoder(DeepEncoderConfig.tiny())


@dataclass(frozen=True)
class Source:
    """Where a model is, and how to reach it."""

    model: str
    trust_remote_code: bool = False
    revision: str | None = None
    full_download: bool = False

    def find(self, name: str) -> str | None:
        """Return the path of a file of the model, if it has one of this name."""
        found = cached_file(self.model, name, revision=self.revision, _raise_exceptions_for_missing_entries=False)
        return None if found is None else str(found)

    @property
    def is_original(self) -> bool:
        """Whether this is a checkpoint of other code, by what its configuration says it is."""
        try:
            if os.path.isfile(self.model):
                return True
            path = self.find("config.json")
            if path is None:
                return True
            fields = json.loads(Path(path).read_bytes())
        except (OSError, ValueError) as error:
            raise UserError(f"{self.model!r} cannot be loaded: {one_line(error)}") from error
        return not (isinstance(fields, dict) and str(fields.get("model_type")).startswith("deepencoder"))

    @property
    def original_options(self) -> dict[str, Any]:
        return {"revision": self.revision, "full_download": self.full_download}


def load_model(source: Source | None, dtype: Dtype, device: torch.device) -> Any:
    """Load a DeepEncoder, ready for inference on a device; the demo model for None."""
    model = _load_deepencoder(source, dtype).to(device).eval()
    if dtype is Dtype.auto and device.type == "cpu" and _is_slow_here(model.dtype):
        make_console(stderr=True).print(
            f"This processor has no units for the model's {str(model.dtype).removeprefix('torch.')}: "
            "float32 (--dtype of encode, --model-dtype of extract) is several times faster.",
            style="yellow",
            soft_wrap=True,
        )
    return model


def _is_slow_here(dtype: torch.dtype) -> bool:
    """Whether this processor is known to lack fast products of half precision; see `benchmarks/precision.py`."""
    wanted = {torch.bfloat16: {"amx_bf16"}, torch.float16: {"amx_fp16", "avx512_fp16"}}.get(dtype)
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # of newer torch
    return wanted is not None and found.get("architecture") == "x86_64" and not any(map(found.get, wanted))


def _load_deepencoder(source: Source | None, dtype: Dtype) -> Any:
    if source is None:
        demo = _demo_model()
        return demo if dtype is Dtype.auto else demo.to(getattr(torch, dtype.value))
    if source.is_original:
        try:
            loaded, report = load_original_with_report(
                DeepEncoder, source.model, dtype=dtype.value, **source.original_options
            )
        except (OSError, ValueError) as error:
            raise UserError(f"--model {source.model!r} cannot be loaded: {one_line(error)}") from error
        if report.initialized:
            raise UserError(f"--model {source.model!r} lacks what would become {', '.join(report.initialized)}.")
        return loaded
    config = load_config(source)
    if config.model_type != DeepEncoderConfig.model_type:
        raise UserError(
            f"--model {source.model!r} is a {config.model_type!r}; encode needs a {DeepEncoderConfig.model_type!r}."
        )
    return _load_ours(source, dtype)


def load_any_model(source: Source, dtype: Dtype) -> Any:
    """Load a model of any of the three classes."""
    if not source.is_original:
        return _load_ours(source, dtype)
    try:
        return load_original(None, source.model, dtype=dtype.value, **source.original_options)
    except (OSError, ValueError) as error:
        raise UserError(f"{source.model!r} cannot be loaded: {one_line(error)}") from error


def _load_ours(source: Source, dtype: Dtype) -> Any:
    try:
        loaded, facts = AutoModel.from_pretrained(
            source.model,
            dtype=dtype.value,
            revision=source.revision,
            trust_remote_code=source.trust_remote_code,
            output_loading_info=True,
        )
    except Exception as error:  # a damaged checkpoint may raise anything
        raise UserError(f"--model {source.model!r} cannot be loaded: {one_line(error)}") from error
    missing = sorted(facts["missing_keys"])
    if missing:
        raise UserError(f"--model {source.model!r} lacks {len(missing)} tensors: {', '.join(missing[:3])}.")
    return loaded


def load_config(source: Source) -> Any:
    try:
        return AutoConfig.from_pretrained(
            source.model, revision=source.revision, trust_remote_code=source.trust_remote_code
        )
    except Exception as error:  # so may a damaged configuration
        raise UserError(f"{source.model!r} cannot be loaded: {one_line(error)}") from error


def load_processor(source: Source | None) -> Any:
    """Return the model's own image processor, or one with the defaults where it comes without."""
    if source is None:
        return DeepEncoderImageProcessor()
    try:
        if source.is_original:
            return DeepEncoderImageProcessor.from_original(source.model, **source.original_options)
        if source.find(IMAGE_PROCESSOR_NAME) is None:
            return DeepEncoderImageProcessor()
        processor = AutoImageProcessor.from_pretrained(
            source.model, revision=source.revision, trust_remote_code=source.trust_remote_code
        )
    except Exception as error:
        raise UserError(f"The image processor of {source.model!r} cannot be loaded: {one_line(error)}") from error
    # By name: code that comes with a model makes a class of its own.
    if type(processor).__name__ != DeepEncoderImageProcessor.__name__:
        raise UserError(
            f"The image processor of {source.model!r} is a {type(processor).__name__}, which makes no tiles."
        )
    return processor
