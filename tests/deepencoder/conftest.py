"""The command line, run in this process."""

import sys
from pathlib import Path
from typing import Any

import pytest

from deepencoder.cli import main


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command line in this process: `code, out, err = cli("encode", ...)`."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["deepencoder", *map(str, arguments)])
        capsys.readouterr()  # what the test itself printed
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call
