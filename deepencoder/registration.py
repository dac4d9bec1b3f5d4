"""Registers our models with transformers' Auto classes.

Unusual: importing a model imports `PreTrainedModel`, which takes seconds, and `import deepencoder` must take
milliseconds. So nothing is registered until transformers' Auto modules are imported, by whomever, which an import hook
notices. transformers' own base classes may be half imported at that moment, as `transformers.modeling_layers` imports
the Auto modules, and then our models cannot be imported. So the hook registers references, each of which is imported
when it is first looked up. References rely on `_extra_content`, a private dictionary of transformers' mappings. Where
it is missing, the public `register` gets the classes themselves. The tests cover both ways, on the oldest and the
newest supported transformers. The configurations are cheap, and are registered by `register` in any case.
"""

import importlib
import sys
import warnings
from collections import UserDict
from collections.abc import Callable, Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["register"]


def _config_classes() -> list[Any]:
    room = importlib.import_module(".configuration", __package__)
    return [getattr(room, name) for name in room.__all__]


def _load_model(config_class: Any) -> Any:
    room = importlib.import_module(".modeling", __package__)
    return getattr(room, config_class.__name__.removesuffix("Config"))


def _load_image_processors(config_class: Any) -> dict[str, Any]:
    processor = importlib.import_module(".processing", __package__).DeepEncoderImageProcessor
    # Pillow does the work for either backend, as only its pixels are those that the model was trained on.
    return {"pil": processor, "torchvision": processor}


class _Reference:
    """Stands in a mapping for a value that is imported when it is first looked up."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self.load = load


class _Mapping(UserDict[Any, Any]):
    """A dictionary that replaces each [`_Reference`] by its value on the first lookup."""

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        if isinstance(value, _Reference):
            value = self.data[key] = value.load()
        return value


def _add_references(mapping: Any, load: Callable[[Any], Any]) -> bool:
    """Add references to a mapping of transformers. Return False if it lacks the private dictionary."""
    content = getattr(mapping, "_extra_content", None)
    if isinstance(content, _Mapping):
        return True  # They are there already.
    if type(content) is not dict:
        return False
    references = {config_class: _Reference(partial(load, config_class)) for config_class in _config_classes()}
    mapping._extra_content = _Mapping({**content, **references})
    return True


def _register_configs(auto: ModuleType) -> None:
    for config_class in _config_classes():
        auto.AutoConfig.register(config_class.model_type, config_class, exist_ok=True)


def _register_classes(
    auto: ModuleType, mapping: str, auto_class: str, argument: str, load: Callable[[Any], Any]
) -> None:
    """Register what `load` returns for each configuration: by reference if possible, else by `register`."""
    if _add_references(getattr(auto, mapping, None), load):
        return
    try:
        values = {config_class: load(config_class) for config_class in _config_classes()}
    except ImportError:  # transformers' base classes are half imported, and its own import must not fail.
        message = (
            f"deepencoder is not registered with {auto_class}: import {auto.__name__} directly after deepencoder."
        )
        warnings.warn(message, stacklevel=2)
        return
    for config_class, value in values.items():
        getattr(auto, auto_class).register(config_class, **{argument: value}, exist_ok=True)


REGISTRARS: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _register_configs,
    "transformers.models.auto.modeling_auto": partial(
        _register_classes,
        mapping="MODEL_MAPPING",
        auto_class="AutoModel",
        argument="model_class",
        load=_load_model,
    ),
    "transformers.models.auto.image_processing_auto": partial(
        _register_classes,
        mapping="IMAGE_PROCESSOR_MAPPING",
        auto_class="AutoImageProcessor",
        argument="image_processor_classes",
        load=_load_image_processors,
    ),
}
"""For each Auto module, the function that registers with it."""


class _AutoModuleFinder(MetaPathFinder):
    """Finds the Auto modules through the finders after this one, and registers once a module was executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in REGISTRARS:
            return None
        later = sys.meta_path[sys.meta_path.index(self) + 1 :]
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in later)), None)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            REGISTRARS[fullname](module)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Register with each Auto module that is already imported, and with the others once they are."""
    sys.meta_path.insert(0, _AutoModuleFinder())
    for name, registrar in REGISTRARS.items():
        if name in sys.modules:
            # `import_module` waits for another thread that is still executing the module.
            registrar(importlib.import_module(name))
