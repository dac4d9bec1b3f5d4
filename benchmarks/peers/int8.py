"""Our model with weights and activations in int8, by torchao, and the rest in bfloat16."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

from deepencoder import DeepEncoder
from deepencoder.runtimes.trials.ways import take_arrays

from .files import OURS


def open_int8(folder: str, sides: Sequence[int], threads: int, compiled: bool = False) -> Any:
    torch.set_num_threads(threads)
    model = DeepEncoder.from_pretrained(Path(folder) / OURS, dtype=torch.bfloat16).eval()
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    if compiled:
        model.compile()
    return take_arrays(model)
