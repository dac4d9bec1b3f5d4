"""Every snippet and command of the README and of the guides runs, and every link leads somewhere.

The Hub is a small one on this machine, and so is its DeepSeek-OCR. Blocks marked `console` are not run.
"""

import json
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

README = ROOT / "README.md"
GUIDES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [README, *GUIDES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]
PROGRAM = ROOT / "tests" / "programs" / "run_documents.py"


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


def commands(path: Path, language: str = "bash") -> list[list[str]]:
    lines = [line for block in blocks(path, language) for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


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
    """The folder in which the documents have run, each in a folder of its own."""
    if getattr(transformers.AutoImageProcessor, "is_dummy", False):
        pytest.skip("transformers 5.17 hides AutoImageProcessor without torchvision, as docs/use.md says")
    folder = tmp_path_factory.mktemp("documents")
    command = [sys.executable, PROGRAM, folder, README, *GUIDES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


@pytest.mark.parametrize("document", [README, *GUIDES], ids=lambda path: path.stem)
def test_snippets_and_commands_run(document: Path, folder: Path) -> None:
    error = json.loads((folder / "results.json").read_text())[document.name]
    assert error is None, error


def test_snippets_leave_their_files(folder: Path) -> None:
    readme = folder / "README"
    for name in ("my-encoder/model.safetensors", "features.safetensors", "table.png", "deepseek-encoder/config.json"):
        assert (readme / name).is_file(), name
    for name in ("convert/my-deepseek-ocr/model.safetensors", "export/view.onnx", "extract/corpus/README.md"):
        assert (folder / name).is_file(), name


def test_documents_hold_snippets() -> None:
    """An empty list would pass, too."""
    assert len(blocks(README, "python")) >= 4
    assert {words[0] for words in commands(README)} == {"make", "pip", "deepencoder"}
    assert sum(len(blocks(path, "python")) for path in GUIDES) >= 20


def test_a_command_runs_in_a_process_of_its_own(folder: Path, environment: dict[str, str]) -> None:
    words = next(words for words in commands(README) if words[:2] == ["deepencoder", "info"])
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=folder / "README", env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "DeepEncoder" in done.stdout, done.stderr


def test_installation_is_from_a_clone() -> None:
    """The package is on no index, so a document may install it from the clone only, with extras that exist."""
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    for path in DOCUMENTS:
        assert not re.search(r"pip install [^\n`]*\bdeepencoder\b", path.read_text()), path
        for asked in re.findall(r'pip install [^\n`]*"\.\[([\w,]+)\]"', path.read_text()):
            assert set(asked.split(",")) <= extras, (path, asked)


def test_programs_in_documents_exist() -> None:
    for path in DOCUMENTS:
        for program in re.findall(r"\bpython ((?:benchmarks|examples|tests)/\S+\.py)", path.read_text()):
            assert (ROOT / program).is_file(), (path, program)


def headings(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        assert path.exists(), target
        assert not anchor or anchor in headings(path), target


def test_every_guide_is_in_the_readme() -> None:
    for guide in GUIDES:
        assert f"(docs/{guide.name})" in README.read_text()


def test_every_folder_is_described() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for path in ROOT.iterdir():
        if path.is_dir() and not path.name.startswith(".") and (path / "__init__.py").exists():
            assert f"{path.name}/" in text, path.name


PATH_IN_PROSE = re.compile(
    r"`((?:configuration|modeling|processing|extraction|conversion|integrations|runtimes|sharing|deepencoder|tests|benchmarks|docs|examples)"
    r"/[\w./-]*\w\.\w+)(?:::(\w+))?`"
)


@pytest.mark.parametrize("document", DOCUMENTS[:-1], ids=lambda path: path.stem)
def test_files_and_names_in_prose_exist(document: Path) -> None:
    """Documents name files as `room/file.py`, and names in them as `room/file.py::name`."""
    for name, symbol in PATH_IN_PROSE.findall(document.read_text()):
        assert (ROOT / name).is_file(), name
        assert not symbol or re.search(rf"\b{symbol}\b", (ROOT / name).read_text()), (name, symbol)
