"""Configurations: fields of wrong types and impossible sizes, and damaged `config.json` files."""

import json
from typing import Any

import torch
from transformers import AutoConfig, AutoModel

from deepencoder import ClipVisionEncoderConfig, DeepEncoderConfig, SamEncoderConfig

from .mutations import mutate_fields, nasty_json
from .trials import RefusedError, Trial, ViolationError

__all__ = ["own_fields", "run"]

CLASSES: tuple[Any, ...] = (DeepEncoderConfig, SamEncoderConfig, ClipVisionEncoderConfig)
ERRORS = (ValueError, TypeError, OSError)


def own_fields(config: Any) -> list[str]:
    """Return the names of the fields that our class adds to transformers' base class."""
    return [name for name in type(config).__annotations__ if not name.startswith("_")]


def run(trial: Trial) -> None:
    random = trial.random
    config_class = random.choice(CLASSES)
    tiny = config_class.tiny()
    way = random.choice(("fields", "fields", "dict", "file", "file", "auto"))
    if way in ("fields", "dict"):
        fields = mutate_fields(random, {name: _plain(getattr(tiny, name)) for name in own_fields(tiny)})
        trial.note(config_class=config_class.__name__, way=way, fields=fields)
        with trial.may_raise(*ERRORS):
            config = config_class(**fields) if way == "fields" else config_class.from_dict(fields)
    else:
        own = {name: _plain(getattr(tiny, name)) for name in own_fields(tiny)} | {"model_type": tiny.model_type}
        # The auto class is transformers' own, and so are its answers to files that are no objects.
        content = json.dumps(mutate_fields(random, own)).encode() if way == "auto" else nasty_json(random, own)
        trial.note(config_class=config_class.__name__, way=way, content=content[:300])
        (trial.folder / "config.json").write_bytes(content)
        with trial.may_raise(*ERRORS):
            config = (AutoConfig if way == "auto" else config_class).from_pretrained(trial.folder)
    if isinstance(config, CLASSES):
        _check(trial, config)


def _plain(value: Any) -> Any:
    return value.to_dict() if hasattr(value, "to_dict") else value


def _check(trial: Trial, config: Any) -> None:
    """A configuration that was accepted can be saved, read again, and built."""
    try:
        with trial.may_raise(*ERRORS):
            again = type(config)(**{name: _plain(getattr(config, name)) for name in own_fields(config)})
            text = json.loads(again.to_json_string(use_diff=False))
    except RefusedError as error:
        raise ViolationError(f"accepted a configuration that it does not read again: {error}") from error
    if text.get("model_type") != type(config).model_type:
        raise ViolationError(f"wrote the model type {text.get('model_type')!r}")
    with trial.may_raise(ValueError), torch.device("meta"):
        AutoModel.from_config(again)
