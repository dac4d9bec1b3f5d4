"""Names of a package that are imported when they are first used."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

INIT = """
from deepencoder.lazy import lazy_attributes

eager = 1
__getattr__, __dir__ = lazy_attributes(__name__, {"late": ".module", "absent": ".module"}, subpackages=("room",))
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A package with a module and a subpackage, none of which is imported yet."""
    folder = tmp_path / "lazy_example"
    (folder / "room").mkdir(parents=True)
    (folder / "__init__.py").write_text(INIT)
    (folder / "module.py").write_text("late = object()")
    (folder / "room" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("lazy_example")
    for name in [name for name in sys.modules if name.partition(".")[0] == "lazy_example"]:
        del sys.modules[name]


def test_a_name_is_imported_when_it_is_first_used(package: ModuleType) -> None:
    assert "lazy_example.module" not in sys.modules and "late" not in vars(package)
    value = package.late
    assert value is sys.modules["lazy_example.module"].late
    assert vars(package)["late"] is value


def test_a_subpackage_is_imported_when_it_is_first_used(package: ModuleType) -> None:
    assert "lazy_example.room" not in sys.modules
    assert package.room is sys.modules["lazy_example.room"]


def test_dir_lists_names_that_are_not_imported_yet(package: ModuleType) -> None:
    assert {"eager", "late", "room"} <= set(dir(package))
    assert "lazy_example.module" not in sys.modules


def test_unknown_names_are_attribute_errors(package: ModuleType) -> None:
    for name in ("unknown", "absent"):
        with pytest.raises(AttributeError, match=name):
            getattr(package, name)
    assert not hasattr(package, "unknown")
