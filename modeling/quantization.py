"""Saving a model that torchao quantised, so that it loads again.

Unusual: when such a model is loaded, torchao splits the name of every tensor that it knows at the last dot, and the
`image_newline` and `view_separator` of a DeepEncoder have none. They keep their precision, and transformers loads them
like any other vector; so they are saved, but torchao is not told of them.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["check_saves_again", "loads_again"]

NAMES = "tensor_names"  # The entry of torchao's metadata that lists the tensors of a file.


def check_saves_again(model: nn.Module) -> None:
    """Raise `ValueError` for weights that torchao quantised without transformers, which cannot be saved."""
    if getattr(model, "hf_quantizer", None) is not None:
        return
    for name, weight in model.named_parameters():
        if type(weight).__module__.startswith("torchao"):
            raise ValueError(
                f"{name} was quantised by torchao outside of from_pretrained, or as a part of a larger model, and "
                "cannot be saved: save the whole model that from_pretrained(quantization_config=...) returned, or the "
                "original one."
            )


@contextmanager
def loads_again(model: nn.Module) -> Iterator[None]:
    """While it is open, a quantised model saves no name without a dot in torchao's metadata."""
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if not hasattr(quantizer, "get_state_dict_and_metadata"):
        yield
        return
    flatten = quantizer.get_state_dict_and_metadata

    def flatten_without_bare_names(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, str]]:
        tensors, metadata = flatten(*args, **kwargs)
        if NAMES in metadata:
            names = [name for name in json.loads(metadata[NAMES]) if "." in name]
            metadata = metadata | {NAMES: json.dumps(names)}
        return tensors, metadata

    quantizer.get_state_dict_and_metadata = flatten_without_bare_names
    try:
        yield
    finally:
        del quantizer.get_state_dict_and_metadata
