"""What is known of the processor's instructions for 16-bit dtypes, and who is told."""

import logging
import platform
from pathlib import Path
from typing import Any

import pytest
import torch

from deepencoder import DeepEncoder, SamEncoder, SamEncoderConfig
from deepencoder.modeling import slow_dtypes
from deepencoder.modeling.slow_dtypes import is_slow_here, warn_if_slow

BOTH = frozenset({torch.bfloat16, torch.float16})
probe = slow_dtypes._slow_dtypes.__wrapped__


@pytest.mark.parametrize(
    ("found", "slow"),
    [
        ({"architecture": "x86_64", "amx_bf16": True, "avx512_bf16": True, "avx512_fp16": True}, set()),
        ({"architecture": "x86_64", "amx_bf16": False, "avx512_bf16": True, "amx_fp16": False}, {torch.float16}),
        ({"architecture": "x86_64"}, BOTH),
        ({"architecture": "aarch64"}, set()),
        ({}, set()),
    ],
)
def test_what_the_processor_tells(found: dict[str, Any], slow: set[torch.dtype], monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert probe() == slow


@pytest.mark.parametrize(
    ("machine", "probes", "slow"),
    [
        ("x86_64", {"_is_amx_tile_supported": False, "_is_avx512_bf16_supported": False}, BOTH),
        ("AMD64", {"_is_amx_tile_supported": False, "_is_avx512_bf16_supported": True}, {torch.float16}),
        ("x86_64", {"_is_amx_tile_supported": True, "_is_avx512_bf16_supported": True}, set()),
        ("x86_64", {}, set()),
        ("arm64", {"_is_amx_tile_supported": False, "_is_avx512_bf16_supported": False}, set()),
    ],
)
def test_what_older_versions_of_torch_tell(
    machine: str, probes: dict[str, bool], slow: set[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    for name in {name for names in slow_dtypes.OLDER_PROBES.values() for name in names}:
        monkeypatch.delattr(torch.cpu, name, raising=False)
    for name, answer in probes.items():
        monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)
    assert probe() == slow


def test_only_16_bits_on_a_cpu_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_dtypes, "_slow_dtypes", lambda: BOTH)
    assert is_slow_here(torch.bfloat16) and is_slow_here(torch.float16, torch.device("cpu"))
    assert not is_slow_here(torch.bfloat16, "cuda") and not is_slow_here(torch.float32) and not is_slow_here(None)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged, by a logger that has said nothing yet."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.Logger("a new one")
    logger.addHandler(handler)
    monkeypatch.setattr(slow_dtypes, "logger", logger)
    return said


def test_loading_warns_once_in_one_line(
    lines: list[str], tmp_path: Path, tiny_model: DeepEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    tiny_model.save_pretrained(tmp_path)
    monkeypatch.setattr(slow_dtypes, "_slow_dtypes", lambda: frozenset())
    DeepEncoder.from_pretrained(tmp_path, dtype=torch.bfloat16)
    monkeypatch.setattr(slow_dtypes, "_slow_dtypes", lambda: BOTH)
    DeepEncoder.from_pretrained(tmp_path)
    assert lines == []
    loaded = DeepEncoder.from_pretrained(tmp_path, dtype=torch.bfloat16)
    DeepEncoder.from_pretrained(tmp_path, dtype="bfloat16", output_loading_info=True)
    assert loaded.dtype == torch.bfloat16 and len(lines) == 1
    assert "no instructions for bfloat16" in lines[0] and "\n" not in lines[0]
    DeepEncoder.from_pretrained(tmp_path, dtype=torch.float16)
    assert len(lines) == 2 and "float16" in lines[1]


def test_nothing_is_said_where_the_model_will_run_elsewhere(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_dtypes, "_slow_dtypes", lambda: BOTH)
    model = SamEncoder(SamEncoderConfig.tiny()).to(torch.bfloat16)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    warn_if_slow(model)
    assert lines == []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    warn_if_slow(model)
    assert len(lines) == 1
