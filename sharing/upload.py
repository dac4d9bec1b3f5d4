"""Pushes models, configurations and image processors to the Hub, each with the code that loads it.

Unusual: a push replaces only what this package generated. A model card that somebody wrote and an image processor that
is already on the Hub stay; shards of earlier weights that the new ones supersede are deleted in the same commit.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from ..configuration.remote_code import dump_json, flat_name
from ..modeling.catalog import MODELS
from .model_card import CARD_MARK
from .payload import export_code
from .repository import (
    CARD_NAME,
    PICTURE_NAME,
    check_shareable,
    collect_repository,
    is_weights,
    read_json,
    with_image_processor_code,
)

__all__ = ["PushOptions", "push_folder", "push_model", "push_part"]


@dataclass(frozen=True)
class PushOptions:
    """How to push, with the names and meaning of transformers' `push_to_hub`.

    Args:
        private: visibility of a repository that is created.
        token: token of the Hub. Default: the one of `hf auth login` or `HF_TOKEN`.
        revision: branch to push to; it is created if it does not exist.
        create_pr: open a pull request rather than committing to the branch.
        commit_message, commit_description: title and text of the commit.
    """

    private: bool | None = None
    token: bool | str | None = field(default=None, repr=False)
    revision: str | None = None
    create_pr: bool = False
    commit_message: str | None = None
    commit_description: str | None = None


class _Repository:
    """A repository on the Hub at one branch, created if it does not exist."""

    def __init__(self, repo_id: str, options: PushOptions) -> None:
        self.options = options
        self.api = HfApi(token=options.token)
        self.repo_id = self.api.create_repo(repo_id, private=options.private, exist_ok=True).repo_id
        if options.revision is not None and not options.create_pr:
            self.api.create_branch(self.repo_id, branch=options.revision, exist_ok=True)

    def list_files(self) -> set[str]:
        return set(self.api.list_repo_files(self.repo_id, revision=self.options.revision))

    def read_text(self, name: str) -> str:
        options = self.options
        path = hf_hub_download(self.repo_id, name, revision=options.revision, token=options.token)
        return Path(path).read_text(encoding="utf-8")

    def commit(self, files: Mapping[str, Path | bytes], message: str, superseded: Sequence[str] = ()) -> str:
        """Add files and delete others in one commit, and return its address."""
        operations: list[Any] = [CommitOperationAdd(name, content) for name, content in files.items()]
        operations += [CommitOperationDelete(name) for name in superseded]
        commit = self.api.create_commit(
            self.repo_id,
            operations,
            commit_message=self.options.commit_message or message,
            commit_description=self.options.commit_description,
            revision=self.options.revision,
            create_pr=self.options.create_pr,
        )
        return str(commit.commit_url)


def _keep_theirs(
    files: dict[str, Path | bytes], folder: Path, repository: _Repository, present: set[str]
) -> dict[str, Path | bytes]:
    """Return the files to upload without those that would replace somebody's own on the Hub."""
    files = dict(files)
    card_is_generated = isinstance(files.get(CARD_NAME), bytes)
    if CARD_NAME in present and card_is_generated and CARD_MARK not in repository.read_text(CARD_NAME):
        del files[CARD_NAME]
        files.pop(PICTURE_NAME, None)
    if IMAGE_PROCESSOR_NAME in present and not (folder / IMAGE_PROCESSOR_NAME).is_file():
        # The folder brings no image processor of its own: prefer the one on the Hub to a default one.
        fields = json.loads(repository.read_text(IMAGE_PROCESSOR_NAME))
        files[IMAGE_PROCESSOR_NAME] = dump_json(with_image_processor_code(fields)).encode()
    return files


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    tags: Sequence[str] | None = None,
    license: str | None = None,
    files: Mapping[str, Path | bytes] | None = None,
    **options: Any,
) -> str:
    """Upload a saved model to the Hub, with its code, an image processor and a model card.

    Args:
        folder: folder of a model of this package. It stays as it is, and only the files that
            [`collect_repository`] returns are uploaded.
        repo_id: `name` or `owner/name`; the repository is created if it does not exist.
        tags, license: for the model card; see [`make_model_card`].
        files: result of [`collect_repository`], if it was called already; `tags` and `license` are then not used.
        options: the fields of [`PushOptions`].

    Returns:
        the address of the commit.

    Raises:
        `ValueError`: the folder holds no model of this package.
        `OSError`: the Hub cannot be reached, or refuses.
    """
    if files is None:
        files = collect_repository(folder, repo_id, tags or (), license)
    repository = _Repository(repo_id, PushOptions(**options))
    present = repository.list_files()
    kept = _keep_theirs(dict(files), Path(folder), repository, present)
    superseded = sorted(name for name in present - set(kept) if is_weights(name))
    return repository.commit(kept, "Upload model", superseded)


def push_model(model: Any, repo_id: str, *, max_shard_size: int | str | None = None, **kwargs: Any) -> str:
    """Save a model to a temporary folder and push it; see [`push_folder`].

    Args:
        model: a model of this package.
        repo_id: `name` or `owner/name`.
        max_shard_size: size of the largest file of weights, as in transformers' `save_pretrained`.
        kwargs: keyword arguments of [`push_folder`].
    """
    check_shareable(model)
    sharding = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    tags, license = kwargs.pop("tags", None), kwargs.pop("license", None)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, **sharding)
        files = collect_repository(folder, repo_id, tags or (), license, model)
        return push_folder(folder, repo_id, files=files, **kwargs)


def push_part(part: Any, repo_id: str, *, max_shard_size: Any = None, tags: Any = None, **options: Any) -> str:
    """Upload a configuration or an image processor, with the code that loads it.

    Args:
        part: a configuration or image processor of this package.
        repo_id: `name` or `owner/name`; the repository is created if it does not exist.
        max_shard_size, tags: accepted and ignored, as transformers' `push_to_hub` passes them for every part.
        options: the fields of [`PushOptions`].

    Returns:
        the address of the commit.
    """
    auto_class, name = part._shared_as
    model_type = getattr(part, "model_type", "deepencoder")
    with tempfile.TemporaryDirectory() as folder:
        part.save_pretrained(folder)
        fields = read_json(Path(folder) / name)
    auto_map = {auto_class: flat_name(type(part))}
    if name == CONFIG_NAME:
        auto_map["AutoModel"] = flat_name(MODELS[model_type].model_class)
    files: dict[str, Path | bytes] = {name: dump_json(fields | {"auto_map": auto_map}).encode()}
    files |= {file: text.encode() for file, text in export_code(model_type).items()}
    return _Repository(repo_id, PushOptions(**options)).commit(files, f"Upload {name}")
