"""The graphs of a model: those in a folder, and those that are exported when they are first needed.

Unusual: a folder may come from anyone. Which graphs it holds is read from the names of its files, sizes included, and
the shapes of each graph are checked against the configuration. Graphs of a model by name are kept in the Hugging Face
cache under a name that contains a fingerprint of its weights, so they are never those of other weights.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import cached_assets_path
from huggingface_hub.utils import WeakFileLock
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import CONFIG_NAME, cached_file

from .. import __version__
from ..configuration import DeepEncoderConfig
from ..conversion.export.exporting import EXPORT_VERSION
from ..conversion.export.folders import TOKENS_NAME, export_folder, find_graphs
from ..conversion.from_original import load_original
from ..extraction.models import identify_model, revision_of
from ..modeling.deepencoder import DeepEncoder
from .engines import OUTPUTS, RUNTIMES, Graph, Runtime

__all__ = ["GraphFolder", "choose_runtime", "find_exported", "open_folder"]


@dataclass
class GraphFolder:
    """A folder of graphs, each of which is opened when it is first needed.

    Args:
        path: the folder.
        runtime: the runtime that opens them.
        dtype: the dtype in which they compute.
        config ([`DeepEncoderConfig`]): the model's configuration.
        export: adds the graph for a size to the folder; None if the model is not known.
    """

    path: Path
    runtime: Runtime
    dtype: str
    config: Any
    export: Callable[[int], None] | None = None
    _open: dict[int, Graph] = field(default_factory=dict, repr=False)

    def get(self, size: int) -> Graph:
        """Return the graph for square views of `size` pixels a side.

        Raises:
            `ValueError`: there is none and it cannot be exported, or it is not a graph of this model.
        """
        if size not in self._open:
            found = find_graphs(self.path, self.runtime.format)
            if size not in found and self.export is not None:
                self.export(size)
                found = find_graphs(self.path, self.runtime.format)
            if size not in found:
                sizes = ", ".join(map(str, found)) or "no size"
                raise ValueError(
                    f"pixel_values have {size} pixels a side, but {self.path} holds graphs for {sizes}: export one "
                    f"for {size}, too."
                )
            self._open[size] = self._open_graph(found[size], size)
        return self._open[size]

    def _open_graph(self, path: Path, size: int) -> Graph:
        try:
            graph = self.runtime.open(path, self.dtype, torch.get_num_threads())
        except (ImportError, ValueError, MemoryError):
            raise
        except Exception as error:  # Runtimes raise anything for a damaged file.
            raise OSError(f"{path} cannot be opened by {self.runtime.library}: {str(error)[:500]}") from error
        sam = self.config.sam_config
        tokens = (-(-size // sam.total_stride)) ** 2
        widths = (self.config.hidden_size, self.config.clip_config.hidden_size, self.config.projection_dim)
        expected = {OUTPUTS[0]: [None, tokens, widths[0]], OUTPUTS[1]: [None, widths[1]]}
        expected[OUTPUTS[2]] = [None, tokens, widths[2]]
        inputs = {"pixel_values": [None, sam.num_channels, size, size]}
        found = {name: graph.outputs.get(name) for name in expected}
        if graph.inputs != inputs or found != expected:
            raise ValueError(f"{path} is not a graph of the model that its folder describes: it has shapes {found}.")
        return graph

    def load_tokens(self) -> dict[str, torch.Tensor]:
        """Return `image_newline` and `view_separator`, `(projection_dim,)` each.

        Raises:
            `ValueError`: the file is damaged, or has other shapes.
            `OSError`: there is no such file.
        """
        path, width = self.path / TOKENS_NAME, self.config.projection_dim
        try:
            tokens = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        shapes = {name: tuple(tokens[name].shape) if name in tokens else None for name in _TOKENS}
        if shapes != dict.fromkeys(_TOKENS, (width,)):
            raise ValueError(f"{path} must hold two vectors of length {width}, got {shapes}.")
        return {name: tokens[name].float() for name in _TOKENS}


_TOKENS = ("image_newline", "view_separator")


def choose_runtime(name: str | None, folder: Path | None = None) -> Runtime:
    """Return a runtime by name, or the first one that is installed and, where a folder is given, has graphs there.

    Raises:
        `ValueError`: there is no such runtime.
        `ImportError`: it is not installed, or none is.
    """
    if name is not None and name not in RUNTIMES:
        raise ValueError(f"runtime must be one of {', '.join(map(repr, RUNTIMES))}, got {name!r}.")
    chosen = RUNTIMES if name is None else {name: RUNTIMES[name]}
    if name is None and folder is not None:
        chosen = {key: row for key, row in RUNTIMES.items() if find_graphs(folder, row.format)}
    for runtime in chosen.values():
        if find_spec(runtime.library) is not None:
            return runtime
    libraries = " or ".join(runtime.library for runtime in chosen.values())
    raise ImportError(f"runtime {name or 'any'!r} needs {libraries}: pip install {libraries.split(' or ')[0]}")


def find_exported(source: str) -> Path | None:
    """Return the folder if `source` is one of graphs."""
    folder = Path(source)
    if folder.is_dir() and any(find_graphs(folder, runtime.format) for runtime in RUNTIMES.values()):
        return folder
    return None


def _is_own(source: str, revision: str | None) -> bool:
    """Return whether a model is one of this package, and not a checkpoint of other code."""
    if Path(source).is_file():
        return False
    path = cached_file(source, CONFIG_NAME, revision=revision, _raise_exceptions_for_missing_entries=False)
    fields = {} if path is None else json.loads(Path(path).read_bytes())
    return isinstance(fields, dict) and str(fields.get("model_type")).startswith("deepencoder")


def _load_model(source: str, revision: str | None, options: dict[str, Any]) -> DeepEncoder:
    if _is_own(source, revision):
        return DeepEncoder.from_pretrained(source, revision=revision, dtype=torch.float32).eval()
    loaded = load_original(DeepEncoder, source, revision=revision, dtype=torch.float32, **options)
    return loaded.eval()


def _cached_folder(identity: str, format: str) -> Path:
    """Return the folder for the graphs of a model in the Hugging Face cache, by its weights and our version."""
    facts = json.dumps([identity, __version__, EXPORT_VERSION])
    name = f"{format}-{hashlib.sha256(facts.encode()).hexdigest()[:32]}"
    return Path(cached_assets_path("deepencoder", namespace="exported")) / name


def open_folder(
    source: str, runtime: str | None, dtype: str, revision: str | None = None, **options: Any
) -> GraphFolder:
    """Open a folder of graphs, or that in the cache for a model by name; its graphs are exported when needed.

    Raises:
        `ValueError`: `runtime` is unknown, or does not compute in `dtype`; or the model is not a [`DeepEncoder`].
        `OSError`: there is no such model.
    """
    exported = find_exported(source)
    chosen = choose_runtime(runtime, exported)
    if dtype not in chosen.dtypes:
        names = " or ".join(f"torch.{name}" for name in chosen.dtypes)
        raise ValueError(f"dtype must be {names} with {chosen.library}, got {dtype!r}.")
    if exported is not None:
        return GraphFolder(exported, chosen, dtype, DeepEncoderConfig.from_pretrained(exported))
    identity = identify_model(source, revision)
    path = _cached_folder(identity, chosen.format)
    pinned = revision_of(identity) or revision

    def export(*sizes: int) -> None:
        with WeakFileLock(path.with_suffix(".lock")):
            # Another process may have exported them meanwhile.
            missing = [size for size in sizes if not path.is_dir() or size not in find_graphs(path, chosen.format)]
            if missing or not path.is_dir():
                model = _load_model(source, pinned, options)
                export_folder(model, path, missing, chosen.format, release=True)

    if not path.is_dir():
        export()
    return GraphFolder(path, chosen, dtype, DeepEncoderConfig.from_pretrained(path), export)
