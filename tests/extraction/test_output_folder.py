"""The output folder: which runs it accepts, one at a time, and how it describes itself."""

import json
from pathlib import Path

import pyarrow.parquet
import pytest

from deepencoder.extraction import Progress, verify_output
from deepencoder.extraction.output_folder import lock_output, lock_rank

from .corpus import picture, write_pictures
from .helpers import Load, alone, extract, list_pages_of, rows_of, settings
from .test_shards import flip_in_column


def test_other_settings_and_other_folders_are_refused(load: Load, tmp_path: Path) -> None:
    corpus, output = write_pictures(tmp_path / "corpus", 2), tmp_path / "output"
    extract(settings(corpus), output, load)
    changed = settings(corpus, mode="tiny", commit="d", outputs=("tokens",), dtype="float32", dpi=72)
    with pytest.raises(ValueError) as caught:
        extract(changed, output, load)
    for words in (
        "mode was 'custom' and is 'tiny'",
        "commit was 'c' and is 'd'",
        "dpi was 144",
        "dtype was",
        "outputs",
    ):
        assert words in str(caught.value)
    with pytest.raises(ValueError, match="earlier work"):
        extract(settings(corpus), output, load, resume=False)
    with pytest.raises(ValueError, match="not empty"):
        extract(settings(corpus), corpus, load)
    with pytest.raises(ValueError, match="lies in the source"):
        extract(settings(corpus), corpus / "output", load)
    with pytest.raises(ValueError, match="lies in the source"):
        extract(settings(tmp_path / "*"), tmp_path / "other", load)
    assert len(list_pages_of(corpus)) == 2
    assert len(rows_of(output)) == 2
    (output / "manifest.json").write_text("{nonsense")
    with pytest.raises(ValueError, match="damaged"):
        extract(settings(corpus), output, load)


def test_an_output_has_one_run_at_a_time(load: Load, tmp_path: Path) -> None:
    corpus, output = write_pictures(tmp_path / "corpus", 2), tmp_path / "output"
    refused = []

    def run_another(_: Progress) -> None:
        with pytest.raises(ValueError, match="in use"):
            extract(settings(corpus), output, load)
        refused.append(True)

    extract(settings(corpus), output, load, on_progress=run_another)
    assert len(refused) == 2 and len(rows_of(output)) == 2

    # A process of another rank may outlive the first process and still write.
    write_pictures(corpus, 30)
    extract(settings(corpus), output, load, alone(1, 2), on_progress=run_another)
    assert len(refused) > 2
    assert extract(settings(corpus), output, load).pages == 30


def test_the_manifest_is_not_done_while_a_run_goes_on(load: Load, tmp_path: Path) -> None:
    corpus, output = tmp_path / "corpus", tmp_path / "output"
    write_pictures(corpus, 2)
    extract(settings(corpus), output, load, workers=0)
    first = json.loads((output / "manifest.json").read_text())
    assert first["done"] and first["pages"] == 2
    picture(9, (40, 50)).save(corpus / "z.png")
    seen = []

    def look(_: Progress) -> None:
        seen.append(json.loads((output / "manifest.json").read_text()))

    extract(settings(corpus), output, load, workers=0, on_progress=look)
    assert seen == [first | {"done": False}]
    last = json.loads((output / "manifest.json").read_text())
    assert last["done"] and last["pages"] == 3


def test_what_a_kill_left_is_cleared_away(load: Load, tmp_path: Path) -> None:
    corpus, output = write_pictures(tmp_path / "corpus", 3), tmp_path / "output"
    extract(settings(corpus), output, load)
    shard = output / "data" / "part-00000-000000.parquet"
    half = output / "data" / ".part-00000-000001.parquet.tmp"
    half.write_bytes(shard.read_bytes()[:100])
    (output / "data" / "part-00000-000001.safetensors").write_bytes(b"without its table")
    torn = json.dumps({"source": str(corpus / "00000.png"), "page": 9, "reason": "x"})
    (output / ".failures-00001.jsonl").write_text(f'{torn}\n{{"source": "half a li')
    summary = extract(settings(corpus), output, load)
    assert summary.pages == 3 and summary.failed == 1 and summary.written == 0
    assert sorted(path.name for path in (output / "data").iterdir()) == [shard.name]
    # Either engine moves the complete files that Ray left, so that their pages are not extracted again.
    (output / ".ray").mkdir()
    shard.replace(output / ".ray" / shard.name)
    (output / ".ray" / "half.parquet").write_bytes(b"PAR1")
    assert extract(settings(corpus), output, load).written == 0
    assert not (output / ".ray").exists()


def test_damaged_shards_are_redone_on_request(load: Load, tmp_path: Path) -> None:
    corpus, output = write_pictures(tmp_path / "corpus", 4), tmp_path / "output"
    extract(settings(corpus), output, load, shard_size=1, workers=0)
    first, second, third, fourth = sorted((output / "data").iterdir())
    before = rows_of(output)
    first.write_bytes(first.read_bytes()[:-20])  # seen at once
    flip_in_column(second, pyarrow.parquet.read_metadata(second).num_columns - 1)  # seen when the features are read
    third.unlink()
    found = verify_output(output)
    assert (found.pages, found.shards, found.bytes) == (1, 1, fourth.stat().st_size)
    assert sorted(found.damaged) == [f"data/{shard.name}" for shard in (first, second, third)]
    assert found.damaged[f"data/{third.name}"] == "it is missing"
    with pytest.raises(ValueError, match=f"{first.name} is damaged"):
        extract(settings(corpus), output, load)
    summary = extract(settings(corpus), output, load, redo_damaged=True)
    assert (summary.written, summary.pages) == (3, 4) and len(list((output / "damaged").iterdir())) == 2
    assert sorted(rows_of(output), key=str) == sorted(before, key=str)
    found = verify_output(output)
    assert (found.pages, found.damaged) == (4, {})


def test_new_shards_may_have_the_names_of_deleted_ones(load: Load, tmp_path: Path) -> None:
    corpus, output = write_pictures(tmp_path / "corpus", 2), tmp_path / "output"
    extract(settings(corpus), output, load)
    (shard,) = (output / "data").iterdir()
    shard.unlink()
    picture(9).save(corpus / "new.png")
    with pytest.raises(KeyboardInterrupt):  # a run that is killed after its first shard

        def kill(_: Progress) -> None:
            if list((output / "data").glob("part*")):
                raise KeyboardInterrupt

        extract(settings(corpus), output, load, shard_size=1, workers=0, on_progress=kill)
    assert shard.exists()
    assert extract(settings(corpus), output, load).pages == 3


def test_only_the_folder_of_an_extraction_is_verified(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no extraction"):
        verify_output(tmp_path)


def test_the_card_describes_the_outputs(load: Load, tmp_path: Path) -> None:
    corpus = write_pictures(tmp_path / "corpus", 1)
    for format, place in (("parquet", "columns of the shards"), ("safetensors", "safetensors file beside each")):
        wanted = settings(corpus, outputs=("pooled", "tokens"), format=format)
        extract(wanted, tmp_path / format, load, workers=0)
        card = (tmp_path / format / "README.md").read_text()
        assert "- `pooled`: one vector per page" in card and "- `tokens`: tokens of the global view" in card
        assert "vision_tokens`:" not in card and place in card


def test_locks_end_with_their_block(tmp_path: Path) -> None:
    for _ in range(2):
        with lock_output(tmp_path / "output"), lock_rank(tmp_path / "output", 1):
            with pytest.raises(ValueError, match="in use"), lock_rank(tmp_path / "output", 1):
                pass


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b"\xff",
        b"1",
        b"null",
        b"{}",
        b'{"settings": []}',
        b'{"settings": {}, "shards": {}}',
        b'{"settings": {}, "shards": [1]}',
        b'{"settings": {}, "shards": [{"name": 1, "bytes": 1}]}',
        b'{"settings": {}, "shards": [{"name": "data/x"}]}',
    ],
    ids=range(10),
)
def test_manifests_of_odd_shape_are_named(load: Load, tmp_path: Path, content: bytes) -> None:
    corpus, output = write_pictures(tmp_path / "corpus", 1), tmp_path / "output"
    output.mkdir()
    (output / "manifest.json").write_bytes(content)
    for act in (lambda: extract(settings(corpus), output, load), lambda: verify_output(output)):
        with pytest.raises(ValueError, match="manifest.json is damaged") as caught:
            act()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    (output / "manifest.json").write_text('{"settings": {"sources": 1, "other": []}, "source_places": 3}')
    with pytest.raises(ValueError, match="made with other settings"):
        extract(settings(corpus), output, load)


def test_an_output_that_is_no_folder_is_refused(load: Load, tmp_path: Path) -> None:
    corpus = write_pictures(tmp_path / "corpus", 1)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="output .*file is a file, not a folder"):
        extract(settings(corpus), tmp_path / "file", load)
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match="output .*link is a link to .*gone, which does not exist"):
        extract(settings(corpus), tmp_path / "link", load)
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "gone").exists()


@pytest.mark.parametrize("spelling", ["pages", "pages/*.png"])
def test_the_same_spelling_in_another_folder_is_refused(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    output = tmp_path / "output"
    for name, first in (("a", 0), ("b", 5)):
        (tmp_path / name / "pages").mkdir(parents=True)
        picture(first).save(tmp_path / name / "pages" / "0.png")
    monkeypatch.chdir(tmp_path / "a")
    for _ in range(2):
        extract(settings(Path(spelling)), output, load, workers=0)
    assert [row["source"] for row in rows_of(output)] == ["pages/0.png"]  # as it is spelled
    manifest = json.loads((output / "manifest.json").read_bytes())
    assert manifest["source_places"] == [str(tmp_path / "a" / spelling)]
    monkeypatch.chdir(tmp_path / "b")
    with pytest.raises(ValueError, match="sources were .*/a/pages.* and are .*/b/pages"):
        extract(settings(Path(spelling)), output, load, workers=0)
    # Manifests of earlier versions have no places; nor has one whose owner says that the corpus moved.
    del manifest["source_places"]
    (output / "manifest.json").write_text(json.dumps(manifest))
    assert extract(settings(Path(spelling)), output, load, workers=0).written == 0
    assert json.loads((output / "manifest.json").read_bytes())["source_places"] == [str(tmp_path / "b" / spelling)]


def test_settings_of_odd_names_are_reported_in_one_line(load: Load, tmp_path: Path) -> None:
    corpus, output = write_pictures(tmp_path / "corpus", 1), tmp_path / "output"
    output.mkdir()
    (output / "manifest.json").write_text(json.dumps({"settings": {"a\nb": 1, "x" * 9999: 2}}))
    with pytest.raises(ValueError, match="made with other settings") as caught:
        extract(settings(corpus), output, load)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 2000


def test_the_vectors_of_a_folder_are_described_and_stay_the_same(load: Load, tmp_path: Path) -> None:
    corpus, output = write_pictures(tmp_path / "corpus", 1), tmp_path / "output"
    vectors = settings(corpus, outputs=("multi_vector",), vector_pool=1, vector_width=8)
    extract(vectors, output, load, workers=0)
    (row,) = rows_of(output)
    assert [len(vector) for vector in row["multi_vector"]] == 4 * [8]
    card = (output / "README.md").read_text()
    assert "1 x 1 tokens" in card and "more than 8 values" in card and "make_projection" in card
    with pytest.raises(ValueError, match="vector_pool was 1 and is 2; vector_width was 8 and is 128"):
        extract(settings(corpus, outputs=("multi_vector",)), output, load)


def test_folders_of_earlier_versions_are_continued(load: Load, tmp_path: Path) -> None:
    """Version 0.1 had no settings of vectors."""
    corpus, output = write_pictures(tmp_path / "corpus", 1), tmp_path / "output"
    extract(settings(corpus), output, load, workers=0)
    manifest = json.loads((output / "manifest.json").read_bytes())
    manifest["settings"] = {name: value for name, value in manifest["settings"].items() if "vector" not in name}
    (output / "manifest.json").write_text(json.dumps(manifest))
    write_pictures(corpus, 2)
    assert extract(settings(corpus), output, load, workers=0).written == 1
