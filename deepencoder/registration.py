"""Makes our models known to transformers' Auto classes, at no cost until these are used.

Unusual: transformers' Auto modules take long to import, and the classes to be registered longer. So we register right
behind the import of each Auto module, whoever imports it and whenever; and models and image processors by reference,
to be imported when they are looked up. References rest on a private name of transformers: where it is not what we
know, its public `register` gets the classes themselves.
"""

import importlib
import sys
from collections import UserDict
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["register"]

MODELS = {
    "SamEncoderConfig": "SamEncoder",
    "ClipVisionEncoderConfig": "ClipVisionEncoder",
    "DeepEncoderConfig": "DeepEncoder",
}


def register() -> None:
    """Register with each Auto module that is imported, and with the others once they are."""
    sys.meta_path.insert(0, _Finder())
    for name, registration in REGISTRATIONS.items():
        if name in sys.modules:
            registration(importlib.import_module(name))  # which waits for a thread that is in the middle of it


def _configs() -> list[Any]:
    module = importlib.import_module(".configuration", __package__)
    return [getattr(module, name) for name in MODELS]


def _model(config_class: Any) -> Any:
    return getattr(importlib.import_module(".modeling", __package__), MODELS[config_class.__name__])


def _image_processors(config_class: Any) -> dict[str, Any]:
    processor = importlib.import_module(".processing", __package__).DeepEncoderImageProcessor
    # Pillow does the work whichever backend is asked for: only it gives the pixels that the model was trained on.
    return {"pil": processor, "torchvision": processor}


def _register_configs(auto: ModuleType) -> None:
    for config_class in _configs():
        auto.AutoConfig.register(config_class.model_type, config_class, exist_ok=True)


def _register_models(auto: ModuleType) -> None:
    if not _refer(getattr(auto, "MODEL_MAPPING", None), _model):
        for config_class in _configs():
            auto.AutoModel.register(config_class, _model(config_class), exist_ok=True)


def _register_image_processors(auto: ModuleType) -> None:
    if not _refer(getattr(auto, "IMAGE_PROCESSOR_MAPPING", None), _image_processors):
        for config_class in _configs():
            processors = _image_processors(config_class)
            auto.AutoImageProcessor.register(config_class, image_processor_classes=processors, exist_ok=True)


REGISTRATIONS: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _register_configs,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.image_processing_auto": _register_image_processors,
}


class _References(UserDict[Any, Any]):
    """A dictionary whose values are made, by a function of the key, when they are first looked up."""

    def __init__(self, known: Any, find: Callable[[Any], Any], keys: list[Any]) -> None:
        self.find = find
        self.waiting: set[Any] = set()
        super().__init__({**known, **dict.fromkeys(keys)})
        self.waiting.update(keys)

    def __getitem__(self, key: Any) -> Any:
        if key in self.waiting:
            self[key] = self.find(key)
        return super().__getitem__(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        self.waiting.discard(key)


def _refer(mapping: Any, find: Callable[[Any], Any]) -> bool:
    """Add references to a mapping of transformers; False if it is not made as we know it."""
    if type(getattr(mapping, "_extra_content", None)) is not dict:
        return False
    mapping._extra_content = _References(mapping._extra_content, find, _configs())
    return True


class _Finder(MetaPathFinder):
    """Finds what the others find, and has us register behind the import of an Auto module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in REGISTRATIONS:
            return None
        for finder in sys.meta_path:
            find = None if isinstance(finder, _Finder) else getattr(finder, "find_spec", None)
            spec = find and find(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Loader(spec.loader, REGISTRATIONS[fullname])
                return spec
        return None


class _Loader(Loader):
    """Loads a module by its own loader, to which it leaves the module, and registers."""

    def __init__(self, loader: Loader, registration: Callable[[ModuleType], None]) -> None:
        self.loader = loader
        self.registration = registration

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        self.registration(module)
