"""What surrounds the trace of a model."""

import logging
import os
import warnings

import pytest
import torch

from deepencoder import DeepEncoder
from deepencoder.conversion.export.graphs import ExportedView, fix_image_size
from deepencoder.conversion.export.tracing import quiet_exporters, trace_view, without_telemetry


def test_the_trace_shares_the_weights(shallowest_model: DeepEncoder) -> None:
    fixed = fix_image_size(shallowest_model, 128, "sdpa")
    program = trace_view(ExportedView(fixed), (3, 128, 128))
    weights = {parameter.data_ptr() for parameter in shallowest_model.parameters()}
    traced = [tensor for tensor in program.state_dict.values() if tensor.data_ptr() in weights]
    assert len(traced) > 0.8 * len(program.state_dict)  # All but the position tables.
    (name,) = program.graph_signature.user_inputs
    (node,) = (node for node in program.graph.nodes if node.name == name)
    batch, *shape = node.meta["val"].shape
    assert isinstance(batch, torch.SymInt) and shape == [3, 128, 128]


def test_telemetry_is_off_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "false")
    monkeypatch.delenv("NNCF_CI", raising=False)
    with without_telemetry():
        assert os.environ["CI"] == os.environ["NNCF_CI"] == "true"
    assert os.environ["CI"] == "false" and "NNCF_CI" not in os.environ


def test_exporters_are_quiet_meanwhile(recwarn: pytest.WarningsRecorder) -> None:
    logger = logging.getLogger("deepencoder.tests.exporter")
    logger.setLevel(logging.INFO)
    with quiet_exporters(logger.name):
        assert logger.level == logging.ERROR
        warnings.warn("about the exporter's own code", stacklevel=1)
    assert logger.level == logging.INFO and not recwarn
