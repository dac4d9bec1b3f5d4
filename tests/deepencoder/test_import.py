"""What importing the package does, and what it does not."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import deepencoder

from ..conftest import ROOT

# What each room may import from: itself, the rooms below it, and the package's own lazy.py.
ROOMS = {
    "configuration": set(),
    "modeling": {"configuration"},
    "processing": {"configuration"},
    "extraction": {"configuration", "modeling", "processing"},
    "conversion": {"configuration", "modeling", "processing"},
    "integrations": {"configuration", "modeling", "processing", "extraction", "conversion"},
    "reading": {"configuration", "processing"},
    "runtimes": {"configuration", "modeling", "processing", "extraction", "conversion"},
    "sharing": {"configuration", "modeling", "processing", "conversion"},
}


def test_public_names() -> None:
    for name in deepencoder.__all__:
        assert hasattr(deepencoder, name)


def test_importing_is_cheap_and_needs_neither_network_nor_device() -> None:
    command = [sys.executable, "-m", "tests.programs.import_costs"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_checkout_without_symbolic_links_says_so(tmp_path: Path) -> None:
    (tmp_path / "deepencoder").mkdir()
    for name in ("__init__.py", "lazy.py", "registration.py", "services.py"):
        (tmp_path / "deepencoder" / name).write_bytes((ROOT / "deepencoder" / name).read_bytes())
    (tmp_path / "deepencoder" / "modeling").write_text("../modeling")  # As git checks a link out where it cannot link.
    done = subprocess.run([sys.executable, "-c", "import deepencoder"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: This checkout of deepencoder lacks its symbolic links."), done.stderr


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_point_one_way(room: str) -> None:
    """configuration <- modeling, processing <- extraction, conversion <- integrations, sharing; relative inside."""
    for path in (ROOT / room).rglob("*.py"):
        depth = len(path.relative_to(ROOT / room).parents)  # 1 for a module of the room itself
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not any(alias.name.split(".")[0] == "deepencoder" for alias in node.names), path
            if not isinstance(node, ast.ImportFrom):
                continue
            module = node.module or ""
            assert node.level or module.split(".")[0] != "deepencoder", f"{path}: {module}"
            if node.level > depth and module:
                assert module.split(".")[0] in {*ROOMS[room], "lazy"}, f"{path}: {module}"
