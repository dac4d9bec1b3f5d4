"""Extraction with Ray Data: the same rows as the local engine, despite killed actors and bad pages."""

import json
import os
import pickle
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from deepencoder import DeepEncoder, DeepEncoderConfig, DeepEncoderImageProcessor
from deepencoder.extraction import BadPageError, ExtractionSettings, ModelError, RunOptions, verify_output
from deepencoder.extraction.pages import FailedPage
from deepencoder.extraction.ray_engine import _Lister, _restore, extract_with_ray

from .helpers import extract
from .test_shards import flip_in_column

ray = pytest.importorskip("ray")

PAGES = 12
FIELDS = {"size": {"height": 64, "width": 64}, "crop_to_patches": False}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "pages"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(PAGES):
        pixels = random.integers(0, 256, (40 + number, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG nothing")
    return folder


def make_settings(corpus: Path) -> ExtractionSettings:
    return ExtractionSettings((str(corpus),), "tiny", "0", "custom", ("pooled", "tokens"), "float32")


class Load:
    """Makes the model. With a marker file, the process dies once after it has encoded some pages."""

    def __init__(self, marker: Path | None = None) -> None:
        self.marker = marker

    def __call__(self) -> tuple[Any, Any]:
        import torch

        torch.manual_seed(0)
        model = DeepEncoder(DeepEncoderConfig.tiny()).eval()
        if self.marker is not None:
            calls: list[int] = []

            def die_once(module: Any, args: Any, output: Any) -> None:
                calls.append(1)
                if len(calls) == 3:
                    try:
                        os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
                    except FileExistsError:
                        return
                    os.kill(os.getpid(), signal.SIGKILL)

            model.register_forward_hook(die_once)
        return model, DeepEncoderImageProcessor(**FIELDS)


class Deadly(DeepEncoderImageProcessor):
    """One page kills the process that prepares it, as a segmentation fault does, and one never ends."""

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        if images.height == 43:
            os.kill(os.getpid(), signal.SIGKILL)
        if images.height == 45:
            time.sleep(600)
        return super().__call__(images, *args, **kwargs)


def run(
    settings: ExtractionSettings,
    output: Path,
    load: Load,
    kind: Any = DeepEncoderImageProcessor,
    actors: int | None = None,
    **options: Any,
) -> Any:
    run_options = RunOptions(batch_size=1, **options)
    return extract_with_ray(settings, output, load, kind(**FIELDS), run_options, actors=actors)


def rows(output: Path) -> dict[tuple[str, int], Any]:
    table = pyarrow.parquet.read_table(output / "data")
    found = {(row["source"], row["page"]): row for row in table.to_pylist()}
    assert len(found) == len(table), "a page appears twice"
    return found


def test_an_actor_killed_half_way_loses_no_page(cluster: None, corpus: Path, tmp_path: Path) -> None:
    settings = make_settings(corpus)
    extract(settings, tmp_path / "plain", Load(), batch_size=1, workers=0)
    marker = tmp_path / "killed"
    summary = run(settings, tmp_path / "ray", Load(marker), actors=2)
    assert marker.exists(), "no actor was killed"
    assert (summary.pages, summary.failed, summary.written, summary.done) == (PAGES, 1, PAGES, True)
    assert rows(tmp_path / "ray") == rows(tmp_path / "plain")
    failures = (tmp_path / "ray" / "failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["source"] for line in failures] == [str(corpus / "broken.png")]
    assert not list((tmp_path / "ray").glob(".ray*"))

    # A killed run leaves half a file and a complete one that was not moved, and a page is added. Either engine
    # continues.
    output = tmp_path / "ray"
    whole = next((output / "data").glob("*.parquet"))
    flip_in_column(whole, 0)
    assert list(verify_output(output).damaged) == [f"data/{whole.name}"]
    flip_in_column(whole, 0)
    assert verify_output(output).damaged == {}
    (output / ".ray").mkdir()
    (output / ".ray" / "half.parquet").write_bytes(whole.read_bytes()[:-100])
    whole.replace(output / ".ray" / whole.name)
    Image.new("RGB", (30, 30)).save(corpus / "late.png")
    again = run(settings, output, Load())
    assert (again.pages, again.written, again.newly_failed) == (PAGES + 1, 1, 0)
    assert not list(output.glob(".ray*"))
    assert extract(settings, output, Load(), workers=0).written == 0
    assert extract(settings, tmp_path / "plain", Load(), batch_size=1, workers=0).written == 1
    assert rows(output) == rows(tmp_path / "plain")


def test_decoders_that_die_and_hang_cost_their_pages(cluster: None, corpus: Path, tmp_path: Path) -> None:
    summary = run(make_settings(corpus), tmp_path / "ray", Load(), kind=Deadly, page_timeout=3.0)
    assert (summary.pages, summary.failed, summary.done) == (PAGES - 2, 3, True)
    failures = [json.loads(line) for line in (tmp_path / "ray" / "failures.jsonl").read_text().splitlines()]
    errors = {Path(failure["source"]).name: failure["reason"] for failure in failures}
    assert errors.keys() == {"03.png", "05.png", "broken.png"}
    assert "its process died of signal 9" in errors["03.png"]
    assert errors["05.png"] == "decoding it failed: it took longer than 3 s"


def test_strict_names_the_page(cluster: None, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(BadPageError, match="broken.png, page 0"):
        run(make_settings(corpus), tmp_path / "ray", Load(), strict=True)


def test_errors_of_tasks_are_known_by_their_text() -> None:
    text = "ray::Map()\n  File ...\ndeepencoder.extraction.settings.ModelError: model gives nothing.\nmore"
    error = _restore(text)
    assert isinstance(error, ModelError) and str(error) == "model gives nothing."
    assert type(_restore("out of disk")) is RuntimeError


def test_a_file_that_cannot_be_listed_is_a_failed_page(corpus: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"name": ["x"]}), corpus / "metadata.parquet")
    lister = _Lister(make_settings(corpus), lambda source, page: False, max_pages=1)
    for name, reason in (("metadata.parquet", "no image column"), ("gone.png", "no such file")):
        (row,) = lister({"file": str(corpus / name)})
        page = pickle.loads(row["page"])
        assert isinstance(page, FailedPage) and reason in page.error


def test_safetensors_are_refused(tmp_path: Path) -> None:
    settings = ExtractionSettings(("x.png",), "tiny", "0", "custom", format="safetensors")
    with pytest.raises(ValueError, match="format must be 'parquet'"):
        run(settings, tmp_path / "ray", Load())
