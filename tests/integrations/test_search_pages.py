"""The example of a search finds the page that it searches for, and then its copy in a PDF."""

import runpy
import sys
from pathlib import Path

import pytest

from ..conftest import ROOT


def test_the_example_finds_the_query_and_its_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["search_pages.py", "--output", str(tmp_path)])
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    runpy.run_path(str(ROOT / "examples" / "search_pages.py"), run_name="__main__")
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert "table.png, page 0" in first and float(first.split()[0]) > 0.999
    assert "pages.pdf, page 0" in second and (tmp_path / "nearest.png").stat().st_size > 1000
