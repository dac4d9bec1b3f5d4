"""DeepEncoderV2: outputs, the order in which queries read, sizes, and everything that other models can do, too."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, TorchAoConfig

from deepencoder import DeepEncoderImageProcessor, DeepEncoderOutput, DeepEncoderV2, DeepEncoderV2Config, SamEncoder
from deepencoder.modeling.cpu_execution import runs_in_strips
from deepencoder.modeling.memory_budgets import MemoryBudgets, set_memory_budgets

from ..conftest import randomize


@pytest.fixture
def model() -> Any:
    return randomize(DeepEncoderV2(DeepEncoderV2Config.tiny()))


def ragged_batch() -> dict[str, Any]:
    """Three images: two tiles, none, three."""
    grids = [[2, 1], [1, 1], [1, 3]]
    return {
        "pixel_values": torch.randn(3, 3, 256, 256),
        "pixel_values_local": torch.randn(5, 3, 192, 192),
        "patches_grid": grids,
        "num_local_patches": [2, 0, 3],
    }


@torch.no_grad()
def test_each_image_of_a_ragged_batch_is_as_alone(model: Any) -> None:
    batch = ragged_batch()
    output = model(**batch)
    assert isinstance(output, DeepEncoderOutput) and output.vision_tokens is not None
    assert [len(tokens) for tokens in output.vision_tokens] == [2 * 9 + 17, 17, 3 * 9 + 17]
    assert output.last_hidden_state.shape == (3, 16, 32) and output.local_last_hidden_state.shape == (5, 9, 32)
    assert torch.equal(output.pooler_output, output.last_hidden_state[:, -1])
    tiles = batch["pixel_values_local"].split([2, 0, 3])
    for index, grid in enumerate(batch["patches_grid"]):
        own = tiles[index] if len(tiles[index]) else None
        alone = model(batch["pixel_values"][index : index + 1], own, [grid] if own is not None else None)
        torch.testing.assert_close(alone.vision_tokens[0], output.vision_tokens[index], atol=1e-5, rtol=0)
    tokens = output.vision_tokens[2]
    projected = model.projector(output.local_last_hidden_state[2:]).flatten(0, 1)
    torch.testing.assert_close(tokens[:27], projected)
    assert torch.equal(tokens[-1], model.view_separator)
    features = model.get_image_features(**batch).pooler_output
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(features, output.vision_tokens, strict=True))


@torch.no_grad()
def test_a_query_reads_the_image_and_the_queries_before_it(model: Any) -> None:
    pixels = torch.randn(1, 3, 256, 256)
    before = model(pixels).last_hidden_state
    with torch.no_grad():
        model.queries.table_1[5] += 1  # of the views of 256 pixels
    after = model(pixels).last_hidden_state
    changed = (before != after).any(-1)[0].tolist()
    assert changed == [False] * 5 + [True] * 11
    pixels[..., -1, -1] += 10
    assert (model(pixels).last_hidden_state != after).any(-1).all(), "every query reads all of the image"


@torch.no_grad()
def test_each_size_has_its_own_queries(model: Any) -> None:
    small = model(torch.zeros(1, 3, 192, 192)).last_hidden_state
    model.queries.table_1 += 1
    assert torch.equal(model(torch.zeros(1, 3, 192, 192)).last_hidden_state, small)
    for shape in ((320, 320), (192, 256), (256, 192), (128, 128)):
        with pytest.raises(ValueError, match=r"pixel_values must be square views of 192 or 256 .* got"):
            model(torch.zeros(1, 3, *shape))


def test_every_parameter_has_a_gradient_whatever_the_sizes(model: Any) -> None:
    """Data-parallel training needs it: a batch without tiles must not leave a table of queries out."""
    model.train()
    model.gradient_checkpointing_enable()
    output = model(torch.randn(1, 3, 256, 256))
    output.vision_tokens[0].square().sum().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
    assert not model.queries.table_0.grad.any() and model.queries.table_1.grad.any()


@torch.no_grad()
def test_saved_models_load_again_with_auto_model(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is DeepEncoderV2 and loaded.config.query_sizes == model.config.query_sizes
    pixels = torch.randn(1, 3, 192, 192)
    assert torch.equal(loaded.eval()(pixels).vision_tokens[0], model(pixels).vision_tokens[0])


@torch.no_grad()
def test_device_map_with_disk_offload(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    names = [name for name, _ in model.named_children()]
    device_map = {**dict.fromkeys(names, "disk"), "sam_encoder": "cpu", "view_separator": "disk"}
    placed = AutoModel.from_pretrained(tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload")
    assert next(placed.query_encoder.parameters()).is_meta and next(placed.queries.parameters()).is_meta
    batch = ragged_batch()
    for ours, theirs in zip(placed(**batch).vision_tokens, model(**batch).vision_tokens, strict=True):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_half_precision_and_views_in_parts(model: Any) -> None:
    pixels = torch.randn(3, 3, 192, 192)
    whole = model(pixels)
    set_memory_budgets(model, MemoryBudgets(views=1))
    parts = model(pixels, output_hidden_states=True)
    torch.testing.assert_close(parts.last_hidden_state, whole.last_hidden_state, atol=1e-5, rtol=0)
    assert len(parts.vision_tokens) == 3 and parts.hidden_states[-1].shape == (3, 18, 32)
    half = copy.deepcopy(model).bfloat16()(pixels)
    assert half.last_hidden_state.dtype == half.vision_tokens[0].dtype == torch.bfloat16
    error = (half.last_hidden_state.float() - whole.last_hidden_state).norm() / whole.last_hidden_state.norm()
    assert error < 0.05


@torch.no_grad()
def test_sam_runs_in_strips_on_a_cpu(model: Any) -> None:
    layer = model.sam_encoder.layers[0]
    assert type(model.sam_encoder) is SamEncoder
    assert runs_in_strips(layer, torch.zeros(1, 16, 16, 32))
    pixels = torch.randn(1, 3, 256, 256)
    strips = model(pixels).last_hidden_state
    set_memory_budgets(model, MemoryBudgets(cpu_strips=False))
    torch.testing.assert_close(model(pixels).last_hidden_state, strips, atol=1e-5, rtol=0)


@torch.no_grad()
def test_compiled_models_give_the_same(model: Any) -> None:
    pixels = torch.randn(2, 3, 192, 192)
    compiled = torch.compile(model, fullgraph=True, backend="eager")(pixels)
    torch.testing.assert_close(compiled.vision_tokens[1], model(pixels).vision_tokens[1], atol=1e-5, rtol=0)


def test_lora_trains_the_query_encoder(model: Any) -> None:
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "qkv"]))
    wrapped(pixel_values=torch.randn(1, 3, 192, 192)).vision_tokens[0].sum().backward()
    trained = {
        name.split(".lora_")[0].split(".")[2] for name, weight in wrapped.named_parameters() if weight.requires_grad
    }
    assert trained == {"sam_encoder", "query_encoder"}
    assert all(weight.grad is not None for weight in wrapped.parameters() if weight.requires_grad)


@torch.no_grad()
def test_int8_weights_load_again(model: Any, tmp_path: Path) -> None:
    torchao = pytest.importorskip("torchao.quantization")
    model.save_pretrained(tmp_path / "model")
    quantised = AutoModel.from_pretrained(
        tmp_path / "model", quantization_config=TorchAoConfig(torchao.Int8WeightOnlyConfig())
    )
    quantised.save_pretrained(tmp_path / "int8")
    pixels = torch.randn(1, 3, 192, 192)
    wanted, found = quantised(pixels), AutoModel.from_pretrained(tmp_path / "int8")(pixels)
    assert torch.equal(found.last_hidden_state, wanted.last_hidden_state)
    exact = model(pixels).last_hidden_state
    assert 0 < (found.last_hidden_state - exact).norm() / exact.norm() < 0.05


@torch.no_grad()
def test_the_mode_v2_counts_what_the_model_gives(model: Any) -> None:
    processor = DeepEncoderImageProcessor(mode="v2")
    inputs = processor(torch.zeros(3, 1536, 768), return_tensors="pt")
    tokens = model(**inputs).vision_tokens[0]
    layout = processor.get_token_layout(1536, 768)
    assert len(tokens) == len(layout) == processor.get_number_of_image_tokens(1536, 768) == 2 * 144 + 257
