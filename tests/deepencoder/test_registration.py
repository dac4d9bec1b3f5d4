"""Registration with transformers' Auto classes, whatever is imported in which order."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from transformers import AutoConfig, AutoModel, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import deepencoder
from deepencoder import registration

from ..conftest import ROOT
from ..programs.import_orders import ORDERS


def run_program(name: str, *arguments: str) -> None:
    """Run one of the programs for these tests in a process of its own."""
    command = [sys.executable, "-m", f"tests.programs.{name}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("order", ORDERS)
def test_registered_in_every_order_of_imports(order: str) -> None:
    run_program("import_orders", order)


def test_registrations_of_others_are_kept() -> None:
    run_program("other_registrations")


def test_registered_with_the_auto_classes(tmp_path: Path) -> None:
    for config_class, model_class in (
        (deepencoder.SamEncoderConfig, deepencoder.SamEncoder),
        (deepencoder.ClipVisionEncoderConfig, deepencoder.ClipVisionEncoder),
        (deepencoder.DeepEncoderConfig, deepencoder.DeepEncoder),
    ):
        config = config_class.tiny()
        assert type(AutoConfig.for_model(config.model_type)) is config_class
        assert type(AutoModel.from_config(config)) is model_class
        config.save_pretrained(tmp_path)
        deepencoder.DeepEncoderImageProcessor().save_pretrained(tmp_path)
        for backend in ("pil", "torchvision", None):
            loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
            assert type(loaded) is deepencoder.DeepEncoderImageProcessor


def test_a_pipeline_finds_model_and_image_processor(tmp_path: Path) -> None:
    deepencoder.DeepEncoder(deepencoder.DeepEncoderConfig.tiny()).save_pretrained(tmp_path)
    deepencoder.DeepEncoderImageProcessor(mode="tiny").save_pretrained(tmp_path)
    pipe = pipeline("image-feature-extraction", model=str(tmp_path))
    assert type(pipe.model) is deepencoder.DeepEncoder
    assert type(pipe.image_processor) is deepencoder.DeepEncoderImageProcessor


def test_references_are_loaded_once_and_when_looked_up() -> None:
    loaded: list[type] = []

    def load(config_class: type) -> str:
        loaded.append(config_class)
        return config_class.__name__

    mapping = SimpleNamespace(_extra_content={"theirs": 1})
    assert registration._add_references(mapping, load)
    content = mapping._extra_content
    assert deepencoder.SamEncoderConfig in content and content["theirs"] == 1 and len(content) == 5
    assert registration._add_references(mapping, load) and mapping._extra_content is content
    assert not loaded
    assert [content[deepencoder.SamEncoderConfig] for _ in range(2)] == ["SamEncoderConfig"] * 2
    assert loaded == [deepencoder.SamEncoderConfig]
    names = {"SamEncoderConfig", "ClipVisionEncoderConfig", "DeepEncoderConfig", "DeepEncoderV2Config"}
    assert set(content.values()) == {1, *names}


@pytest.mark.parametrize("mapping", [None, SimpleNamespace(), SimpleNamespace(_extra_content=[])])
def test_references_are_refused_by_unknown_mappings(mapping: object) -> None:
    assert not registration._add_references(mapping, str)


def test_the_hook_registers_after_a_module_was_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[str] = []
    monkeypatch.setitem(registration.REGISTRARS, "hooked_module", lambda module: registered.append(module.value))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="hooked_module"):
        importlib.import_module("hooked_module")
    (tmp_path / "hooked_module.py").write_text("value = 'executed'")
    (tmp_path / "other_module.py").write_text("value = 'not hooked'")
    importlib.invalidate_caches()
    importlib.import_module("other_module")
    module: ModuleType = importlib.import_module("hooked_module")
    assert registered == ["executed"]
    # Imported with two such hooks, as after a reload of the package: registering again changes nothing.
    monkeypatch.setattr(sys, "meta_path", [registration._AutoModuleFinder(), *sys.meta_path])
    del sys.modules["hooked_module"]
    module = importlib.import_module("hooked_module")
    assert registered == ["executed"] * 3 and module.__file__ == str(tmp_path / "hooked_module.py")
    for name in ("hooked_module", "other_module"):
        del sys.modules[name]
