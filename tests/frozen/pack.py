"""Packs a folder into an archive that depends on the files alone: `python tests/frozen/pack.py FOLDER ARCHIVE.zip`."""

import sys
import zipfile
from pathlib import Path


def pack(folder: Path, archive: Path) -> None:
    """Write the files of a folder to a zip archive, sorted by name and without their times."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target:
        for path in sorted(folder.iterdir()):
            target.writestr(zipfile.ZipInfo(path.name), path.read_bytes(), zipfile.ZIP_DEFLATED)


if __name__ == "__main__":
    pack(Path(sys.argv[1]), Path(sys.argv[2]))
