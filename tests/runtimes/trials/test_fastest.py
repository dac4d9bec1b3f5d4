"""All ways in turn, on a tiny model; nothing is said about their times."""

import dataclasses
from typing import Any

import pytest

from deepencoder import DeepEncoderConfig
from deepencoder.runtimes.trials import fastest
from deepencoder.runtimes.trials.fastest import measure_ways, part_of_published_model, scale_to_published_model
from deepencoder.runtimes.trials.ways import WAYS


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastest, "MIN_SECONDS", 0)
    monkeypatch.setattr(fastest, "MIN_RUNS", 1)


def test_the_part_has_every_kind_of_layer_and_the_published_widths() -> None:
    part, whole = part_of_published_model(), DeepEncoderConfig()
    assert part.sam_config.num_hidden_layers == part.clip_config.num_hidden_layers == 2
    assert list(part.sam_config.global_attn_indexes) == [1]
    for name in ("hidden_size", "intermediate_size", "num_attention_heads"):
        assert getattr(part.sam_config, name) == getattr(whole.sam_config, name)
        assert getattr(part.clip_config, name) == getattr(whole.clip_config, name)
    assert 4 < scale_to_published_model(part, 640) < 8 and scale_to_published_model(whole, 640) == 1


def test_ways_that_run_that_fail_and_that_are_missing(short: None) -> None:
    torch_way = WAYS[0]
    failing: Any = dataclasses.replace(torch_way, precision="no_such_dtype")
    missing: Any = dataclasses.replace(torch_way, packages=("no_such_module",))
    steps: list[str] = []
    found = measure_ways(DeepEncoderConfig.tiny(), 256, 1, (torch_way, failing, missing, WAYS[1]), steps.append)
    assert [row.way for row in found] == [torch_way, failing, missing, WAYS[1]]
    assert steps[0] == "writing a part of the model" and steps[-1] == "running all in turns"
    reference, failed, absent, half = found
    assert reference.seconds and reference.load_seconds and reference.error is None and reference.problem is None
    assert half.seconds and half.error is not None and 1e-4 < half.error < 0.1
    assert failed.seconds is None and "no_such_dtype" in (failed.problem or "")
    assert absent.problem == "not installed: pip install no_such_module"
