"""`deepencoder benchmark`, with a tiny model in place of a part of the published one."""

from typing import Any

import pytest

from deepencoder import DeepEncoderConfig
from deepencoder.runtimes.trials import fastest
from deepencoder.runtimes.trials.fastest import Measured
from deepencoder.runtimes.trials.ways import WAYS


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replace the measurement; return the arguments of its calls."""
    calls = []

    def measure(config: Any, side: int, threads: int, **options: Any) -> list[Measured]:
        calls.append((side, threads))
        by_title = {way.title: way for way in WAYS}
        ours, bfloat16 = by_title["torch, float32"], by_title["torch, bfloat16"]
        onnx, openvino = by_title["ONNX Runtime, float32"], by_title["OpenVINO, bfloat16"]
        return [
            Measured(ours, 0.5, 0.1, 400_000_000),
            Measured(bfloat16, problem="RuntimeError: not here"),
            Measured(onnx, problem="not installed: pip install onnxruntime"),
            Measured(openvino, 0.25, 3.0, None, 0.012),
        ]

    monkeypatch.setattr(fastest, "measure_ways", measure)
    return calls


def test_the_fastest_is_named_with_how_to_ask_for_it(cli: Any, measured: list[Any]) -> None:
    code, out, err = cli("benchmark", "--size", 640, "--threads", 2)
    assert code == 0 and measured == [(640, 2)]
    lines = out.splitlines()
    assert lines[0] == "A page of 640 pixels with 2 threads:"
    assert [line.split("  ")[0] for line in lines[2:4]] == ["OpenVINO, bfloat16", "torch, float32"]
    assert "0.250 s" in lines[2] and "1.4 s" in lines[2] and "unknown" in lines[2] and "1e-02" in lines[2]
    assert "0.40 GB" in lines[3] and "reference" in lines[3]
    assert "torch, bfloat16: RuntimeError: not here" in out
    assert "ONNX Runtime, float32: not installed: pip install onnxruntime" in out
    assert (
        "Fastest here: OpenVINO, bfloat16. Ask for it by ExportedDeepEncoder.from_pretrained(" in out
        and "estimate" in out
    )


def test_a_real_run(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastest, "part_of_published_model", DeepEncoderConfig.tiny)
    monkeypatch.setattr(fastest, "WAYS", WAYS[:1])
    monkeypatch.setattr(fastest.measure_ways, "__defaults__", (WAYS[:1], lambda text: None))
    monkeypatch.setattr(fastest, "MIN_SECONDS", 0)
    code, out, _ = cli("benchmark", "--size", 256, "--threads", 1)
    assert code == 0 and "with 1 thread:" in out and "Fastest here: torch, float32." in out


@pytest.mark.parametrize("arguments", [("--size", 100), ("--size", 0), ("--threads", 0)])
def test_bad_numbers(cli: Any, arguments: tuple[str, int]) -> None:
    code, _, err = cli("benchmark", *arguments)
    assert code == 2 and f"{arguments[0]} must be" in err
