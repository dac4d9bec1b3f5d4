"""Models that are shared with their code: pushed to a Hub, loaded by a process without this package, saved there, and
loaded again."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from deepencoder import (
    ClipVisionEncoder,
    ClipVisionEncoderConfig,
    DeepEncoder,
    DeepEncoderConfig,
    DeepEncoderImageProcessor,
    DeepEncoderV2,
    DeepEncoderV2Config,
    SamEncoder,
    SamEncoderConfig,
)

from .conftest import ROOT, randomize
from .hub_server import Hub

MODELS = {
    "deepencoder": lambda: DeepEncoder(DeepEncoderConfig.tiny()),
    "deepencoder_v2": lambda: DeepEncoderV2(DeepEncoderV2Config.tiny(image_size=64)),
    "sam": lambda: SamEncoder(SamEncoderConfig.tiny()),
    "clip": lambda: ClipVisionEncoder(ClipVisionEncoderConfig.tiny(post_norm="pooled", projection_dim=24)),
}
PROGRAM = ROOT / "tests" / "programs" / "load_without_package.py"
FROZEN = ROOT / "tests" / "frozen"


def make_job(model: Any, source: str | Path, folder: Path, **job: Any) -> dict[str, Any]:
    """Describe a source for the program, with the output of the model for random pixels."""
    folder.mkdir()
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.save((pixels, model(pixels).last_hidden_state), folder / "expected.pt")
    return {"source": str(source), "folder": str(folder), "expected": str(folder / "expected.pt"), **job}


def run_elsewhere(jobs: list[dict[str, Any]], folder: Path, **environment: str) -> None:
    """Load all sources in one process that cannot import this package."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_TOKEN")}
    variables |= {"HF_HOME": str(folder / "home"), "HF_MODULES_CACHE": str(folder / "modules"), **environment}
    command = [sys.executable, str(PROGRAM), str(folder / "jobs.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=folder, timeout=300)
    assert done.returncode == 0 and done.stdout.strip().endswith("done"), done.stdout + done.stderr[-3000:]


def all_auto_maps_lead_somewhere(folder: Path) -> dict[str, str]:
    """Return the `auto_map`s of a folder, and check that the code that they name lies in it."""
    found = {}
    for file in folder.glob("*config.json"):
        for name, value in json.loads(file.read_text()).get("auto_map", {}).items():
            assert (folder / f"{value.split('.')[0]}.py").is_file(), (file.name, value)
            found[name] = value
    return found


def test_folders_load_without_the_package(tmp_path: Path) -> None:
    jobs = []
    for kind, build in MODELS.items():
        model: Any = randomize(build())
        shared = tmp_path / f"shared {kind}"
        model.save_pretrained(shared, self_contained=True)
        assert set(all_auto_maps_lead_somewhere(shared)) == {"AutoConfig", "AutoModel", "AutoImageProcessor"}
        jobs.append(make_job(model, shared, tmp_path / kind))
    run_elsewhere(jobs, tmp_path)


def test_push_and_load_elsewhere(hub: Hub, tmp_path: Path) -> None:
    jobs = []
    for kind, build in MODELS.items():
        model: Any = randomize(build())
        address = model.push_to_hub(f"some/{kind}", token=hub.token, tags=["mine"])
        assert address.startswith(f"{hub.url}/some/{kind}/commit/")
        jobs.append(make_job(model, f"some/{kind}", tmp_path / kind, push=f"me/{kind}"))
        card = ModelCard((hub.find(f"some/{kind}", None) or ("", Path()))[1].joinpath("README.md").read_text())
        assert card.data.library_name == "transformers" and card.data.pipeline_tag == "image-feature-extraction"
        assert "mine" in (card.data.tags or [])
        assert f"{model.num_parameters():,} parameters" in card.text and f"some/{kind}" in card.text
    run_elsewhere(jobs, tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN=hub.token, HF_HUB_DISABLE_XET="1")
    # Once more from the cache, offline.
    jobs = [{name: value for name, value in job.items() if name != "push"} for job in jobs]
    run_elsewhere(jobs, tmp_path, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1")


def test_private_missing_revision_and_a_broken_line(hub: Hub, tmp_path: Path) -> None:
    model: Any = randomize(MODELS["deepencoder"]())
    model.push_to_hub("some/private", token=hub.token, private=True, revision="experiment")
    jobs = [
        make_job(model, "some/private", tmp_path / "private", options={"revision": "experiment"}),
        {"source": "some/missing", "fails": True},
        {"source": "some/private", "options": {"revision": "missing"}, "fails": True},
        {"source": "some/private", "fails": True},  # Nothing is on main.
    ]
    # The connection is cut in the middle of the weights, twice: the client goes on.
    hub.cut_after, hub.cuts = 100_000, 2
    run_elsewhere(jobs, tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN=hub.token)
    assert hub.cuts == 0
    (tmp_path / "stranger").mkdir()
    jobs = [{"source": "some/private", "options": {"revision": "experiment"}, "fails": True}]
    run_elsewhere(jobs, tmp_path / "stranger", HF_ENDPOINT=hub.url)


def test_with_the_package_no_remote_code_runs(tmp_path: Path) -> None:
    model: Any = randomize(MODELS["deepencoder"]())
    model.save_pretrained(tmp_path / "shared", self_contained=True)
    for file in (tmp_path / "shared").glob("*.py"):
        file.write_text("raise SystemExit('remote code ran')")
    loaded = AutoModel.from_pretrained(tmp_path / "shared", trust_remote_code=True)
    assert type(loaded) is DeepEncoder
    assert type(AutoConfig.from_pretrained(tmp_path / "shared", trust_remote_code=True)) is DeepEncoderConfig
    processor = AutoImageProcessor.from_pretrained(tmp_path / "shared", trust_remote_code=True)
    assert type(processor) is DeepEncoderImageProcessor
    # In a new folder no code lies beside the files, so the files name none.
    loaded.save_pretrained(tmp_path / "again")
    processor.save_pretrained(tmp_path / "again")
    loaded.config.save_pretrained(tmp_path / "config")
    for folder in ("again", "config"):
        assert all_auto_maps_lead_somewhere(tmp_path / folder) == {}
        assert not list((tmp_path / folder).glob("*.py"))
    # Saved to the folder with the code, the files name it.
    processor.save_pretrained(tmp_path / "shared")
    loaded.save_pretrained(tmp_path / "shared")
    assert set(all_auto_maps_lead_somewhere(tmp_path / "shared")) == {"AutoConfig", "AutoModel", "AutoImageProcessor"}


def test_a_plain_save_takes_no_code_along(tmp_path: Path) -> None:
    MODELS["deepencoder"]().save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("version", sorted(path.stem for path in FROZEN.glob("*.zip")))
def test_exports_of_older_versions_still_load(version: str, tmp_path: Path) -> None:
    """An export loads with the code that it contains, and with the package as it is now."""
    exported = tmp_path / "exported"
    shutil.unpack_archive(FROZEN / f"{version}.zip", exported)
    # The values were computed on another processor. Instruction sets from SSE4.1 to AVX-512 differ by up to 1.5e-6,
    # which are rounding errors of values up to 3.3. The tolerance is that of the parity tests.
    tolerance = 2e-5
    job = {"source": str(exported), "folder": str(tmp_path), "expected": str(exported / "expected.pt")}
    run_elsewhere([job | {"tolerance": tolerance}], tmp_path)
    pixels, expected = torch.load(exported / "expected.pt", weights_only=True)
    model = AutoModel.from_pretrained(exported).eval()
    assert type(model) is DeepEncoder
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).last_hidden_state, expected, atol=tolerance, rtol=0)
    assert AutoImageProcessor.from_pretrained(exported).mode == "base"


def test_parts_that_are_pushed_later(hub: Hub, tmp_path: Path) -> None:
    """An image processor and a configuration come with their code, and the repository still loads."""
    model: Any = randomize(MODELS["sam"]())
    model.push_to_hub("some/model", token=hub.token, max_shard_size="50KB")
    DeepEncoderImageProcessor(mode="tiny").push_to_hub("some/model", token=hub.token)
    model.config.push_to_hub("some/model", token=hub.token)
    job = make_job(model, "some/model", tmp_path / "loaded")
    run_elsewhere([job], tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN=hub.token)
