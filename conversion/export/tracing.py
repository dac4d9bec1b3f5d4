"""The one trace of a model that all formats are made of."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .graphs import ExportedView

__all__ = ["quiet_exporters", "trace_view", "without_telemetry"]


@contextmanager
def quiet_exporters(*loggers: str) -> Iterator[None]:
    """Silence the warnings of exporters, which are about their own code, and the given loggers."""
    levels = {logger: logger.level for logger in map(logging.getLogger, loggers)}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Keep OpenVINO's converter and NNCF from sending statistics, as they do outside of continuous integration."""
    names = ("CI", "NNCF_CI")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "true"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@torch.no_grad()
def trace_view(view: ExportedView, shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    """Trace a model for views of one shape `(channels, height, width)` and batches of any size.

    Only shapes are computed, so that neither time nor memory depends on the size of the views. The program shares the
    weights of the model.
    """
    example = torch.zeros(1, 1, 1, 1).expand(2, *shape)
    sizes = {"pixel_values": {0: torch.export.Dim("batch", min=1)}}
    return torch.export.export(view, (example,), dynamic_shapes=sizes, strict=False)
