"""Imports deepencoder and transformers in one order, and checks what is registered then.

    python -m tests.programs.import_orders [ORDER]

Without an order it runs all of them, each in a process of its own. They use the transformers that is found first, so
`PYTHONPATH=FOLDER` tests another version, installed by `pip install --target FOLDER transformers==VERSION`.
"""

import importlib
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

AUTO = "transformers.models.auto."


def load(*modules: str) -> None:
    for module in modules:
        importlib.import_module(module)


def load_in_threads(*modules: str) -> None:
    load("deepencoder")
    with ThreadPoolExecutor(2 * len(modules)) as pool:
        list(pool.map(load, 2 * modules))


def load_with_changed_mappings(*modules: str) -> None:
    """Import modules while transformers' mappings keep what is registered in a dictionary of another type."""
    mapping_class = importlib.import_module(AUTO + "auto_factory")._LazyAutoMapping
    initialise = mapping_class.__init__

    def initialise_otherwise(self: Any, *args: Any) -> None:
        initialise(self, *args)
        self._extra_content = type("OtherDictionary", (dict,), {})()

    mapping_class.__init__ = initialise_otherwise
    load(*modules)


def load_without_references(*modules: str) -> None:
    """Import modules where transformers' base classes are half imported and references cannot be used."""
    registration: Any = importlib.import_module("deepencoder.registration")
    registration._add_references = lambda mapping, load: False
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load(*modules)
    messages = [str(warning.message) for warning in caught]
    advice = f"deepencoder is not registered with AutoModel: import {AUTO}modeling_auto directly after deepencoder."
    assert advice in messages, messages


def check_registered() -> None:
    """Look every class up, by way of the Auto classes and of the mappings behind them."""
    from transformers.models.auto.configuration_auto import AutoConfig
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_MAPPING, AutoModel

    for model_type in ("deepencoder", "deepencoder_sam", "deepencoder_clip_vision"):
        config = AutoConfig.for_model(model_type).tiny()
        assert type(config).__module__.startswith("deepencoder.configuration.")
        assert type(config) in MODEL_MAPPING and type(config) in IMAGE_PROCESSOR_MAPPING
        assert type(AutoModel.from_config(config)).__name__ + "Config" == type(config).__name__
        names = {backend: value.__name__ for backend, value in IMAGE_PROCESSOR_MAPPING[type(config)].items()}
        assert names == dict.fromkeys(("pil", "torchvision"), "DeepEncoderImageProcessor")


def check_references() -> None:
    """Check that nothing has imported our models, and that they are registered all the same."""
    load(AUTO + "modeling_auto", AUTO + "image_processing_auto")
    assert not any(name.startswith("deepencoder.modeling.") for name in sys.modules)
    check_registered()


def check_configurations() -> None:
    """Check that the configurations are registered, where the models could not be."""
    from transformers import AutoConfig

    assert type(AutoConfig.for_model("deepencoder")).__module__ == "deepencoder.configuration.deepencoder"


# For each order, how modules are imported, and what must be true then.
ORDERS: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
    "package first": (partial(load, "deepencoder", "transformers"), check_references),
    "image processors first": (partial(load, "deepencoder", AUTO + "image_processing_auto"), check_registered),
    "Auto modules first": (
        partial(load, AUTO + "modeling_auto", AUTO + "image_processing_auto", "deepencoder"),
        check_registered,
    ),
    "base classes first": (
        partial(load, "transformers.modeling_utils", "transformers.generation.utils", "deepencoder"),
        check_registered,
    ),
    "a module of ours first": (partial(load, "deepencoder.modeling.deepencoder"), check_registered),
    # transformers imports its Auto modules in the middle of these.
    "layers": (partial(load, "deepencoder", "transformers.modeling_layers"), check_references),
    "another model": (partial(load, "deepencoder", "transformers.models.clip.modeling_clip"), check_references),
    "threads": (
        partial(load_in_threads, AUTO + "modeling_auto", AUTO + "image_processing_auto", AUTO + "configuration_auto"),
        check_references,
    ),
    # References cannot be used in these.
    "changed mappings": (partial(load_with_changed_mappings, "deepencoder", AUTO + "modeling_auto"), check_registered),
    "changed mappings, layers": (
        partial(load_without_references, "transformers.modeling_layers"),
        check_configurations,
    ),
}


def main() -> None:
    if len(sys.argv) > 1:
        act, check = ORDERS[sys.argv[1]]
        act()
        return check()
    import transformers

    print("transformers", transformers.__version__)
    for order in ORDERS:
        print(order, flush=True)
        subprocess.run([sys.executable, "-m", "tests.programs.import_orders", order], check=True)


if __name__ == "__main__":
    main()
