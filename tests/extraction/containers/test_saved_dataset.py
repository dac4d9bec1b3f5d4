"""Folders written by `save_to_disk`."""

import json
import os
import struct
from pathlib import Path

import datasets
import pytest

from deepencoder.extraction.listing import list_pages

from ..corpus import encoded, picture, same


def test_rows_and_splits_are_listed(tmp_path: Path) -> None:
    images = [{"bytes": encoded(number), "path": None} for number in range(3)]
    features = datasets.Features({"page": datasets.Image(), "name": datasets.Value("string")})
    data = datasets.Dataset.from_dict({"page": images, "name": ["a", "b", "c"]}, features=features)
    data.save_to_disk(tmp_path / "one")
    pages = list(list_pages([tmp_path / "one"]))
    assert len(pages) == 3 and same(pages[2], picture(2))
    datasets.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(tmp_path / "two")
    with pytest.raises(ValueError, match="split must be one of train, test"):
        list(list_pages([tmp_path / "two"]))
    (page,) = list_pages([tmp_path / "two"], split="test")
    assert same(page, picture(1))


def test_rows_name_only_files_in_the_folder(tmp_path: Path) -> None:
    """The author of a dataset may have written any path into its rows."""
    folder = tmp_path / "saved"
    picture(0).save(tmp_path / "secret.png")
    paths = [
        tmp_path / "secret.png",
        folder / "../secret.png",
        folder / "pipe.png",
        "pages/1.png",
        folder / "pages/1.png",
    ]
    table = {"page": [{"bytes": None, "path": str(path)} for path in paths]}
    kind = {"page": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}
    datasets.Dataset.from_dict(table, features=datasets.Features(kind)).save_to_disk(folder)
    information = json.loads((folder / "dataset_info.json").read_text())
    information["features"]["page"] = {"_type": "Image"}
    (folder / "dataset_info.json").write_text(json.dumps(information))
    os.mkfifo(folder / "pipe.png")
    (folder / "pages").mkdir()
    picture(1).save(folder / "pages" / "1.png")
    *outside, pipe, relative, absolute = list_pages([folder])
    assert [page.error for page in outside] == [f"its row names a file outside of {folder}, which is not opened"] * 2
    assert pipe.error == "it is not a regular file"
    assert same(relative, picture(1)) and same(absolute, picture(1))


def test_damage_is_told_in_one_line(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"page": [1]}).save_to_disk(tmp_path / "saved")
    for name in ("data-00000-of-00001.arrow", "state.json", "dataset_info.json"):
        (tmp_path / "saved" / name).write_bytes(b"[]")
        with pytest.raises(ValueError, match="saved' is not a dataset that can be read: "):
            list(list_pages([tmp_path / "saved"]))


def test_offsets_beyond_the_file_are_refused(tmp_path: Path) -> None:
    contents = [bytes([number]) * 1001 for number in range(3)]
    datasets.Dataset.from_dict({"image": contents}).save_to_disk(tmp_path)
    (path,) = tmp_path.glob("*.arrow")
    offsets, far = struct.pack("<4i", 0, 1001, 2002, 3003), struct.pack("<4i", 0, 1001, 2**31 - 1, 2**31 - 1)
    data = path.read_bytes()
    assert data.count(offsets) == 1
    path.write_bytes(data.replace(offsets, far))
    with pytest.raises(ValueError, match="is not a dataset that can be read") as caught:
        list(list_pages([tmp_path], column="image"))
    assert "\n" not in str(caught.value)
