"""The progress bar of downloads."""

import io
import subprocess
import sys

from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

from deepencoder.conversion.readers.progress import PROGRESS_BAR, progress_bar

from ...conftest import ROOT


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def draw(output: io.StringIO) -> str:
    with progress_bar("Encoder of some/model", 2_000_000, file=output, mininterval=0) as update:
        update(500_000)
        update(1_500_000)
    return output.getvalue()


def test_bytes_are_counted_with_their_unit() -> None:
    drawn = draw(Terminal())
    assert "Encoder of some/model: 100%" in drawn and "2.00M/2.00M" in drawn and "B/s" in drawn


def test_only_terminals_show_the_bar() -> None:
    assert draw(io.StringIO()) == ""


def test_the_bar_can_be_disabled_by_name() -> None:
    disable_progress_bars(PROGRESS_BAR)
    try:
        assert draw(Terminal()) == ""
    finally:
        enable_progress_bars(PROGRESS_BAR)


def test_its_name_is_importable_without_torch() -> None:
    program = ROOT / "tests" / "programs" / "import_progress_bar.py"
    subprocess.run([sys.executable, program], cwd=ROOT, check=True)
