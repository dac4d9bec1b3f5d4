"""Every snippet of the README runs: Python in order in one namespace, `deepencoder` for real, `make` as a dry run.

The Hub is a small one on this machine, and its DeepSeek-OCR is a small one, too."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers
from safetensors.torch import save_file

from .conftest import ROOT
from .conversion.samples import build, layout_of, state_dict_there
from .hub_server import serve

README = (ROOT / "README.md").read_text()


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a user whose Hub has a small DeepSeek-OCR."""
    layout, original = layout_of("deepseek-ocr"), tmp_path_factory.mktemp("original")
    save_file(state_dict_there(build(layout), layout, "model."), original / "model.safetensors")
    (original / "config.json").write_text('{"candidate_resolutions": [[1024, 1024]]}')
    with serve() as hub:
        hub.repos["deepseek-ai/DeepSeek-OCR"] = original
        home = str(tmp_path_factory.mktemp("home"))
        variables = {"HF_ENDPOINT": hub.url, "HF_HOME": home, "HF_TOKEN": hub.token, "HF_HUB_DISABLE_XET": "1"}
        yield {**os.environ, "PYTHONPATH": str(ROOT), **variables}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """An empty folder with the examples in it, where the Python snippets have run."""
    if getattr(transformers.AutoImageProcessor, "is_dummy", False):
        pytest.skip("transformers 5.17 hides AutoImageProcessor without torchvision, as the README says")
    folder = tmp_path_factory.mktemp("readme")
    (folder / "examples").symlink_to(ROOT / "examples")
    script = folder / "snippets.py"
    script.write_text("\n".join(snippets("python")))
    done = subprocess.run([sys.executable, script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_python_snippets_run(folder: Path) -> None:
    assert len(snippets("python")) >= 5
    assert (folder / "my-encoder" / "model.safetensors").is_file()


def test_commands_run(folder: Path, environment: dict[str, str]) -> None:
    commands = [line for snippet in snippets("bash") for line in snippet.splitlines() if line.strip()]
    ran = set()
    for command in commands:
        words = shlex.split(command, comments=True)
        ran.add(words[0])
        if words[:2] == ["pip", "install"]:
            continue
        if words[:2] == ["deepencoder", "push"]:
            words.append("--yes")  # it would ask
        if words[0] == "make":
            done = subprocess.run([*words, "--dry-run"], cwd=ROOT, capture_output=True, text=True)
        else:
            assert words[0] == "deepencoder", command
            words = [sys.executable, "-m", *words]
            done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stderr)
    assert ran == {"make", "deepencoder", "pip"}
    assert (folder / "features.safetensors").is_file() and (folder / "table.png").is_file()


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_folder_is_described() -> None:
    layout = README.partition("## Where things are")[2]
    for path in ROOT.iterdir():
        if path.is_dir() and not path.name.startswith(".") and (path / "__init__.py").exists():
            assert f"{path.name}/" in layout, path.name
