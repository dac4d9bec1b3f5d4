"""Checks what importing deepencoder imports, step by step, and that it opens no connection and uses no device."""

import pickle
import socket
import sys
from typing import Any


def refuse(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("a connection was opened")


socket.socket.connect = refuse  # type: ignore[method-assign, assignment]


def others() -> set[str]:
    """Return the packages that are imported, without the standard library and deepencoder."""
    return {name.partition(".")[0] for name in sys.modules} - {*sys.stdlib_module_names, "deepencoder", "__mp_main__"}


before = others()
import deepencoder  # noqa: E402

assert others() == before, others() - before
assert not {"torch", "transformers", "numpy"} & set(sys.modules)
assert set(deepencoder.__all__) <= set(dir(deepencoder))

# The Auto classes and a configuration import no base class.
from transformers import AutoConfig, AutoModel  # noqa: E402, F401

assert deepencoder.DeepEncoderConfig.__module__ == "deepencoder.configuration.deepencoder"
for name in ("transformers.modeling_utils", "transformers.image_processing_utils", "deepencoder.modeling.deepencoder"):
    assert name not in sys.modules, name

# A package of models imports none of them; the name of a model imports it.
import deepencoder.modeling  # noqa: E402

assert "transformers.modeling_utils" not in sys.modules
assert deepencoder.DeepEncoder.__module__ == "deepencoder.modeling.deepencoder"
assert "transformers.modeling_utils" in sys.modules and "deepencoder.modeling.deepencoder" in sys.modules

for name in deepencoder.__all__:
    value = getattr(deepencoder, name)
    assert value.__name__ == name and pickle.loads(pickle.dumps(value)) is value
    assert vars(deepencoder)[name] is value
assert deepencoder.configuration.DeepEncoderConfig is deepencoder.DeepEncoderConfig
assert not hasattr(deepencoder, "DeepEncoderModel")
names: dict[str, Any] = {}
exec("from deepencoder import *", names)
assert set(deepencoder.__all__) <= set(names)

import torch  # noqa: E402

assert not torch.cuda.is_initialized()
