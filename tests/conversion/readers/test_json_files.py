"""JSON files beside weights."""

from pathlib import Path

import pytest

from deepencoder.conversion.readers.json_files import read_json_file


def test_files_are_read_up_to_a_size(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("[1, 2]")
    assert read_json_file(path, largest=6) == [1, 2]
    with pytest.raises(ValueError, match="more than 5 bytes"):
        read_json_file(path, largest=5)
    with open(path, "wb") as file:
        file.truncate(2**40)  # It takes no space on the disk.
    with pytest.raises(ValueError, match="more than"):
        read_json_file(path)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"{", b"\xff" * 5000, b"9" * 5000])
def test_damaged_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_json_file(tmp_path / "config.json")
    assert len(str(error.value).splitlines()) == 1 and len(repr(error.value)) < 300
