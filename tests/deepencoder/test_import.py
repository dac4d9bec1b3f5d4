"""What importing the package does, and what it does not."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import deepencoder

from ..conftest import ROOT

# What each room may import from: itself, the rooms below it, and the package's own lazy.py.
ROOMS = {
    "configuration": set(),
    "modeling": {"configuration"},
    "processing": {"configuration"},
    "extraction": {"configuration", "modeling", "processing"},
    "conversion": {"configuration", "modeling", "processing"},
    "sharing": {"configuration", "modeling", "processing", "conversion"},
}


def run(code: str) -> None:
    """Run a program in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_public_names() -> None:
    for name in deepencoder.__all__:
        assert hasattr(deepencoder, name)


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


KNOWN = """
import sys
from transformers.models.auto.configuration_auto import AutoConfig
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.modeling_auto import AutoModel, MODEL_MAPPING
for model_type in ("deepencoder", "deepencoder_sam", "deepencoder_clip_vision"):
    config = AutoConfig.for_model(model_type).tiny()
    assert type(config) in MODEL_MAPPING and type(config) in IMAGE_PROCESSOR_MAPPING
    assert type(AutoModel.from_config(config)).__name__ + "Config" == type(config).__name__
    assert type(config).__module__.startswith("deepencoder.configuration.")
    processors = IMAGE_PROCESSOR_MAPPING[type(config)]
    assert {name: value.__name__ for name, value in processors.items()} == {
        "pil": "DeepEncoderImageProcessor", "torchvision": "DeepEncoderImageProcessor"
    }
"""
WAYS = {
    "package before": "import deepencoder\nimport transformers\ntransformers.AutoModel",
    "package after": "from transformers import AutoConfig, AutoModel\nimport deepencoder",
    "module before": "import deepencoder\nfrom transformers.models.auto.modeling_auto import AutoModel",
    "modules after": (
        "from transformers.models.auto.image_processing_auto import AutoImageProcessor\n"
        "from transformers.models.auto.modeling_auto import AutoModel\nimport deepencoder"
    ),
    "image processors before": (
        "import deepencoder\nfrom transformers.models.auto.image_processing_auto import AutoImageProcessor"
    ),
    "star": "from deepencoder import *\nassert DeepEncoder.__name__ in dir()",
    "a folder": "from deepencoder.modeling import DeepEncoder",
    "models first": "import transformers.modeling_utils, transformers.generation.utils\nimport deepencoder",
    "threads": (
        "import deepencoder\nfrom concurrent.futures import ThreadPoolExecutor\nimport importlib\n"
        "names = ['modeling_auto', 'image_processing_auto', 'configuration_auto'] * 2\n"
        "with ThreadPoolExecutor(6) as pool:\n"
        "    list(pool.map(lambda name: importlib.import_module(f'transformers.models.auto.{name}'), names))"
    ),
    # What we know of transformers' private names is not there.
    "no mappings": (
        "import transformers.models.auto.auto_factory as factory\n"
        "original = factory._LazyAutoMapping.__init__\n"
        "class Other(dict): pass\n"
        "def init(self, *args):\n    original(self, *args)\n    self._extra_content = Other()\n"
        "factory._LazyAutoMapping.__init__ = init\nimport deepencoder"
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_registered_whatever_is_imported_and_when(way: str) -> None:
    run(WAYS[way] + KNOWN)


def test_a_pipeline_knows_the_model(tmp_path: Path) -> None:
    deepencoder.DeepEncoder(deepencoder.DeepEncoderConfig.tiny()).save_pretrained(tmp_path)
    deepencoder.DeepEncoderImageProcessor(mode="tiny").save_pretrained(tmp_path)
    run(
        "import deepencoder, transformers\n"
        f"pipe = transformers.pipeline('image-feature-extraction', model={str(tmp_path)!r})\n"
        "assert type(pipe.model) is deepencoder.DeepEncoder\n"
        "assert type(pipe.image_processor) is deepencoder.DeepEncoderImageProcessor\n"
    )


def test_import_is_cheap() -> None:
    run(
        "import sys, torch, transformers\n"
        "before = set(sys.modules)\n"
        "import deepencoder\n"
        "new = {name for name in set(sys.modules) - before if not name.startswith('deepencoder')}\n"
        "assert not {name for name in new if name.split('.')[0] not in sys.stdlib_module_names}, new\n"
        "assert 'transformers.modeling_utils' not in sys.modules\n"
        "from transformers import AutoConfig, AutoModel\n"
        "deepencoder.DeepEncoderConfig\n"
        "assert 'transformers.modeling_utils' not in sys.modules\n"
        "assert 'transformers.image_processing_utils' not in sys.modules\n"
        "import deepencoder.modeling\n"
        "assert 'transformers.modeling_utils' in sys.modules\n"
    )


def test_public_names_are_imported_when_asked_for() -> None:
    run(
        "import deepencoder, pickle\n"
        "assert set(deepencoder.__all__) <= set(dir(deepencoder))\n"
        "for name in deepencoder.__all__:\n"
        "    value = getattr(deepencoder, name)\n"
        "    assert value.__name__ == name and pickle.loads(pickle.dumps(value)) is value\n"
        "    assert vars(deepencoder)[name] is value\n"
        "assert deepencoder.configuration.DeepEncoderConfig is deepencoder.DeepEncoderConfig\n"
        "assert not hasattr(deepencoder, 'DeepEncoderModel')\n"
    )


def test_what_others_register_stays() -> None:
    """The mapping that holds our references is one that others write to, copy and pickle."""
    run(
        "from transformers import AutoModel, BertConfig, PreTrainedConfig\n"
        "class TheirConfig(PreTrainedConfig): model_type = 'theirs'\n"
        "class Theirs: config_class = TheirConfig\n"
        "AutoModel.register(TheirConfig, Theirs)\n"
        "import copy, deepencoder, pickle\n"
        "mapping = AutoModel._model_mapping\n"
        "assert mapping[TheirConfig] is Theirs\n"
        "content = copy.copy(mapping)._extra_content\n"
        "assert content[deepencoder.SamEncoderConfig] is deepencoder.SamEncoder\n"
        "assert deepencoder.ClipVisionEncoder in mapping._extra_content.values()\n"
        "class Mine(deepencoder.SamEncoder): pass\n"
        "AutoModel.register(deepencoder.SamEncoderConfig, Mine, exist_ok=True)\n"
        "assert type(AutoModel.from_config(deepencoder.SamEncoderConfig.tiny())) is Mine\n"
    )


def test_import_asks_for_neither_network_nor_device() -> None:
    run(
        "import socket, torch\n"
        "def refuse(*args, **kwargs): raise AssertionError('a connection')\n"
        "socket.socket.connect = refuse\n"
        "import deepencoder\n"
        "deepencoder.DeepEncoder, deepencoder.DeepEncoderImageProcessor\n"
        "assert not torch.cuda.is_initialized()\n"
    )


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_point_one_way(room: str) -> None:
    """configuration <- modeling, processing <- extraction, conversion <- sharing; inside, imports are relative."""
    for path in (ROOT / room).rglob("*.py"):
        depth = len(path.relative_to(ROOT / room).parents)  # 1 for a module of the room itself
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not any(alias.name.split(".")[0] == "deepencoder" for alias in node.names), path
            if not isinstance(node, ast.ImportFrom):
                continue
            module = node.module or ""
            assert node.level or module.split(".")[0] != "deepencoder", f"{path}: {module}"
            if node.level > depth and module:
                assert module.split(".")[0] in {*ROOMS[room], "lazy"}, f"{path}: {module}"
