"""Corpora: pages from any source, through the model, into shards of features."""

from typing import TYPE_CHECKING

from ..lazy import lazy_attributes

if TYPE_CHECKING:
    from .encoding import PageEncoder, PageFeatures, iterate_features
    from .feature_extractor import FeatureExtractor
    from .listing import list_pages
    from .local_engine import extract_features
    from .models import IdentifiedModel, identify_model
    from .output_folder import verify_output
    from .outputs import DTYPES, OUTPUTS, take_outputs
    from .pages import Page, PageError, load_page
    from .ray_engine import extract_with_ray
    from .settings import (
        BadPageError,
        ExtractionSettings,
        ExtractionSummary,
        ModelError,
        ProcessGroup,
        Progress,
        RunOptions,
        VerificationSummary,
    )

__all__ = [
    "DTYPES",
    "OUTPUTS",
    "BadPageError",
    "ExtractionSettings",
    "ExtractionSummary",
    "FeatureExtractor",
    "IdentifiedModel",
    "ModelError",
    "Page",
    "PageEncoder",
    "PageError",
    "PageFeatures",
    "ProcessGroup",
    "Progress",
    "RunOptions",
    "VerificationSummary",
    "extract_features",
    "extract_with_ray",
    "identify_model",
    "iterate_features",
    "list_pages",
    "load_page",
    "take_outputs",
    "verify_output",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "DTYPES": ".outputs",
            "OUTPUTS": ".outputs",
            "BadPageError": ".settings",
            "ExtractionSettings": ".settings",
            "ExtractionSummary": ".settings",
            "FeatureExtractor": ".feature_extractor",
            "IdentifiedModel": ".models",
            "ModelError": ".settings",
            "Page": ".pages",
            "PageEncoder": ".encoding",
            "PageError": ".pages",
            "PageFeatures": ".encoding",
            "ProcessGroup": ".settings",
            "Progress": ".settings",
            "RunOptions": ".settings",
            "VerificationSummary": ".settings",
            "extract_features": ".local_engine",
            "extract_with_ray": ".ray_engine",
            "identify_model": ".models",
            "iterate_features": ".encoding",
            "list_pages": ".listing",
            "load_page": ".pages",
            "take_outputs": ".outputs",
            "verify_output": ".output_folder",
        },
    )
