"""Models on any set of devices give the same numbers."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model, infer_auto_device_map
from transformers import AutoModel

from deepencoder import DeepEncoder, DeepEncoderConfig

CUDA = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
# SAM on one device and the rest on another, as in docs/devices.md.
PAIRS = list(itertools.product(["cpu", *CUDA[:2]], repeat=2))


def halves_on(first: str, second: str) -> dict[str, Any]:
    return {
        "sam_encoder": first,
        "clip_encoder": second,
        "projector": second,
        "image_newline": second,
        "view_separator": second,
    }


def inputs() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "pixel_values": torch.randn(2, 3, 192, 192),
        "pixel_values_local": torch.randn(6, 3, 128, 128),
        "patches_grid": [(2, 3), (1, 1)],
    }


def assert_same_numbers(model: Any, expected: Any, tolerance: float = 0.0) -> None:
    found = model(**inputs())
    for ours, theirs in zip(found.vision_tokens, expected.vision_tokens, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, atol=tolerance, rtol=0)
    torch.testing.assert_close(found.pooler_output.cpu(), expected.pooler_output, atol=tolerance, rtol=0)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@torch.no_grad()
def test_the_halves_on_two_devices(pair: tuple[str, str], tiny_model: DeepEncoder, tmp_path: Path) -> None:
    expected = tiny_model(**inputs())
    tiny_model.save_pretrained(tmp_path)
    placed = AutoModel.from_pretrained(tmp_path, device_map=halves_on(*pair))
    assert {str(parameter.device) for parameter in placed.sam_encoder.parameters()} == {pair[0]}
    assert {str(parameter.device) for parameter in placed.clip_encoder.parameters()} == {pair[1]}
    assert_same_numbers(placed, expected, 0.0 if set(pair) == {"cpu"} else 1e-4)
    assert_same_numbers(dispatch_model(tiny_model, halves_on(*pair)), expected, 0.0 if set(pair) == {"cpu"} else 1e-4)


@pytest.mark.parametrize("device_map", ["auto", "balanced", "balanced_low_0", "sequential"])
@torch.no_grad()
def test_device_maps_by_name(device_map: str, tiny_model: DeepEncoder, tmp_path: Path) -> None:
    expected = tiny_model(**inputs())
    tiny_model.save_pretrained(tmp_path)
    placed = AutoModel.from_pretrained(tmp_path, device_map=device_map)
    assert_same_numbers(placed, expected, 1e-4 if CUDA else 0.0)


@torch.no_grad()
def test_max_memory_with_disk(tiny_model: DeepEncoder, tmp_path: Path) -> None:
    expected = tiny_model(**inputs())
    tiny_model.save_pretrained(tmp_path / "model")
    placed = AutoModel.from_pretrained(
        tmp_path / "model", device_map="auto", max_memory={"cpu": "250KB"}, offload_folder=tmp_path / "offload"
    )
    assert {"cpu", "disk"} <= set(placed.hf_device_map.values())
    assert_same_numbers(placed, expected)


# Memory of each device, relative to an equal share of the model. More devices need more slack, since a CLIP layer has
# 3 % of the parameters.
@pytest.mark.parametrize(("devices", "share"), [(2, 1.05), (4, 1.10), (8, 1.20)])
def test_equal_devices_are_filled_evenly(devices: int, share: float) -> None:
    with torch.device("meta"):
        model = DeepEncoder(DeepEncoderConfig())
    size = sum(parameter.nbytes for parameter in model.parameters())
    room: dict[Any, int] = {index: int(share * size / devices) for index in range(devices)}
    placement = infer_auto_device_map(model, room, model._no_split_modules)
    assert set(placement.values()) == set(range(devices))
    assert [name for name in placement if ".layers." in name and name.count(".") > 2] == []
    loads = [0] * devices
    for name, parameter in model.named_parameters():
        place = max((key for key in placement if name == key or name.startswith(f"{key}.")), key=len)
        loads[placement[place]] += parameter.nbytes
    print(devices, [round(load * devices / size, 3) for load in loads])
    assert max(loads) <= 1.15 * size / devices and min(loads) >= 0.85 * size / devices
