"""The wheel and the source distribution hold every module, and the checkout is laid out as it should be.

Unusual: git has no symbolic links on some Windows systems and checks out plain files with the links' targets as text.
The package must then fail with one error that says what to do.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from .conftest import ROOT

ROOMS = (
    "configuration",
    "modeling",
    "processing",
    "extraction",
    "conversion",
    "integrations",
    "reading",
    "runtimes",
    "sharing",
)
SHIPPED_MODEL = ("config.json", "model.safetensors", "preprocessor_config.json", "README.md")
SHIPPED_HEAD = ("reading_head/config.json", "reading_head/model.safetensors")


def package_files() -> set[str]:
    """Return the names of all files that an installation must hold."""
    folders = {ROOT / "deepencoder": "deepencoder", ROOT / "deepencoder/commands": "deepencoder/commands"}
    files = {f"{name}/{path.name}" for folder, name in folders.items() for path in folder.glob("*.py")}
    files |= {f"deepencoder/{path.relative_to(ROOT)}" for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    files |= {f"deepencoder/reading/page-reader/{name}" for name in SHIPPED_MODEL + SHIPPED_HEAD}
    return files | {"deepencoder/py.typed", "deepencoder/sharing/sample_page.png"}


def run_python(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **options)  # type: ignore[call-overload,no-any-return]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the files that git knows, or would add, from a copy that keeps the links."""
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
    done = run_python("-m", "build", "--no-isolation", "--outdir", folder / "dist", source)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    return folder / "dist"


def test_wheel_holds_every_module(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == package_files()


def test_sdist_holds_every_module(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        names = {member.name.partition("/")[2] for member in tar.getmembers() if not member.isdir()}
    assert package_files() <= names
    assert {"LICENSE", "README.md", "pyproject.toml"} <= names


def test_an_installed_wheel_imports_without_the_checkout(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "import deepencoder, sys; print(deepencoder.__file__); deepencoder.DeepEncoderConfig.tiny()"
    done = run_python("-c", code, cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)


def test_every_folder_of_modules_is_a_package() -> None:
    """setuptools leaves folders without an `__init__.py` out of the wheel."""
    for name in package_files():
        if name.endswith(".py"):
            assert (ROOT / name).with_name("__init__.py").is_file(), name


def test_import_name_is_made_of_relative_links() -> None:
    links = {path.name for path in (ROOT / "deepencoder").iterdir() if path.is_symlink()}
    assert links == set(ROOMS)
    for room in ROOMS:
        assert os.readlink(ROOT / "deepencoder" / room) == f"../{room}"
        assert (ROOT / room / "__init__.py").is_file() and not (ROOT / room).is_symlink()


def test_a_checkout_without_links_fails_with_one_clear_error(tmp_path: Path) -> None:
    package = shutil.copytree(ROOT / "deepencoder", tmp_path / "deepencoder", symlinks=True)
    for link in [path for path in package.iterdir() if path.is_symlink()]:
        target = os.readlink(link)
        link.unlink()
        link.write_text(target)  # what git writes where core.symlinks is false
    done = run_python("-c", "import deepencoder", cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""})
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert error.startswith("ImportError: ") and "symbolic links" in error and "core.symlinks" in error
    assert "During handling of the above exception" not in done.stderr


def test_the_workflow_checks_out_links_and_tests_every_python() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "core.symlinks true" in workflow and ".ci/run" in workflow
    classifiers = [line for line in (ROOT / "pyproject.toml").read_text().splitlines() if "Python :: 3." in line]
    for line in classifiers:
        assert f'"{line.rpartition(" ")[2].strip(chr(34) + ",")}"' in workflow, line
