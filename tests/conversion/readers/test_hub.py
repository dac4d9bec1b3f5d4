"""Checkpoints on the Hub: which requests find and download them, and which errors are raised."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.utils import WeakFileLock
from safetensors.torch import save_file

from deepencoder import DeepEncoder
from deepencoder.conversion.checkpoint import Checkpoint, open_checkpoint
from deepencoder.conversion.readers.byte_ranges import RangesNotServedError
from deepencoder.conversion.readers.hub import HubOptions, RemoteFiles, looks_like_hub_id, model_cache

from ...hub_server import COMMIT, Hub
from ..hub_samples import REPO, sent_weights, size_of
from ..samples import layout_of, state_dict_there

DEEPSEEK_OCR = layout_of("deepseek-ocr")


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
def test_the_form_of_hub_ids(name: str, expected: bool) -> None:
    assert looks_like_hub_id(name) is expected


def test_derived_files_are_cached_by_commit(tmp_path: Path) -> None:
    folder = model_cache("some/model", COMMIT, HubOptions(cache_dir=tmp_path))
    assert folder.is_relative_to(tmp_path / "assets" / "deepencoder") and folder.name == COMMIT


def assert_encoder(checkpoint: Checkpoint, model: DeepEncoder, prefix: str = "") -> None:
    """Check that the tensors of the encoder are those of a model."""
    for name, tensor in state_dict_there(model, DEEPSEEK_OCR, prefix).items():
        assert torch.equal(checkpoint[name], tensor), name


def test_opening_downloads_only_headers(hub: Hub, original: DeepEncoder, cache: dict[str, Any]) -> None:
    checkpoint = open_checkpoint(REPO, HubOptions(**cache))
    assert checkpoint.commit == COMMIT and checkpoint.config["model_type"] == "deepseek_vl_v2"
    assert "lm_head.weight" in checkpoint and not checkpoint.mapped
    assert 0 < sent_weights(hub) < 20_000
    hub.forget()
    name = "model.projector.layers.weight"
    assert torch.equal(checkpoint[name], state_dict_there(original, DEEPSEEK_OCR, "model.")[name])
    assert sent_weights(hub) == checkpoint[name].nbytes


def test_progress_is_reported_in_bytes(hub: Hub, original: DeepEncoder, cache: dict[str, Any]) -> None:
    totals: dict[str, int] = {}
    received: list[int] = []

    @contextmanager
    def progress_bar(label: str, total: int) -> Iterator[Callable[[int], object]]:
        totals[label] = total
        yield received.append

    remote = RemoteFiles(REPO, HubOptions(**cache), progress_bar)
    remote.open()
    fetched = remote.fetch(state_dict_there(original, DEEPSEEK_OCR, "model."))
    assert all(tensor.read is not None for tensor in fetched.values())
    assert totals == {f"Encoder of {REPO}": size_of(original)}
    assert sum(received) == size_of(original)


def test_cached_files_are_used(hub: Hub, original: DeepEncoder, cache: dict[str, Any]) -> None:
    snapshot_download(REPO, **cache)
    hub.forget()
    assert_encoder(open_checkpoint(REPO, HubOptions(**cache)), original, "model.")
    assert sent_weights(hub) == 0
    assert_encoder(open_checkpoint(REPO, HubOptions(**cache, local_files_only=True)), original, "model.")


def test_downloading_whole_files(hub: Hub, original: DeepEncoder, cache: dict[str, Any]) -> None:
    hub.ranges = False
    with pytest.raises(RangesNotServedError, match="full_download"):
        open_checkpoint(REPO, HubOptions(**cache))
    hub.forget()
    assert_encoder(open_checkpoint(REPO, HubOptions(**cache, full_download=True)), original, "model.")
    assert sent_weights(hub) == sum(path.stat().st_size for path in hub.repos[REPO].glob("*.safetensors"))


def test_private_and_missing_models(hub: Hub, original: DeepEncoder, cache: dict[str, Any]) -> None:
    hub.private.add(REPO)
    for repo, options, pattern in (
        (REPO, {"token": False}, "not a valid model identifier"),
        (REPO, {"token": hub.token, "revision": "gone"}, "gone is not a valid git identifier"),
        ("some/other", {}, "not a valid model identifier"),
    ):
        with pytest.raises(OSError, match=pattern):
            open_checkpoint(repo, HubOptions(**options, **cache))  # type: ignore[arg-type]
    assert_encoder(open_checkpoint(REPO, HubOptions(token=hub.token, revision=COMMIT, **cache)), original, "model.")


def test_damaged_and_empty_models(hub: Hub, original: DeepEncoder, cache: dict[str, Any], tmp_path: Path) -> None:
    damaged, empty = tmp_path / "damaged", tmp_path / "empty"
    for repo, folder in (("some/damaged", damaged), ("some/empty", empty)):
        folder.mkdir()
        hub.repos[repo] = folder
    whole = next(hub.repos[REPO].glob("*.safetensors")).read_bytes()
    (damaged / "model.safetensors").write_bytes(whole[:-10])
    (damaged / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="incomplete or damaged"):
        open_checkpoint("some/damaged", HubOptions(**cache))
    (empty / "README.md").write_text("nothing")
    with pytest.raises(OSError, match=r"some/empty contains no \.safetensors"):
        open_checkpoint("some/empty", HubOptions(**cache))


@pytest.mark.parametrize(("save", "name"), [(save_file, "encoder.safetensors"), (torch.save, "encoder.pth")])
def test_other_file_names_and_pickles(
    hub: Hub, original: DeepEncoder, cache: dict[str, Any], tmp_path: Path, save: Callable[..., None], name: str
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    save(state_dict_there(original, DEEPSEEK_OCR), folder / name)
    hub.repos["some/other"] = folder
    checkpoint = open_checkpoint("some/other", HubOptions(**cache))
    assert_encoder(checkpoint, original)
    assert checkpoint.commit == COMMIT and checkpoint.mapped == name.endswith(".pth")


def test_nothing_is_downloaded_offline(hub: Hub, original: DeepEncoder, cache: dict[str, Any]) -> None:
    snapshot_download(REPO, **cache, allow_patterns="*.json")
    hub.forget()
    with pytest.raises(OSError, match="not in the cache, and nothing is downloaded offline"):
        open_checkpoint(REPO, HubOptions(**cache, local_files_only=True))
    assert hub.requests == []


def test_parts_are_removed_on_request(hub: Hub, original: DeepEncoder, cache: dict[str, Any]) -> None:
    options = HubOptions(**cache)
    checkpoint = open_checkpoint(REPO, options)
    checkpoint.fetch(list(state_dict_there(original, DEEPSEEK_OCR, "model.")))
    folder = model_cache(REPO, COMMIT, options)
    assert len(list((folder / "parts").iterdir())) == 2
    checkpoint.forget()
    assert not (folder / "parts").exists()
    with checkpoint.lock(), pytest.raises(OSError), WeakFileLock(folder / "parts.lock", timeout=0.1):
        pass
    with WeakFileLock(folder / "parts.lock", timeout=0.1):  # Released again.
        pass


def test_the_token_is_not_shown() -> None:
    assert "hf_secret" not in repr(HubOptions(token="hf_secret"))


def test_a_hub_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes of the HTTP client's errors depend on the version of huggingface_hub."""

    def fail(kind: type[Exception]) -> None:
        def model_info(*args: Any, **kwargs: Any) -> None:
            raise kind("Name or service not known")

        monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)

    monkeypatch.setattr(RemoteFiles, "find_file", lambda self, name: None)
    fail(type("ConnectError", (Exception,), {"__module__": "httpx2"}))
    with pytest.raises(OSError, match="no file or folder.*the Hub cannot be asked for nothere: Name or service"):
        open_checkpoint("nothere")
    fail(ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):  # A defect is not hidden.
        open_checkpoint("nothere")
