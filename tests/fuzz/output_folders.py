"""Output folders of extractions: damaged manifests, failure files and shards, which a run must not make worse.

Unusual: a run that succeeds must end with every page in the folder once, and a run that is refused must leave all
shards as they were.
"""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from deepencoder.extraction import RunOptions, extract_features

from ..extraction.helpers import load, settings
from .mutations import mutate_bytes, nasty_json, nasty_value
from .trials import RefusedError, Trial, ViolationError

__all__ = ["run"]

load_once = cache(load)


def _damage(trial: Trial, output: Path) -> bool:
    """Change something in a finished output folder. Returns whether the shards are still whole."""
    random = trial.random
    shards = sorted((output / "data").glob("part-*.parquet"))
    shard = random.choice(shards)
    change = random.choice(
        ("manifest", "manifest", "failures", "failures", "shard", "missing", "leftover", "folder", "card")
    )
    trial.note(change=change, shard=shard.name)
    match change:
        case "manifest":
            content = nasty_json(random, json.loads((output / "manifest.json").read_bytes()))
            (output / "manifest.json").write_bytes(content)
            trial.note(content=content[:300])
        case "failures":
            lines = [json.dumps(nasty_value(random)).encode(errors="surrogatepass") for _ in range(3)]
            lines += [
                b"\xff\xfe",
                b'{"source": "x"}',
                b'{"source": [], "page": {}}',
                b'{"source": "x", "page": 1e400}',
                b"1",
            ]
            name = random.choice(("failures.jsonl", ".failures-00000.jsonl", ".failures-00007.jsonl"))
            content = b"\n".join(random.sample(lines, 3)) + random.choice((b"", b"\n"))
            (output / name).write_bytes((output / "failures.jsonl").read_bytes() + content)
            trial.note(name=name, content=content)
        case "shard":
            shard.write_bytes(mutate_bytes(random, shard.read_bytes()))
            return False
        case "missing":
            shard.unlink()
        case "leftover":
            names = (
                ".part-00000-00009.abcd1234.tmp.parquet",
                ".manifest.12345678.tmp.json",
                "part-9.safetensors",
                ".lock-00003",
            )
            (output / "data" / random.choice(names)).write_bytes(random.randbytes(10))
        case "folder":
            name = random.choice(("failures.jsonl", "manifest.json", ".failures-00000.jsonl", "README.md"))
            (output / name).unlink(missing_ok=True)
            (output / name).mkdir()
        case _:
            (output / "README.md").write_bytes(random.randbytes(10))
    return True


def _rows(output: Path) -> list[Any]:
    tables = [pyarrow.parquet.read_table(path) for path in sorted((output / "data").glob("part-*.parquet"))]
    return [row for table in tables for row in table.to_pylist()]


def run(trial: Trial) -> None:
    output = trial.folder / "output"
    shutil.copytree(trial.materials.output, output)
    whole = _damage(trial, output)
    before = {path.name: path.read_bytes() for path in (output / "data").glob("part-*.parquet")}
    options = RunOptions(workers=0, retry_failed=trial.chance(0.2), shard_size=128)
    try:
        with trial.may_raise(ValueError, OSError, one_line=True):
            extract_features(
                settings(trial.materials.pages), output, lambda: load_once(trial.materials.model()), options
            )
    except RefusedError:
        _check_kept(output, before)
        raise
    _check_kept(output, before)
    if whole:
        _check_complete(trial, output)


def _check_kept(output: Path, before: dict[str, bytes]) -> None:
    """Shards that existed exist still; a run may only add some."""
    for name, content in before.items():
        path = output / "data" / name
        if not path.exists() or path.read_bytes() != content:
            raise ViolationError(f"lost or changed the shard {name}")


def _check_complete(trial: Trial, output: Path) -> None:
    expected = {(row["source"], row["page"]): row["pooled"] for row in _rows(trial.materials.output)}
    rows = _rows(output)
    found = {(row["source"], row["page"]): row["pooled"] for row in rows}
    if found.keys() != expected.keys() or len(rows) != len(found):
        raise ViolationError(f"ended with {len(rows)} rows of {len(found)} pages, not with {len(expected)}")
    if any(abs(a - b) > 1e-2 for name in found for a, b in zip(found[name], expected[name], strict=True)):
        raise ViolationError("ended with other features")
    if list(output.glob("**/.*.tmp*")):
        raise ViolationError("left temporary files")
