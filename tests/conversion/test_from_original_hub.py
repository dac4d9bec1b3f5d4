"""Models from checkpoints of other code on the Hub: what is downloaded, cached and repaired from end to end."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import snapshot_download

from deepencoder import DeepEncoder, DeepEncoderImageProcessor, SamEncoder
from deepencoder.configuration.atomic_files import TEMPORARY_PATTERN
from deepencoder.conversion.checkpoint import open_checkpoint
from deepencoder.conversion.from_original import convert_to_folder
from deepencoder.conversion.planning import plan_conversion
from deepencoder.conversion.readers.byte_ranges import DownloadLimits
from deepencoder.conversion.readers.gguf_files import FIRST_READ
from deepencoder.conversion.readers.hub import HubOptions
from deepencoder.conversion.report import CONVERTER_VERSION

from ..conftest import ROOT
from ..hub_server import COMMIT, Hub
from .hub_samples import REPO, sent_weights, size_of
from .samples import assert_same, layout_of, state_dict_there


def test_only_the_encoder_is_downloaded_and_only_once(hub: Hub, original: DeepEncoder, cache: dict[str, Any]) -> None:
    assert_same(DeepEncoder.from_original(REPO, **cache), original)
    size = size_of(original)
    on_disk = sum(path.stat().st_size for path in hub.repos[REPO].glob("*.safetensors"))
    print(f"{sum(hub.sent.values()):,} bytes sent of {on_disk:,}; the encoder's tensors have {size:,}")
    assert size <= sent_weights(hub) <= 1.01 * size < on_disk / 4
    hub.forget()
    assert_same(DeepEncoder.from_original(REPO, **cache), original)
    assert sent_weights(hub) == 0
    assert hub.requests == [f"HEAD /{REPO}/resolve/main/config.json"]


def test_the_image_processor_needs_no_tensors(hub: Hub, original: DeepEncoder, cache: dict[str, Any]) -> None:
    assert DeepEncoderImageProcessor.from_original(REPO, **cache).mode == "small"
    assert 0 < sent_weights(hub) < 20_000, "more than the headers was downloaded"
    DeepEncoder.from_original(REPO, **cache)
    hub.forget()
    assert DeepEncoderImageProcessor.from_original(REPO, mode="gundam", **cache).mode == "gundam"
    assert sent_weights(hub) == 0


def test_converted_models_load_offline(
    hub: Hub, original: DeepEncoder, cache: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match="cache"):
        DeepEncoder.from_original(REPO, local_files_only=True, **cache)
    DeepEncoder.from_original(REPO, **cache)
    hub.forget()
    assert_same(DeepEncoder.from_original(REPO, local_files_only=True, **cache), original)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_same(DeepEncoder.from_original(REPO, **cache), original)
    assert hub.requests == []


def test_cached_originals_are_converted_offline(hub: Hub, original: DeepEncoder, cache: dict[str, Any]) -> None:
    snapshot_download(REPO, **cache)
    hub.forget()
    assert_same(DeepEncoder.from_original(REPO, **cache), original)
    assert sent_weights(hub) == 0
    shutil.rmtree(Path(cache["cache_dir"]) / "assets")
    assert_same(DeepEncoder.from_original(REPO, local_files_only=True, **cache), original)


def test_an_interrupted_download_continues(hub: Hub, original: DeepEncoder, cache: dict[str, Any]) -> None:
    limits = DownloadLimits(part_size=500_000, workers=1, first_wait=0)
    hub.budget = 3_000_000
    with pytest.raises(OSError, match="cannot be downloaded"):
        DeepEncoder.from_original(REPO, limits=limits, **cache)
    parts = list(Path(cache["cache_dir"]).rglob("*-*.safetensors"))
    assert not list(Path(cache["cache_dir"]).rglob(TEMPORARY_PATTERN))
    downloaded = sum(path.stat().st_size for path in parts)
    assert 0 < downloaded < size_of(original)
    hub.budget, hub.failures = None, 1
    hub.cut_after, hub.cuts = 300_000, 4
    hub.forget()
    assert_same(DeepEncoder.from_original(REPO, limits=limits, **cache), original)
    assert hub.cuts == 0 and hub.failures == 0
    assert sent_weights(hub) < 1.01 * size_of(original) - 0.9 * downloaded
    assert not list(Path(cache["cache_dir"]).rglob("parts/*")), "the parts are no longer needed"


def test_whole_files_are_downloaded_on_request(hub: Hub, original: DeepEncoder, cache: dict[str, Any]) -> None:
    hub.ranges = False
    assert_same(DeepEncoder.from_original(REPO, full_download=True, **cache), original)
    assert sent_weights(hub) == sum(path.stat().st_size for path in hub.repos[REPO].glob("*.safetensors"))


def test_converting_to_a_folder(hub: Hub, original: DeepEncoder, cache: dict[str, Any], tmp_path: Path) -> None:
    report = convert_to_folder(REPO, tmp_path / "target", HubOptions(**cache))
    assert report.commit == COMMIT and report.source == REPO and report.verification is not None
    assert_same(DeepEncoder.from_pretrained(tmp_path / "target"), original)


def test_convert_copies_a_cached_conversion(
    hub: Hub, original: DeepEncoder, cache: dict[str, Any], tmp_path: Path
) -> None:
    DeepEncoder.from_original(REPO, **cache)
    hub.forget()
    convert_to_folder(REPO, tmp_path / "target", HubOptions(**cache, local_files_only=True))
    assert sent_weights(hub) == 0
    assert_same(DeepEncoder.from_pretrained(tmp_path / "target"), original)


def test_only_the_encoders_bytes_of_a_gguf_file_are_downloaded(
    hub: Hub, original: DeepEncoder, cache: dict[str, Any], tmp_path: Path
) -> None:
    """A file of Ollama, with four times as many bytes of a language model."""
    writer = pytest.importorskip("gguf").GGUFWriter(tmp_path / "model.gguf", "deepseekocr")
    others = {f"blk.{number}.attn_q.weight": torch.zeros(1_500_000) for number in range(4)}
    for name, tensor in (state_dict_there(original, layout_of("ollama")) | others).items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    hub.repos["some/gguf"] = tmp_path
    assert_same(DeepEncoder.from_original("some/gguf", **cache), original)
    sent = sum(count for name, count in hub.sent.items() if name.endswith(".gguf"))
    assert (
        size_of(original)
        <= sent
        <= size_of(original) + 1.1 * FIRST_READ
        < (tmp_path / "model.gguf").stat().st_size / 3
    )


def test_another_class_is_refused_before_the_download(hub: Hub, original: DeepEncoder, cache: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="deepencoder_sam"):
        SamEncoder.from_original(REPO, **cache)
    assert sent_weights(hub) < 20_000, "more than the headers was downloaded"


def test_damaged_caches_are_repaired(hub: Hub, original: DeepEncoder, cache: dict[str, Any]) -> None:
    plan = plan_conversion(open_checkpoint(REPO, HubOptions(**cache)))
    plan.state_dict()
    for part in Path(cache["cache_dir"]).rglob("parts/*.safetensors"):
        part.write_bytes(part.read_bytes()[:-10])
    assert_same(DeepEncoder.from_original(REPO, **cache), original)
    (weights,) = Path(cache["cache_dir"]).rglob(f"v{CONVERTER_VERSION}/model.safetensors")
    for damage in (
        lambda: weights.write_bytes(b"short"),
        lambda: weights.with_name("preprocessor_config.json").unlink(),
    ):
        damage()
        hub.forget()
        assert_same(DeepEncoder.from_original(REPO, **cache), original)
        assert sent_weights(hub) > size_of(original)


def test_a_cached_conversion_is_verified_on_request(hub: Hub, original: DeepEncoder, cache: dict[str, Any]) -> None:
    pytest.importorskip("transformers.models.unlimited_ocr")
    for verify, verified in ((False, False), (None, False), (True, True), (False, True)):
        DeepEncoder.from_original(REPO, verify=verify, **cache)
        (report,) = Path(cache["cache_dir"]).rglob(f"v{CONVERTER_VERSION}/conversion_report.json")
        assert ("outputs" in json.loads(report.read_text())["verification"]) == verified


def run_environment(hub: Hub, home: Path) -> dict[str, str]:
    """Return environment variables with which a process uses the Hub of the tests."""
    return os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}


def test_the_command_line_uses_the_clients_environment_variables(
    hub: Hub, original: DeepEncoder, tmp_path: Path, example_page: Path
) -> None:
    environment = run_environment(hub, tmp_path / "home") | {"HF_TOKEN": hub.token, "TQDM_POSITION": "-1"}
    hub.private.add(REPO)
    command = [sys.executable, "-m", "deepencoder", "encode", "--model", REPO, str(example_page)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.search(r"dense-text.png .* 111 ", done.stdout)
    assert sent_weights(hub) <= 1.01 * size_of(original)
    (converted,) = (tmp_path / "home" / "assets" / "deepencoder").rglob("model.safetensors")
    assert COMMIT in str(converted)


def test_two_processes_convert_at_once(hub: Hub, original: DeepEncoder, tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "deepencoder", "convert", REPO, str(tmp_path / f"target-{number}")],
            env=run_environment(hub, tmp_path / "home"),
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for number, process in enumerate(processes):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert_same(DeepEncoder.from_pretrained(tmp_path / f"target-{number}"), original)
