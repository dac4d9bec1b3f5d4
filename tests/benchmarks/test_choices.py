"""The tables of the guide are made from the files with results."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from ..conftest import ROOT


@pytest.fixture
def choices() -> Any:
    return import_module("choices")


def row(contender: str, seconds: float, page: str = "1024", precision: str = "float32", threads: int = 2) -> Any:
    names = {"workload": page, "precision": precision, "threads": threads, "contender": contender}
    return names | {"median_s": seconds, "peak_bytes": 2e9, "load_s": 0.5, "first_s": 9.0}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    rows = [
        row("torch, float32", 8.0),
        row("torch, float32, compiled", 7.5),
        row("OpenVINO, float32", 7.0),
        row("llama.cpp, bf16", 9.0, precision="bfloat16"),
        row("llama.cpp, f16", 8.5, precision="bfloat16"),
        row("torch, float32", 3.0, page="640", threads=1),
    ]
    (tmp_path / "peers_new-chip.json").write_text(json.dumps({"processor": "new-chip", "runs": [], "rows": rows}))
    environment = {"threads": 2, "date": "2026-11-21"}
    old_rows = [
        {"name": "1024, 6 tiles", "ours": {"median_s": 11.0}, "peer": {"median_s": 16.0}},
        {"name": "512", "ours": {"median_s": 1.0}, "peer": {"peak_bytes": None}},
        {"name": "1024, batch 2", "ours": {"median_s": 1.0}, "peer": {"median_s": 1.0}},
    ]
    for name in ("speed_old-chip.json", "speed_new-chip.json"):
        report = {"dtype": "float32", "environment": environment, "rows": old_rows}
        (tmp_path / name).write_text(json.dumps(report))
    return tmp_path


def test_times(choices: Any, results: Path) -> None:
    found = choices.read_all(results)
    assert choices.make_times(found).splitlines()[2:] == [
        "| new-chip, 2 | float32 | 1024 | 8.00 s | 7.50 s |  | **7.00 s** |  |  |",
        "| new-chip, 2 | bfloat16 | 1024 |  |  |  |  |  | **8.50 s** |",
        "| new-chip, 1 | float32 | 640 | **3.00 s** |  |  |  |  |  |",
        "| old-chip (2026-11), 2 | float32 | 512 | **1.00 s** |  |  |  |  |  |",
        "| old-chip (2026-11), 2 | float32 | gundam | **11.00 s** |  |  |  | 16.00 s |  |",
    ]


def test_costs(choices: Any, results: Path) -> None:
    lines = choices.make_costs(choices.read_all(results)).splitlines()[2:]
    assert lines[0] == "| new-chip, 2 | torch, float32 | 2.0 GB | 0.5 s | 9.0 s |"
    assert [line.split(" | ")[1] for line in lines] == [
        "torch, float32",
        "torch, float32, compiled",
        "OpenVINO, float32",
        "llama.cpp, f16",
    ]


def test_tables_replace_those_between_the_marks(choices: Any) -> None:
    start, end = choices.MARKS
    assert choices.replace_between_marks(f"a\n{start}\nold\n{end}\nb", "new") == f"a\n{start}\nnew\n{end}\nb"
    with pytest.raises(ValueError, match="text must hold"):
        choices.replace_between_marks(f"{end} {start}", "new")


def test_the_guide_has_the_tables_of_the_results(choices: Any) -> None:
    guide = (ROOT / "docs" / "performance.md").read_text()
    assert guide == choices.replace_between_marks(guide, choices.make_tables(choices.read_all(choices.RESULTS)))
