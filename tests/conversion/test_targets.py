"""How each of our models is made from a checkpoint."""

from deepencoder.conversion.layouts import LAYOUTS
from deepencoder.conversion.targets import TARGETS
from deepencoder.modeling.catalog import MODELS

from .samples import build


def test_every_model_has_a_row() -> None:
    assert set(TARGETS) == set(MODELS)


def test_optional_parts_are_parts_of_the_models() -> None:
    for layout in LAYOUTS:
        if not layout.family.absent_parts:
            names = list(build(layout).state_dict())
            for part in TARGETS[layout.model_type].optional_parts:
                assert any(name.startswith(part) for name in names), part


def test_what_verification_reads_belongs_to_the_encoder() -> None:
    for layout in LAYOUTS:
        prefixes = tuple(old for old, _ in layout.reference_prefixes)
        assert (layout.renamed_by == "transformers") == bool(prefixes), layout.slug
        for name in (*prefixes, *layout.reference_projection):
            assert name.startswith(layout.claims), (layout.slug, name)
