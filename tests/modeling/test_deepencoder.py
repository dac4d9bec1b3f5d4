"""The DeepEncoder: outputs, token layout, tiles, training, precision, placement, saving."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from transformers import AutoModel

from deepencoder import DeepEncoder, DeepEncoderConfig, SamEncoder
from deepencoder.modeling.memory_budgets import MemoryBudgets, set_memory_budgets
from deepencoder.modeling.vision_tokens import lay_out_vision_tokens

GRIDS = [(1, 1), (2, 1), (1, 2), (3, 2), (2, 3)]


def page_inputs(grids: list[tuple[int, int]], size: int = 128, tile: int = 64) -> dict[str, Any]:
    tiles = [columns * rows if columns * rows > 1 else 0 for columns, rows in grids]
    inputs = {"pixel_values": torch.randn(len(grids), 3, size, size), "patches_grid": torch.tensor(grids)}
    if sum(tiles):
        inputs["pixel_values_local"] = torch.randn(sum(tiles), 3, tile, tile)
    return inputs | {"num_local_patches": torch.tensor(tiles)}


def assert_same(ours: Any, theirs: Any, **tolerance: float) -> None:
    """Compare all fields of two outputs."""
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(
            ours[name], theirs[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance
        )


def test_the_published_model_has_400770048_parameters() -> None:
    with torch.device("meta"):
        model = DeepEncoder(DeepEncoderConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == 400_770_048
    assert not any("position_ids" in name or "patch_embedding" in name for name in model.clip_encoder.state_dict())


@torch.no_grad()
def test_outputs_without_tiles(tiny_model: DeepEncoder) -> None:
    output = tiny_model(torch.randn(2, 3, 256, 192))
    assert output.last_hidden_state.shape == (2, 12, 64)
    assert output.pooler_output.shape == (2, 32)
    assert output.local_last_hidden_state is None
    assert [tuple(tokens.shape) for tokens in output.vision_tokens] == [((3 + 1) * 4 + 1, 48)] * 2
    assert output.hidden_states is None and output.attentions is None


@torch.no_grad()
def test_fusion_is_clip_then_sam(tiny_model: DeepEncoder) -> None:
    pixels = torch.randn(1, 3, 128, 192)
    sam_map = tiny_model.sam_encoder(pixels).last_hidden_state
    clip = tiny_model.clip_encoder(patch_embeds=sam_map)
    output = tiny_model(pixels)
    assert torch.equal(output.last_hidden_state[..., :32], clip.last_hidden_state[:, 1:])
    assert torch.equal(output.last_hidden_state[..., 32:], sam_map.flatten(2).transpose(1, 2))
    assert torch.equal(output.pooler_output, clip.pooler_output)


@pytest.mark.parametrize("training", [False, True])
def test_an_empty_batch(tiny_model: DeepEncoder, training: bool) -> None:
    with torch.set_grad_enabled(training):
        output = tiny_model(torch.zeros(0, 3, 128, 128))
    assert output.last_hidden_state.shape == (0, 4, 64)
    assert output.pooler_output.shape == (0, 32)
    assert output.vision_tokens == ()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_layout_of_marked_tiles(grid: tuple[int, int]) -> None:
    """Each tile has a constant value, so the rows of the mosaic must list the tiles' values in reading order."""
    columns, rows = grid
    height, width = 2, 3
    view = torch.full((4, 5, 1), 100.0)
    tiles = torch.arange(float(columns * rows)).view(-1, 1, 1, 1).expand(-1, height, width, 1)
    newline, separator = torch.tensor([-1.0]), torch.tensor([-2.0])
    sequence = lay_out_vision_tokens(view, tiles if grid != (1, 1) else None, grid, newline, separator)[:, 0].tolist()
    expected: list[float] = []
    if grid != (1, 1):
        for row in range(rows):
            line = [float(row * columns + column) for column in range(columns) for _ in range(width)]
            expected += (line + [-1.0]) * height
    expected += ([100.0] * 5 + [-1.0]) * 4 + [-2.0]
    assert sequence == expected


@torch.no_grad()
def test_a_ragged_batch_equals_its_images_alone(tiny_model: DeepEncoder) -> None:
    grids = [(2, 3), (1, 1), (3, 1), (1, 2)]
    inputs = page_inputs(grids)
    together = tiny_model(**inputs)
    assert together.local_last_hidden_state.shape == (11, 1, 64)
    start = 0
    for index, grid in enumerate(grids):
        count = grid[0] * grid[1] if grid != (1, 1) else 0
        alone = tiny_model(
            inputs["pixel_values"][index : index + 1],
            inputs["pixel_values_local"][start : start + count] if count else None,
            patches_grid=[grid],
        )
        start += count
        torch.testing.assert_close(together.vision_tokens[index], alone.vision_tokens[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.last_hidden_state[index], alone.last_hidden_state[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_black_tiles_are_tiles(tiny_model: DeepEncoder) -> None:
    tokens = tiny_model(torch.zeros(1, 3, 128, 128), torch.zeros(2, 3, 64, 64), patches_grid=[(2, 1)]).vision_tokens
    assert len(tokens[0]) == (2 + 1) * 1 + (2 + 1) * 2 + 1


@torch.no_grad()
def test_tiles_run_as_one_batch(tiny_model: DeepEncoder) -> None:
    batches: list[int] = []
    tiny_model.sam_encoder.register_forward_pre_hook(lambda module, args: batches.append(args[0].shape[0]))
    tiny_model(**page_inputs([(2, 3), (3, 1)]))
    assert batches == [2, 9]


@torch.no_grad()
def test_one_cell_may_be_a_tile_if_num_local_patches_says_so(tiny_model: DeepEncoder) -> None:
    pixels, tile = torch.randn(1, 3, 128, 128), torch.randn(1, 3, 64, 64)
    tokens = tiny_model(pixels, tile, patches_grid=[(1, 1)], num_local_patches=[1]).vision_tokens[0]
    assert len(tokens) == 2 + 3 * 2 + 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patches_grid": None}, ["patches_grid", "required", "6"]),
        ({"patches_grid": [(2, 3)]}, ["patches_grid", "2 pairs", "[(2, 3)]"]),
        ({"patches_grid": [(2, 3), (1, 0)]}, ["patches_grid", "positive"]),
        ({"patches_grid": [(2.5, 3.0), (1, 1)]}, ["patches_grid", "integers", "2.5"]),
        ({"patches_grid": [2, 3]}, ["patches_grid", "pairs", "[2, 3]"]),
        ({"patches_grid": torch.tensor(3)}, ["patches_grid", "pairs", "3"]),
        ({"pixel_values_local": None, "patches_grid": None}, ["num_local_patches[0]", "got 6"]),
        ({"patches_grid": [(2, 3, 1), (1, 1)]}, ["patches_grid", "pairs"]),
        ({"patches_grid": [(2, 2), (1, 1)], "num_local_patches": None}, ["pixel_values_local", "4 tiles", "got 6"]),
        ({"num_local_patches": [6]}, ["num_local_patches", "2 numbers", "[6]"]),
        ({"num_local_patches": [5, 1]}, ["num_local_patches[0]", "6", "got 5"]),
        ({"pixel_values_local": None}, ["pixel_values_local", "6 tiles", "got 0"]),
        ({"pixel_values_local": torch.zeros(6, 3, 60, 64)}, ["pixel_values_local", "height", "16", "60"]),
        ({"pixel_values": torch.zeros(2, 1, 128, 128)}, ["pixel_values", "3 channels", "got 1"]),
    ],
)
def test_bad_inputs(tiny_model: DeepEncoder, changes: dict[str, Any], words: list[str]) -> None:
    inputs = page_inputs([(2, 3), (1, 1)]) | changes
    with pytest.raises(ValueError) as error:
        tiny_model(**inputs)
    assert all(word in str(error.value) for word in words), str(error.value)


@torch.no_grad()
def test_large_batches_run_in_parts(tiny_model: DeepEncoder) -> None:
    tiny_model.set_attn_implementation("eager")
    inputs = page_inputs([(2, 1), (1, 1), (3, 2)])
    whole = tiny_model(**inputs, output_hidden_states=True, output_attentions=True)
    batches = []
    tiny_model.sam_encoder.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    hidden_size = tiny_model.config.sam_config.hidden_size
    set_memory_budgets(tiny_model, MemoryBudgets(views=3 * 16 * hidden_size * 4))
    parts = tiny_model(**inputs, output_hidden_states=True, output_attentions=True)
    assert batches == [1, 1, 1, 3, 3, 2]  # A view has 64 patches and a tile has 16.
    assert_same(parts, whole, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_get_image_features_follows_the_convention(tiny_model: DeepEncoder) -> None:
    inputs = page_inputs([(2, 1), (1, 1)])
    output, features = tiny_model(**inputs), tiny_model.get_image_features(**inputs)
    assert isinstance(features.pooler_output, list)
    for tokens, expected in zip(features.pooler_output, output.vision_tokens, strict=True):
        assert torch.equal(tokens, expected)
    assert torch.equal(features.last_hidden_state, output.last_hidden_state)
    assert isinstance(tiny_model.get_image_features(**inputs, return_dict=False), tuple)


@pytest.mark.parametrize(
    ("values", "layers", "width"),
    [
        ({"projector_type": "linear"}, 1, 48),
        ({"projector_type": "mlp_gelu", "projector_depth": 3}, 3, 48),
        ({"projector_type": "identity"}, 0, 64),
    ],
)
@torch.no_grad()
def test_projectors(values: dict[str, Any], layers: int, width: int) -> None:
    model = DeepEncoder(DeepEncoderConfig.tiny(**values))
    assert sum(isinstance(layer, torch.nn.Linear) for layer in model.projector.modules()) == layers
    assert model(torch.zeros(1, 3, 64, 64)).vision_tokens[0].shape == (3, width)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_is_close(tiny_model: DeepEncoder, dtype: torch.dtype) -> None:
    inputs = page_inputs([(2, 1), (1, 1)], size=192)
    expected = tiny_model(**inputs)
    half = copy.deepcopy(tiny_model).to(dtype)(**inputs)  # The model casts the float32 pixels.
    assert half.last_hidden_state.dtype == half.vision_tokens[0].dtype == dtype
    for tokens, wanted in zip(half.vision_tokens, expected.vision_tokens, strict=True):
        error = (tokens.float() - wanted).norm() / wanted.norm()
        assert error < (0.03 if dtype is torch.bfloat16 else 0.005), error


@torch.no_grad()
def test_autocast(tiny_model: DeepEncoder) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = tiny_model(**page_inputs([(2, 1)]))
    assert output.vision_tokens[0].isfinite().all()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(tiny_model: DeepEncoder, reentrant: bool) -> None:
    inputs = page_inputs([(2, 1), (1, 1)], size=192)
    if reentrant:
        inputs[
            "pixel_values"
        ].requires_grad_()  # Needed by reentrant checkpointing, as enable_input_require_grads does.
        inputs["pixel_values_local"].requires_grad_()
    results = []
    for checkpointing in (False, True):
        model = copy.deepcopy(tiny_model).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            assert all(layer.gradient_checkpointing for layer in model.sam_encoder.layers)
        sum(tokens.square().mean() for tokens in model(**inputs).vision_tokens).backward()
        results.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in results[0].items():
        assert gradient is not None and gradient.abs().max() > 0, f"{name} has no gradient"
        torch.testing.assert_close(results[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_a_training_step_changes_what_a_cached_table_gave(tiny_model: DeepEncoder) -> None:
    pixels = torch.randn(1, 3, 192, 192)
    with torch.no_grad():
        before = tiny_model(pixels).last_hidden_state
    optimizer = torch.optim.SGD(
        [tiny_model.sam_encoder.embeddings.position_embedding, tiny_model.sam_encoder.layers[1].attn.rel_pos_h],
        lr=10.0,
    )
    tiny_model(pixels).last_hidden_state.square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        after = tiny_model(pixels).last_hidden_state
        fresh = copy.deepcopy(tiny_model)(pixels).last_hidden_state
    assert not torch.allclose(before, after)
    assert torch.equal(after, fresh)


def test_a_short_training_run_lowers_the_loss() -> None:
    model = DeepEncoder(DeepEncoderConfig.tiny(image_size=64)).train()
    pixels, target = torch.randn(4, 3, 64, 64), torch.randn(4, 3, 48)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = (torch.stack(model(pixels).vision_tokens) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], losses


@torch.no_grad()
def test_compiles_as_one_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tests/test_hidden_states.py` compiles pages with tiles, without Inductor."""
    # Inductor's usual cache does not tell apart the instruction sets that torch may be held to.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    config = DeepEncoderConfig.tiny()
    # Inductor takes seconds for each layer: one in windows, one with global attention, one of CLIP.
    config.sam_config.num_hidden_layers, config.clip_config.num_hidden_layers = 2, 1
    model = DeepEncoder(config).eval()
    compiled, inputs = torch.compile(model, fullgraph=True), page_inputs([(1, 1)])
    assert_same(compiled(**inputs), model(**inputs), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_exports_by_hand_for_batches_of_any_size(tiny_model: DeepEncoder, tmp_path: Path) -> None:
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(
        tiny_model, (torch.zeros(2, 3, 128, 192),), dynamic_shapes={"pixel_values": batch}, strict=False
    )
    torch.export.save(program, tmp_path / "view.pt2")
    for graph in (program.module(), torch.export.load(tmp_path / "view.pt2").module()):
        for images in (1, 2, 5):
            pixels = torch.randn(images, 3, 128, 192)
            output, expected = graph(pixels), tiny_model(pixels)
            assert output.vision_tokens.shape == (images, (3 + 1) * 2 + 1, 48)
            for name in ("last_hidden_state", "pooler_output"):
                torch.testing.assert_close(output[name], expected[name], atol=1e-5, rtol=1e-4)
            for tokens, wanted in zip(output.vision_tokens, expected.vision_tokens, strict=True):
                torch.testing.assert_close(tokens, wanted, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_exports_by_hand_with_tiles(tiny_model: DeepEncoder) -> None:
    inputs = page_inputs([(2, 1), (1, 1)]) | {"patches_grid": [(2, 1), (1, 1)]}
    del inputs["num_local_patches"]
    program = torch.export.export(tiny_model, (), inputs, strict=False)
    inputs |= {name: torch.randn_like(inputs[name]) for name in ("pixel_values", "pixel_values_local")}
    assert_same(program.module()(**inputs), tiny_model(**inputs), atol=1e-5, rtol=1e-4)


def test_meta_initialisation_loads(tiny_model: DeepEncoder, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path)
    with torch.device("meta"):
        empty = DeepEncoder(DeepEncoderConfig.tiny())
    assert all(parameter.is_meta for parameter in empty.parameters())
    loaded = DeepEncoder.from_pretrained(tmp_path, low_cpu_mem_usage=True)
    assert not any(parameter.is_meta for parameter in loaded.parameters())


def test_initialisation_depends_on_the_seed_only() -> None:
    torch.manual_seed(1)
    first = DeepEncoder(DeepEncoderConfig.tiny()).state_dict()
    torch.manual_seed(1)
    second = DeepEncoder(DeepEncoderConfig.tiny()).state_dict()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name])
        if not name.endswith(".bias"):
            assert tensor.abs().max() > 0, f"{name} is left at zero"


@pytest.mark.parametrize("how", ["whole", "sharded", "bfloat16"])
@torch.no_grad()
def test_saved_and_reloaded_outputs_are_identical(tiny_model: DeepEncoder, how: str, tmp_path: Path) -> None:
    model = tiny_model.to(torch.bfloat16) if how == "bfloat16" else tiny_model
    model.save_pretrained(tmp_path, max_shard_size="100KB" if how == "sharded" else "1GB")
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (how == "sharded")
    loaded = AutoModel.from_pretrained(tmp_path, dtype="auto")
    assert type(loaded) is DeepEncoder and loaded.dtype == model.dtype and not loaded.training
    inputs = page_inputs([(2, 3), (1, 1)], size=192)
    assert_same(loaded(**inputs), model(**inputs), atol=0, rtol=0)


@pytest.mark.parametrize("part", ["sam_encoder", "clip_encoder"])
@torch.no_grad()
def test_a_half_saves_and_loads_alone(tiny_model: DeepEncoder, part: str, tmp_path: Path) -> None:
    half = getattr(tiny_model, part)
    half.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is type(half)
    name = "pixel_values" if isinstance(half, SamEncoder) else "patch_embeds"
    inputs = {name: torch.randn(1, 3, 128, 128) if name == "pixel_values" else torch.randn(1, 32, 2, 2)}
    assert torch.equal(loaded(**inputs).last_hidden_state, half(**inputs).last_hidden_state)


@pytest.mark.parametrize("where", ["cpu", "disk"])
@torch.no_grad()
def test_offloading_keeps_outputs(tiny_model: DeepEncoder, where: str, tmp_path: Path) -> None:
    inputs = page_inputs([(2, 3), (1, 1)], size=192)
    expected = tiny_model(**inputs)
    if where == "cpu":
        placed = cpu_offload(tiny_model, execution_device=torch.device("cpu"))
    else:
        placed = disk_offload(tiny_model, tmp_path, execution_device=torch.device("cpu"))
        assert placed.image_newline.is_meta and placed.view_separator.is_meta
    assert_same(placed(**inputs), expected, atol=0, rtol=0)
    assert_same(placed(**inputs), expected, atol=0, rtol=0)
    features = placed.get_image_features(**inputs)
    assert torch.equal(features.pooler_output[0], expected.vision_tokens[0])


@torch.no_grad()
def test_device_map_with_disk_offload(tiny_model: DeepEncoder, tmp_path: Path) -> None:
    inputs = page_inputs([(2, 1)], size=192)
    tiny_model.save_pretrained(tmp_path / "model")
    device_map = {
        "sam_encoder": "cpu",
        "clip_encoder": "disk",
        "projector": "cpu",
        "image_newline": "disk",
        "view_separator": "disk",
    }
    expected = tiny_model(**inputs)
    placed = AutoModel.from_pretrained(tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload")
    assert next(placed.clip_encoder.parameters()).is_meta
    assert_same(placed(**inputs), expected, atol=0, rtol=0)
    dispatched = dispatch_model(tiny_model, device_map=device_map, offload_dir=tmp_path / "dispatch")
    assert_same(dispatched(**inputs), expected, atol=0, rtol=0)
