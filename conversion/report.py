"""The report of a conversion."""

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["CONVERTER_VERSION", "NOT_A_PART", "REPORT_NAME", "ConversionReport"]

# Bump this when conversion output changes; cached conversions are keyed by it.
CONVERTER_VERSION = "1"
REPORT_NAME = "conversion_report.json"
NOT_A_PART = "not a part of the encoder"


@dataclass
class ConversionReport:
    """What became of a checkpoint.

    Args:
        source: where it is.
        commit: of a checkpoint on the Hub.
        layout: what it was recognised as.
        model_type: what it became.
        dtype: of the model.
        converter_version: of the code that converted it.
        mapped: for each name here, the names there that it was made of.
        unused: names there that nothing was made of, with the reason.
        initialized: names here for which the checkpoint has nothing: their values are random.
        dtype_changes: names there whose dtype is not the model's, with both.
        not_finite: names here that hold infinities or NaNs.
        assumed: fields of the configuration that are true of most such checkpoints, with the reason.
        verification: differences to the original on the same input, where that was looked at.
        license: what the checkpoint's own model card says it is under.
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

    @property
    def left_behind(self) -> dict[str, str]:
        """Of `unused`, the names in the encoder's own parts."""
        return {name: reason for name, reason in self.unused.items() if reason != NOT_A_PART}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
