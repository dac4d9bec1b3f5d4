"""Converting: every layout, what is read off shapes and configurations, and what the report says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deepencoder import ClipVisionEncoder, ClipVisionEncoderConfig, DeepEncoder, DeepEncoderConfig, SamEncoder
from deepencoder.configuration.atomic_files import new_folder
from deepencoder.conversion.checkpoint import Checkpoint, open_checkpoint
from deepencoder.conversion.converter import convert_checkpoint, save_converted
from deepencoder.conversion.from_original import convert_to_folder
from deepencoder.conversion.infer_config import KNOWN_HEADS, infer_sam_config
from deepencoder.conversion.layouts import LAYOUTS, Layout, recognize
from deepencoder.conversion.planning import plan_conversion
from deepencoder.conversion.report import NOT_A_PART

from ..conftest import randomize
from .samples import OTHER_TENSORS, VALUES, assert_same, build, inputs_of, layout_of, state_dict_there

DEEPSEEK_OCR = layout_of("deepseek-ocr")


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.slug)
@pytest.mark.parametrize("prefix", ["", "model."])
@torch.no_grad()
def test_every_layout_comes_back_bit_for_bit(layout: Layout, prefix: str, tmp_path: Path) -> None:
    model = build(layout)
    tensors = state_dict_there(model, layout, prefix)
    others = OTHER_TENSORS if layout.claims != ("",) else {}
    # transformers' ViT has blocks by the name that DeepSeek-OCR's language model has.
    others = {name: tensor for name, tensor in others.items() if not name.startswith(f"{prefix}layers.")}
    assert recognize(tensors | others) == (layout, prefix)
    save_file(tensors | others, tmp_path / "model.safetensors")
    conversion = convert_checkpoint(tmp_path)
    report = conversion.report
    assert type(conversion.model) is type(model) and report.layout == layout.name
    assert report.left_behind == {} and report.not_finite == [] and report.dtype_changes == {}
    assert report.unused == dict.fromkeys(others, NOT_A_PART)
    assert sorted(name for names in report.mapped.values() for name in names) == sorted(tensors)
    without_compressor = layout.pixels == "sam"
    assert bool(report.initialized) == without_compressor
    assert all(name.startswith("compressor.") for name in report.initialized)
    converted = conversion.model.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(converted[name], tensor), name
    if not without_compressor:
        pixels = inputs_of(model)
        ours, theirs = conversion.model.eval()(pixels), model(pixels)
        assert torch.equal(ours.last_hidden_state, theirs.last_hidden_state)


def test_parts_that_are_missing_are_reported(tmp_path: Path) -> None:
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in ("image_newline", "view_seperator")}
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "encoder.pth")
    conversion = convert_checkpoint(tmp_path / "encoder.pth")
    assert conversion.report.initialized == ["image_newline", "view_separator"]
    assert conversion.model.config.projection_dim == 40
    assert all(tensor.isfinite().all() for tensor in conversion.model.state_dict().values())


def test_half_an_encoder_is_what_it_is(tmp_path: Path) -> None:
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR)
    for prefix, model_class in (("sam_model.", SamEncoder), ("vision_model.", ClipVisionEncoder)):
        half = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        torch.save(half, tmp_path / "half.bin")
        assert type(convert_checkpoint(tmp_path / "half.bin").model) is model_class


def test_what_stays_behind_is_reported(tmp_path: Path) -> None:
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR, "model.")
    patches = "model.vision_model.embeddings.patch_embedding.weight"
    save_file(tensors | {patches: torch.zeros(192, 3, 14, 14)}, tmp_path / "model.safetensors")
    report = convert_checkpoint(tmp_path).report
    assert list(report.left_behind) == [patches] and report.initialized == []


def test_the_dtype_is_kept_and_nans_are_reported(tmp_path: Path) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR).items()}
    tensors["sam_model.neck.0.weight"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors")
    conversion = convert_checkpoint(tmp_path)
    assert conversion.model.dtype == torch.bfloat16 and conversion.report.dtype == "bfloat16"
    assert conversion.report.not_finite == ["sam_encoder.neck.conv1.weight"]


def test_mixed_dtypes_become_the_one_that_holds_all(tmp_path: Path) -> None:
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR)
    mixed = {name: tensor if "norm" in name else tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(mixed, tmp_path / "model.safetensors")
    conversion = convert_checkpoint(tmp_path)
    assert conversion.model.dtype == torch.float32
    changes = conversion.report.dtype_changes
    assert changes["sam_model.pos_embed"] == ["bfloat16", "float32"]
    assert set(changes) == {name for name in tensors if "norm" not in name}


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_checkpoints_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR)
    name = "sam_model.blocks.0.mlp.lin1.weight"
    save_file(tensors | {name: tensors[name].to(dtype)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"{name}.*quantised"):
        convert_checkpoint(tmp_path)


def test_only_the_tensors_needed_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR, "model.")
    save_file(tensors | OTHER_TENSORS, tmp_path / "model.safetensors")
    read: list[str] = []
    original = Checkpoint.__getitem__
    monkeypatch.setattr(Checkpoint, "__getitem__", lambda self, name: (read.append(name), original(self, name))[1])
    convert_checkpoint(tmp_path)
    assert sorted(read) == sorted(tensors)


def test_strict_about_the_encoders_own_parts(tmp_path: Path) -> None:
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR)
    save_file(tensors | {"sam_model.blocks.0.norm3.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"norm3.*nearest.*sam_model\.blocks\.0\.norm"):
        convert_checkpoint(tmp_path)


def test_what_is_ours_already_is_told_so(tmp_path: Path) -> None:
    DeepEncoder(DeepEncoderConfig.tiny()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="from_pretrained"):
        convert_checkpoint(tmp_path)


def test_blocks_that_are_missing(tmp_path: Path) -> None:
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR)
    for missing, words in (("sam_model.blocks.1.", "numbered"), ("sam_model.patch_embed.", "not whole")):
        rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(missing)}
        save_file(rest, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=words):
            convert_checkpoint(tmp_path)


HINTS: dict[str, dict[str, Any]] = {
    "transformers": {"vision_config": {"hidden_size": 48, "num_attention_heads": 4, "hidden_act": "gelu"}},
    "DeepSeek-OCR": {
        "hidden_size": 48,
        "num_attention_heads": 8,
        "vision_config": {"width": {"clip": {"width": 48, "heads": 4}}},
    },
    "open_clip": {"model_cfg": {"quick_gelu": False, "vision_cfg": {"width": 48, "head_width": 12}}},
}


@pytest.mark.parametrize("source", HINTS)
def test_heads_come_from_the_config_or_the_caller(tmp_path: Path, source: str) -> None:
    layout = layout_of("clip")
    sizes = VALUES["clip"] | {"hidden_size": 48, "num_attention_heads": 4}
    model = randomize(ClipVisionEncoder(ClipVisionEncoderConfig.tiny(**sizes)))
    save_file(state_dict_there(model, layout), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="num_attention_heads.*48"):
        convert_checkpoint(tmp_path)
    assert convert_checkpoint(tmp_path, num_attention_heads=6).model.config.num_attention_heads == 6
    name = "open_clip_config.json" if source == "open_clip" else "config.json"
    (tmp_path / name).write_text(json.dumps(HINTS[source]))
    conversion = convert_checkpoint(tmp_path)
    assert conversion.model.config.num_attention_heads == 4
    told = source != "DeepSeek-OCR"
    assert conversion.model.config.hidden_act == ("gelu" if told else "quick_gelu")
    assert list(conversion.report.assumed) == ([] if told else ["hidden_act"])
    assert convert_checkpoint(tmp_path, hidden_act="gelu").report.assumed == {}


def test_known_heads_are_those_of_the_published_towers() -> None:
    assert KNOWN_HEADS[1024] == 16 and KNOWN_HEADS[768] == 12 and KNOWN_HEADS[1280] == 16
    assert all(width % heads == 0 for width, heads in KNOWN_HEADS.items())


def test_blocks_that_cannot_be_told_apart(tmp_path: Path) -> None:
    model = build(layout_of("sam"))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for index in range(3):
        shapes[f"layers.{index}.attn.rel_pos_h"] = (15, 16)  # 2 * 8 - 1, as the map has 8 rows
    with pytest.raises(ValueError, match="windowed from global"):
        infer_sam_config(shapes, {})
    config = infer_sam_config(shapes, {"window_size": 8, "global_attn_indexes": [1]})
    assert config.global_attn_indexes == (1,) and config.window_size == 8


def test_the_full_size_layout_of_deepseek_ocr(tmp_path: Path) -> None:
    """401,372,160 parameters in, 400,770,048 out."""
    with torch.device("meta"):
        model = DeepEncoder(DeepEncoderConfig())
        tensors = state_dict_there(model, DEEPSEEK_OCR, "model.")
        tensors["model.vision_model.embeddings.patch_embedding.weight"] = torch.empty(1024, 3, 14, 14)
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    assert sum(tensor.numel() for tensor in tensors.values()) == 401_372_160
    place, header = 0, {}
    for name, tensor in sorted(tensors.items()):
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [place, place + tensor.nbytes]}
        place += tensor.nbytes
    content = json.dumps(header).encode()
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + place)  # a hole: zeros that take no room on the disk
    assert plan_conversion(open_checkpoint(tmp_path)).config.to_dict() == DeepEncoderConfig().to_dict()
    conversion = convert_checkpoint(tmp_path)
    assert conversion.model.num_parameters() == 400_770_048
    assert list(conversion.report.left_behind) == ["model.vision_model.embeddings.patch_embedding.weight"]
    assert conversion.report.initialized == [] and conversion.image_processor.mode == "base"


def test_saving_is_whole_or_not_at_all(tmp_path: Path) -> None:
    model = build(DEEPSEEK_OCR)
    save_file(state_dict_there(model, DEEPSEEK_OCR), tmp_path / "model.safetensors")
    conversion = convert_checkpoint(tmp_path / "model.safetensors")
    target = tmp_path / "new" / "target"
    with new_folder(target) as temporary:
        save_converted(conversion, temporary, max_shard_size="500KB")
        assert not target.exists()
    assert len(list(target.glob("model-*.safetensors"))) > 1
    assert (target / "preprocessor_config.json").is_file()
    assert json.loads((target / "conversion_report.json").read_text())["layout"] == "DeepSeek-OCR"
    assert_same(DeepEncoder.from_pretrained(target), model)
    with pytest.raises(FileExistsError, match="target"), new_folder(target):
        pass
    with pytest.raises(OSError, match="full"), new_folder(tmp_path / "other") as temporary:
        (temporary / "config.json").write_text("half")
        raise OSError("the disk is full")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "new"]


def test_opening_reads_nothing(tmp_path: Path) -> None:
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR)
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert all(torch.equal(checkpoint[name], tensor) for name, tensor in tensors.items())


def test_a_tensor_that_is_missing_inside_of_a_part(tmp_path: Path) -> None:
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR)
    for name in ("sam_model.blocks.1.attn.qkv.weight", "vision_model.pre_layrnorm.bias", "sam_model.neck.0.weight"):
        save_file({key: tensor for key, tensor in tensors.items() if key != name}, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match="not whole"):
            convert_checkpoint(tmp_path)


def test_a_language_models_fields_are_not_the_towers(tmp_path: Path) -> None:
    save_file(state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR), tmp_path / "model.safetensors")
    fields = {"model_type": "x", "hidden_size": 192, "num_attention_heads": 6, "hidden_act": "silu"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    config = convert_checkpoint(tmp_path).model.config.clip_config
    assert (config.hidden_act, config.num_attention_heads) == ("quick_gelu", 3)


def test_open_clip_towers_that_are_built_otherwise(tmp_path: Path) -> None:
    save_file(state_dict_there(build(layout_of("clip")), layout_of("clip")), tmp_path / "model.safetensors")
    tower = {"width": 192, "norm_kwargs": {"eps": 1e-3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"vision_cfg": tower}}))
    config = convert_checkpoint(tmp_path).model.config
    assert (config.layer_norm_eps, config.hidden_act) == (1e-3, "gelu")
    for change in ({"pool_type": "avg"}, {"head_width": 0}, {"head_width": {}}, {"timm_model_name": "vit"}):
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"vision_cfg": tower | change}}))
        with pytest.raises(ValueError, match=next(iter(change))):
            convert_checkpoint(tmp_path)


def test_narrower_dtypes(tmp_path: Path) -> None:
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR)
    tensors["projector.layers.bias"][0] = 1e6
    save_file(tensors, tmp_path / "model.safetensors")
    report = convert_to_folder(tmp_path, tmp_path / "bf16", dtype="bfloat16")
    assert report.dtype == "bfloat16" and report.not_finite == [] and len(report.dtype_changes) == len(tensors)
    assert "outputs" in (report.verification or {}) or "has no Unlimited-OCR" in str(report.verification)
    report = convert_to_folder(tmp_path, tmp_path / "fp16", dtype=torch.float16, verify=False)
    assert report.not_finite == ["projector.layers.0.bias"]
    for dtype in ("nonsense", torch.int8, "int8", 3):
        with pytest.raises(ValueError, match="dtype"):
            convert_checkpoint(tmp_path, dtype=dtype)


def test_tensors_that_share_memory(tmp_path: Path) -> None:
    tensors = state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR)
    tensors["view_seperator"] = tensors["image_newline"]
    torch.save(tensors, tmp_path / "encoder.pth")
    convert_to_folder(tmp_path / "encoder.pth", tmp_path / "target")
    model = DeepEncoder.from_pretrained(tmp_path / "target")
    assert torch.equal(model.view_separator, model.image_newline)


@pytest.mark.parametrize("value", [3 * [None], torch.tensor(3), {}])
def test_fields_that_are_no_values(value: Any, tmp_path: Path) -> None:
    save_file(state_dict_there(build(DEEPSEEK_OCR), DEEPSEEK_OCR), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="num_attention_heads"):
        convert_checkpoint(tmp_path, num_attention_heads=value)
