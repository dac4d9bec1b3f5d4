"""The wheel and the source distribution hold every module, and the checkout is laid out as it should be."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from .conftest import ROOT

FOLDERS = ("configuration", "modeling", "processing", "conversion")


def modules() -> set[str]:
    found = {f"deepencoder/{folder}/{path.name}" for folder in FOLDERS for path in (ROOT / folder).glob("*.py")}
    return (
        found
        | {f"deepencoder/{path.name}" for path in (ROOT / "deepencoder").glob("*.py")}
        | {f"deepencoder/commands/{path.name}" for path in (ROOT / "deepencoder" / "commands").glob("*.py")}
        | {"deepencoder/py.typed", "deepencoder/sharing/sample_page.png"}
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build what git knows of, in a copy that keeps links, so that nothing lying about gets in."""
    folder = tmp_path_factory.mktemp("build")
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if files.returncode:
        pytest.skip("not a git checkout")
    source = folder / "any name"
    for name in files.stdout.splitlines():
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            target.symlink_to(os.readlink(ROOT / name))
        elif (ROOT / name).is_file():
            target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    return folder / "dist"


def test_wheel_holds_every_module(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == modules()


def test_sdist_holds_every_module(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        names = {member.name.partition("/")[2] for member in tar.getmembers() if not member.isdir()}
    assert modules() <= names
    assert {"LICENSE", "README.md", "pyproject.toml"} <= names


def test_an_installed_wheel_imports_without_the_checkout(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "import deepencoder, sys; print(deepencoder.__file__); deepencoder.DeepEncoderConfig.tiny()"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)


def test_import_name_is_made_of_relative_links() -> None:
    for folder in FOLDERS:
        link = ROOT / "deepencoder" / folder
        assert link.is_symlink() and os.readlink(link) == f"../{folder}"
        assert (ROOT / folder / "__init__.py").is_file() and not (ROOT / folder).is_symlink()
