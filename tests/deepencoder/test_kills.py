"""`deepencoder extract` under SIGKILL of the main process, its workers, a launcher and the processes of the launcher.

Unusual: what is extracted is compared with a list that this test makes itself, of its own images and the model alone.
The moments are random; `KILL_SEED=N` repeats the choices of the run that printed N, though not its exact timing.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import psutil
import pyarrow.parquet
import pypdfium2
import pytest
import torch
from PIL import Image

from ..conftest import ROOT
from ..extraction.corpus import (
    picture,
    save_model,
    write_bad_pages,
    write_parquet,
    write_pdf,
    write_pictures,
    write_tar,
    write_tiff,
)
from ..extraction.helpers import load

# Windows has no SIGKILL.
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")

LIMIT = 60.0  # seconds for one run, however slow the machine
# accelerate's --cpu is for MPI. --multi_gpu starts the processes, and our --device puts them on the CPU.
LAUNCHER = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
LAUNCHER += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
# The runs of the test, in random order: whether accelerate launches it, and what is killed.
PLANS: list[tuple[bool, list[str]]] = [
    (False, ["main"]),
    (False, ["worker", "main"]),
    (False, ["workers", "main"]),
    (True, ["rank"]),
    (True, ["worker", "main"]),
]


class Wanted(NamedTuple):
    """What a page must become."""

    sha256: str
    size: tuple[int, int]
    pooled: np.ndarray


class Corpus(NamedTuple):
    """A corpus, and the list of what must become of it."""

    folder: Path
    model: Path
    wanted: dict[tuple[str, int], Wanted]
    bad: set[str]


def _images(folder: Path) -> dict[tuple[str, int], Image.Image]:
    """Write a corpus of every kind of file; return the image of each page by the page's name."""
    images = {(str(folder / f"{number:05d}.png"), 0): picture(number) for number in range(120)}
    write_pictures(folder, 120)
    tar, table, tiff, pdf = (str(folder / name) for name in ("b.tar", "c.parquet", "d.tiff", "e.pdf"))
    write_tar(Path(tar), 16)
    images |= {(f"{tar}::part/{number:04d}.png", 0): picture(number) for number in range(16)}
    write_parquet(Path(table), 16)
    images |= {(table, number): picture(number) for number in range(16)}
    write_tiff(Path(tiff), 8)
    images |= {(tiff, number): picture(number, (64 + number, 96)) for number in range(8)}
    document = pypdfium2.PdfDocument(write_pdf(Path(pdf), 6))
    images |= {(pdf, number): document[number].render(scale=2).to_pil().convert("RGB") for number in range(6)}
    document.close()
    return images


def _encode(model: Path, images: list[Image.Image]) -> np.ndarray:
    """Return the pooled vectors of images, from the model and the image processor alone."""
    encoder, processor = load(model)
    with torch.no_grad():
        return encoder(**processor(images, return_tensors="pt")).pooler_output.numpy()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root = tmp_path_factory.mktemp("kills")
    torch.manual_seed(0)
    model, folder = save_model(root / "model", side=64), root / "pages"
    images = _images(folder)
    pooled = _encode(model, list(images.values()))
    wanted = {
        name: Wanted(hashlib.sha256(image.tobytes()).hexdigest(), image.size, vector)
        for (name, image), vector in zip(images.items(), pooled, strict=True)
    }
    bad = {str(folder / "bad" / name) for name in write_bad_pages(folder / "bad")}
    return Corpus(folder, model, wanted, bad)


class Run:
    """One run of the command, in a process group of its own."""

    def __init__(self, corpus: Corpus, output: Path, workers: int, launched: bool = False) -> None:
        arguments = ["extract", str(corpus.folder), "--output", str(output), "--model", str(corpus.model)]
        # Shards of four pages, so that a run is interrupted between many of them.
        arguments += ["--shard-size", "256B", "--batch-size", "4", "--workers", str(workers), "--device", "cpu"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, *(LAUNCHER if launched else []), "-m", "deepencoder", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.output, self.launched = output, launched
        self.before, self.family = count_shards(output), set[psutil.Process]()

    def wait_for_shards(self, count: int) -> None:
        """Wait until this run has written some shards, or has ended."""
        end = time.monotonic() + LIMIT
        while count_shards(self.output) < self.before + count and self.process.poll() is None:
            assert time.monotonic() < end, "no shards"
            time.sleep(0.005)

    def kill(self, victim: str, random: Random) -> None:
        """Kill the main process, one of the launcher (a rank), one that decodes pages, or all that do."""
        try:
            children = psutil.Process(self.process.pid).children()
            grandchildren = [each for child in children for each in child.children()]
        except psutil.NoSuchProcess:  # The run has ended meanwhile.
            return
        self.family |= {*children, *grandchildren}
        with suppress(psutil.NoSuchProcess):  # It has ended since it was listed.
            if victim == "main":
                self.process.kill()
            elif victim == "workers":  # All of them at once, so that no page loses more than one of its tries.
                for each in children:
                    each.kill()
            elif found := grandchildren if self.launched and victim == "worker" else children:
                random.choice(found).kill()

    def end(self) -> str:
        """Wait until all processes have ended, and return what they printed."""
        if self.launched and self.process.poll() is not None:
            for each in self.family:  # Processes whose launcher was killed would finish the corpus.
                with suppress(psutil.NoSuchProcess):
                    each.kill()
        out, _ = self.process.communicate(timeout=LIMIT)
        _, alive = psutil.wait_procs(self.family, timeout=10)
        assert not alive, f"{alive} outlived the run"
        return out


def count_shards(output: Path) -> int:
    return len(list((output / "data").glob("part-*.parquet")))


def hash_shards(output: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (output / "data").glob("part-*")}


def check_pages(output: Path, corpus: Corpus) -> set[tuple[str, int]]:
    """Check every page that was written against the list. Returns their names."""
    found: set[tuple[str, int]] = set()
    for path in sorted((output / "data").glob("part-*.parquet")):
        for row in pyarrow.parquet.read_table(path).to_pylist():
            name = row["source"], row["page"]
            assert name not in found, f"{name} was written twice"
            found.add(name)
            wanted = corpus.wanted[name]
            assert (row["sha256"], (row["width"], row["height"])) == (wanted.sha256, wanted.size), name
            np.testing.assert_allclose(np.array(row["pooled"]), wanted.pooled, atol=4e-3, err_msg=str(name))
    return found


def kill_and_check(run: Run, victims: list[str], random: Random, corpus: Corpus) -> None:
    """Kill a run's processes at random moments; every shard that was written before stays as it was."""
    for victim in victims:
        run.wait_for_shards(random.randint(0, 6))
        time.sleep(random.random() * 0.1)
        kept = hash_shards(run.output)
        run.kill(victim, random)
    print(f"killed {victims} after {count_shards(run.output)} shards")
    out = run.end()
    assert "Traceback" not in out or run.launched, out
    assert kept.items() <= hash_shards(run.output).items()
    check_pages(run.output, corpus)


def test_kills_lose_double_and_change_no_page(corpus: Corpus, tmp_path: Path) -> None:
    seed = int(os.environ.get("KILL_SEED", time.time_ns() % 10**6))
    print(f"KILL_SEED={seed}")
    random, output = Random(seed), tmp_path / "output"
    for launched, victims in random.sample(PLANS, len(PLANS)):
        run = Run(corpus, output, workers=random.choice((0, 1, 2)) if victims == ["main"] else 2, launched=launched)
        kill_and_check(run, victims, random, corpus)
    last = Run(corpus, output, workers=2)
    out = last.end()
    assert last.process.returncode == 0, out
    check_finished(output, corpus)


def check_finished(output: Path, corpus: Corpus) -> None:
    """Check that every page of the list is there, that the bad ones are listed, and that nothing is left over."""
    assert check_pages(output, corpus) == corpus.wanted.keys()
    failures = [json.loads(line) for line in (output / "failures.jsonl").read_text().splitlines()]
    assert sorted(line["source"] for line in failures) == sorted(corpus.bad)
    assert not list(output.glob("**/.*.tmp*")) and not list(output.glob(".failures*"))
    assert json.loads((output / "manifest.json").read_bytes())["done"]


def test_killed_workers_cost_nothing(corpus: Corpus, tmp_path: Path) -> None:
    output = tmp_path / "output"
    run = Run(corpus, output, workers=2)
    run.wait_for_shards(2)
    run.kill("workers", Random(0))
    out = run.end()
    assert run.process.returncode == 0 and "Traceback" not in out, out
    check_finished(output, corpus)
