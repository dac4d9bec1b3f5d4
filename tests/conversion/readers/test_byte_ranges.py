"""Byte ranges: which requests are made, and what happens when they fail."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import hf_hub_url
from safetensors.torch import load_file, save_file

from deepencoder.configuration.atomic_files import TEMPORARY_PATTERN
from deepencoder.conversion.readers.byte_ranges import (
    DownloadLimits,
    Part,
    RangesNotServedError,
    RemoteFile,
    download_parts,
    plan_parts,
)
from deepencoder.conversion.readers.safetensors_files import read_safetensors_header
from deepencoder.conversion.readers.stored_tensors import StoredTensor

from ...hub_server import Hub

REPO = "some/model"
NO_WAITS = DownloadLimits(first_wait=0)


def at(*offsets: tuple[int, int]) -> dict[str, StoredTensor]:
    """Return tensors at these offsets of a file."""
    return {str(start): StoredTensor((1,), torch.float32, start, end) for start, end in offsets}


@pytest.mark.parametrize(
    ("offsets", "limits", "expected"),
    [
        ([(0, 100), (100, 200), (300, 400)], {}, [(0, 200), (300, 400)]),
        ([(300, 400), (0, 100), (100, 200)], {}, [(0, 200), (300, 400)]),
        ([(0, 100), (100, 200), (200, 300)], {"part_size": 200}, [(0, 200), (200, 300)]),
        ([(0, 900), (904, 1000)], {"gaps_share": 0.01}, [(0, 1000)]),
        ([(0, 900), (904, 1000)], {"gaps_share": 0.001}, [(0, 900), (904, 1000)]),
        ([(0, 900), (904, 1000)], {"gaps_share": 0.01, "largest_gap": 3}, [(0, 900), (904, 1000)]),
        ([(0, 500), (504, 600), (605, 700)], {"gaps_share": 0.01}, [(0, 600), (605, 700)]),
    ],
)
def test_neighbouring_tensors_are_one_part(
    offsets: list[tuple[int, int]], limits: dict[str, Any], expected: list[tuple[int, int]]
) -> None:
    parts = plan_parts(at(*offsets), DownloadLimits(**limits))
    assert [(part.start, part.end) for part in parts] == expected
    assert sorted(name for part in parts for name in part.tensors) == sorted(at(*offsets))


@pytest.fixture
def content(hub: Hub, tmp_path: Path) -> bytes:
    """Bytes of a file that the Hub serves."""
    hub.repos[REPO] = tmp_path / "hub"
    hub.repos[REPO].mkdir()
    content = os.urandom(1_000_000)
    (hub.repos[REPO] / "model.safetensors").write_bytes(content)
    return content


def remote_file(limits: DownloadLimits = NO_WAITS) -> RemoteFile:
    return RemoteFile(REPO, "model.safetensors", hf_hub_url(REPO, "model.safetensors"), limits=limits)


def test_a_range_is_read_with_progress(hub: Hub, content: bytes) -> None:
    received: list[int] = []
    body, file_size = remote_file().read(1000, 900_000, received.append)
    assert bytes(body) == content[1000:900_000] and file_size == len(content)
    assert sum(received) == len(body) == hub.sent["model.safetensors"]


@pytest.mark.parametrize("fault", ["connection is closed", "server is busy"])
def test_failed_requests_are_repeated(hub: Hub, content: bytes, fault: str) -> None:
    if fault == "connection is closed":
        hub.cut_after, hub.cuts = 100_000, 8  # more often than a download may fail without any progress
    else:
        hub.failures = 3
    body, _ = remote_file().read(0, len(content))
    assert bytes(body) == content
    assert hub.cuts == 0 and hub.failures == 0
    assert hub.sent["model.safetensors"] == len(content), "bytes that had arrived were requested again"


def test_a_download_fails_after_the_last_attempt(hub: Hub, content: bytes) -> None:
    hub.budget = 0
    with pytest.raises(OSError, match=f"{REPO}/model.safetensors cannot be downloaded"):
        remote_file(DownloadLimits(first_wait=0, attempts=3)).read(0, 100)
    assert len(hub.requests) == 3


def test_servers_without_ranges_are_recognised(hub: Hub, content: bytes) -> None:
    hub.ranges = False
    with pytest.raises(RangesNotServedError, match="would send all 0.0 GB: pass full_download=True") as error:
        remote_file().read(0, 100)
    assert len(str(error.value).splitlines()) == 1
    assert len(hub.requests) == 1


def test_an_interruption_stops_a_download(hub: Hub, content: bytes) -> None:
    def interrupt(received: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        remote_file().read(0, len(content), interrupt)
    assert len(hub.requests) == 1


@pytest.fixture
def tensors(hub: Hub, content: bytes) -> dict[str, torch.Tensor]:
    """Tensors in the file that the Hub serves."""
    tensors = {f"layer.{number}": torch.randn(1000, 100) for number in range(4)}
    save_file(tensors, hub.repos[REPO] / "model.safetensors")
    return tensors


def plan(limits: DownloadLimits) -> list[tuple[RemoteFile, Part]]:
    file = remote_file(limits)
    return [(file, part) for part in plan_parts(read_safetensors_header(file.read, file.label), limits)]


def assert_read(stored: dict[str, StoredTensor], tensors: dict[str, torch.Tensor]) -> None:
    assert set(stored) == set(tensors)
    for name, tensor in stored.items():
        assert tensor.read is not None and torch.equal(tensor.read(), tensors[name])


def test_parts_are_stored_as_files(hub: Hub, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    parts = plan(DownloadLimits(part_size=800_000))
    assert len(parts) == 2
    hub.forget()
    received: list[int] = []
    assert_read(download_parts(parts, tmp_path / "parts", NO_WAITS, received.append), tensors)
    assert sum(received) == hub.sent["model.safetensors"] == 1_600_000
    files = sorted((tmp_path / "parts").iterdir())
    assert len(files) == 2
    assert set(load_file(files[0])) | set(load_file(files[1])) == set(tensors)


def test_an_interrupted_download_continues(hub: Hub, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    limits = DownloadLimits(part_size=400_000, workers=1, first_wait=0)
    parts = plan(limits)
    hub.forget()
    hub.budget = 1_000_000
    with pytest.raises(OSError, match="cannot be downloaded"):
        download_parts(parts, tmp_path / "parts", limits, lambda count: None)
    assert len(list((tmp_path / "parts").iterdir())) == 2
    assert not list((tmp_path / "parts").glob(TEMPORARY_PATTERN))
    hub.budget = None
    hub.forget()
    received: list[int] = []
    assert_read(download_parts(parts, tmp_path / "parts", limits, received.append), tensors)
    assert hub.sent["model.safetensors"] == 800_000 and sum(received) == 1_600_000


def test_damaged_parts_are_downloaded_again(hub: Hub, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    parts = plan(NO_WAITS)
    download_parts(parts, tmp_path / "parts", NO_WAITS, lambda count: None)
    (path,) = (tmp_path / "parts").iterdir()
    path.write_bytes(path.read_bytes()[:-10])
    assert_read(download_parts(parts, tmp_path / "parts", NO_WAITS, lambda count: None), tensors)
