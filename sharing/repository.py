"""What the repository of a model holds: the saved model, and all that it takes to load without this package.

Unusual: the files that a saved model lacks (the code, an image processor, a model card) are generated in memory.
Pushing a folder thus leaves the folder unchanged; [`complete_folder`] writes the same files into it. Of the files in
the folder only weights and a card written by hand are published as they are; whatever else lies there stays private.
"""

import json
import re
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ..configuration.atomic_files import write_bytes
from ..configuration.remote_code import dump_json, flat_name
from ..conversion.report import REPORT_NAME
from ..modeling.catalog import MODELS, model_kind
from ..processing import DeepEncoderImageProcessor
from ..processing.modes import mode_for
from .model_card import CARD_MARK, make_model_card, read_report
from .payload import export_code
from .sample_picture import draw_sample_page

__all__ = [
    "CARD_NAME",
    "PICTURE_NAME",
    "check_shareable",
    "collect_repository",
    "complete_folder",
    "is_our_image_processor",
    "is_weights",
    "list_left_out",
    "read_json",
    "with_image_processor_code",
]

CARD_NAME, PICTURE_NAME = "README.md", "encoding.png"
# The names that transformers gives to weights, with a variant such as `fp16` or without.
WEIGHTS_NAME = re.compile(
    r"(model|pytorch_model)(\.\w+)?(-\d{5}-of-\d{5})?\.(safetensors|bin)"
    r"|(model\.safetensors|pytorch_model\.bin)\.index(\.\w+)?\.json"
)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file; a file that holds no dictionary counts as an empty one.

    Raises:
        `ValueError`: the file is not JSON.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    return content if isinstance(content, dict) else {}


def is_weights(name: str) -> bool:
    """Return whether a file name is one that transformers gives to weights, or to their index."""
    return WEIGHTS_NAME.fullmatch(name) is not None


def is_our_image_processor(fields: dict[str, Any]) -> bool:
    """Return whether the fields of a `preprocessor_config.json` are those of a [`DeepEncoderImageProcessor`]."""
    return fields.get("image_processor_type") == DeepEncoderImageProcessor.__name__


def with_image_processor_code(fields: dict[str, Any]) -> dict[str, Any]:
    """Add the `auto_map` to the fields of an image processor if it is ours; others load without code."""
    if not is_our_image_processor(fields):
        return fields
    return fields | {"auto_map": {"AutoImageProcessor": flat_name(DeepEncoderImageProcessor)}}


def _default_image_processor(config: Any) -> DeepEncoderImageProcessor:
    if config.model_type != "deepencoder_clip_vision":
        return DeepEncoderImageProcessor(mode=mode_for(config))
    fields: dict[str, Any] = {"size": {"height": config.image_size, "width": config.image_size}, "do_pad": False}
    if config.post_norm == "pooled":  # One of OpenAI's towers.
        fields |= {"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD}
    return DeepEncoderImageProcessor(**fields)


def _image_processor_fields(folder: Path, config: Any) -> dict[str, Any]:
    """Return the fields of a folder's image processor, or of a default one; none for a model without pixels."""
    if (folder / IMAGE_PROCESSOR_NAME).is_file():
        return read_json(folder / IMAGE_PROCESSOR_NAME)
    return _default_image_processor(config).to_dict() if getattr(config, "use_patch_embedding", True) else {}


def _has_card_by_hand(folder: Path) -> bool:
    card = folder / CARD_NAME
    return card.is_file() and CARD_MARK not in card.read_text(encoding="utf-8")


def _generate_card(
    folder: Path, config: Any, model: Any, processor_fields: dict[str, Any], **card_fields: Any
) -> dict[str, bytes]:
    """Return the model card and its picture by file name, or nothing if the folder has a card written by hand."""
    if _has_card_by_hand(folder):
        return {}
    files = {}
    if config.model_type == "deepencoder" and config.sam_config.num_channels == 3:
        if model is None or any(parameter.is_meta for parameter in model.parameters()):
            model = AutoModel.from_pretrained(folder)
        files[PICTURE_NAME] = draw_sample_page(model)
        card_fields["picture"] = PICTURE_NAME
    if is_our_image_processor(processor_fields):
        card_fields["image_processor"] = DeepEncoderImageProcessor.from_dict(processor_fields)
    with torch.device("meta"):
        num_parameters = MODELS[config.model_type].model_class(config).num_parameters()
    files[CARD_NAME] = str(make_model_card(folder, config, num_parameters, **card_fields)).encode()
    return files


def _generate(folder: Path, model: Any, **card_fields: Any) -> dict[str, bytes]:
    """Return, by file name, what a saved model's folder lacks to be self-contained."""
    fields = read_json(folder / CONFIG_NAME) if (folder / CONFIG_NAME).is_file() else {}
    kind = MODELS.get(str(fields.get("model_type")))
    if kind is None:
        raise ValueError(f"folder: {folder} is not a saved model of this package, according to its {CONFIG_NAME}.")
    config = AutoConfig.from_pretrained(folder)
    code = {"AutoConfig": flat_name(kind.config_class), "AutoModel": flat_name(kind.model_class)}
    fields.pop("_name_or_path", None)  # Where the model was loaded from: earlier versions of transformers wrote it.
    files = {CONFIG_NAME: dump_json(fields | {"auto_map": code}).encode()}
    processor_fields = _image_processor_fields(folder, config)
    if processor_fields:
        files[IMAGE_PROCESSOR_NAME] = dump_json(with_image_processor_code(processor_fields)).encode()
    files |= {name: text.encode() for name, text in export_code(kind.model_type).items()}
    return files | _generate_card(folder, config, model, processor_fields, **card_fields)


def check_shareable(model: Any) -> None:
    """Raise `ValueError` unless this package's code is all that a model takes to load.

    Raises:
        `ValueError`: the model is a subclass, whose code is elsewhere, or has adapters, or is quantised.
    """
    name, kind = type(model).__name__, model_kind(model)
    if kind is None or type(model) is not kind.model_class:
        raise ValueError(f"A {name} cannot be shared with the code of this package, which does not define it.")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"A {name} with adapters cannot be shared with its code: merge the adapters, or push them alone."
        )
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError(f"A quantised {name} cannot be shared: share the original model.")


def complete_folder(folder: str | Path, model: Any = None, license: str | None = None) -> None:
    """Write the code, the image processor and the model card that a saved model's folder lacks.

    Args:
        folder: folder of a model of this package, as written by `save_pretrained` or [`convert_to_folder`].
        model: the model itself, if it is in memory already.
        license: licence of the weights; see [`make_model_card`].

    Raises:
        `ValueError`: the folder holds no model of this package.
    """
    folder = Path(folder)
    for name, content in _generate(folder, model, license=license).items():
        write_bytes(folder / name, content)


def collect_repository(
    folder: str | Path, repo_id: str, tags: Sequence[str] = (), license: str | None = None, model: Any = None
) -> dict[str, Path | bytes]:
    """Return, by name, the files to upload for a saved model: its weights, what describes them, and what loads them.

    These are the weights, the configuration, the image processor, the report of the conversion, the model card with
    its picture, and the code as [`export_code`] generates it. See [`list_left_out`] for what else is in the folder.

    Args:
        folder: folder of a model of this package. It stays as it is.
        repo_id: Hub id of the repository, for the model card.
        tags, license: for the model card; see [`make_model_card`].
        model: the model itself, if it is in memory already.

    Raises:
        `ValueError`: the folder holds no model of this package, or no weights.
    """
    folder = Path(folder)
    files: dict[str, Path | bytes] = dict(_generate(folder, model, repo_id=repo_id, tags=tags, license=license))
    weights = {path.name: path for path in folder.iterdir() if is_weights(path.name) and path.is_file()}
    if not weights:
        raise ValueError(f"folder: {folder} holds no weights.")
    files |= weights
    report = read_report(folder)
    if report:
        files[REPORT_NAME] = (json.dumps(report, indent=2) + "\n").encode()
    if _has_card_by_hand(folder):
        files |= {name: folder / name for name in (CARD_NAME, PICTURE_NAME) if (folder / name).is_file()}
    return dict(sorted(files.items()))


def list_left_out(folder: str | Path, files: Container[str]) -> list[str]:
    """Return the names of what lies in a folder and is not published; names of folders end in a slash.

    Args:
        folder: the folder.
        files: names of the files to upload, as [`collect_repository`] returns them.
    """
    left_out = [path for path in Path(folder).iterdir() if path.name not in files or path.is_dir()]
    return sorted(f"{path.name}/" if path.is_dir() else path.name for path in left_out)
