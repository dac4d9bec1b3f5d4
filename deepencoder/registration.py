"""Makes our models known to transformers' Auto classes, when those are imported.

Unusual: two things, both because importing our models (and with them `PreTrainedModel`) takes seconds, which
`import deepencoder` must not cost. We register right after the import of each Auto module, whoever imports it. And we
register references, which are imported when they are looked up: transformers imports its Auto modules while its own
base classes are half imported, so our models cannot be imported there. References rest on a private attribute of
transformers' mappings; where that is not what we know, its public `register` gets the classes themselves.
"""

import importlib
import sys
from collections import UserDict
from collections.abc import Callable, Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

__all__ = ["register"]


def register() -> None:
    """Register with each Auto module that is imported already, and with the others once they are."""
    sys.meta_path.insert(0, _AutoModuleFinder())
    for name, registrar in REGISTRARS.items():
        if name in sys.modules:
            # Through import_module, which waits for another thread that is still executing the module.
            registrar(importlib.import_module(name))


def _config_classes() -> list[Any]:
    room = importlib.import_module(".configuration", __package__)
    return [getattr(room, name) for name in room.__all__]


def _load_model(config_class: Any) -> Any:
    room = importlib.import_module(".modeling", __package__)
    return getattr(room, config_class.__name__.removesuffix("Config"))


def _load_image_processors(config_class: Any) -> dict[str, Any]:
    processor = importlib.import_module(".processing", __package__).DeepEncoderImageProcessor
    # Pillow does the work whichever backend is asked for: only it gives the pixels that the model was trained on.
    return {"pil": processor, "torchvision": processor}


def _register_configs(auto: ModuleType) -> None:
    for config_class in _config_classes():
        auto.AutoConfig.register(config_class.model_type, config_class, exist_ok=True)


def _register_models(auto: ModuleType) -> None:
    if not _add_references(getattr(auto, "MODEL_MAPPING", None), _load_model):
        for config_class in _config_classes():
            auto.AutoModel.register(config_class, _load_model(config_class), exist_ok=True)


def _register_image_processors(auto: ModuleType) -> None:
    if not _add_references(getattr(auto, "IMAGE_PROCESSOR_MAPPING", None), _load_image_processors):
        for config_class in _config_classes():
            backends = _load_image_processors(config_class)
            auto.AutoImageProcessor.register(config_class, image_processor_classes=backends, exist_ok=True)


class _Reference:
    """Stands in a mapping for a value that is loaded when it is looked up."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self.load = load


class _Mapping(UserDict[Any, Any]):
    """A dictionary that replaces each [`_Reference`] by its value when that is looked up."""

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        if isinstance(value, _Reference):
            value = self.data[key] = value.load()
        return value


def _add_references(mapping: Any, load: Callable[[Any], Any]) -> bool:
    """Add references for our configurations to a mapping of transformers; return whether it is one as we know it."""
    known = getattr(mapping, "_extra_content", None)
    if type(known) is not dict:
        return False
    references = {config_class: _Reference(partial(load, config_class)) for config_class in _config_classes()}
    mapping._extra_content = _Mapping({**known, **references})
    return True


REGISTRARS: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _register_configs,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.image_processing_auto": _register_image_processors,
}


class _AutoModuleFinder(MetaPathFinder):
    """Finds the Auto modules as Python does, and registers after they were executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in REGISTRARS:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            REGISTRARS[fullname](module)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
