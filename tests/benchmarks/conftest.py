"""Makes the modules of `benchmarks/`, which are programs and not part of the package, importable."""

import pytest

from ..conftest import ROOT


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
