"""Checkpoints on a Hub: what is downloaded of them, and what happens when that goes wrong."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import save_file

from deepencoder import (
    ClipVisionEncoderConfig,
    DeepEncoder,
    DeepEncoderConfig,
    DeepEncoderImageProcessor,
    SamEncoder,
    SamEncoderConfig,
)
from deepencoder.configuration.atomic_files import TEMPORARY_PATTERN
from deepencoder.conversion.checkpoint import open_checkpoint, open_remote
from deepencoder.conversion.from_original import convert_to_folder
from deepencoder.conversion.layouts import LAYOUTS
from deepencoder.conversion.planning import plan_conversion
from deepencoder.conversion.readers.byte_ranges import DownloadLimits, RangesNotServedError, plan_parts
from deepencoder.conversion.readers.hub import HubOptions, RemoteFiles, looks_like_hub_id
from deepencoder.conversion.readers.stored_tensors import StoredTensor

from ..conftest import ROOT, randomize
from ..hub_server import COMMIT, Hub
from .samples import state_dict_there

REPO = "some/deepseek-ocr"
CONFIG = {"model_type": "deepseek_vl_v2", "candidate_resolutions": [[640, 640]]}


@pytest.fixture
def original(hub: Hub, tmp_path: Path) -> DeepEncoder:
    """An encoder of 6 MB; on the Hub it is in DeepSeek-OCR's layout, with four times as much around it."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 3, "hidden_size": 192, "intermediate_size": 512}
    sam_config = SamEncoderConfig.tiny(
        **sizes, image_size=128, downsample_channels=(24, 192), global_attn_indexes=(1,)
    )
    clip_config = ClipVisionEncoderConfig.tiny(**sizes, image_size=28, patch_size=14)
    model = randomize(
        DeepEncoder(DeepEncoderConfig(sam_config=sam_config, clip_config=clip_config, projection_dim=40))
    )
    assert isinstance(model, DeepEncoder)
    tensors = state_dict_there(model, LAYOUTS[0], "model.")
    names = ["lm_head.weight", "model.embed_tokens.weight", "model.layers.0.weight", "model.zzz.weight"]
    tensors |= {name: torch.zeros(1_500_000) for name in names}
    folder = tmp_path / "hub"
    folder.mkdir()
    weight_map = {}
    for number in (1, 2):
        shard = dict(sorted(tensors.items())[number - 1 :: 2])
        name = f"model-{number:05}-of-00002.safetensors"
        save_file(shard, folder / name)
        weight_map |= dict.fromkeys(shard, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    hub.repos[REPO] = folder
    return model


@pytest.fixture
def cache(tmp_path: Path) -> dict[str, Any]:
    return {"cache_dir": str(tmp_path / "cache")}


def sent_weights(hub: Hub) -> int:
    return sum(count for name, count in hub.sent.items() if name.endswith(".safetensors"))


def size_of(model: Any) -> int:
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def assert_same(model: Any, expected: Any) -> None:
    ours, theirs = model.state_dict(), expected.state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_only_the_encoders_bytes_are_downloaded_and_once(
    hub: Hub, original: DeepEncoder, cache: dict[str, Any]
) -> None:
    assert_same(DeepEncoder.from_original(REPO, **cache), original)
    size = size_of(original)
    on_disk = sum(path.stat().st_size for path in hub.repos[REPO].glob("*.safetensors"))
    print(f"{sum(hub.sent.values()):,} bytes sent of {on_disk:,}; the encoder's tensors have {size:,}")
    assert size <= sent_weights(hub) <= 1.01 * size < on_disk / 4
    hub.forget()
    assert_same(DeepEncoder.from_original(REPO, **cache), original)
    assert sent_weights(hub) == 0
    assert hub.requests == [f"HEAD /{REPO}/resolve/main/config.json"]


def test_the_image_processor_comes_along(hub: Hub, original: DeepEncoder, cache: dict[str, Any]) -> None:
    assert DeepEncoderImageProcessor.from_original(REPO, **cache).mode == "small"
    assert 0 < sent_weights(hub) < 20_000  # headers
    DeepEncoder.from_original(REPO, **cache)
    hub.forget()
    assert DeepEncoderImageProcessor.from_original(REPO, mode="gundam", **cache).mode == "gundam"
    assert sent_weights(hub) == 0


def test_progress_is_reported_in_bytes(hub: Hub, original: DeepEncoder, cache: dict[str, Any]) -> None:
    totals: dict[str, int] = {}
    received: list[int] = []

    @contextmanager
    def progress_bar(label: str, total: int) -> Iterator[Callable[[int], object]]:
        totals[label] = total
        yield received.append

    remote = RemoteFiles(REPO, HubOptions(**cache), progress_bar)
    plan_conversion(open_remote(remote)).state_dict()
    assert totals == {f"Encoder of {REPO}": size_of(original)}
    assert sum(received) == size_of(original)


def test_offline_after_the_first_time(
    hub: Hub,
    original: DeepEncoder,
    cache: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(OSError, match="cache"):
        DeepEncoder.from_original(REPO, local_files_only=True, **cache)
    DeepEncoder.from_original(REPO, **cache)
    hub.forget()
    assert_same(DeepEncoder.from_original(REPO, local_files_only=True, **cache), original)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_same(DeepEncoder.from_original(REPO, **cache), original)
    assert hub.requests == []


def test_files_that_are_in_the_cache_are_read_there(hub: Hub, original: DeepEncoder, cache: dict[str, Any]) -> None:
    snapshot_download(REPO, **cache)
    hub.forget()
    assert_same(DeepEncoder.from_original(REPO, **cache), original)
    assert sent_weights(hub) == 0
    shutil.rmtree(Path(cache["cache_dir"]) / "assets")
    assert_same(DeepEncoder.from_original(REPO, local_files_only=True, **cache), original)


@pytest.mark.parametrize("fault", ["connection is closed", "server is busy"])
def test_failed_requests_are_repeated(
    hub: Hub, original: DeepEncoder, cache: dict[str, Any], tmp_path: Path, fault: str
) -> None:
    if fault == "connection is closed":
        hub.cut_after, hub.cuts = 300_000, 4
    else:
        hub.failures = 3
    options = HubOptions(**cache, limits=DownloadLimits(first_wait=0))
    convert_to_folder(REPO, tmp_path / "target", options)
    assert_same(DeepEncoder.from_pretrained(tmp_path / "target"), original)
    assert hub.cuts == 0 and hub.failures == 0
    assert sent_weights(hub) <= 1.01 * size_of(original), "bytes that had arrived were requested again"


def test_an_interrupted_download_continues(
    hub: Hub, original: DeepEncoder, cache: dict[str, Any], tmp_path: Path
) -> None:
    options = HubOptions(**cache, limits=DownloadLimits(part_size=500_000, workers=1, first_wait=0))
    hub.budget = 3_000_000
    with pytest.raises(OSError, match="cannot be downloaded"):
        convert_to_folder(REPO, tmp_path / "target", options)
    parts = list(Path(cache["cache_dir"]).rglob("*-*.safetensors"))
    assert not list(Path(cache["cache_dir"]).rglob(TEMPORARY_PATTERN))
    done = sum(path.stat().st_size for path in parts)
    assert 0 < done < size_of(original)
    hub.budget = None
    hub.forget()
    convert_to_folder(REPO, tmp_path / "target", options)
    assert_same(DeepEncoder.from_pretrained(tmp_path / "target"), original)
    assert sent_weights(hub) < 1.01 * size_of(original) - 0.9 * done
    assert not list(Path(cache["cache_dir"]).rglob("parts/*")), "the parts are no longer needed"


def test_a_server_without_ranges_is_found_out(hub: Hub, original: DeepEncoder, cache: dict[str, Any]) -> None:
    hub.ranges = False
    with pytest.raises(RangesNotServedError, match="full_download") as error:
        DeepEncoder.from_original(REPO, **cache)
    assert len(str(error.value).splitlines()) == 1
    hub.forget()
    assert_same(DeepEncoder.from_original(REPO, full_download=True, **cache), original)
    on_disk = sum(path.stat().st_size for path in hub.repos[REPO].glob("*.safetensors"))
    assert sent_weights(hub) == on_disk


def test_private_missing_and_damaged_models(
    hub: Hub,
    original: DeepEncoder,
    cache: dict[str, Any],
    tmp_path: Path,
) -> None:
    hub.private.add(REPO)
    for repo, options, words in (
        (REPO, {"token": False}, "not a valid model identifier"),
        (REPO, {"token": hub.token, "revision": "gone"}, "gone is not a valid git identifier"),
        ("some/other", {}, "not a valid model identifier"),
    ):
        with pytest.raises(OSError, match=words):
            DeepEncoder.from_original(repo, **options, **cache)
    assert_same(DeepEncoder.from_original(REPO, token=hub.token, revision=COMMIT, **cache), original)

    damaged = tmp_path / "damaged"
    damaged.mkdir()
    whole = next(hub.repos[REPO].glob("*.safetensors")).read_bytes()
    (damaged / "model.safetensors").write_bytes(whole[:-10])
    (damaged / "config.json").write_text("{}")
    hub.repos["some/damaged"] = damaged
    with pytest.raises(ValueError, match="incomplete or damaged"):
        DeepEncoder.from_original("some/damaged", **cache)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "README.md").write_text("nothing")
    hub.repos["some/empty"] = empty
    with pytest.raises(OSError, match=r"some/empty contains no \.safetensors"):
        DeepEncoder.from_original("some/empty", **cache)


def test_other_names_and_pickles(hub: Hub, original: DeepEncoder, cache: dict[str, Any], tmp_path: Path) -> None:
    tensors = state_dict_there(original, LAYOUTS[0])
    for repo, save, name in (
        ("some/renamed", save_file, "encoder.safetensors"),
        ("some/pickle", torch.save, "encoder.pth"),
    ):
        folder = tmp_path / repo.replace("/", "-")
        folder.mkdir()
        save(tensors, folder / name)  # type: ignore[operator]
        hub.repos[repo] = folder
        assert_same(DeepEncoder.from_original(repo, **cache), original)


def test_converting_to_a_folder(hub: Hub, original: DeepEncoder, cache: dict[str, Any], tmp_path: Path) -> None:
    report = convert_to_folder(REPO, tmp_path / "target", HubOptions(**cache))
    assert report.commit == COMMIT and report.source == REPO and report.verification is not None
    assert_same(DeepEncoder.from_pretrained(tmp_path / "target"), original)
    with pytest.raises(ValueError, match="deepencoder_sam"):
        SamEncoder.from_original(REPO, **cache)


def test_the_whole_way_on_the_command_line(
    hub: Hub, original: DeepEncoder, tmp_path: Path, example_page: Path
) -> None:
    """In a process of its own, through the client's own environment variables."""
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": hub.token}
    environment |= {"TQDM_POSITION": "-1", "PYTHONPATH": str(ROOT)}
    hub.private.add(REPO)
    command = [sys.executable, "-m", "deepencoder", "encode", "--model", REPO, str(example_page)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.search(r"dense-text.png .* 111 ", done.stdout)
    assert sent_weights(hub) <= 1.01 * size_of(original)
    kept = list((tmp_path / "home" / "assets" / "deepencoder").rglob("model.safetensors"))
    assert len(kept) == 1 and COMMIT in str(kept[0])


def test_tensors_side_by_side_are_one_request() -> None:
    def tensors(*places: tuple[int, int]) -> dict[str, StoredTensor]:
        return {str(start): StoredTensor((1,), torch.float32, start, end) for start, end in places}

    def ranges(*places: tuple[int, int], **options: Any) -> list[tuple[int, int]]:
        return [(part.start, part.end) for part in plan_parts(tensors(*places), DownloadLimits(**options))]

    assert ranges((0, 100), (100, 200), (300, 400)) == [(0, 200), (300, 400)]
    assert ranges((0, 100), (100, 200), (200, 300), part_size=200) == [(0, 200), (200, 300)]
    assert ranges((0, 900), (904, 1000), gaps_share=0.01) == [(0, 1000)]
    assert ranges((0, 900), (904, 1000), gaps_share=0.001) == [(0, 900), (904, 1000)]
    assert ranges((0, 500), (504, 600), (605, 700), gaps_share=0.01) == [(0, 600), (605, 700)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("deepseek-ai/DeepSeek-OCR", True),
        ("gpt2", True),
        ("./folder", False),
        ("/folder", False),
        ("../a", False),
        ("~/a", False),
        ("a/b/c", False),
        ("nothere.pth", False),
        ("nothere.safetensors", False),
        ("", False),
    ],
)
def test_what_looks_like_a_hub_id(name: str, expected: bool) -> None:
    assert looks_like_hub_id(name) is expected


def test_damaged_caches_heal(hub: Hub, original: DeepEncoder, cache: dict[str, Any]) -> None:
    plan = plan_conversion(open_checkpoint(REPO, HubOptions(**cache)))
    plan.state_dict()
    for part in Path(cache["cache_dir"]).rglob("parts/*.safetensors"):
        part.write_bytes(part.read_bytes()[:-10])
    assert_same(DeepEncoder.from_original(REPO, **cache), original)
    (kept,) = Path(cache["cache_dir"]).rglob("v1/model.safetensors")
    for damage in (lambda: kept.write_bytes(b"short"), lambda: kept.with_name("preprocessor_config.json").unlink()):
        damage()
        hub.forget()
        assert_same(DeepEncoder.from_original(REPO, **cache), original)
        assert sent_weights(hub) > size_of(original)


def test_verification_can_be_demanded_afterwards(hub: Hub, original: DeepEncoder, cache: dict[str, Any]) -> None:
    pytest.importorskip("transformers.models.unlimited_ocr")
    for verify, known in ((False, False), (None, False), (True, True), (False, True)):
        DeepEncoder.from_original(REPO, verify=verify, **cache)
        (report,) = Path(cache["cache_dir"]).rglob("v1/conversion_report.json")
        assert ("outputs" in json.loads(report.read_text())["verification"]) == known


def test_a_finished_conversion_is_used_by_convert(
    hub: Hub, original: DeepEncoder, cache: dict[str, Any], tmp_path: Path
) -> None:
    DeepEncoder.from_original(REPO, **cache)
    hub.forget()
    convert_to_folder(REPO, tmp_path / "target", HubOptions(**cache, local_files_only=True))
    assert sent_weights(hub) == 0
    assert_same(DeepEncoder.from_pretrained(tmp_path / "target"), original)


def test_another_class_is_refused_before_the_download(hub: Hub, original: DeepEncoder, cache: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="deepencoder_sam"):
        SamEncoder.from_original(REPO, **cache)
    assert sent_weights(hub) < 20_000


def test_two_processes_at_once(hub: Hub, original: DeepEncoder, tmp_path: Path) -> None:
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "deepencoder", "convert", REPO, str(tmp_path / f"target-{number}")],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for number, process in enumerate(processes):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert_same(DeepEncoder.from_pretrained(tmp_path / f"target-{number}"), original)
