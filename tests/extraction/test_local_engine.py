"""Extraction in this process: what is written, what is left to later runs, and how processes share a corpus."""

import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import psutil
import pyarrow.parquet
import pytest
import torch
from transformers import AutoModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from deepencoder.extraction import (
    OUTPUTS,
    BadPageError,
    ExtractionSettings,
    Page,
    ProcessGroup,
    Progress,
    list_pages,
    load_page,
)

from .corpus import (
    picture,
    save_model,
    write_bad_pages,
    write_endless_pdf,
    write_parquet,
    write_pdf,
    write_pictures,
    write_tar,
)
from .helpers import Load, alone, extract, list_pages_of, names_of, rows_of, settings


def test_shards_hold_what_the_model_says(load_tiled: Load, tmp_path: Path) -> None:
    corpus, output = tmp_path / "corpus", tmp_path / "output"
    write_pictures(corpus, 5)
    picture(7, (400, 130)).save(corpus / "wide.png")
    write_pdf(corpus / "a.pdf", 2)
    write_tar(corpus / "b.tar", 2)
    write_parquet(corpus / "c.parquet", 2)
    summary = extract(settings(corpus, outputs=tuple(OUTPUTS)), output, load_tiled, shard_size=10_000)
    assert (summary.pages, summary.failed, summary.done) == (12, 0, True) and summary.shards > 2

    opened = datasets.load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"))
    table = pyarrow.parquet.read_table(output / "data")
    assert opened.column_names == table.column_names and len(opened) == len(table) == 12
    assert opened.features["pooled"] == datasets.Sequence(datasets.Value("float16"), length=32)
    model, processor = load_tiled()
    pages = {(page.source, page.page): page for page in list_pages([corpus])}
    for row in opened.with_format("numpy"):
        image = load_page(pages.pop((str(row["source"]), int(row["page"]))))
        with torch.no_grad():
            expected = model(**processor(image, return_tensors="pt"))
        assert (row["width"], row["height"], row["mode"]) == (*image.size, "custom")
        assert row["num_tokens"] == len(expected.vision_tokens[0])
        assert tuple(row["grid"]) == processor.get_tile_grid(image.height, image.width)
        np.testing.assert_allclose(row["pooled"], expected.pooler_output[0], atol=4e-3)
        found = np.stack(row["vision_tokens"])
        np.testing.assert_allclose(found, expected.vision_tokens[0], atol=8e-3)
    assert not pages
    # The archive and the table repeat the first two pictures; the PDF has its own.
    assert len(set(opened["sha256"])) == 8
    manifest = json.loads((output / "manifest.json").read_bytes())
    assert manifest["done"] and manifest["pages"] == 12 and manifest["settings"]["outputs"] == list(OUTPUTS)
    for shard in manifest["shards"]:
        assert (output / shard["name"]).stat().st_size == shard["bytes"]
    assert sum(shard["rows"] for shard in manifest["shards"]) == 12


def test_work_that_is_done_is_not_done_again(load: Load, tmp_path: Path) -> None:
    corpus, output = tmp_path / "corpus", tmp_path / "output"
    write_pictures(corpus, 3)
    bad = write_bad_pages(corpus / "bad")
    first = extract(settings(corpus), output, load)
    assert (first.written, first.newly_failed) == (3, len(bad))
    failures = [json.loads(line) for line in (output / "failures.jsonl").read_text().splitlines()]
    assert {Path(line["source"]).name: line["page"] for line in failures} == dict.fromkeys(bad, 0)
    assert all(line["reason"] for line in failures)

    def refuse() -> tuple[Any, Any]:
        raise AssertionError("the model is not needed")

    files = sorted(path.name for path in output.rglob("*"))
    second = extract(settings(corpus), output, refuse)
    assert (second.written, second.newly_failed, second.pages, second.failed) == (0, 0, 3, len(bad))
    assert sorted(path.name for path in output.rglob("*")) == files

    picture(9).save(corpus / "new.png")
    picture(10).save(corpus / "bad" / "corrupt.png")
    third = extract(settings(corpus), output, load)
    assert (third.written, third.pages) == (1, 4)
    fourth = extract(settings(corpus), output, load, retry_failed=True)
    assert (fourth.written, fourth.pages, fourth.failed) == (1, 5, len(bad) - 1)


def test_a_glob_does_not_match_the_output_itself(load: Load, tmp_path: Path) -> None:
    write_parquet(tmp_path / "corpus.parquet", 3)
    for _ in range(2):
        summary = extract(settings(tmp_path / "**" / "*.parquet"), tmp_path / "output", load)
        assert (summary.pages, summary.failed, summary.shards) == (3, 0, 1)
    assert list((tmp_path / "output").rglob("*.parquet"))


def test_a_refusal_ends_every_process(load: Load, tmp_path: Path) -> None:
    """Otherwise the processes that wait for the first one would wait for days."""
    write_pictures(tmp_path / "corpus", 2)
    output = tmp_path / "output"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    wanted, gathered = settings(tmp_path / "corpus"), threading.Barrier(2)
    said: dict[int, Any] = {}

    def run(rank: int) -> str:
        def gather(value: Any) -> list[Any]:
            said[rank] = value
            gathered.wait(timeout=60)
            return [said[0], said[1]]

        with pytest.raises(ValueError, match="is not empty") as error:
            extract(wanted, output, load, ProcessGroup(rank, 2, gather))
        return str(error.value)

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(run, (0, 1))
    assert first == second
    assert [entry.name for entry in output.iterdir() if not entry.name.startswith(".")] == ["notes.txt"]


def test_strict_ends_at_the_first_bad_page(load: Load, tmp_path: Path) -> None:
    corpus, output = write_pictures(tmp_path / "corpus", 4), tmp_path / "output"
    (corpus / "00002.png").write_bytes(b"nonsense")
    with pytest.raises(BadPageError, match="00002.png, page 0: it is not an image"):
        extract(settings(corpus), output, load, strict=True)
    assert [Path(name).name for name, _ in names_of(output)] == ["00000.png", "00001.png"]
    assert not (output / "failures.jsonl").exists()
    with pytest.raises(BadPageError):  # the page does not count as done
        extract(settings(corpus), output, load, strict=True)
    assert extract(settings(corpus), output, load).pages == 3


def test_processes_share_a_corpus_and_any_number_goes_on(load: Load, tmp_path: Path) -> None:
    corpus, output = write_pictures(tmp_path / "corpus", 50), tmp_path / "output"
    stop = lambda: len(rows_of(output)) > 0  # noqa: E731
    extract(settings(corpus), output, load, stop=stop, shard_size=64, batch_size=4)
    some = len(rows_of(output))
    assert 0 < some < 50 and not json.loads((output / "manifest.json").read_bytes())["done"]
    for rank in (1, 2):  # one after the other, each as if the others were running
        gathered: list[Any] = []
        extract(settings(corpus), output, load, alone(rank, 3, gathered), shard_size=64 * 5, workers=0)
        assert gathered[1][0] > 0
    summary = extract(settings(corpus), output, load)
    assert summary.done and summary.pages == 50
    names = names_of(output)
    assert len(set(names)) == len(names) == 50
    ranks = {path.name.split("-")[1] for path in (output / "data").iterdir()}
    assert ranks == {"00000", "00001", "00002"}


def test_files_that_come_while_processes_list_are_done_once(load: Load, tmp_path: Path) -> None:
    corpus, output = write_pictures(tmp_path / "corpus", 40), tmp_path / "output"
    before = list_pages_of(corpus)
    for rank in (0, 1):  # two processes, one after the other; the second one finds more files
        extract(settings(corpus), output, load, alone(rank, 2), workers=0)
        for number in range(20):
            picture(100 + number).save(corpus / f"0-{number}.png")
    names = [name for name, _ in names_of(output)]
    assert len(set(names)) == len(names) and set(before) <= set(names)
    assert extract(settings(corpus), output, load).pages == 60


def test_an_error_while_listing_keeps_what_was_written(load: Load, tmp_path: Path) -> None:
    corpus, output = write_pictures(tmp_path / "corpus", 3), tmp_path / "output"

    class Interrupted(ExtractionSettings):
        def list_pages(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
            yield from super().list_pages(*args, **kwargs)
            raise ConnectionError("the stream ended")

    facts = asdict(settings(corpus))
    with pytest.raises(ConnectionError):
        extract(Interrupted(**facts), output, load, workers=0, count=False, batch_size=1)
    assert len(rows_of(output)) == 2  # the third page was still waiting for its batch


def test_a_stop_ends_the_counting_too(tmp_path: Path) -> None:
    corpus, asked = write_pictures(tmp_path / "corpus", 20), []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 5

    def load() -> Any:
        raise AssertionError("there is nothing to do for a model")

    summary = extract(settings(corpus), tmp_path / "output", load, stop=stop)
    assert (summary.pages, summary.done) == (0, False) and len(asked) < 12
    assert not (tmp_path / "output" / "data").exists()


def test_a_stop_writes_what_there_is(load: Load, tmp_path: Path) -> None:
    corpus, output = write_pictures(tmp_path / "corpus", 12), tmp_path / "output"
    seen: list[int] = []
    summary = extract(
        settings(corpus),
        output,
        load,
        batch_size=4,
        stop=lambda: bool(seen),
        on_progress=lambda progress: seen.append(progress.written),
    )
    assert not summary.done and len(rows_of(output)) == summary.written == 4  # the current batch and no more
    assert extract(settings(corpus), output, load).pages == 12


@dataclass(frozen=True)
class HungPage(Page):
    """A page whose decoder never returns."""

    def read_image(self) -> Any:
        time.sleep(600)


def test_a_stop_does_not_wait_for_a_decoder_that_hangs(load: Load, tmp_path: Path) -> None:
    corpus, output, stopped = write_pictures(tmp_path / "corpus", 3), tmp_path / "output", list[float]()

    class Hung(ExtractionSettings):
        def list_pages(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
            yield from super().list_pages(*args, **kwargs)
            yield from (HungPage("hung", number) for number in range(2))

    def stop() -> bool:
        return bool(stopped) and time.monotonic() > stopped[0]

    def note(progress: Progress) -> None:
        if progress.written == 2:  # the third page waits for others of its batch
            stopped.append(time.monotonic() + 0.5)

    summary = extract(
        Hung(**asdict(settings(corpus))),
        output,
        load,
        stop=stop,
        on_progress=note,
        count=False,
        batch_size=1,
        workers=2,
    )
    assert time.monotonic() < stopped[0] + 2
    assert not summary.done and summary.failed == 0 and len(rows_of(output)) == 2


def test_a_document_of_bad_pages_is_given_up(load: Load, tmp_path: Path) -> None:
    path, output = write_endless_pdf(tmp_path / "a.pdf"), tmp_path / "output"
    summary = extract(settings(path), output, load, workers=0, max_pages_per_document=12, give_up_after=4)
    assert (summary.pages, summary.failed) == (0, 13)
    failures = [json.loads(line) for line in (output / "failures.jsonl").read_text().splitlines()]
    reasons = [line["reason"] for line in sorted(failures, key=lambda line: line["page"])]
    assert reasons[4:12] == ["it is not tried, since 4 pages before it failed in a row"] * 8
    assert not any("not tried" in reason for reason in reasons[:4]) and "the limit is 12 pages" in reasons[12]


def test_memory_stays_flat(tmp_path: Path) -> None:
    """A small version of a run over 10,000 pages of mixed sizes."""
    corpus, output = tmp_path / "corpus", tmp_path / "output"
    model = save_model(tmp_path / "model", side=64)
    corpus.mkdir()
    for number in range(20):
        picture(number, (100 + 20 * number, 500 - 20 * number)).save(corpus / f"{number}.png")
    for number in range(20, 500):
        os.link(corpus / f"{number % 20}.png", corpus / f"{number}.png")
    process, sizes = psutil.Process(), []

    def measure(progress: Progress) -> None:
        if progress.written % 50 == 0:
            sizes.append(process.memory_info().rss)

    def load() -> tuple[Any, Any]:
        return AutoModel.from_pretrained(model).eval(), AutoImageProcessor.from_pretrained(model)

    everything = settings(corpus, outputs=tuple(OUTPUTS))
    summary = extract(everything, output, load, batch_size=16, shard_size=50_000, on_progress=measure)
    assert summary.pages == 500
    growth = (max(sizes) - sizes[2]) / 1e6
    print(f"after 150 pages {sizes[2] / 1e6:.0f} MB, growth {growth:.1f} MB")
    assert growth < 60
