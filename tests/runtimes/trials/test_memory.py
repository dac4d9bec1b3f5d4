"""Peaks of memory are measured from the moment that was chosen."""

import numpy as np
import pytest

from deepencoder.runtimes.trials import memory

SIZE = 2**26


@pytest.mark.skipif(not memory.STATUS.exists(), reason="only Linux can forget a peak")
def test_a_peak_is_forgotten() -> None:
    for size in (4 * SIZE, SIZE):
        memory.forget_peak()
        before = memory.held_bytes()
        assert before is not None
        np.ones(size, np.uint8)
        peak = memory.peak_bytes()
        assert peak is not None and 0.8 * size < peak - before < 1.5 * size


def test_elsewhere_the_peak_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("resource")
    monkeypatch.setattr(memory, "STATUS", memory.STATUS.with_name("gone"))
    monkeypatch.setattr(memory, "PEAK_RESET", memory.PEAK_RESET.with_name("gone"))
    memory.forget_peak()
    assert memory.peak_bytes() == memory.held_bytes() and (memory.held_bytes() or 0) > 2**20
