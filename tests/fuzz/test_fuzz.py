"""The fuzz program finds what breaks its rules, and repeats it."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from deepencoder.extraction.pages import PageError

from .areas import AREAS
from .materials import CANARY, Materials
from .program import run_cases, schedule
from .trials import Area, Failure, Trial, TrialRunner, ViolationError

BREAKS = {
    "raw error": lambda trial: {}["missing"],
    "silent error": lambda trial: _refuse(trial, PageError("")),
    "two lines": lambda trial: _refuse(trial, PageError("one\ntwo")),
    "memory error": lambda trial: _refuse(trial, PageError("no"), MemoryError()),
    "a program": lambda trial: _allow(trial, lambda: subprocess.run(["true"])),
    "the canary": lambda trial: _allow(trial, lambda: os.listdir(trial.materials.canary)),
    "much memory": lambda trial: _allow(trial, lambda: len(b"x" * (1 << 27))),
}


def _refuse(trial: Trial, error: Exception, cause: BaseException | None = None) -> None:
    with trial.may_raise(PageError, one_line=True):
        raise error from cause


def _allow(trial: Trial, call: object) -> None:
    with trial.may_raise(PageError):
        call()  # type: ignore[operator]


def _draw(trial: Trial) -> None:
    raise ViolationError(str(trial.random.random()))


@pytest.fixture
def materials(tmp_path: Path) -> Materials:
    found = Materials(tmp_path)
    found.scratch.mkdir()
    found.canary.mkdir()
    return found


def run_one(materials: Materials, area: Area, case: int = 0, seed: int = 0) -> Failure | None:
    return TrialRunner({area.name: area}, materials, seed)(f"{area.name}/{case}")


@pytest.mark.parametrize("name", BREAKS)
def test_what_breaks_a_rule_is_found(name: str, materials: Materials) -> None:
    failure = run_one(materials, Area("breaks", 1, BREAKS[name], memory=1 << 26))
    if name == "much memory" and not Path("/proc/self/clear_refs").exists():
        return
    assert failure is not None and failure.case == "breaks/0" and failure.reason
    assert not list(materials.scratch.iterdir())


def test_documented_errors_are_no_failures(materials: Materials) -> None:
    assert run_one(materials, Area("fine", 1, lambda trial: _refuse(trial, PageError("it is empty")))) is None
    assert run_one(materials, Area("fine", 1, lambda trial: (trial.folder / CANARY).mkdir())) is None


def test_a_case_is_its_name(materials: Materials) -> None:
    area = Area("drawn", 1, _draw)
    first, again, other = (run_one(materials, area, case) for case in (1, 1, 2))
    assert first == again and first is not None and other is not None and first.reason != other.reason
    assert run_one(materials, area, 1, seed=1) != first
    assert schedule(AREAS, 100, 3) == schedule(AREAS, 100, 3) != schedule(AREAS, 100, 4)


def test_a_hang_costs_its_case(materials: Materials, capfd: pytest.CaptureFixture[str]) -> None:
    hangs = Area("hangs", 1, lambda trial: time.sleep(60), seconds=0.2)
    fine = Area("fine", 1, lambda trial: None)
    runner = TrialRunner({area.name: area for area in (hangs, fine)}, materials, 0)
    done, failures = run_cases(runner, ["fine/0", "hangs/0", "fine/1", "fine/2"], 60.0, 1)
    assert len(done) == 4 and [failure.case for failure in failures] == ["hangs/0"]
    assert "Timeout" in capfd.readouterr().err  # with the place at which it hung
    assert run_cases(runner, ["fine/0"], -1.0, 1) == ([], [])


def test_shares_are_kept() -> None:
    names = [case.split("/")[0] for case in schedule(AREAS, 10_000, 0)]
    assert set(names) == {area.name for area in AREAS} and abs(len(names) - 10_000) < len(AREAS)
    assert len(names) == len(set(schedule(AREAS, 10_000, 0)))
