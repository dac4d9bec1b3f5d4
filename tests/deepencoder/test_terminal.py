"""Printing: names obey no terminal, and a failure to print costs no work."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.table import Table
from safetensors.torch import load_file, save_file

from deepencoder.cli import main
from deepencoder.commands.terminal import escape, lenient_output, make_console

from ..conversion.samples import build, layout_of, state_dict_there
from .processes import ENVIRONMENT

needs_dev_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has this device")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("página [red] 页 🙂.png", "página [red] 页 🙂.png"),
        ("narrow\u202fspace", "narrow\u202fspace"),
        ("\x1b[31mred\x1b]0;title\x07", "\\u001b[31mred\\u001b]0;title\\u0007"),
        ("a\nError: b\r", "a\\u000aError: b\\u000d"),
        ("\x9b31m\x7f", "\\u009b31m\\u007f"),
        ("page\u202egnp.exe\u2066\u200b\u2028", "page\\u202egnp.exe\\u2066\\u200b\\u2028"),
        ("undecodable \udcff", "undecodable \\udcff"),
        ("tag \U000e0041", "tag \\U000e0041"),
    ],
)
def test_escape(text: str, expected: str) -> None:
    assert escape(text) == expected


def test_all_that_a_console_prints_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("head\x1b[2J", box=None)
    table.add_row("cell\x1b[2J\u202e")
    for stderr in (False, True):
        console = make_console(stderr=stderr)
        console.print("text\x1b[2J", style="red", soft_wrap=True)
        console.print(table)
    captured = capsys.readouterr()
    for printed in captured:
        assert "\x1b[2J" not in printed and "\u202e" not in printed
        assert all(f"{word}\\u001b[2J" in printed for word in ("text", "head", "cell"))


@pytest.mark.parametrize("command", ["encode", "info", "convert"])
def test_hostile_names_are_escaped(command: str, cli: Any, tmp_path: Path) -> None:
    name = "\x1b]0;owned\x07\u202e"
    if command == "encode":
        Image.new("RGB", (20, 20)).save(tmp_path / f"{name}.png")
        _, out, err = cli("encode", tmp_path / f"{name}.png", tmp_path / f"{name}-missing.png", "--mode", "tiny")
        assert "\\u001b]0;owned\\u0007\\u202e.png" in out and "-missing.png" in err
    else:
        tensors = state_dict_there(build(layout_of("deepseek-ocr")), layout_of("deepseek-ocr"))
        prefix = "model.vision_model."  # It belongs to the encoder, so that the name is shown.
        checkpoint = tmp_path / f"{name}.safetensors"
        save_file(tensors | {f"{prefix}{name}": tensors["view_seperator"].clone()}, checkpoint)
        code, out, err = cli(command, checkpoint, *([tmp_path / name] * (command == "convert")))
        assert "\\u001b]0;owned\\u0007\\u202e" in out + err, (code, out, err)
    assert not set(name) & {"\x1b", "\x07", "\u202e"} & set(out + err)


class _Broken(io.TextIOBase):
    """A stream that cannot be written to."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


def test_lenient_output(monkeypatch: pytest.MonkeyPatch) -> None:
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    monkeypatch.setattr(sys, "stderr", _Broken())
    with lenient_output():
        print("página \udcff")
        print("lost", file=sys.stderr, flush=True)
        make_console(stderr=True).print("lost")
        sys.stdout.writelines(["é"])
    assert sys.stdout is ascii_only and isinstance(sys.stderr, _Broken)
    assert ascii_only.buffer.getvalue() == b"p\\xe1gina \\udcff\n\\xe9"  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "stdout", None)  # As when the program was started without one.
    with lenient_output():
        print("nothing")
        make_console().print("nothing")


def encode_with(arguments: list[Any], stdout: Any, stderr: Any = subprocess.PIPE, **environment: str) -> int:
    command = [sys.executable, "-m", "deepencoder", "encode", *map(str, arguments), "--mode", "tiny"]
    done = subprocess.run(command, stdout=stdout, stderr=stderr, env=ENVIRONMENT | environment, timeout=120)
    assert b"Traceback" not in (done.stderr or b"") and b"Exception ignored" not in (done.stderr or b""), done.stderr
    return done.returncode


@pytest.mark.skipif(sys.platform == "win32", reason="the shell's redirections are those of Unix")
@pytest.mark.parametrize("output", ["closed pipe", "full device", "ascii"])
def test_features_are_written_though_nothing_can_be_printed(output: str, tmp_path: Path) -> None:
    page, features = tmp_path / "página.png", tmp_path / "features.safetensors"
    Image.new("RGB", (20, 20)).save(page)
    arguments = [page, "-o", features, "--picture", tmp_path / "picture.png"]
    if output == "closed pipe":
        reader, writer = os.pipe()
        os.close(reader)
        code = encode_with(arguments, writer, writer)
        os.close(writer)
    elif output == "ascii":
        code = encode_with(arguments, subprocess.DEVNULL, PYTHONIOENCODING="ascii:strict")
    elif os.path.exists("/dev/full"):
        with open("/dev/full", "w") as full:
            code = encode_with(arguments, full)
    else:
        pytest.skip("only Linux has this device")
    assert code == 0 and "0.pooled" in load_file(features) and (tmp_path / "picture.png").is_file()


@needs_dev_full
@pytest.mark.parametrize("command", ["info", "convert", "export", "extract", "help", "version"])
def test_a_full_device_changes_no_exit_code(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "original.safetensors"
    save_file(state_dict_there(build(layout_of("deepseek-ocr")), layout_of("deepseek-ocr")), checkpoint)
    Image.new("RGB", (20, 20)).save(tmp_path / "page.png")
    arguments, written = {
        "info": (["info"], []),
        "convert": (
            ["convert", checkpoint, tmp_path / "out", "--report", tmp_path / "r.json"],
            ["out/config.json", "r.json"],
        ),
        "export": (["export", checkpoint, tmp_path / "out.pt2", "--size", "64"], ["out.pt2"]),
        "extract": (["extract", tmp_path / "page.png", "-o", tmp_path / "out", "--mode", "tiny"], ["out"]),
        "help": (["--help"], []),
        "version": (["--version"], []),
    }[command]
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "argv", ["deepencoder", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        full.flush()  # As the interpreter does on exit.
    assert not stop.value.code
    assert all((tmp_path / name).exists() for name in written)
