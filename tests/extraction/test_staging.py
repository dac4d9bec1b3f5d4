"""Files that Ray staged: each page becomes a row once, whatever a run and its processes left behind."""

from pathlib import Path

from deepencoder.extraction import Page
from deepencoder.extraction.shards import list_shards
from deepencoder.extraction.staging import collect_left, collect_staged, new_staging

from .helpers import names_of
from .test_ledger import write_shard


def stage(folder: Path, name: str, *pages: Page) -> Path:
    made = folder / f"made-{name}"
    made.mkdir(parents=True)
    return write_shard(made, *pages).rename(folder / f"{name}.parquet")


def test_a_run_takes_only_its_own_files(tmp_path: Path) -> None:
    output = tmp_path / "output"
    mine, other = new_staging(output), new_staging(output)
    assert mine != other
    stage(mine, "mine", Page("a", 0))
    (mine / "half.parquet").write_bytes(b"PAR1")
    late = stage(other, "late", Page("a", 0))
    collect_staged(output, mine)
    assert names_of(output) == [("a", 0)] and not mine.exists() and late.exists()
    # When the next run opens the folder, the late file brings no page a second time.
    collect_left(output)
    assert names_of(output) == [("a", 0)] and not (output / ".ray").exists() and not list(output.glob(".ray*"))


def test_what_killed_runs_left_is_taken_once(tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.mkdir()
    write_shard(output, Page("a", 0))
    first, second = new_staging(output), new_staging(output)
    stage(first, "a-and-b", Page("a", 0), Page("b", 0))
    stage(first, "c", Page("c", 0))
    stage(second, "c-again", Page("c", 0))
    stage(second, "d", Page("d", 0))
    (second / "half.parquet").write_bytes(second.joinpath("d.parquet").read_bytes()[:-9])
    stage(output / ".ray", "of-an-earlier-version", Page("e", 0))
    (output / ".ray").rename(output / ".ray-left-x")  # the run that opened the folder was killed, too
    collect_left(output)
    assert names_of(output) == [(name, 0) for name in "acde"]
    assert not list(output.glob(".ray*")) and len(list_shards(output)) == 4
    collect_left(output)
    assert len(list_shards(output)) == 4
