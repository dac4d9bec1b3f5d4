"""Datasets that are streamed from the Hub."""

import io
from pathlib import Path

import datasets
import pytest

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


def test_image_folders_on_the_hub_are_read_by_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their rows hold addresses, which are opened. Local paths in a dataset are not opened."""
    picture(2).save(tmp_path / "local.png")
    addresses = ["hf://datasets/someone/pages@main/a.png", "zip://b.png::hf://datasets/someone/pages@main/b.zip"]
    rows = [{"bytes": None, "path": path} for path in (*addresses, str(tmp_path / "local.png"))]
    features = datasets.Features({"image": datasets.Image()})
    data = datasets.Dataset.from_dict({"image": rows}, features=features).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: data)
    content = {address: encoded(number) for number, address in enumerate(addresses)}
    monkeypatch.setattr("datasets.utils.file_utils.xopen", lambda path, mode: io.BytesIO(content[path]))
    first, second, local = list_pages(["someone/pages"], split="train")
    assert same(first, picture(0)) and same(second, picture(1))
    assert local.error == "there is no image in this row"


def test_ids_are_told_from_paths_and_globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "folder").mkdir()
    assert is_streamed("someone/pages")
    for source in ("a/folder", "./pages", "/someone/pages", "~/pages", "someone/*", "someone/a.png", "pages", "a/b/c"):
        assert not is_streamed(source), source
