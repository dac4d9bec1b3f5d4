"""The report of a conversion, which is saved beside the model.

Unusual: models are shared together with their report, so of a path on this machine it holds only the last part.
"""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..configuration.atomic_files import write_text
from .readers.json_files import read_json_file

__all__ = ["CONVERTER_VERSION", "NOT_A_PART", "REPORT_NAME", "ConversionReport", "last_part"]

# Bump this when conversion output changes; cached conversions are keyed by it.
CONVERTER_VERSION = "2"
REPORT_NAME = "conversion_report.json"
NOT_A_PART = "not a part of the encoder"


def last_part(path: str) -> str:
    """Return the last part of a path of this or another operating system."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


@dataclass
class ConversionReport:
    """What became of a checkpoint's tensors.

    Args:
        source: Hub id of the checkpoint; of a local path, only the last part is kept.
        commit: commit of a checkpoint on the Hub.
        layout: name of the layout that was recognised.
        model_type: `model_type` of the model.
        dtype: dtype of the model.
        converter_version: version of the code that converted the checkpoint.
        mapped: for each tensor of the model, the names of the checkpoint's tensors that it was made from.
        unused: names of the checkpoint's tensors that were not used, with the reason.
        initialized: names of the model's tensors that the checkpoint lacks; their values are random.
        dtype_changes: names of the checkpoint's tensors whose dtype is not the model's, with both dtypes.
        not_finite: names of the model's tensors that contain infinities or NaNs.
        assumed: fields of the configuration that are right for most checkpoints of the layout but not for all, with
            the reason.
        verification: differences from the original on the same input, or the reason why it was not compared.
        license: licence that the checkpoint's own model card names.
    """

    source: str
    commit: str | None
    layout: str
    model_type: str
    dtype: str
    converter_version: str = CONVERTER_VERSION
    mapped: dict[str, list[str]] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    initialized: list[str] = field(default_factory=list)
    dtype_changes: dict[str, list[str]] = field(default_factory=dict)
    not_finite: list[str] = field(default_factory=list)
    assumed: dict[str, str] = field(default_factory=dict)
    verification: dict[str, Any] | None = None
    license: str | None = None

    def __post_init__(self) -> None:
        if self.commit is None:
            self.source = last_part(self.source)

    @property
    def left_behind(self) -> dict[str, str]:
        """Those of `unused` that belong to the encoder."""
        return {name: reason for name, reason in self.unused.items() if reason != NOT_A_PART}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def save(self, folder: str | Path) -> None:
        """Write the report to a folder."""
        write_text(Path(folder) / REPORT_NAME, json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "ConversionReport":
        """Read the report in a folder.

        Raises:
            `OSError`, `ValueError`: there is no report, or it is damaged.
        """
        try:
            return cls(**read_json_file(Path(folder) / REPORT_NAME))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder}: {REPORT_NAME} is damaged: {error}.") from error
