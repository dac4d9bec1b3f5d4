"""Shards: their content in each dtype and format, and what remains of one that cannot be written."""

import os
import resource
import signal
import stat
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file

from deepencoder.extraction import Page, PageFeatures, RunOptions, list_pages, load_page
from deepencoder.extraction.arrow import page_schema
from deepencoder.extraction.shard_writer import ShardWriter

from .corpus import write_pictures
from .helpers import Load, extract, names_of, rows_of, settings


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes_and_formats(load: Load, tmp_path: Path, dtype: str) -> None:
    corpus = write_pictures(tmp_path / "corpus", 3)
    model, processor = load()
    outputs = ("pooled", "tokens")
    extract(settings(corpus, dtype=dtype, outputs=outputs), tmp_path / "p", load)
    beside = settings(corpus, dtype=dtype, outputs=outputs, format="safetensors")
    extract(beside, tmp_path / "s", load, shard_size=700)
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


@pytest.mark.parametrize("format", ["parquet", "safetensors"])
def test_a_full_disk_keeps_finished_shards(load: Load, tmp_path: Path, format: str) -> None:
    """A limit on the size of files stands in for a full disk; the same calls raise the error."""
    corpus, output = write_pictures(tmp_path / "corpus", 20), tmp_path / "output"
    wanted = settings(corpus, format=format)
    extract(wanted, output, load, shard_size=64, stop=lambda: len(rows_of(output)) > 2)
    before = names_of(output)
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
        with pytest.raises(OSError):
            extract(wanted, output, load, workers=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert names_of(output) == before and not list((output / "data").glob(".*"))
    assert extract(wanted, output, load).pages == 20


def features(number: int) -> PageFeatures:
    return PageFeatures(Page("a", number), 4, 4, "", (1, 1), 7, {"pooled": np.full(8, number, np.float16)})


def make_writer(output: Path, **options: float) -> ShardWriter:
    output.mkdir(exist_ok=True)
    schema = page_schema([pyarrow.field("pooled", pyarrow.list_(pyarrow.float16(), 8))])
    return ShardWriter(output, schema, settings(output), RunOptions(**options))  # type: ignore[arg-type]


def test_a_shard_is_closed_by_its_size_and_by_its_age(tmp_path: Path) -> None:
    for options, sizes in (({"shard_size": 32}, [2, 2, 1]), ({"shard_seconds": 0.0}, [1] * 5), ({}, [5])):
        output = tmp_path / "-".join([*options, "output"])
        writer = make_writer(output, **options)
        for number in range(5):
            writer.add(features(number))
        writer.close()
        shards = sorted((output / "data").iterdir())
        assert [shard.name for shard in shards] == [f"part-00000-{n:06d}.parquet" for n in range(len(sizes))]
        assert [pyarrow.parquet.read_metadata(shard).num_rows for shard in shards] == sizes
        # A new writer continues the numbers.
        writer = make_writer(output)
        writer.add(features(5))
        writer.close()
        assert (output / "data" / f"part-00000-{len(sizes):06d}.parquet").exists()


def test_the_first_shards_of_a_run_are_closed_early(tmp_path: Path) -> None:
    """Otherwise a run that is killed more often than a shard is closed would never advance."""
    writer, ages = make_writer(tmp_path / "output", shard_seconds=600.0), []
    for number in range(6):
        ages.append(writer.shard_seconds)
        writer.add(features(number))
        writer.finish_shard()
    writer.close()
    assert ages == [60, 120, 240, 480, 600, 600]
    assert make_writer(tmp_path / "output", shard_seconds=30.0).shard_seconds == 30
    writer = ShardWriter(tmp_path / "output", writer.schema, settings(tmp_path), RunOptions(), first_seconds=0.0)
    before = len(list((tmp_path / "output" / "data").iterdir()))
    for number in range(3):
        writer.add(features(number))
        assert len(list((tmp_path / "output" / "data").iterdir())) == before + number + 1
    writer.close()


def test_shards_have_the_permissions_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        writer = make_writer(tmp_path / "output")
        writer.add(features(0))
        writer.close()
    finally:
        os.umask(before)
    (shard,) = (tmp_path / "output" / "data").iterdir()
    assert stat.S_IMODE(shard.stat().st_mode) == 0o640


def test_a_page_that_does_not_fit_the_columns_leaves_nothing(tmp_path: Path) -> None:
    writer = make_writer(tmp_path / "output")
    writer.add(features(0))
    writer.add(PageFeatures(Page("a", 1), outputs={"pooled": np.zeros(9, np.float16)}))
    with pytest.raises(ValueError, match="shape"):
        writer.finish_shard()
    assert not list((tmp_path / "output" / "data").iterdir())
    writer.add(features(2))  # the writer can still be used
    writer.close()
    assert [row["page"] for row in rows_of(tmp_path / "output")] == [2]
