"""Memory budgets reach every part of a model, and belong to that model only."""

import copy

from deepencoder import DeepEncoder, DeepEncoderConfig
from deepencoder.modeling.memory_budgets import MEMORY_BUDGETS, MemoryBudgets, set_memory_budgets


def test_budgets_belong_to_one_model(tmp_path) -> None:
    model, other = DeepEncoder(DeepEncoderConfig.tiny()), DeepEncoder(DeepEncoderConfig.tiny())
    budgets = MemoryBudgets(views=1)
    set_memory_budgets(model, budgets)
    layer = model.sam_encoder.layers[0]
    assert all(module.memory_budgets is budgets for module in (model, layer, layer.attn))
    assert copy.deepcopy(model).memory_budgets == budgets
    assert all(module.memory_budgets is MEMORY_BUDGETS for module in (other, other.sam_encoder.layers[0]))
    model.save_pretrained(tmp_path)
    assert DeepEncoder.from_pretrained(tmp_path).memory_budgets is MEMORY_BUDGETS
