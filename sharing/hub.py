"""Sharing models: a folder that loads anywhere, and its way to the Hub.

Unusual: pushing a folder leaves it as it is; what it lacks (the code, an image processor, a model card) is made on the
way. Completing a folder writes the same files into it.
"""

import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from PIL import Image
from transformers import AutoConfig, AutoModel
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ..configuration.remote_code import flat_name
from ..modeling.catalog import MODELS
from ..processing import DeepEncoderImageProcessor
from ..processing.visualization import draw_encoding
from .model_card import CARD_MARK, make_model_card
from .payload import export_code

__all__ = ["check_shareable", "collect_repository", "complete_folder", "push_folder", "push_model", "push_part"]

CARD_NAME, PICTURE_NAME = "README.md", "encoding.png"
SAMPLE_PAGE = Path(__file__).with_name("sample_page.png")
SAMPLE_SIDE = 512


def package_version() -> str:
    """Return the version of this package."""
    try:
        return version("deepencoder")
    except PackageNotFoundError:  # a checkout that is on the path, and not installed
        return "0.0.0"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    return content if isinstance(content, dict) else {}


def _dump(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _default_processor(config: Any) -> DeepEncoderImageProcessor:
    if config.model_type != "deepencoder_clip_vision":
        return DeepEncoderImageProcessor()
    side = {"height": config.image_size, "width": config.image_size}
    fields: dict[str, Any] = {"size": side, "do_pad": False}
    if config.post_norm == "pooled":
        fields |= {"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD}
    return DeepEncoderImageProcessor(**fields)


@torch.no_grad()
def _draw_sample(model: Any) -> bytes:
    """Draw the sample page as the encoder sees it, to a PNG."""
    side = SAMPLE_SIDE - SAMPLE_SIDE % model.config.sam_config.total_stride
    processor: Any = DeepEncoderImageProcessor(size={"height": side, "width": side}, do_pad=True)
    inputs = processor(SAMPLE_PAGE, return_tensors="pt")
    training = {part: part.training for part in model.modules()}  # a half may be frozen
    outputs = model.eval()(inputs["pixel_values"].to(model.device))
    for part, flag in training.items():
        part.training = flag
    side = round(outputs.last_hidden_state.shape[1] ** 0.5)
    pixels = ((inputs["pixel_values"][0] * 0.5 + 0.5) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    drawing = draw_encoding(Image.fromarray(pixels), outputs.last_hidden_state[0].unflatten(0, (side, side)))
    buffer = io.BytesIO()
    drawing.save(buffer, "PNG")
    return buffer.getvalue()


def _generate(
    folder: Path,
    model: Any = None,
    repo_id: str | None = None,
    tags: Sequence[str] = (),
    license: str | None = None,
) -> dict[str, bytes]:
    """Make what a saved model's folder lacks to be self-contained, by name."""
    fields = _read_json(folder / CONFIG_NAME) if (folder / CONFIG_NAME).is_file() else {}
    model_type = fields.get("model_type")
    if model_type not in MODELS:
        raise ValueError(f"{folder} is not a saved model of this package: its {CONFIG_NAME} does not say so.")
    config = AutoConfig.from_pretrained(folder)
    names = {"AutoConfig": flat_name(type(config)), "AutoModel": flat_name(MODELS[model_type].model_class)}
    files = {CONFIG_NAME: _dump(fields | {"auto_map": names})}
    if (folder / IMAGE_PROCESSOR_NAME).is_file():
        processor = _read_json(folder / IMAGE_PROCESSOR_NAME)
    elif getattr(config, "use_patch_embedding", True):
        processor = _default_processor(config).to_dict()
    else:
        processor = {}  # it takes no pixels
    if processor.get("image_processor_type") == DeepEncoderImageProcessor.__name__:
        processor = processor | {"auto_map": {"AutoImageProcessor": flat_name(DeepEncoderImageProcessor)}}
    if processor:
        files[IMAGE_PROCESSOR_NAME] = _dump(processor)
    files |= {name: text.encode() for name, text in export_code(model_type, package_version()).items()}
    if (folder / CARD_NAME).is_file() and CARD_MARK not in (folder / CARD_NAME).read_text(encoding="utf-8"):
        return files  # somebody wrote it
    if model_type == "deepencoder" and config.sam_config.num_channels == 3:
        if model is None or any(parameter.is_meta for parameter in model.parameters()):
            model = AutoModel.from_pretrained(folder)
        files[PICTURE_NAME] = _draw_sample(model)
    with torch.device("meta"):
        num_parameters = MODELS[model_type].model_class(config).num_parameters()
    picture = PICTURE_NAME if PICTURE_NAME in files else None
    card = make_model_card(folder, config, num_parameters, repo_id, tags, license, picture)
    files[CARD_NAME] = str(card).encode()
    return files


def is_weights(name: str) -> bool:
    """Tell whether a file is a model's weights, or their index."""
    return name.startswith(("model", "pytorch_model")) and name.endswith((".safetensors", ".bin", ".index.json"))


def check_shareable(model: Any) -> None:
    """Insist that the code of this package is all that a model takes to load.

    Raises:
        `ValueError`: a subclass, whose code is elsewhere; adapters; a quantised model.
    """
    name = type(model).__name__
    if type(model) is not getattr(MODELS.get(model.config.model_type), "model_class", None):
        raise ValueError(f"A {name} cannot be shared with this package's code, of which it is not.")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(f"A {name} with adapters cannot be shared with its code: merge them, or push them alone.")
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError(f"A quantised {name} cannot be shared: it would not load again. Share it as it was before.")


def complete_folder(folder: str | Path, model: Any = None, license: str | None = None) -> None:
    """Write the code, the image processor and the model card that a saved model's folder lacks.

    Args:
        folder: of a model of this package, as `save_pretrained` or [`convert_to_folder`] writes it.
        model: the model, where it is at hand.
        license: of the weights; see [`make_model_card`].

    Raises:
        `ValueError`: it is no such folder.
    """
    folder = Path(folder)
    for name, content in _generate(folder, model, license=license).items():
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", delete=False) as file:
            file.write(content)
        Path(file.name).chmod(0o644)
        Path(file.name).replace(folder / name)


def collect_repository(
    folder: str | Path, repo_id: str, tags: Sequence[str] = (), license: str | None = None, model: Any = None
) -> dict[str, Path | bytes]:
    """Return what will be uploaded of a saved model's folder, by name: its files, and what they lack.

    Raises:
        `ValueError`: it is not the folder of a model of this package.
    """
    folder = Path(folder)
    generated = _generate(folder, model, repo_id, tags, license)
    if not any(is_weights(path.name) for path in folder.iterdir()):
        raise ValueError(f"{folder} holds no weights.")
    files = {path.name: path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")}
    return dict(sorted((files | generated).items()))


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    tags: Sequence[str] = (),
    license: str | None = None,
    files: Mapping[str, Path | bytes] | None = None,
) -> str:
    """Upload a saved model to the Hub, with the code, an image processor and a model card.

    Args:
        folder: of a model of this package; it stays as it is.
        repo_id: `name` or `owner/name`; the repository is created if it is not there.
        private, token, revision, create_pr, commit_message, commit_description: as in transformers' `push_to_hub`; a
            branch that is not there is created.
        tags, license: for the model card; see [`make_model_card`].
        files: of [`collect_repository`], where that has been asked already.

    Returns:
        the address of the commit.

    Raises:
        `ValueError`: it is not the folder of a model of this package.
        `OSError`: the Hub cannot be reached, or refuses.
    """
    if files is None:
        files = collect_repository(folder, repo_id, tags, license)
    files = dict(files)
    api = HfApi(token=token)
    repo_id = _prepare(api, repo_id, private, None if create_pr else revision)
    there = set(api.list_repo_files(repo_id, revision=revision))

    def read_there(name: str) -> str:
        return Path(hf_hub_download(repo_id, name, revision=revision, token=token)).read_text(encoding="utf-8")

    if CARD_NAME in there and isinstance(files.get(CARD_NAME), bytes) and CARD_MARK not in read_there(CARD_NAME):
        files.pop(CARD_NAME)  # somebody wrote it
        files.pop(PICTURE_NAME, None)
    if IMAGE_PROCESSOR_NAME in there and not (Path(folder) / IMAGE_PROCESSOR_NAME).is_file():
        kept = json.loads(read_there(IMAGE_PROCESSOR_NAME))  # rather than the default
        if kept.get("image_processor_type") == DeepEncoderImageProcessor.__name__:
            kept["auto_map"] = {"AutoImageProcessor": flat_name(DeepEncoderImageProcessor)}
        files[IMAGE_PROCESSOR_NAME] = _dump(kept)
    superseded = sorted(name for name in there - set(files) if is_weights(name))
    return _commit(
        api,
        repo_id,
        files,
        superseded,
        commit_message=commit_message or "Upload model",
        commit_description=commit_description,
        revision=revision,
        create_pr=create_pr,
    )


def _prepare(api: HfApi, repo_id: str, private: bool | None, branch: str | None) -> str:
    created = api.create_repo(repo_id, private=private, exist_ok=True)
    if branch is not None:
        api.create_branch(created.repo_id, branch=branch, exist_ok=True)
    return created.repo_id


def _commit(
    api: HfApi, repo_id: str, files: Mapping[str, Path | bytes], superseded: Sequence[str] = (), **options: Any
) -> str:
    operations: list[Any] = [CommitOperationAdd(name, content) for name, content in files.items()]
    operations += [CommitOperationDelete(name) for name in superseded]
    return str(api.create_commit(repo_id, operations, **options).commit_url)


def push_part(
    part: Any,
    repo_id: str,
    *,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    **ignored: Any,
) -> str:
    """Upload a configuration or an image processor, with the code that reads it.

    Args:
        part: of this package.
        repo_id, private, token, revision, create_pr, commit_message, commit_description: see [`push_folder`].
        ignored: what transformers' `push_to_hub` takes for models only.

    Returns:
        the address of the commit.
    """
    model_type = getattr(part, "model_type", "deepencoder")
    code = export_code(model_type, package_version())
    name = part._shared_as[1]
    with tempfile.TemporaryDirectory() as folder:
        part.save_pretrained(folder)
        fields = _read_json(Path(folder) / name)
    names = {part._shared_as[0]: flat_name(type(part))}
    if name == CONFIG_NAME:
        names["AutoModel"] = flat_name(MODELS[model_type].model_class)
    api = HfApi(token=token)
    repo_id = _prepare(api, repo_id, private, None if create_pr else revision)
    return _commit(
        api,
        repo_id,
        {name: _dump(fields | {"auto_map": names})} | {file: text.encode() for file, text in code.items()},
        commit_message=commit_message or f"Upload {name}",
        commit_description=commit_description,
        revision=revision,
        create_pr=create_pr,
    )


def push_model(model: Any, repo_id: str, *, max_shard_size: int | str | None = None, **kwargs: Any) -> str:
    """Save a model to a temporary folder and push that; see [`push_folder`].

    Args:
        model: of this package.
        repo_id: `name` or `owner/name`.
        max_shard_size: as in transformers' `save_pretrained`.
        kwargs: of [`push_folder`].
    """
    check_shareable(model)
    sharding = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    kwargs["tags"] = kwargs.get("tags") or ()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, **sharding)
        files = collect_repository(folder, repo_id, kwargs["tags"], kwargs.get("license"), model)
        return push_folder(folder, repo_id, files=files, **kwargs)
