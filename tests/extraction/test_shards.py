"""Finished shards: files that are cut short, deleted or changed are noticed and named."""

import json
from pathlib import Path

import pyarrow.parquet
import pytest

from deepencoder.extraction.ledger import read_finished
from deepencoder.extraction.shards import (
    DamagedShardError,
    list_shards,
    read_batches,
    read_shards,
    record_tensors,
    set_aside,
    verify_shard,
)

from .corpus import write_pictures
from .helpers import Load, extract, settings


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


def flip_in_column(shard: Path, number: int) -> None:
    """Change the last byte of a column, which belongs to a page."""
    column = pyarrow.parquet.read_metadata(shard).row_group(0).column(number)
    start = column.dictionary_page_offset or column.data_page_offset
    flip(shard, start + column.total_compressed_size - 1)


def make_shard(load: Load, folder: Path, format: str) -> Path:
    extract(settings(write_pictures(folder / "corpus", 3), format=format), folder / "output", load, workers=0)
    (shard,) = list_shards(folder / "output")
    return shard


def test_a_parquet_file_that_is_cut_short_is_named(load: Load, tmp_path: Path) -> None:
    shard = make_shard(load, tmp_path, "parquet")
    (found,) = read_shards(tmp_path / "output")
    facts = {"name": f"data/{shard.name}", "rows": 3, "bytes": shard.stat().st_size}
    assert found == facts | {"footer": found["footer"]}
    with pytest.raises(DamagedShardError, match="instead of 5"):
        read_shards(tmp_path / "output", {f"data/{shard.name}": {"bytes": 5}})
    shard.write_bytes(shard.read_bytes()[:-20])
    for read in (read_shards, read_finished):
        with pytest.raises(ValueError, match=f"{shard.name} is damaged: .*--redo-damaged"):
            read(tmp_path / "output")


def test_the_pages_of_every_column_have_checksums(load: Load, tmp_path: Path) -> None:
    shard = make_shard(load, tmp_path, "parquet")
    assert sum(file["rows"] for file in verify_shard(shard, {})) == 3
    whole = shard.read_bytes()
    for number in range(pyarrow.parquet.read_metadata(shard).num_columns):
        flip_in_column(shard, number)
        with pytest.raises(DamagedShardError, match=shard.name):
            verify_shard(shard, {})
        shard.write_bytes(whole)
    flip_in_column(shard, 0)
    with pytest.raises(ValueError, match=f"{shard.name} is damaged"):
        read_finished(tmp_path / "output")


def test_the_manifest_knows_the_footers(load: Load, tmp_path: Path) -> None:
    shard = make_shard(load, tmp_path, "parquet")
    # No checksum of the format covers the names of columns.
    shard.write_bytes(shard.read_bytes().replace(b"num_tokens", b"num_TOKENS"))
    with pytest.raises(ValueError, match=f"{shard.name} is damaged: its footer has changed"):
        extract(settings(tmp_path / "corpus"), tmp_path / "output", load)


@pytest.mark.parametrize(("damage", "words"), [("cut", "bytes instead of"), ("deleted", "missing")])
def test_tensors_that_are_cut_short_or_deleted_are_named(load: Load, tmp_path: Path, damage: str, words: str) -> None:
    shard = make_shard(load, tmp_path, "safetensors")
    tensors = shard.with_suffix(".safetensors")
    assert [file["name"] for file in verify_shard(shard, {})] == [f"data/{shard.name}", f"data/{tensors.name}"]
    whole = tensors.read_bytes()
    if damage == "cut":
        tensors.write_bytes(whole[:-2])
    else:
        tensors.unlink()
    for _ in range(2):  # a run that is refused changes nothing
        with pytest.raises(ValueError, match=f"{shard.name} is damaged: {tensors.name} .*{words}"):
            extract(settings(tmp_path / "corpus", format="safetensors"), tmp_path / "output", load)
    tensors.write_bytes(whole)
    assert extract(settings(tmp_path / "corpus", format="safetensors"), tmp_path / "output", load).written == 0


def test_tensors_that_are_changed_are_found_when_they_are_read_back(load: Load, tmp_path: Path) -> None:
    shard = make_shard(load, tmp_path, "safetensors")
    tensors = shard.with_suffix(".safetensors")
    flip(tensors, -1)
    read_shards(tmp_path / "output")  # reads no features
    with pytest.raises(DamagedShardError, match=f"{tensors.name} has another content"):
        verify_shard(shard, {})
    # Earlier versions recorded nothing in the parquet file.
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(shard).replace_schema_metadata(None), shard)
    assert len(verify_shard(shard, {})) == 2
    tensors.write_bytes(tensors.read_bytes()[:-1])
    with pytest.raises(DamagedShardError, match=f"{tensors.name} cannot be read"):
        verify_shard(shard, {})


@pytest.mark.parametrize(
    "record", [b"", b"\xff", b"[]", b'{"bytes": "x", "sha256": 1}', b'{"bytes": 1}', b"[" * 10000]
)
def test_a_record_of_odd_shape_is_damage(tmp_path: Path, record: bytes) -> None:
    (tmp_path / "tensors").write_bytes(b"1234")
    (key,) = record_tensors(tmp_path / "tensors")
    path = tmp_path / "data" / "part-0-0.parquet"
    path.parent.mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"page": [1]}).replace_schema_metadata({key: record}), path)
    with pytest.raises(DamagedShardError):
        read_shards(tmp_path)


def test_rows_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"page": range(10), "other": range(10)}), path)
    found = list(read_batches(path, 4, ["page"]))
    assert [batch.num_rows for batch in found] == [4, 4, 2] and found[0].schema.names == ["page"]


def test_damaged_shards_are_set_aside_under_free_names(load: Load, tmp_path: Path) -> None:
    shard = make_shard(load, tmp_path, "safetensors")
    output, contents = tmp_path / "output", []
    for _ in range(2):
        contents.append(shard.read_bytes())
        set_aside(output, shard)
        assert list_shards(output) == [] and not list((output / "data").iterdir())
        summary = extract(settings(tmp_path / "corpus", format="safetensors"), output, load, workers=0)
        assert (summary.written, summary.pages) == (3, 3) and list_shards(output) == [shard]
    kept = sorted(path.name for path in (output / "damaged").iterdir())
    assert kept == [f"{shard.stem}.{n}.{suffix}" for n in (0, 1) for suffix in ("parquet", "safetensors")]
    assert [(output / "damaged" / name).read_bytes() for name in kept[::2]] == contents
    assert json.loads((output / "manifest.json").read_bytes())["pages"] == 3
