"""Datasets that are streamed from the Hub."""

import io
import zipfile
from pathlib import Path

import datasets
import pytest
from huggingface_hub import HfFileSystem

from deepencoder.extraction.containers.hub_dataset import Address, parse_address
from deepencoder.extraction.listing import is_streamed, list_pages

from ..corpus import encoded, picture, same, write_parquet


def test_ids_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses the streaming of datasets over a local folder; only the name of the dataset is replaced."""
    write_parquet(tmp_path / "train.parquet", 4)
    load, names = datasets.load_dataset, []

    def load_dataset(name: str, **kwargs: object) -> object:
        names.append(name)
        return load(str(tmp_path), **kwargs)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name: ["train"])
    pages = list(list_pages(["someone/pages"], column="image"))
    assert names == ["someone/pages"] and pages[0].source == "someone/pages::train"
    assert len(pages) == 4 and same(pages[3], picture(3))


OWN = "hf://datasets/someone/pages@main/"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (OWN + "a.png", ("datasets/someone/pages@main/a.png", None)),
        (OWN + "b/a@2.png", ("datasets/someone/pages@main/b/a@2.png", None)),
        ("hf://datasets/Someone/Pages@main/a.png", ("datasets/Someone/Pages@main/a.png", None)),
        ("hf://datasets/someone/pages@refs/pr/3/a.png", ("datasets/someone/pages@refs/pr/3/a.png", None)),
        ("zip://b/a.png::" + OWN + "a.zip", ("datasets/someone/pages@main/a.zip", "b/a.png")),
        ("zip://../a.png::" + OWN + "a.zip", ("datasets/someone/pages@main/a.zip", "../a.png")),  # only a name
    ],
)
def test_addresses_in_the_own_repository(address: str, expected: tuple[str, str | None]) -> None:
    assert parse_address(address, "someone/pages") == Address(*expected)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "/private/secret.png",
        "~/secret.png",
        "secret.png",
        "file:///private/secret.png",
        "local:///private/secret.png",
        "https://example.invalid/a.png",
        "ftp://example.invalid/a.png",
        "/private/secret.png::https://example.invalid/x",
        "/private/secret.png::" + OWN + "a.png",
        "file:///private/secret.png::" + OWN + "a.png",
        "zip://a.png::/private/secret.zip",
        "zip://a.png::https://example.invalid/a.zip",
        "zip://a.png",
        "zip://::" + OWN + "a.zip",
        "zip://a.png::zip://b.zip::" + OWN + "c.zip",
        "zip:///private/secret.png::file://x::" + OWN + "c.zip",
        "tar://a.png::" + OWN + "a.tar",
        "gzip://a.png::" + OWN + "a.gz",
        "reference://::" + OWN + "a.json",
        "simplecache::" + OWN + "a.png",
        "filecache://x::" + OWN + "a.png",
        OWN + "a.png::/private/secret.png",
        OWN + "a.zip::zip://a.png",
        " " + OWN + "a.png",
        "HF://datasets/someone/pages@main/a.png",
        "hf://datasets/someone/other@main/a.png",
        "hf://datasets/someone/pages2@main/a.png",
        "hf://datasets/else/someone/pages@main/a.png",
        "hf://datasets/someone/pages/a.png",  # without a revision
        "hf://datasets/someone/pages@/a.png",
        "hf://datasets/someone/pages@main",
        OWN,
        "hf://someone/pages@main/a.png",  # a model
        "hf://models/someone/pages@main/a.png",
        "hf://spaces/someone/pages@main/a.png",
        "hf://buckets/someone/pages@main/a.png",
        "hf://datasets/someone/pages@main@other/a.png",
        "hf://datasets/someone/pages@main/../other/a.png",
        OWN + "../../../other/pages/resolve/main/a.png",
        OWN + "./a.png",
        OWN + "b//a.png",
        OWN + "b/",
        OWN + "a\n.png",
    ],
)
def test_other_addresses_are_refused(address: str) -> None:
    assert parse_address(address, "someone/pages") is None


def test_image_folders_on_the_hub_are_read_by_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their rows hold addresses, which are opened. Other paths in a dataset are not opened."""
    picture(2).save(tmp_path / "local.png")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("b.png", encoded(1))
    content = {
        "datasets/someone/pages@main/a.png": encoded(0),
        "datasets/someone/pages@main/b.zip": archive.getvalue(),
    }
    addresses = [OWN + "a.png", f"zip://b.png::{OWN}b.zip"]
    foreign = [str(tmp_path / "local.png"), f"{tmp_path / 'local.png'}::https://example.invalid/x"]
    paths = (*addresses, *foreign, None, OWN + "missing.png")
    rows = [path and {"bytes": None, "path": path} for path in paths]
    features = datasets.Features({"image": datasets.Image()})
    data = datasets.Dataset.from_dict({"image": rows}, features=features).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: data)
    monkeypatch.setattr(HfFileSystem, "open", lambda self, path, mode: io.BytesIO(content[path]))
    first, second, *failed = list_pages(["someone/pages"], split="train")
    assert same(first, picture(0)) and same(second, picture(1))
    *others, empty, missing = [page.error for page in failed]
    assert others == ["its row names a file that is not in someone/pages, which is not opened"] * 2
    assert empty == "there is no image in this row" and "missing.png" in missing


def test_ids_are_told_from_paths_and_globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "folder").mkdir()
    assert is_streamed("someone/pages")
    for source in ("a/folder", "./pages", "/someone/pages", "~/pages", "someone/*", "someone/a.png", "pages", "a/b/c"):
        assert not is_streamed(source), source
