"""The ledger: which pages are done, read from the shards and from the lists of failed pages."""

import json
from pathlib import Path

import numpy as np
import pyarrow

from deepencoder.extraction import Page, PageFeatures, RunOptions
from deepencoder.extraction.arrow import page_schema
from deepencoder.extraction.ledger import FailureLog, key_of, merge_failures, read_finished, read_keys
from deepencoder.extraction.shard_writer import ShardWriter

from .helpers import settings


def write_shard(output: Path, *pages: Page) -> Path:
    schema = page_schema([pyarrow.field("pooled", pyarrow.list_(pyarrow.float16(), 2))])
    writer = ShardWriter(output, schema, settings(output), RunOptions())
    for page in pages:
        writer.add(PageFeatures(page, outputs={"pooled": np.zeros(2, np.float16)}))
    writer.close()
    return max((output / "data").iterdir())


def test_written_and_failed_pages_are_finished(tmp_path: Path) -> None:
    assert not read_finished(tmp_path)("a", 0)
    write_shard(tmp_path, Page("a", 0), Page("a", 1))
    shard = write_shard(tmp_path, Page("b", 7))
    FailureLog(tmp_path, 3).add(PageFeatures(Page("c", 2), error="it is empty"))
    merge_failures(tmp_path)
    is_finished = read_finished(tmp_path)
    names = [("a", 0), ("a", 1), ("b", 7), ("c", 2)]
    assert all(is_finished(*name) for name in names)
    assert not any(is_finished(*name) for name in (("a", 2), ("b", 0), ("c", 7), ("a0", 0)))
    assert read_keys(shard).tolist() == [key_of("b", 7)]


def test_keys_tell_names_from_numbers() -> None:
    keys = {key_of(source, page) for source in ("a", "a1", "1a", "") for page in (0, 1, 11)}
    assert len(keys) == 12 and max(keys) < 1 << 64


def test_failures_of_all_processes_are_merged(tmp_path: Path) -> None:
    assert merge_failures(tmp_path) == [] and not list(tmp_path.iterdir())
    for rank in (0, 1):
        log = FailureLog(tmp_path, rank)
        log.add(PageFeatures(Page("a", rank), error="it is empty"))
        log.add(PageFeatures(Page("b", 0), error=f"by {rank}"))
    log.path.write_text(log.path.read_text() + '{"source": "half a li')  # its process was killed
    merged = merge_failures(tmp_path)
    assert {(line["source"], line["page"]): line["reason"] for line in merged} == {
        ("a", 0): "it is empty",
        ("a", 1): "it is empty",
        ("b", 0): "by 1",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["failures.jsonl"]
    lines = (tmp_path / "failures.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == merged == merge_failures(tmp_path)


def test_lines_that_are_no_failures_are_skipped(tmp_path: Path) -> None:
    good = {"source": "a", "page": 1, "reason": "it is empty"}
    odd = [b"1", b"[]", b"null", b'"x"', b"{}", b"\xff", b"[" * 100_000, b'{"source": 1, "page": 2, "reason": "x"}']
    odd += [b'{"source": "a", "page": "1", "reason": "x"}', b'{"source": "a", "page": []}', b"9" * 5000]
    strange = json.dumps({"source": "\udcff", "page": 0, "reason": "\udcff"}).encode()
    content = b"\n".join([*odd, json.dumps(good).encode(), strange])
    (tmp_path / "failures.jsonl").write_bytes(content)
    (tmp_path / ".failures-00001.jsonl").write_bytes(content)
    is_finished = read_finished(tmp_path)
    assert is_finished("a", 1) and not is_finished("a", 2)
    assert merge_failures(tmp_path)[0] == good and len(merge_failures(tmp_path)) == 2
