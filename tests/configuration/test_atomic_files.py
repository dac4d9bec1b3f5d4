"""Files and folders that appear whole or not at all."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deepencoder.configuration.atomic_files import (
    TEMPORARY_PATTERN,
    new_folder,
    replaced_file,
    temporary_name,
    write_bytes,
    write_text,
)

posix = pytest.mark.skipif(os.name != "posix", reason="permissions and links are those of POSIX")


class InterruptionError(Exception):
    pass


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def permissions(path: Path) -> int:
    return path.stat().st_mode & 0o777


@posix
def test_permissions_follow_the_umask(umask: int, tmp_path: Path) -> None:
    write_bytes(tmp_path / "file", b"1")
    assert permissions(tmp_path / "file") == 0o666 & ~umask
    with new_folder(tmp_path / "folder") as temporary:
        write_text(temporary / "inner", "2")
    assert permissions(tmp_path / "folder") == 0o777 & ~umask
    assert permissions(tmp_path / "folder" / "inner") == 0o666 & ~umask


@posix
def test_permissions_do_not_depend_on_the_writer(umask: int, tmp_path: Path) -> None:
    with replaced_file(tmp_path / "file") as temporary:
        temporary.unlink()
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    assert permissions(tmp_path / "file") == 0o666 & ~umask


def test_a_file_is_replaced_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.json"
    write_text(target, "before\r\n\u00e9")
    assert target.read_bytes() == b"before\r\n\xc3\xa9"
    with replaced_file(target) as temporary:
        assert temporary.parent == target.parent and temporary.suffix == ".json"
        assert temporary.match(TEMPORARY_PATTERN) and not target.match(TEMPORARY_PATTERN)
        temporary.write_text("after")
        assert target.read_bytes().startswith(b"before")
    assert [path.name for path in target.parent.iterdir()] == ["file.json"] and target.read_text() == "after"


@pytest.mark.parametrize("interruption", [InterruptionError, KeyboardInterrupt])
def test_an_exception_leaves_the_target_and_nothing_else(interruption: type[BaseException], tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_text(target, "before")
    for path in (target, tmp_path / "other"):
        with pytest.raises(interruption), replaced_file(path) as temporary:
            temporary.write_text("half of it")
            raise interruption
    with pytest.raises(interruption), new_folder(tmp_path / "folder") as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").write_text("half of it")
        raise interruption
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and target.read_text() == "before"


def test_a_file_does_not_replace_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write_text(tmp_path / "folder", "content")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@posix
def test_a_symbolic_link_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    write_text(tmp_path / "target", "before")
    (tmp_path / "link").symlink_to("target")
    write_text(tmp_path / "link", "after")
    assert not (tmp_path / "link").is_symlink() and (tmp_path / "link").read_text() == "after"
    assert (tmp_path / "target").read_text() == "before"


@pytest.mark.parametrize(
    "name", ["x" * 255, "x" * 250 + ".json", "x." + "y" * 253, "\u00e9" * 127, "\U0001f4c4" * 63, "." * 254 + "x"]
)
def test_the_name_may_be_as_long_as_the_file_system_allows(name: str, tmp_path: Path) -> None:
    assert len(temporary_name(tmp_path / name).name.encode()) <= 255
    try:
        (tmp_path / name).touch()
    except OSError:
        pytest.skip("the file system takes no names of this length")
    write_text(tmp_path / name, "content")
    (file,) = tmp_path.iterdir()
    assert file.name == name and file.read_text() == "content"


def test_temporary_names_are_hidden_and_differ(tmp_path: Path) -> None:
    names = {temporary_name(tmp_path / ".hidden.safetensors") for _ in range(10)}
    assert len(names) == 10
    for path in names:
        assert path.parent == tmp_path and path.match(TEMPORARY_PATTERN)
        assert path.name.startswith(".hidden.") and path.name.endswith(".tmp.safetensors")


def test_a_new_folder_takes_its_name_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "parent" / "folder"
    with new_folder(target) as temporary:
        (temporary / "file").write_text("content")
        assert not target.exists() and temporary.match(TEMPORARY_PATTERN)
    assert (target / "file").read_text() == "content"
    assert [path.name for path in target.parent.iterdir()] == ["folder"]


def test_a_single_file_of_a_new_folder(tmp_path: Path) -> None:
    with new_folder(tmp_path / "model.gguf", single_file="part") as temporary:
        (temporary / "part").write_text("content")
        (temporary / "scratch").write_text("not needed")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    assert (tmp_path / "model.gguf").read_text() == "content"


@pytest.mark.parametrize("kind", ["file", "folder", pytest.param("dangling link", marks=posix)])
def test_a_new_folder_refuses_an_existing_target(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    if kind == "file":
        target.touch()
    elif kind == "folder":
        target.mkdir()
    else:
        target.symlink_to("nowhere")
    with pytest.raises(FileExistsError, match="target: .* exists already"), new_folder(target):
        raise AssertionError("the block must not run")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


class ForeignError(Exception):
    """What a library in another language raises."""


@pytest.mark.parametrize("writer", [replaced_file, new_folder])
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.ENOSPC, "No space left on device", "temporary"),
        ForeignError(f"Error while serializing: I/O error: No space left on device (os error {errno.ENOSPC})"),
    ],
)
def test_a_full_disk_is_an_error_that_names_the_target(writer: Any, error: Exception, tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(OSError) as caught, writer(target):
        raise error
    assert str(caught.value) == f"cannot write {target}: {os.strerror(errno.ENOSPC)}"
    assert caught.value.errno == errno.ENOSPC and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writer", [replaced_file, new_folder])
@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "gone"), ForeignError("damaged"), ForeignError()])
def test_other_errors_stay_as_they_are(writer: Any, error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught, writer(tmp_path / "target"):
        raise error
    assert caught.value is error


def test_a_full_disk_names_the_outermost_target(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with pytest.raises(OSError) as caught, new_folder(target) as folder, replaced_file(folder / "file.json"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(caught.value) == f"cannot write {target}: {os.strerror(errno.ENOSPC)}"
