"""The comparison with other programs, on models that need no time: rows, turns, errors and reports."""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepencoder.runtimes.trials.process import find_function
from deepencoder.runtimes.trials.trial import TrialError

pytest.importorskip("torchao")


@pytest.fixture
def contenders() -> Any:
    return import_module("peers.contenders")


@pytest.fixture
def comparison() -> Any:
    return import_module("peers.comparison")


def test_rows(contenders: Any) -> None:
    names = [contender.name for contender in contenders.CONTENDERS]
    assert len(set(names)) == len(names)
    for precision, anchor in contenders.ANCHORS.items():
        (row,) = (contender for contender in contenders.CONTENDERS if contender.name == anchor)
        assert row.precision == precision
    for contender in contenders.CONTENDERS:
        assert callable(find_function(contender.opener))


def test_what_cannot_run_is_left_out_and_named(comparison: Any, contenders: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(contenders, "LIBRARY", Path("/nowhere/libshim.so"))
    monkeypatch.setattr(contenders, "find_spec", lambda module: None if module == "openvino" else module)
    chosen, left_out = comparison.choose(["llama", "OpenVINO"], ["float32"])
    assert [contender.name for contender in chosen] == ["torch, float32"]
    assert left_out == {
        "llama.cpp, f32": "not built: make llama.cpp",
        "OpenVINO, float32": "openvino not installed",
    }


class FakeTrial:
    """Takes the place of a process."""

    def __init__(self, name: str) -> None:
        self.name, self.seconds = name, 1.0 if name.startswith("torch") else 0.5
        self.slower = 2 if name.startswith("ONNX") else 1

    def __enter__(self) -> "FakeTrial":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def close(self) -> None:
        return None

    def open(self) -> dict[str, Any]:
        if self.name == "llama.cpp, f32":
            raise TrialError("no such file")
        return {"seconds": 0.1, "held_bytes": 1}

    def take(self, files: Any, patches_grid: Any) -> None:
        assert patches_grid == [[2, 3]] and set(files) == {"pixel_values", "pixel_values_local"}

    def run(self) -> dict[str, Any]:
        self.seconds *= self.slower
        return {"seconds": self.seconds, "peak_bytes": 3}

    def save(self, path: Path) -> dict[str, np.ndarray]:
        return {"last_hidden_state": np.full((1, 4, 2), 1.0 if self.name.startswith("torch") else 1.1)}


def test_turns(comparison: Any, contenders: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With too little memory for all, each other contender has a turn of its own beside ours."""
    monkeypatch.setattr(contenders.Contender, "start", lambda self, sides, threads: FakeTrial(self.name))
    monkeypatch.setattr(comparison, "FOLDER", tmp_path)
    monkeypatch.setattr(comparison, "available_bytes", lambda: 0)
    monkeypatch.setattr(import_module("peers.workloads").np.random, "default_rng", lambda seed: Pixels())
    group = [contender for contender in contenders.CONTENDERS if contender.precision == "float32"]
    workload = import_module("peers.workloads").WORKLOADS["gundam"]
    assert set(comparison.compute_reference(workload, 1)) == {"last_hidden_state"}
    rows, failed = comparison.run_turns(group, workload, 1, 3)
    assert failed == {"llama.cpp, f32": "no such file"}
    by_name = {row["contender"]: row for row in rows}
    assert set(by_name) == {contender.name for contender in group} - set(failed)
    assert by_name["torch, float32"]["times_ours"] == 1 and by_name["torch, float32"]["turn"] == 1
    other = by_name["OpenVINO, float32"]
    assert len({row["turn"] for row in rows}) == len(rows) - 1, "one other contender in each turn"
    assert other["times_ours"] == 0.5 and other["runs"] == 3 and other["spread"] == 0
    assert by_name["ONNX Runtime, float32"]["runs"] == 6, "an unsteady contender runs again"
    assert other["beyond_weights_bytes"] == 3 - 4 * 400_770_048
    assert other["errors"]["last_hidden_state"] == pytest.approx(0.1) and other["first_s"] == 0.5


class Pixels:
    """Takes the place of numpy's generator: pixels that need no time."""

    def standard_normal(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.zeros((1,), dtype)


def test_reports_are_merged_by_group() -> None:
    report = import_module("peers.report")

    def rows(page: str, *names: str) -> list[dict[str, Any]]:
        group = {"workload": page, "precision": "float32", "threads": 2}
        return [group | {"contender": name} for name in names]

    empty = {"processor": "p", "runs": [], "rows": []}
    first = report.merge(empty, {"command": "1"}, rows("640", "a", "b") + rows("1024", "a"))
    second = report.merge(first, {"command": "2"}, rows("640", "a"))
    assert [(row["workload"], row["contender"], row["run"]) for row in second["rows"]] == [
        ("1024", "a", 1),
        ("640", "a", 2),
    ]
    third = report.merge(second, {"command": "3"}, rows("1024", "c"))
    assert [run["number"] for run in third["runs"]] == [2, 3]


def test_table_of_a_run() -> None:
    report = import_module("peers.report")
    facts = {"median_s": 2.0, "spread": 0.03, "times_ours": 1.25, "first_s": 2.5, "load_s": 0.25}
    facts |= {
        "peak_bytes": 3e9,
        "beyond_weights_bytes": 1e9,
        "errors": {"last_hidden_state": 1e-6, "vision_tokens": 2e-6},
    }
    row = {"workload": "640", "precision": "float32", "threads": 2, "contender": "OpenVINO, float32", **facts}
    cells = "640 | 2 | OpenVINO, float32 | 2.000 s (3 %) | 1.25 | 2.50 s | 0.25 s | 3.00, 1.00 GB | 2.0e-06"
    assert report.table([row]).splitlines()[-1] == f"| {cells} |"


def test_tiles_lie_below_each_other() -> None:
    llama_cpp = import_module("peers.llama_cpp")
    tiles = np.arange(6 * 3 * 4).reshape(6, 3, 2, 2)
    rows = llama_cpp.rows_of_tiles(tiles, 2)
    assert rows.shape == (3, 4, 2, 3)
    assert np.array_equal(rows[1, 2:], tiles[3].transpose(1, 2, 0))


def test_workloads() -> None:
    workloads = import_module("peers.workloads").WORKLOADS
    assert workloads["gundam"].tiles == 6 and workloads["gundam"].sides == (1024, 640)
    assert workloads["640"].patches_grid is None
    assert workloads["gundam"].operations == pytest.approx(
        workloads["1024"].operations + 6 * workloads["640"].operations
    )
