"""Command lines: random options and files, in this process.

Unusual: a command ends with exit code 0, or with 2 and one line, or with typer's own text on wrong usage. Whatever it
says, its inputs are as they were, and what it was to write is there whole or as it was before.
"""

import hashlib
import io
import json
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image
from safetensors.torch import load_file

from deepencoder.cli import main

from .checkpoints import nasty_pickle, nasty_safetensors
from .containers import write_container
from .images import damaged_image
from .mutations import nasty_json, nasty_name
from .trials import Trial, ViolationError

__all__ = ["run"]

CODES = (0, 1, 2)
COMMANDS = (
    "encode",
    "encode",
    "encode",
    "extract",
    "extract",
    "extract",
    "info",
    "info",
    "convert",
    "convert",
    "export",
    "push",
)
VALUES = (
    "0",
    "-1",
    "1",
    "2",
    "1e9",
    "nan",
    "",
    "auto",
    "None",
    "a b",
    "pooled",
    "pooled,tokens",
    "float16",
    "é",
    "--",
    "\x1b[31m",
)
OPTIONS = {
    "encode": ("--mode", "--device", "--dtype", "--revision", "--nonsense"),
    "extract": (
        "--mode",
        "--outputs",
        "--dtype",
        "--model-dtype",
        "--batch-size",
        "--shard-size",
        "--shard-minutes",
        "--dpi",
        "--split",
        "--column",
        "--format",
        "--page-timeout",
        "--device",
        "--engine-of-nonsense",
    ),
    "info": ("--revision",),
    "convert": ("--dtype", "--max-shard-size", "--num-attention-heads", "--hidden-act", "--to", "--report"),
    "export": ("--format", "--mode", "--size"),
    "push": ("--revision", "--license", "--message"),
}
FLAGS = {
    "encode": ("--trust-remote-code", "--full-download"),
    "extract": ("--strict", "--retry-failed", "--json", "--no-resume"),
    "convert": ("--verify", "--no-verify"),
    "push": ("--yes", "--private"),
}


def _write_model(trial: Trial) -> Path:
    """Copy one of our models, and damage one of its files."""
    random = trial.random
    folder = trial.folder / "model"
    if not folder.exists():
        shutil.copytree(trial.materials.model(random.choice(("deepencoder", "deepencoder", "sam", "clip"))), folder)
        match random.choice(("none", "none", "config", "processor", "weights", "pickle")):
            case "config":
                _change_json(random, folder / "config.json")
            case "processor" if (folder / "preprocessor_config.json").exists():
                _change_json(random, folder / "preprocessor_config.json")
            case "weights":
                path = folder / "model.safetensors"
                path.write_bytes(nasty_safetensors(random, path.read_bytes()))
            case "pickle":
                (folder / "model.safetensors").unlink()
                (folder / "pytorch_model.bin").write_bytes(nasty_pickle(trial))
    return folder


def _change_json(random: Random, path: Path) -> None:
    path.write_bytes(nasty_json(random, json.loads(path.read_bytes())))


def _write_checkpoint(trial: Trial) -> Path:
    random, folder = trial.random, trial.folder / "checkpoint"
    if not folder.exists():
        shutil.copytree(trial.materials.checkpoints[random.choice(sorted(trial.materials.checkpoints))], folder)
        if trial.chance(0.5):
            path = folder / "model.safetensors"
            path.write_bytes(nasty_safetensors(random, path.read_bytes()))
        if trial.chance(0.3):
            (folder / "config.json").write_bytes(nasty_json(random, {"model_type": "clip"}))
    return folder


def _write_image(trial: Trial) -> Path:
    name = nasty_name(trial.random).replace("/", "_").replace("\0", "_")[:200].encode(errors="replace").decode()
    path = trial.folder / f"{name}.png"
    if not path.exists():
        suffix, data = damaged_image(trial)
        path.write_bytes(trial.materials.images[".png"][0] if trial.chance(0.5) else data)
    return path


def _source(trial: Trial) -> str:
    """Return a source of pages for `extract`."""
    match trial.random.choice(("image", "pages", "container", "nothing", "glob")):
        case "image":
            return str(_write_image(trial))
        case "pages":
            return str(trial.materials.pages)
        case "container" if not any(trial.folder.iterdir()):
            return str(write_container(trial))
        case "glob":
            return str(trial.folder / trial.random.choice(("*.png", "**", "[", "*")))
    return trial.random.choice(("nothing.png", "", "/dev/null", "owner/name", str(trial.folder / "nothing")))


def _target(trial: Trial, suffix: str) -> str:
    """Return a name for an output: a new one, an existing one, or an impossible one."""
    existing = [str(path) for path in sorted(trial.folder.iterdir())]
    names = [str(trial.folder / f"out{suffix}")] * 4 + existing
    return trial.random.choice(
        [*names, str(trial.folder / "new" / f"o{suffix}"), "/proc/out" + suffix, str(trial.folder), "a" * 300 + suffix]
    )


def _arguments(trial: Trial, command: str) -> list[str]:
    random = trial.random
    match command:
        case "encode":
            found = [str(_write_image(trial)) for _ in range(random.choice((1, 1, 2)))]
            found += ["--output", _target(trial, ".safetensors")] if trial.chance(0.6) else []
            found += ["--picture", _target(trial, ".png")] if trial.chance(0.3) else []
        case "extract":
            # Worker processes may have no children; the kill test has them.
            found = [
                _source(trial),
                "--output",
                _target(trial, ""),
                "--workers",
                random.choice(("0", "0", "0", "-1", "x")),
            ]
        case "info":
            return [str(random.choice((_write_model, _write_checkpoint))(trial))]
        case "convert":
            return [str(_write_checkpoint(trial)), _target(trial, "")]
        case "export":
            return [
                str(_write_model(trial)),
                _target(trial, random.choice((".onnx", ".pt2", ".txt"))),
                "--size",
                random.choice(("0", "17", "-1")),
            ]
        case _:
            return [
                str(random.choice((_write_model, _write_checkpoint))(trial)),
                random.choice(("owner/name", "a/b/c", "", "--")),
            ]
    if trial.chance(0.8):
        found += ["--model", str(random.choice((_write_model, _write_model, _write_model, _write_checkpoint))(trial))]
    return found


def _with_options(trial: Trial, command: str) -> list[str]:
    random = trial.random
    arguments = _arguments(trial, command)
    for _ in range(random.choice((0, 0, 1, 1, 2))):
        arguments += [random.choice(OPTIONS[command]), random.choice(VALUES)]
    if command in FLAGS and trial.chance(0.3):
        arguments.append(random.choice(FLAGS[command]))
    if trial.chance(0.05):
        random.shuffle(arguments)
    return [command, *arguments]


def _hash_files(folder: Path) -> dict[Path, str]:
    """Return a hash of every regular file in a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _call(arguments: list[str]) -> tuple[Any, str, str]:
    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["deepencoder", *arguments]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as error:
        return error.code or 0, out.getvalue(), err.getvalue()
    finally:
        sys.argv = before
    return 0, out.getvalue(), err.getvalue()


def run(trial: Trial) -> None:
    command = trial.random.choice(COMMANDS)
    arguments = _with_options(trial, command)
    trial.note(arguments=arguments)
    before = _hash_files(trial.folder)
    with trial.may_raise():
        code, out, err = _call(arguments)
    trial.note(code=code, err=err[-300:])
    _check_answer(code, out, err)
    _check_files(trial, arguments, code, before)


def _check_answer(code: Any, out: str, err: str) -> None:
    if code not in CODES:
        raise ViolationError(f"exit code {code!r}: {err[-300:]}")
    if "Traceback" in out + err:
        raise ViolationError(f"printed a traceback: {err[-300:]}")
    errors = [line for line in err.splitlines() if line.startswith("Error: ")]
    if code == 2 and not (errors or "Usage:" in err or "─ Error ─" in err):
        raise ViolationError(f"exit code 2 without an error: {err[:600]!r}")
    if "\x1b[31m" in out + err:
        raise ViolationError("printed the escape sequence of a name")


def _named(arguments: list[str], option: str) -> Path | None:
    return Path(arguments[arguments.index(option) + 1]) if option in arguments[:-1] else None


def _check_files(trial: Trial, arguments: list[str], code: Any, before: dict[Path, str]) -> None:
    after = _hash_files(trial.folder)
    targets = {_named(arguments, "--output"), _named(arguments, "--picture"), _named(arguments, "--report")}
    changed = [path for path, content in before.items() if after.get(path) != content and path not in targets]
    if changed:
        raise ViolationError(f"changed the inputs {[path.name for path in changed]}")
    read = [
        path for path in targets if path in before and (str(path) in arguments[1:2] or path.parent.name == "model")
    ]
    if any(after.get(path) != before[path] for path in read if path is not None):
        raise ViolationError(f"overwrote the input {[path.name for path in read if path]}")
    left = [path.name for path in trial.folder.rglob(".*.tmp*")]
    if left:
        raise ViolationError(f"left temporary files: {left}")
    output = _named(arguments, "--output")
    if code == 0 and arguments[0] == "encode" and output is not None and output.suffix == ".safetensors":
        load_file(output)
    for path in (path for path in after if path not in before and path.suffix in (".png", ".safetensors")):
        if path.suffix == ".safetensors":
            load_file(path)
        else:
            Image.open(path).load()
