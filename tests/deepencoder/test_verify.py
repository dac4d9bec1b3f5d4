"""`deepencoder extract --verify` and `--redo-damaged`: what is damaged is named, and extracted again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ..extraction.corpus import save_model, write_pictures


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_model(tmp_path_factory.mktemp("models") / "model", side=64)


def test_a_folder_is_verified_and_its_damaged_shards_are_redone(cli: Any, model: Path, tmp_path: Path) -> None:
    pages, output = write_pictures(tmp_path / "pages", 3), tmp_path / "output"
    arguments = ["extract", pages, "-o", output, "--model", model, "--workers", "0", "--shard-size", "1B"]
    code, _, err = cli(*arguments, "--format", "safetensors")
    assert code == 0, err
    code, out, _ = cli("extract", "--verify", output)
    assert code == 0 and "3 pages in 6 files" in out and "0 shards are damaged" in out
    damaged = output / "data" / "part-00000-000001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    code, out, err = cli("extract", "--verify", output)
    assert code == 1 and err == "" and f"Damaged: {damaged.with_suffix('.parquet')}: {damaged.name} has" in out
    code, out, _ = cli("extract", "--verify", output, "--json")
    facts = json.loads(out)
    assert code == 1 and facts["pages"] == 2 and list(facts["damaged"]) == ["data/part-00000-000001.parquet"]
    code, _, err = cli(*arguments, "--format", "safetensors")
    assert code == 2 and err.count("\n") == 1 and "part-00000-000001.parquet is damaged" in err
    assert "--redo-damaged" in err
    code, out, err = cli(*arguments, "--format", "safetensors", "--redo-damaged")
    assert code == 0 and "1 pages in" in out and "in total 3 pages" in out, err
    assert cli("extract", "--verify", output)[0] == 0
    for strange in (["--verify", tmp_path], ["--verify", output, pages], ["--verify", output, "-o", output]):
        code, out, err = cli("extract", *strange)
        assert code == 2 and out == "" and err.startswith("Error: --verify"), err
