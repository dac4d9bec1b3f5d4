"""Makes the downloaded tests importable as `transformers_tests`, and skips the tests that `skips.py` lists.

The source distribution of transformers has the common tests, but not all modules that they import. The missing ones
(export, generation, values of common fields) are replaced by empty mixins and a dictionary here.
"""

import sys
import types
from importlib.metadata import version
from pathlib import Path

import pytest

from .skips import SKIPS

TESTS = Path(__file__).parents[2] / ".cache" / "conformance" / f"transformers-{version('transformers')}" / "tests"
MARKERS = (
    "accelerate_tests",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "flash_attn_test",
    "torch_compile_test",
)
COMMON_CONFIG_VALUES = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["SomeModel"],
    "id2label": {0: "first", 1: "second"},
    "label2id": {"first": 0, "second": 1},
    "problem_type": "regression",
}


def _module(name: str, **attributes: object) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(attributes)
    sys.modules[name] = module
    return module


def _install() -> None:
    if not TESTS.is_dir():
        raise pytest.UsageError(f"{TESTS} is missing: run `make conformance`, which downloads it.")
    _module("transformers_tests", __path__=[str(TESTS)])
    for package in ("exporters", "generation", "utils"):
        _module(f"transformers_tests.{package}", __path__=[])
    _module("transformers_tests.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
    _module("transformers_tests.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
    _module("transformers_tests.utils.test_configuration_utils", config_common_kwargs=COMMON_CONFIG_VALUES)
    _module("fetch_hub_objects_for_ci", url_to_local_path=lambda url: url)


_install()


def pytest_configure(config: pytest.Config) -> None:
    for name in MARKERS:
        config.addinivalue_line("markers", f"{name}: of transformers' tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    collected = {item.cls.__name__ for item in items if isinstance(item, pytest.Function) and item.cls}
    whole = bool(items) and not any("::" in argument for argument in items[0].config.args)
    unused = {key for key in SKIPS if whole and key.partition(".")[0] in collected}
    for item in items:
        class_name = item.cls.__name__ if isinstance(item, pytest.Function) and item.cls else ""
        name = getattr(item, "originalname", None) or item.name
        for key in (f"{class_name}.{name}", f"{class_name}.{item.name}"):
            if key in SKIPS:
                item.add_marker(pytest.mark.skip(reason=SKIPS[key]))
                unused.discard(key)
    if unused:
        raise pytest.UsageError(f"skips.py names tests that do not exist: {sorted(unused)}")
