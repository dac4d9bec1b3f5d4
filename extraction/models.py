"""Models by name: which weights they have, and how they are loaded.

Unusual: features are only comparable if the same weights made them, so a model is identified by the commit of its
repository or by a hash of its files, never by its name alone. What is loaded from the Hub is that very commit, even if
the branch moves on meanwhile.
"""

import hashlib
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import CONFIG_NAME, cached_file
from transformers.utils.hub import extract_commit_hash

from ..configuration import DeepEncoderConfig, DeepEncoderV2Config
from ..configuration.composite import reads_pages
from ..configuration.package_services import call_service

__all__ = ["IdentifiedModel", "identify_model", "revision_of"]

HASHED_FILES = (
    "*.safetensors",
    "*.bin",
    "*.pt*",
    "*.onnx",
    "*.onnx.data",
    "*.xml",
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
HASH_PREFIX = "sha256:"


def _hash_files(path: Path) -> str:
    names = [path] if path.is_file() else sorted({file for pattern in HASHED_FILES for file in path.glob(pattern)})
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.name.encode() + b"\0")
        with name.open("rb") as file:
            for block in iter(partial(file.read, 1 << 20), b""):
                digest.update(block)
    return HASH_PREFIX + digest.hexdigest()


def identify_model(model: str | os.PathLike[str], revision: str | None = None) -> str:
    """Return the identity of a model's weights.

    Args:
        model: a folder, a file of weights, or a Hub id.
        revision (`str`, *optional*): branch, tag or commit of a model on the Hub.

    Returns:
        `str`: the commit of a model on the Hub; else `"sha256:..."`, a hash of the file or of the folder's files.

    Raises:
        `OSError`: there is no such model, it has no configuration, or the Hub cannot be reached.
    """
    if os.path.exists(model):
        return _hash_files(Path(model))
    path = cached_file(os.fspath(model), CONFIG_NAME, revision=revision, _raise_exceptions_for_missing_entries=False)
    commit = extract_commit_hash(path, None)
    if commit is None:
        raise FileNotFoundError(
            f"model {os.fspath(model)!r}: there is no such folder, and no configuration of it was found on the Hub."
        )
    return str(commit)


def revision_of(identity: str) -> str | None:
    """Return the revision that loads the very weights that [`identify_model`] identified; None for local ones."""
    return None if identity.startswith(HASH_PREFIX) else identity


@dataclass(frozen=True)
class IdentifiedModel:
    """A DeepEncoder that can be loaded, and the identity of its weights. It is small and can be pickled.

    Args:
        name (`str`): a folder or a Hub id.
        identity (`str`): what [`identify_model`] returns for it.
        trust_remote_code (`bool`): as for `from_pretrained`.
        runtime (`str`, *optional*): the library that runs the model's exported graphs; None for torch.
    """

    name: str
    identity: str
    trust_remote_code: bool = False
    runtime: str | None = None

    @classmethod
    def find(
        cls,
        name: str | os.PathLike[str],
        revision: str | None = None,
        trust_remote_code: bool = False,
        runtime: str | None = None,
    ) -> "IdentifiedModel":
        """Identify a model; see [`identify_model`]."""
        return cls(os.fspath(name), identify_model(name, revision), trust_remote_code, runtime)

    def load_config(self) -> Any:
        """Load the model's configuration.

        Raises:
            `ValueError`: the model is not a DeepEncoder.
        """
        config = AutoConfig.from_pretrained(self.name, **self._options)
        if not reads_pages(config):
            raise ValueError(
                f"model must be a {DeepEncoderConfig.model_type!r} or a {DeepEncoderV2Config.model_type!r}, got a "
                f"{config.model_type!r}: {self.name!r}. "
                "`deepencoder convert` turns checkpoints of other code into one."
            )
        return config

    def load_image_processor(self) -> Any:
        return AutoImageProcessor.from_pretrained(self.name, **self._options)

    def load(self, dtype: str = "auto") -> Any:
        """Load the model for inference, on the CPU."""
        if self.runtime is not None:
            revision = revision_of(self.identity)
            return call_service("load_exported", self.name, runtime=self.runtime, dtype=dtype, revision=revision)
        return AutoModel.from_pretrained(self.name, dtype=dtype, **self._options).eval()

    @property
    def _options(self) -> dict[str, Any]:
        return {"revision": revision_of(self.identity), "trust_remote_code": self.trust_remote_code}
