"""`deepencoder push`."""

from pathlib import Path
from typing import Any

import pytest

from deepencoder import DeepEncoder, DeepEncoderConfig, SamEncoder, SamEncoderConfig
from deepencoder.sharing.repository import collect_repository

from ..hub_server import Hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    SamEncoder(SamEncoderConfig.tiny()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_push_asks_first(cli: Any, folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    questions: list[str] = []
    monkeypatch.setattr("typer.confirm", questions.append)  # It returns None, which means no.
    code, out, _ = cli("push", folder, "some/model")
    number = len(collect_repository(folder, "some/model"))
    assert questions == [f"Upload {number} files to some/model?"]
    assert code == 1 and "model.safetensors" in out and "generated" in out and hub.find("some/model", None) is None


def test_push_lists_what_it_uploads_and_what_it_leaves_out(
    cli: Any, folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    for name in ("id_rsa", "optimizer.pt", ".env"):
        (folder / name).write_text("private")
    (folder / "checkpoint-500").mkdir()
    code, out, err = cli("push", folder, "some/model", "--yes")
    assert code == 0, err
    before, _, after = out.partition("not published: ")
    assert after.splitlines()[0] == ".env, checkpoint-500/, id_rsa, optimizer.pt"
    found = hub.find("some/model", None)
    assert found is not None
    listed = {line.split()[0] for line in before.splitlines()[1:]}
    assert listed == {path.name for path in found[1].iterdir()}


def test_links_are_shown(cli: Any, folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "private").write_text("private")
    (folder / "README.md").symlink_to(folder.parent / "private")
    monkeypatch.setattr("typer.confirm", lambda question: False)
    _, out, _ = cli("push", folder, "some/model")
    assert any(
        line.startswith("README.md") and f"link to {folder.parent / 'private'}" in line for line in out.splitlines()
    )


def test_push_uploads(cli: Any, folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    code, out, err = cli("push", folder, "some/model", "--yes", "--private", "--revision", "v1", "--license", "mit")
    assert code == 0 and "/some/model/commit/" in out, err
    assert "some/model" in hub.private
    found = hub.find("some/model", "v1")
    assert found is not None and "license: mit" in (found[1] / "README.md").read_text()


def _save_damaged(damaged: Path) -> Path:
    """Save a model whose card needs its weights, and change the length of their header."""
    DeepEncoder(DeepEncoderConfig.tiny()).save_pretrained(damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(b"\xff" * 8 + weights.read_bytes()[8:])
    return damaged


def test_errors_are_one_line(cli: Any, folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    (folder.parent / "original").mkdir()
    (folder.parent / "original" / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    for arguments, words in (
        ((folder.parent / "original", "some/model"), "not a saved model of this package"),
        ((folder.parent / "gone", "some/model"), "not a saved model of this package"),
        ((folder, "no//name"), "no//name"),
        ((_save_damaged(folder.parent / "damaged"), "some/model"), "cannot be shared"),
    ):
        code, _, err = cli("push", *arguments, "--yes")
        assert code == 2 and len(err.strip().splitlines()) == 1 and words in err, err
    monkeypatch.setenv("HF_TOKEN", "wrong")
    code, _, err = cli("push", folder, "some/model", "--yes")
    assert code == 2 and len(err.strip().splitlines()) == 1, err
