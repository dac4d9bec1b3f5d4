"""The command line as a whole: help, version, exit codes, and what an interruption leaves."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import deepencoder
from deepencoder.cli import app

from ..conftest import ROOT
from .processes import ENVIRONMENT, run

PROGRAMS = ROOT / "tests" / "programs"


def test_help_and_version_import_no_heavy_library() -> None:
    done = subprocess.run(
        [sys.executable, PROGRAMS / "help_texts.py"], env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["encode", "--help"], ["info", "--help"], ["convert", "--help"]])
def test_help(cli: Any, arguments: list[str]) -> None:
    code, out, _ = cli(*arguments)
    assert code == 0 and "Usage: deepencoder" in out


def test_version(cli: Any) -> None:
    assert cli("--version") == (0, f"deepencoder {deepencoder.__version__}\n", "")


def test_every_command_and_option_says_what_it_is() -> None:
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), (name, parameter.name)


def test_a_command_prints_nothing_on_stderr() -> None:
    """Neither torchao nor torch's pytree has a word when transformers imports torchao."""
    done = run("info")
    assert done.returncode == 0 and done.stderr == "" and "sam_encoder" in done.stdout


@pytest.mark.parametrize("arguments", [["encode"], ["encode", "page.png", "--mode", "huge"], ["nonsense"]])
def test_usage_mistakes_have_exit_code_2(cli: Any, arguments: list[str]) -> None:
    assert cli(*arguments)[0] == 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_work_leaves_no_file(number: int, code: int, example_page: Path, tmp_path: Path) -> None:
    arguments = ["encode", example_page, "--mode", "tiny", "-o", tmp_path / "features.safetensors"]
    process = subprocess.Popen(
        [sys.executable, PROGRAMS / "half_written.py", *map(str, arguments)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell makes the processes that it starts in the background ignore Ctrl-C, and they pass that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert any(line.strip() == "half written" for line in process.stdout)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"half"]
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
