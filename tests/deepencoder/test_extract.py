"""`deepencoder extract`, in processes that are interrupted, and in this process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import psutil
import pyarrow.parquet
import pytest
import torch

from deepencoder import DeepEncoder, DeepEncoderImageProcessor
from deepencoder.extraction import models
from deepencoder.modeling import slow_dtypes

from ..conftest import ROOT
from ..conversion.samples import build, layout_of
from ..extraction.corpus import picture, save_model, write_bad_pages, write_pdf, write_pictures
from ..hub_server import COMMIT, Hub

COUNT = 200


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_model(tmp_path_factory.mktemp("models") / "model", side=64)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_pictures(tmp_path_factory.mktemp("corpus") / "pages", COUNT - 4)
    write_pdf(folder / "a.pdf", 4)
    return folder


@pytest.fixture(scope="module")
def expected(model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Any]:
    """The features of a run that nothing interrupts."""
    output = tmp_path_factory.mktemp("undisturbed") / "output"
    done = run(command(corpus, model, output))
    assert done.returncode == 0, done.stderr
    return {name: row["pooled"] for name, row in rows_of(output).items()}


def command(corpus: Path, model: Path, output: Path, *more: str) -> list[str]:
    # Shards of four pages, so that a run is interrupted between many of them.
    size = ["--shard-size", "256B", "--batch-size", "4"]
    return ["extract", str(corpus), "--output", str(output), "--model", str(model), *size, *more]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def run(arguments: list[str], *launcher: str) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, *launcher, "-m", "deepencoder", *arguments]
    return subprocess.run(whole, env=environment(), capture_output=True, text=True, timeout=120)


def start(arguments: list[str], *launcher: str) -> subprocess.Popen[str]:
    """Start a process in a process group of its own, which receives Ctrl-C as in a terminal."""
    whole = [sys.executable, *launcher, "-m", "deepencoder", *arguments]
    return subprocess.Popen(
        whole,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def rows_of(output: Path) -> dict[tuple[str, int], Any]:
    """Read every shard, and check that no page appears twice."""
    found: dict[tuple[str, int], Any] = {}
    for path in sorted((output / "data").glob("part-*.parquet")):
        for row in pyarrow.parquet.read_table(path).to_pylist():
            assert (row["source"], row["page"]) not in found
            found[row["source"], row["page"]] = row
    return found


def wait_for_shards(output: Path, count: int, process: subprocess.Popen[str]) -> None:
    for _ in range(6000):
        if len(list((output / "data").glob("part-*.parquet"))) >= count:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("no shards")


def check(output: Path, expected: dict[tuple[str, int], Any]) -> None:
    found = rows_of(output)
    assert found.keys() == expected.keys()
    for name, row in found.items():
        assert row["pooled"] == pytest.approx(expected[name], abs=2e-3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_writes_what_it_has(
    number: signal.Signals, model: Path, corpus: Path, expected: dict[tuple[str, int], Any], tmp_path: Path
) -> None:
    output = tmp_path / "output"
    arguments = ["extract", str(corpus), "-o", str(output), "-m", str(model), "--batch-size", "4", "--workers", "2"]
    process = start([*arguments, "--shard-size", "10KB"])
    # Shards of 160 pages, so that only the interruption closes the first one.
    for _ in range(6000):
        if (output / "data").is_dir():
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(0.5)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err and "Interrupted" in out
    found = rows_of(output)
    assert 0 < len(found) < COUNT and not list((output / "data").glob(".*"))
    assert not json.loads((output / "manifest.json").read_bytes())["done"]
    if number == signal.SIGINT:
        assert run([*arguments, "--shard-size", "1MB"]).returncode == 0
        check(output, expected)


def test_accelerate_shares_the_corpus(
    model: Path, corpus: Path, expected: dict[tuple[str, int], Any], tmp_path: Path
) -> None:
    output = tmp_path / "output"
    # accelerate's --cpu is for MPI. --multi_gpu starts the processes, and our --device puts them on the CPU.
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    arguments = command(corpus, model, output, "--json", "--workers", "0", "--device", "cpu")
    process = start(arguments, *launcher)
    wait_for_shards(output, 6, process)
    children = psutil.Process(process.pid).children(recursive=True)
    for each in (*children, process):  # accelerate starts its processes in groups of their own
        each.kill()
    process.communicate(timeout=20)
    assert 0 < len(rows_of(output)) < COUNT
    done = run(arguments, *launcher)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("{"))
    summary = json.loads(line)
    assert summary["pages"] == COUNT and summary["done"] and summary["written"] < COUNT
    check(output, expected)
    ranks = {path.name.split("-")[1] for path in (output / "data").glob("part-*")}
    assert ranks == {"00000", "00001"}
    manifest = json.loads((output / "manifest.json").read_bytes())
    assert manifest["done"] and sum(shard["rows"] for shard in manifest["shards"]) == COUNT
    again = run(command(corpus, model, output, "--device", "cpu"))  # a single process, with nothing left to do
    assert again.returncode == 0 and "Nothing to do" in again.stdout


def test_summary_failures_and_json(cli: Any, model: Path, tmp_path: Path) -> None:
    folder, output = write_pictures(tmp_path / "pages", 3), tmp_path / "output"
    bad = write_bad_pages(folder / "bad")
    arguments = [
        "extract",
        folder,
        "-o",
        output,
        "--model",
        model,
        "--outputs",
        "pooled,tokens",
        "--dtype",
        "bfloat16",
    ]
    code, out, err = cli(*arguments)
    assert code == 0 and "3 pages" in out and f"{len(bad)} failed" in out and "failures.jsonl" in out
    lines = [line for line in err.splitlines() if line.startswith("Failed: ")]
    assert len(lines) == len(bad) and any("encrypted.pdf, page 0: " in line and "password" in line for line in lines)
    code, out, _ = cli(*arguments, "--json")
    summary = json.loads(out)
    assert code == 0 and summary["pages"] == 3 and summary["failed"] == len(bad) and summary["written"] == 0
    data = datasets.load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(data) == 3 and data.features["tokens"].length == 1
    assert data[0]["model"] == str(model) and data[0]["commit"].startswith("sha256:") and data[0]["mode"] == "custom"


def test_the_shipped_model_and_many_failures(cli: Any, tmp_path: Path) -> None:
    folder, output = tmp_path / "pages", tmp_path / "output"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}.png").write_bytes(b"")
    picture(0).save(folder / "z.png")
    code, out, err = cli("extract", folder, "-o", output, "--mode", "tiny", "--workers", "0")
    assert code == 0 and "using page-reader" in err and "1 pages" in out
    assert err.count("Failed: ") == 20 and "More pages failed" in err
    assert len((output / "failures.jsonl").read_text().splitlines()) == 30


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing.png"], ["nothing.png", "no such file"]),
        ([], ["SOURCE", "missing"]),
        (["PAGES", "--outputs", "pooled,nothing"], ["--outputs", "nothing"]),
        (["PAGES", "--shard-size", "many"], ["--shard-size", "many"]),
        (["PAGES", "--shard-size", "0MB"], ["--shard-size", "0MB"]),
        (["PAGES", "--batch-size", "0"], ["--batch-size", "0"]),
        (["PAGES", "--page-memory", "much"], ["--page-memory", "much"]),
        (["PAGES", "--workers", "-1"], ["--workers"]),
        (["PAGES", "--dpi", "0"], ["--dpi"]),
        (["PAGES", "--device", "nonsense"], ["--device", "nonsense"]),
        (["PAGES", "--model", "PAGES"], ["cannot be loaded"]),
        (["PAGES", "--output", "PAGES"], ["PAGES", "not empty"]),
        (["PAGES", "--output", "/proc/output"], ["/proc/output"]),
        (["BAD", "--strict", "--mode", "tiny"], ["empty.png", "page 0", "empty file"]),
    ],
)
def test_mistakes_are_one_line(cli: Any, arguments: list[str], words: list[str], tmp_path: Path) -> None:
    write_pictures(tmp_path / "pages", 1)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "empty.png").write_bytes(b"")
    places = {"PAGES": str(tmp_path / "pages"), "BAD": str(tmp_path / "bad")}
    arguments = [places.get(argument, argument) for argument in arguments]
    if "--output" not in arguments:
        arguments += ["--output", str(tmp_path / "output")]
    code, out, err = cli("extract", *arguments)
    assert code == 2
    errors = [line for line in err.splitlines() if line and not line.startswith("No --model given")]
    assert len(errors) == 1 and errors[0].startswith("Error: "), err
    assert all(places.get(word, word) in errors[0] for word in words), err


@pytest.mark.parametrize("slow", [True, False])
def test_half_precision_that_is_slow_here_is_computed_in_float32(
    slow: bool, cli: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages, half = write_pictures(tmp_path / "pages", 1), tmp_path / "half"
    DeepEncoder.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(half)
    monkeypatch.setattr(slow_dtypes, "_slow_dtypes", lambda: frozenset({torch.bfloat16} if slow else ()))
    used: list[torch.dtype] = []
    forward = DeepEncoder.forward

    def note_dtype(self: Any, *args: Any, **kwargs: Any) -> Any:
        used.append(self.dtype)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(DeepEncoder, "forward", note_dtype)

    def extract(name: str, *options: Any) -> tuple[torch.dtype, int]:
        code, _, err = cli("extract", pages, "-o", tmp_path / name, "--device", "cpu", "--workers", "0", *options)
        assert code == 0, err
        return used[-1], err.count("no instructions for")

    computed = torch.float32 if slow else torch.bfloat16
    assert extract("a", "--model", half) == (computed, int(slow))
    assert extract("b", "--model", model) == (torch.float32, 0)
    # The user chose the dtype:
    assert extract("c", "--model", half, "--model-dtype", "bfloat16") == (torch.bfloat16, 0)


def test_changed_settings_are_told(cli: Any, model: Path, tmp_path: Path) -> None:
    folder, output = write_pictures(tmp_path / "pages", 1), tmp_path / "output"
    assert cli("extract", folder, "-o", output, "--model", model)[0] == 0
    code, _, err = cli("extract", folder, "-o", output, "--model", model, "--mode", "tiny", "--dpi", "72")
    assert code == 2 and "mode was 'custom' and is 'tiny'" in err and "dpi was 144 and is 72" in err
    code, _, err = cli("extract", folder, "-o", output, "--model", model, "--model-dtype", "bfloat16")
    assert code == 2 and "model_dtype was 'auto' and is 'bfloat16'" in err
    code, _, err = cli("extract", folder, "-o", output, "--model", model, "--no-resume")
    assert code == 2 and "earlier work" in err


def test_vectors_for_late_interaction(cli: Any, model: Path, tmp_path: Path) -> None:
    folder, output = write_pictures(tmp_path / "pages", 1), tmp_path / "output"
    command = ["extract", folder, "-o", output, "--model", model, "--outputs", "multi_vector", "--vector-width"]
    assert cli(*command, "0")[0] == 2
    assert cli(*command, "8", "--vector-pool", "3", "--mode", "tiny")[0] == 0
    (row,) = rows_of(output).values()
    assert [len(vector) for vector in row["multi_vector"]] == 9 * [8]  # of 8 x 8 tokens


def test_a_run_that_writes_nothing_fails(cli: Any, model: Path, tmp_path: Path) -> None:
    write_bad_pages(tmp_path / "bad")
    arguments = ["--model", model, "--workers", "0"]
    for _ in range(2):
        code, out, _ = cli("extract", tmp_path / "bad", "-o", tmp_path / "a", *arguments)
        assert code == 1 and "failed" in out
    broken, pages = tmp_path / "broken", write_pictures(tmp_path / "pages", 40)
    changed = DeepEncoder.from_pretrained(model)
    with torch.no_grad():
        changed.sam_encoder.embeddings.patch_embedding.weight.fill_(torch.nan)
    changed.save_pretrained(broken)
    code, _, err = cli("extract", pages, "-o", tmp_path / "b", "--model", broken, "--workers", "0")
    assert code == 2 and "32 pages in a row: its weight sam_encoder" in err.splitlines()[-1]


def test_the_weights_are_those_of_the_commit_that_was_identified(
    cli: Any, hub: Hub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.repos["user/encoder"] = model
    identify = models.identify_model

    def identify_before_a_push(*arguments: Any) -> str:
        identity = identify(*arguments)
        hub.commit("user/encoder", "main", {"config.json": b"nonsense", "preprocessor_config.json": b"nonsense"})
        return identity

    monkeypatch.setattr(models, "identify_model", identify_before_a_push)
    pages, output = write_pictures(tmp_path / "pages", 1), tmp_path / "output"
    code, _, err = cli("extract", pages, "-o", output, "--model", "user/encoder", "--workers", "0")
    assert code == 0, err
    assert {row["commit"] for row in rows_of(output).values()} == {COMMIT}


def test_a_folder_of_exported_graphs(cli: Any, tmp_path: Path) -> None:
    """Its runtime is used without being named, and is written down with the settings."""
    pytest.importorskip("onnxruntime")
    build(layout_of("deepseek-ocr")).save_pretrained(tmp_path / "encoder")
    fields = {"size": {"height": 128, "width": 128}, "crop_to_patches": False}
    DeepEncoderImageProcessor(**fields).save_pretrained(tmp_path / "encoder")
    code, _, err = cli("export", tmp_path / "encoder", tmp_path / "graphs", "--format", "onnx", "--size", "128")
    assert code == 0, err
    arguments = ["extract", ROOT / "examples" / "table.png", "-m", tmp_path / "graphs", "-o", tmp_path / "out"]
    code, out, err = cli(*arguments)
    assert code == 0 and "1 pages" in out, err
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]["runtime"] == "onnxruntime"
    code, out, err = cli(*arguments, "--runtime", "onnxruntime")
    assert code == 0 and "Nothing to do" in out, err
    code, _, err = cli(*arguments, "--runtime", "openvino")
    assert code == 2 and "runtime was 'onnxruntime' and is 'openvino'" in err, err
