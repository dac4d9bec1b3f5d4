"""Downloads transformers' common tests, the `tests` folder in the source distribution of the installed version.

Usage: python tests/conformance/download.py CACHE_FOLDER. A version that is in the folder already is not downloaded
again. None of these files is committed to this repository.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path


def download(cache: Path) -> Path:
    """Return the folder of the tests, `CACHE/transformers-VERSION/tests`."""
    name = f"transformers-{version('transformers')}"
    target = cache / name
    if (target / "tests").is_dir():
        return target / "tests"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        options = ["--no-deps", "--no-build-isolation", "--no-binary", "transformers", "--dest", folder]
        subprocess.run([*pip, *options, name.replace("transformers-", "transformers==")], check=True)
        (archive,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            members = [member for member in tar.getmembers() if member.name.startswith(f"{name}/tests/")]
            tar.extractall(folder, members=members, filter="data")
        (Path(folder) / name / "tests" / "__init__.py").touch()
        shutil.move(str(Path(folder) / name), target)
    return target / "tests"


if __name__ == "__main__":
    print(download(Path(sys.argv[1])))
