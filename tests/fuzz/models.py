"""The models' forward: tensors of any shape and dtype, grids that do not fit, misspelt options, and other objects."""

from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from transformers import AutoModel

from .arrays import nasty_array
from .mutations import nasty_name, nasty_value
from .trials import Trial, ViolationError

__all__ = ["run"]

SIDES = (0, 1, 8, 15, 16, 17, 32, 48, 64, 64, 64, 128, 144)
DTYPES = (torch.float32,) * 6 + (
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.uint8,
    torch.int64,
    torch.bool,
    torch.complex64,
)
OPTIONS = ("output_hidden_states", "output_attentions", "return_dict")
NAMES = ("deepencoder", "deepencoder", "deepencoder", "sam", "clip")


@cache
def _load(folder: Path) -> Any:
    return AutoModel.from_pretrained(folder).eval()


def _pixels(random: Random, count: int) -> Any:
    match random.choice(("good", "good", "good", "sides", "shape", "object", "array", "values")):
        case "good":
            return torch.randn(count, 3, 64, 64)
        case "sides":
            return torch.randn(count, random.choice((3, 3, 1, 4)), random.choice(SIDES), random.choice(SIDES))
        case "shape":
            return torch.randn([random.choice((0, 1, 3, 16)) for _ in range(random.randint(0, 5))])
        case "object":
            return nasty_value(random)
        case "array":
            return random.choice(
                (
                    np.zeros((1, 3, 64, 64), "f4"),
                    nasty_array(random),
                    [[0.0]],
                )
            )
    return torch.full((count, 3, 64, 64), random.choice((float("nan"), float("inf"), 1e30)))


def _arguments(random: Random) -> dict[str, Any]:
    count = random.choice((1, 1, 2, 3))
    pixels = _pixels(random, count)
    if isinstance(pixels, torch.Tensor) and random.random() < 0.2:
        pixels = pixels.to(random.choice(DTYPES))
    arguments: dict[str, Any] = {"pixel_values": pixels}
    if random.random() < 0.5:
        grids = [random.choice(((1, 1), (2, 1), (1, 3), (2, 2))) for _ in range(count)]
        tiles = sum(columns * rows for columns, rows in grids if columns * rows > 1)
        arguments["pixel_values_local"] = random.choice((_pixels(random, tiles), torch.randn(tiles, 3, 32, 32)))
        arguments["patches_grid"] = grids if random.random() < 0.7 else torch.tensor(grids)
        if random.random() < 0.3:
            arguments["patches_grid"] = random.choice(
                (nasty_value(random), nasty_array(random), torch.tensor([[float("inf"), 1.0]]), [[2]])
            )
        if random.random() < 0.3:
            arguments["num_local_patches"] = random.choice(
                (nasty_value(random), [c * r for c, r in grids], torch.tensor([0.5]))
            )
    if random.random() < 0.2:
        arguments[random.choice(OPTIONS)] = random.choice((True, False, None))
    if random.random() < 0.1:
        arguments[random.choice(("output_hiden_states", nasty_name(random)))] = True
    return arguments


def run(trial: Trial) -> None:
    random = trial.random
    name = random.choice(NAMES)
    arguments = _arguments(random)
    if name != "deepencoder":
        arguments = {key: value for key, value in arguments.items() if "patches" not in key and "local" not in key}
    shapes = {key: getattr(value, "shape", value) for key, value in arguments.items()}
    trial.note(model=name, shapes=shapes, dtype=getattr(arguments["pixel_values"], "dtype", None))
    model = _load(trial.materials.model(name))
    unknown = set(arguments) - {"pixel_values", "pixel_values_local", "patches_grid", "num_local_patches", *OPTIONS}
    with trial.may_raise(ValueError, TypeError), torch.no_grad():
        output = model(**arguments)
    if unknown:
        raise ViolationError(f"took the unknown arguments {unknown}")
    if not arguments["pixel_values"].is_floating_point():
        raise ViolationError(f"took pixels of dtype {arguments['pixel_values'].dtype} for normalised ones")
    if arguments.get("return_dict") is False:
        return
    pixels = arguments["pixel_values"]
    states = output.last_hidden_state
    if (
        len(states) != len(pixels)
        or torch.isfinite(pixels).all()
        and not torch.isfinite(states).all()
        and pixels.abs().max() < 100
    ):
        raise ViolationError(
            f"gave {tuple(states.shape)} for {tuple(pixels.shape)}, finite: {torch.isfinite(states).all()}"
        )
    if name == "deepencoder" and len(output.vision_tokens) != len(pixels):
        raise ViolationError(f"gave {len(output.vision_tokens)} sequences for {len(pixels)} images")
