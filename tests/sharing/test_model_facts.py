"""Sizes are computed or read from headers; measurements are those of the benchmark, for the size that was measured."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deepencoder import DeepEncoder, DeepEncoderConfig, SamEncoderConfig
from deepencoder.processing.modes import MODES, modes_of
from deepencoder.sharing.model_facts import (
    MEASUREMENTS,
    Measurement,
    describe_stored,
    describe_weights,
    measurements_of,
)

from ..conftest import ROOT

RESULTS = {
    "float32": ROOT / "benchmarks" / "results" / "speed_intel-xeon-amx.json",
    "bfloat16": ROOT / "benchmarks" / "results" / "speed_intel-xeon-amx_bfloat16.json",
}


@pytest.mark.parametrize("row", MEASUREMENTS, ids=lambda row: f"{row.mode}-{row.dtype}")
def test_measurements_are_those_of_the_benchmark(row: Measurement) -> None:
    results = json.loads(RESULTS[row.dtype].read_text())
    assert "Intel" in results["environment"]["device"] and results["environment"]["threads"] == 2
    (found,) = (result["ours"] for result in results["rows"] if result["name"] == row.pages)
    assert row.seconds == round(found["median_s"], 2)
    assert row.gigabytes == round(found["peak_bytes"] / 1e9, 2)
    assert row.pages.split(",")[0] == str(MODES[row.mode]["size"]["height"])


def test_only_the_published_size_has_measurements() -> None:
    with torch.device("meta"):
        count = DeepEncoder(DeepEncoderConfig()).num_parameters()
    measured = measurements_of(DeepEncoderConfig(), count)
    assert set(measured) == set(modes_of("cells")) and all(
        set(row) == {"float32", "bfloat16"} for row in measured.values()
    )
    assert measurements_of(DeepEncoderConfig.tiny(), 94_320) == {}
    assert measurements_of(SamEncoderConfig(), count) == {}


def test_sizes() -> None:
    assert describe_weights(400_770_048) == "1.6 GB in float32, 802 MB in bfloat16 or float16"
    assert describe_weights(94_320) == "377 kB in float32, 189 kB in bfloat16 or float16"


def test_stored_weights(tmp_path: Path) -> None:
    assert describe_stored(tmp_path) is None and describe_stored(tmp_path / "gone") is None
    for part, dtype in (("1", torch.bfloat16), ("2", torch.float32)):
        save_file({part: torch.zeros(1000, dtype=dtype)}, tmp_path / f"model-0000{part}-of-00002.safetensors")
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert describe_stored(tmp_path) == f"{size / 1000:.3g} kB in bfloat16 and float32"
    save_file({"all": torch.zeros(1000, dtype=torch.float16)}, tmp_path / "model.safetensors")
    size = (tmp_path / "model.safetensors").stat().st_size
    assert describe_stored(tmp_path) == f"{size / 1000:.3g} kB in float16"
    (tmp_path / "model.safetensors").write_bytes(b"no header")
    assert describe_stored(tmp_path) is None
