"""Computing with weights of half precision in float32."""

import pytest
import torch
from torch import nn

from deepencoder.conversion.references import computing_in_float32

from .samples import build, inputs_of, layout_of


@torch.no_grad()
def test_half_precision_weights_compute_in_float32() -> None:
    model = build(layout_of("deepseek-ocr")).bfloat16()
    pixels = inputs_of(model).bfloat16()
    narrow = model(pixels).last_hidden_state
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    with computing_in_float32(model):
        wide = model(pixels).last_hidden_state
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == before
    assert narrow.dtype == model.dtype == torch.bfloat16 and wide.dtype == torch.float32
    expected = model.float()(pixels).last_hidden_state
    torch.testing.assert_close(wide, expected, atol=1e-6, rtol=0)
    assert (narrow - expected).abs().max() > 1e-3


def test_weights_come_back_after_an_error() -> None:
    model = nn.Linear(2, 2, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError), computing_in_float32(model):
        model(torch.zeros(1, 3))
    assert model.weight.dtype == torch.bfloat16
