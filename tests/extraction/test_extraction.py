"""A corpus into shards, in this process: what is written, what goes on, what is refused."""

import json
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import psutil
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from deepencoder.extraction.batches import OUTPUTS
from deepencoder.extraction.extraction import BadPageError, ExtractionSettings, Progress, extract_features
from deepencoder.extraction.listing import list_pages
from deepencoder.extraction.pages import load_page

from .corpus import picture, save_model, write_bad_pages, write_parquet, write_pdf, write_pictures, write_tar

Load = Callable[[], tuple[Any, Any]]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    torch.manual_seed(0)
    folder = save_model(tmp_path_factory.mktemp("models") / "fixed")
    loaded = AutoModel.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)
    return lambda: loaded


@pytest.fixture(scope="module")
def load_tiled(tmp_path_factory: pytest.TempPathFactory) -> Load:
    torch.manual_seed(0)
    folder = save_model(tmp_path_factory.mktemp("models") / "tiled", crop_to_patches=True)
    loaded = AutoModel.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)
    return lambda: loaded


def settings(*sources: Path, **fields: Any) -> ExtractionSettings:
    facts = {"model": "m", "commit": "c", "mode": "custom", "outputs": ("pooled",)} | fields
    return ExtractionSettings(sources=tuple(map(str, sources)), **facts)  # type: ignore[arg-type]


def rows_of(output: Path) -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(output / "data").to_pylist() if (output / "data").exists() else []


def list_pages_of(folder: Path) -> list[str]:
    return [page.source for page in list_pages([folder])]


def names_of(output: Path) -> list[tuple[str, int]]:
    return sorted((row["source"], row["page"]) for row in rows_of(output))


def test_shards_hold_what_the_model_says(load_tiled: Load, tmp_path: Path) -> None:
    corpus, output = tmp_path / "corpus", tmp_path / "output"
    write_pictures(corpus, 5)
    picture(7, (400, 130)).save(corpus / "wide.png")
    write_pdf(corpus / "a.pdf", 2)
    write_tar(corpus / "b.tar", 2)
    write_parquet(corpus / "c.parquet", 2)
    summary = extract_features(settings(corpus, outputs=OUTPUTS), output, load_tiled, shard_size=10_000)
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
    assert len(set(opened["sha256"])) == 8  # archive and table hold the first two pictures again, the PDF its own
    manifest = json.loads((output / "manifest.json").read_bytes())
    assert manifest["done"] and manifest["pages"] == 12 and manifest["settings"]["outputs"] == list(OUTPUTS)
    for shard in manifest["shards"]:
        assert (output / shard["name"]).stat().st_size == shard["bytes"]
    assert sum(shard["rows"] for shard in manifest["shards"]) == 12


def test_work_that_is_done_is_not_done_again(load: Load, tmp_path: Path) -> None:
    corpus, output = tmp_path / "corpus", tmp_path / "output"
    write_pictures(corpus, 3)
    bad = write_bad_pages(corpus / "bad")
    first = extract_features(settings(corpus), output, load)
    assert (first.written, first.newly_failed) == (3, len(bad))
    failures = [json.loads(line) for line in (output / "failures.jsonl").read_text().splitlines()]
    assert {Path(line["source"]).name: line["page"] for line in failures} == dict.fromkeys(bad, 0)
    assert all(line["reason"] for line in failures)

    def refuse() -> tuple[Any, Any]:
        raise AssertionError("the model is not needed")

    files = sorted(path.name for path in output.rglob("*"))
    second = extract_features(settings(corpus), output, refuse)
    assert (second.written, second.newly_failed, second.pages, second.failed) == (0, 0, 3, len(bad))
    assert sorted(path.name for path in output.rglob("*")) == files

    picture(9).save(corpus / "new.png")
    picture(10).save(corpus / "bad" / "corrupt.png")
    third = extract_features(settings(corpus), output, load)
    assert (third.written, third.pages) == (1, 4)
    fourth = extract_features(settings(corpus), output, load, retry_failed=True)
    assert (fourth.written, fourth.pages, fourth.failed) == (1, 5, len(bad) - 1)


def test_other_settings_and_other_folders_are_refused(load: Load, tmp_path: Path) -> None:
    corpus, output = write_pictures(tmp_path / "corpus", 2), tmp_path / "output"
    extract_features(settings(corpus), output, load)
    changed = settings(corpus, mode="tiny", commit="d", outputs=("tokens",), dtype="float32", dpi=72)
    with pytest.raises(ValueError) as caught:
        extract_features(changed, output, load)
    for words in (
        "mode was 'custom' and is 'tiny'",
        "commit was 'c' and is 'd'",
        "dpi was 144",
        "dtype was",
        "outputs",
    ):
        assert words in str(caught.value)
    with pytest.raises(ValueError, match="earlier work"):
        extract_features(settings(corpus), output, load, resume=False)
    with pytest.raises(ValueError, match="not empty"):
        extract_features(settings(corpus), corpus, load)
    with pytest.raises(ValueError, match="lies in the source"):
        extract_features(settings(corpus), corpus / "output", load)
    with pytest.raises(ValueError, match="lies in the source"):
        extract_features(settings(tmp_path / "*"), tmp_path / "other", load)
    assert len(list_pages_of(corpus)) == 2
    assert len(rows_of(output)) == 2
    (output / "manifest.json").write_text("{nonsense")
    with pytest.raises(ValueError, match="damaged"):
        extract_features(settings(corpus), output, load)


def test_a_glob_does_not_match_the_output_itself(load: Load, tmp_path: Path) -> None:
    write_parquet(tmp_path / "corpus.parquet", 3)
    for _ in range(2):
        summary = extract_features(settings(tmp_path / "**" / "*.parquet"), tmp_path / "output", load)
        assert (summary.pages, summary.failed, summary.shards) == (3, 0, 1)
    assert list((tmp_path / "output").rglob("*.parquet"))


def test_an_output_has_one_run_at_a_time(load: Load, tmp_path: Path) -> None:
    corpus, output = write_pictures(tmp_path / "corpus", 2), tmp_path / "output"
    refused = []

    def run_another(_: Progress) -> None:
        with pytest.raises(ValueError, match="in use"):
            extract_features(settings(corpus), output, load)
        refused.append(True)

    extract_features(settings(corpus), output, load, on_progress=run_another)
    assert len(refused) == 2 and len(rows_of(output)) == 2

    # A process of another rank that outlived the first one still writes.
    alone = {"rank": 1, "world_size": 2, "gather": lambda value: [value if value is not None else "a summary"]}
    write_pictures(corpus, 30)
    extract_features(settings(corpus), output, load, on_progress=run_another, **alone)
    assert len(refused) > 2
    assert extract_features(settings(corpus), output, load).pages == 30


def test_a_refusal_ends_every_process(load: Load, tmp_path: Path) -> None:
    """Else those that wait for the first one would wait for days."""
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
            extract_features(wanted, output, load, rank=rank, world_size=2, gather=gather)
        return str(error.value)

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(run, (0, 1))
    assert first == second
    assert [entry.name for entry in output.iterdir() if not entry.name.startswith(".")] == ["notes.txt"]


def test_the_manifest_is_not_done_while_a_run_goes_on(load: Load, tmp_path: Path) -> None:
    corpus, output = tmp_path / "corpus", tmp_path / "output"
    write_pictures(corpus, 2)
    extract_features(settings(corpus), output, load, workers=0)
    first = json.loads((output / "manifest.json").read_text())
    assert first["done"] and first["pages"] == 2
    picture(9, (40, 50)).save(corpus / "z.png")
    seen = []

    def look(_: Progress) -> None:
        seen.append(json.loads((output / "manifest.json").read_text()))

    extract_features(settings(corpus), output, load, workers=0, on_progress=look)
    assert seen == [first | {"done": False}]
    last = json.loads((output / "manifest.json").read_text())
    assert last["done"] and last["pages"] == 3


def test_what_a_kill_left_is_cleared_away(load: Load, tmp_path: Path) -> None:
    corpus, output = write_pictures(tmp_path / "corpus", 3), tmp_path / "output"
    extract_features(settings(corpus), output, load)
    shard = output / "data" / "part-00000-000000.parquet"
    half = output / "data" / ".part-00000-000001.parquet.tmp"
    half.write_bytes(shard.read_bytes()[:100])
    (output / "data" / "part-00000-000001.safetensors").write_bytes(b"without its table")
    torn = json.dumps({"source": str(corpus / "00000.png"), "page": 9, "reason": "x"})
    (output / ".failures-00001.jsonl").write_text(f'{torn}\n{{"source": "half a li')
    summary = extract_features(settings(corpus), output, load)
    assert summary.pages == 3 and summary.failed == 1 and summary.written == 0
    assert sorted(path.name for path in (output / "data").iterdir()) == [shard.name]
    # What Ray finished and did not move is moved by either engine, before it could be done again.
    (output / ".ray").mkdir()
    shard.replace(output / ".ray" / shard.name)
    (output / ".ray" / "half.parquet").write_bytes(b"PAR1")
    assert extract_features(settings(corpus), output, load).written == 0
    assert not list((output / ".ray").iterdir())
    (shard,) = (output / "data").iterdir()
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(ValueError, match="part-.*.parquet is damaged"):
        extract_features(settings(corpus), output, load)
    shard.unlink()  # as it says
    assert extract_features(settings(corpus), output, load).written == 3


def test_strict_ends_at_the_first_bad_page(load: Load, tmp_path: Path) -> None:
    corpus, output = write_pictures(tmp_path / "corpus", 4), tmp_path / "output"
    (corpus / "00002.png").write_bytes(b"nonsense")
    with pytest.raises(BadPageError, match="00002.png, page 0: it is not an image"):
        extract_features(settings(corpus), output, load, strict=True)
    assert [Path(name).name for name, _ in names_of(output)] == ["00000.png", "00001.png"]
    assert not (output / "failures.jsonl").exists()
    with pytest.raises(BadPageError):  # it is not taken for done
        extract_features(settings(corpus), output, load, strict=True)
    assert extract_features(settings(corpus), output, load).pages == 3


def test_processes_share_a_corpus_and_any_number_goes_on(load: Load, tmp_path: Path) -> None:
    corpus, output = write_pictures(tmp_path / "corpus", 50), tmp_path / "output"
    stop = lambda: len(rows_of(output)) > 0  # noqa: E731
    extract_features(settings(corpus), output, load, stop=stop, shard_size=64, batch_size=4)
    some = len(rows_of(output))
    assert 0 < some < 50 and not json.loads((output / "manifest.json").read_bytes())["done"]
    for rank in (1, 2):  # one after the other, each believing that the others run
        gathered: list[Any] = []

        def gather(value: Any, gathered: list[Any] = gathered) -> list[Any]:
            gathered.append(value)
            return [value if value is not None else "the main process' summary"]

        extract_features(
            settings(corpus), output, load, rank=rank, world_size=3, gather=gather, shard_size=64 * 5, workers=0
        )
        assert gathered[1][0] > 0
    summary = extract_features(settings(corpus), output, load, rank=0, world_size=1)
    assert summary.done and summary.pages == 50
    names = names_of(output)
    assert len(set(names)) == len(names) == 50
    ranks = {path.name.split("-")[1] for path in (output / "data").iterdir()}
    assert ranks == {"00000", "00001", "00002"}


def test_files_that_come_while_processes_list_are_done_once(load: Load, tmp_path: Path) -> None:
    corpus, output = write_pictures(tmp_path / "corpus", 40), tmp_path / "output"
    before = list_pages_of(corpus)
    for rank in (0, 1):  # of two, one after the other; the second finds more
        gather = lambda value: [value if value is not None else "the main process' summary"]  # noqa: E731
        extract_features(settings(corpus), output, load, rank=rank, world_size=2, gather=gather, workers=0)
        for number in range(20):
            picture(100 + number).save(corpus / f"0-{number}.png")
    names = [name for name, _ in names_of(output)]
    assert len(set(names)) == len(names) and set(before) <= set(names)
    assert extract_features(settings(corpus), output, load).pages == 60


def test_an_error_while_listing_keeps_what_was_written(load: Load, tmp_path: Path) -> None:
    corpus, output = write_pictures(tmp_path / "corpus", 3), tmp_path / "output"

    class Interrupted(ExtractionSettings):
        def list_pages(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
            yield from super().list_pages(*args, **kwargs)
            raise ConnectionError("the stream ended")

    facts = asdict(settings(corpus))
    with pytest.raises(ConnectionError):
        extract_features(Interrupted(**facts), output, load, workers=0, count=False, batch_size=1)
    assert len(rows_of(output)) == 2  # the third waited for its batch


def test_a_stop_ends_the_counting_too(tmp_path: Path) -> None:
    corpus, asked = write_pictures(tmp_path / "corpus", 20), []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 5

    def load() -> Any:
        raise AssertionError("there is nothing to do for a model")

    summary = extract_features(settings(corpus), tmp_path / "output", load, stop=stop)
    assert (summary.pages, summary.done) == (0, False) and len(asked) < 12
    assert not (tmp_path / "output" / "data").exists()


def test_a_stop_writes_what_there_is(load: Load, tmp_path: Path) -> None:
    corpus, output = write_pictures(tmp_path / "corpus", 12), tmp_path / "output"
    seen: list[int] = []
    summary = extract_features(
        settings(corpus),
        output,
        load,
        batch_size=4,
        stop=lambda: bool(seen),
        on_progress=lambda progress: seen.append(progress.written),
    )
    assert not summary.done and len(rows_of(output)) == summary.written == 4  # the batch at hand, and no more
    assert extract_features(settings(corpus), output, load).pages == 12


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes_and_formats(load: Load, tmp_path: Path, dtype: str) -> None:
    corpus = write_pictures(tmp_path / "corpus", 3)
    model, processor = load()
    outputs = ("pooled", "tokens")
    extract_features(settings(corpus, dtype=dtype, outputs=outputs), tmp_path / "p", load)
    beside = settings(corpus, dtype=dtype, outputs=outputs, format="safetensors")
    extract_features(beside, tmp_path / "s", load, shard_size=700)
    found = []
    for shard in sorted((tmp_path / "s" / "data").glob("*.parquet")):
        tensors = load_file(shard.with_suffix(".safetensors"))
        for row, facts in enumerate(pyarrow.parquet.read_table(shard).to_pylist()):
            found.append((facts, tensors[f"{row}.pooled"], tensors[f"{row}.tokens"]))
    assert len(found) == 3 and "pooled" not in found[0][0]
    for row, (facts, pooled, tokens) in zip(rows_of(tmp_path / "p"), found, strict=True):
        assert facts["source"] == row["source"] and pooled.dtype == tokens.dtype == getattr(torch, dtype)
        with torch.no_grad():
            image = load_page(next(list_pages([row["source"]])))
            expected = model(**processor(image, return_tensors="pt"))
        tolerance = {"float16": 4e-3, "bfloat16": 3e-2, "float32": 2e-5}[dtype]
        np.testing.assert_allclose(row["pooled"], expected.pooler_output[0], atol=tolerance)
        torch.testing.assert_close(torch.tensor(row["tokens"]), tokens.float(), atol=0, rtol=0)
        torch.testing.assert_close(tokens.float(), expected.last_hidden_state[0], atol=tolerance, rtol=0)


def test_a_full_disk_keeps_finished_shards(load: Load, tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk; the error comes from the same calls."""
    corpus, output = write_pictures(tmp_path / "corpus", 20), tmp_path / "output"
    extract_features(settings(corpus), output, load, shard_size=64, stop=lambda: len(rows_of(output)) > 2)
    before = names_of(output)
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, old[1]))
        with pytest.raises(OSError):
            extract_features(settings(corpus), output, load, workers=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert names_of(output) == before and not list((output / "data").glob(".*"))
    assert extract_features(settings(corpus), output, load).pages == 20


def test_memory_stays_flat(tmp_path: Path) -> None:
    """A smaller version of a run over 10,000 pages, of mixed sizes."""
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

    everything = settings(corpus, outputs=OUTPUTS)
    summary = extract_features(everything, output, load, batch_size=16, shard_size=50_000, on_progress=measure)
    assert summary.pages == 500
    growth = (max(sizes) - sizes[2]) / 1e6
    print(f"after 150 pages {sizes[2] / 1e6:.0f} MB, growth {growth:.1f} MB")
    assert growth < 60
