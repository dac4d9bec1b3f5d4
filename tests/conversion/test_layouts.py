"""Recognising layouts."""

from pathlib import Path

import pytest
import torch

from deepencoder import ClipVisionEncoder, SamEncoder
from deepencoder.conversion.converter import convert_checkpoint
from deepencoder.conversion.layouts import LAYOUTS, Layout, recognize

from .samples import build, layout_of, state_dict_there

DEEPSEEK_OCR = layout_of("deepseek-ocr")


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.slug)
@pytest.mark.parametrize("prefix", ["", "model.", "module.", "_orig_mod.model."])
def test_every_layout_is_recognised(layout: Layout, prefix: str) -> None:
    assert recognize(list(state_dict_there(build(layout), layout, prefix))) == (layout, prefix)


def test_slugs_and_names_are_unique() -> None:
    for values in ([layout.slug for layout in LAYOUTS], [layout.name for layout in LAYOUTS]):
        assert len(values) == len(set(values))
    slugs = {layout.slug for layout in LAYOUTS}
    assert all(set(layout.also_written_for) <= slugs - {layout.slug} for layout in LAYOUTS)


def test_unknown_and_ambiguous_checkpoints() -> None:
    with pytest.raises(ValueError, match=r"none of: DeepSeek-OCR, .*first tensor names are: 'a\.b'"):
        recognize(["a.b"])
    with pytest.raises(ValueError, match="no tensors"):
        recognize([])
    keys = {
        **state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR),
        **state_dict_there(build(layout_of("sam")), layout_of("sam")),
    }
    with pytest.raises(ValueError, match="could be any of: DeepSeek-OCR, SAM"):
        recognize(list(keys))


def test_half_an_encoder_is_recognised(tmp_path: Path) -> None:
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR)
    for prefix, model_class in (("sam_model.", SamEncoder), ("vision_model.", ClipVisionEncoder)):
        half = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        torch.save(half, tmp_path / "half.bin")
        assert type(convert_checkpoint(tmp_path / "half.bin").model) is model_class
