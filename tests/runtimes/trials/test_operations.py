"""Operations are those of the published model, as the design counts them."""

import pytest

from deepencoder import DeepEncoderConfig
from deepencoder.runtimes.trials.operations import count_operations


@pytest.mark.parametrize(("side", "gflop"), [(512, 239), (640, 381), (1024, 1107), (1280, 1914)])
def test_published_model(side: int, gflop: int) -> None:
    assert count_operations(DeepEncoderConfig(), side, side) / 1e9 == pytest.approx(gflop, rel=0.005)
