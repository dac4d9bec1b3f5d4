"""Checkpoints of other code, compared with the numbers that the other code computes.

The peers are transformers' own classes, which write and read their files themselves, and small independent
implementations of OpenAI's CLIP and timm's ViT.
"""

import importlib
import json
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from deepencoder import ClipVisionEncoder, DeepEncoder, DeepEncoderV2, SamEncoder
from deepencoder.conversion.converter import Conversion, convert_checkpoint

from ..conftest import randomize, report_difference

SAM = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "output_channels": 16,
    "image_size": 256,
    "mlp_dim": 128,
    "global_attn_indexes": (1,),
}
TOWER = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": 64,
    "patch_size": 16,
}
TEXT = {
    "hidden_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 64,
    "pad_token_id": 0,
}
MOE = TEXT | {"moe_intermediate_size": 8, "n_routed_experts": 4, "mlp_layer_types": ["sparse"]}
PIXELS = (1, 3, 256, 256)


def module_of(name: str) -> Any:
    try:
        return importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    except ModuleNotFoundError:
        pytest.skip(f"this transformers has no {name}")


def convert_saved(peer: Any, folder: Path, naming: str) -> Conversion:
    """Convert the files that `save_pretrained` writes, or tensors with the names that the peer has in memory."""
    if naming == "files":
        peer.save_pretrained(folder, max_shard_size="200KB")
        assert len(list(folder.glob("*.safetensors"))) > 1
    else:
        save_file({name: tensor.clone() for name, tensor in peer.state_dict().items()}, folder / "model.safetensors")
        peer.config.save_pretrained(folder)
    return convert_checkpoint(folder)


both_namings = pytest.mark.parametrize("naming", ["files", "memory"])


@both_namings
@torch.no_grad()
def test_unlimited_ocr(naming: str, tmp_path: Path) -> None:
    module = module_of("unlimited_ocr")
    vision = module.UnlimitedOcrVisionConfig(
        sam_config=SAM | {"downsample_channels": (40, 48)}, encoder_config=TOWER | {"image_size": 56, "patch_size": 14}
    )
    config = module.UnlimitedOcrConfig(vision_config=vision, text_config=MOE, image_token_id=5)
    peer = randomize(module.UnlimitedOcrForConditionalGeneration(config))
    conversion = convert_saved(peer, tmp_path, naming)
    model = conversion.model
    assert isinstance(model, DeepEncoder) and conversion.report.initialized == []
    assert conversion.report.layout == ("DeepSeek-OCR" if naming == "files" else "Unlimited-OCR in transformers")
    pixels, tiles, grids = torch.randn(*PIXELS), torch.randn(2, 3, 128, 128), [[2, 1]]
    theirs = peer.get_image_features(pixels, tiles, [2], grids).pooler_output[0]  # type: ignore[operator]
    ours = model.get_image_features(pixels, tiles, patches_grid=grids).pooler_output[0]
    report_difference(f"Unlimited-OCR, {naming}", ours, theirs)


@both_namings
@torch.no_grad()
def test_deepseek_ocr_2(naming: str, tmp_path: Path) -> None:
    module = module_of("deepseek_ocr2")
    sam = SAM | {"downsample_channels": [24, 56]}
    encoder = TEXT | {"hidden_size": 56, "num_attention_heads": 4}
    vision = module.DeepseekOcr2VisionConfig(sam_config=sam, encoder_config=encoder)
    config = module.DeepseekOcr2Config(vision_config=vision, text_config=MOE, image_token_id=5)
    peer = randomize(module.DeepseekOcr2ForConditionalGeneration(config))
    conversion = convert_saved(peer, tmp_path, naming)
    assert isinstance(conversion.model, DeepEncoderV2) and conversion.report.initialized == []
    sam_encoder = conversion.model.sam_encoder
    assert sam_encoder.config.downsample_channels == (24, 56)
    pixels = torch.randn(*PIXELS)
    theirs = peer.model.vision_tower.sam_encoder(pixels).last_hidden_state  # type: ignore[union-attr, operator]
    report_difference(f"DeepSeek-OCR-2, {naming}", sam_encoder(pixels).last_hidden_state, theirs)


@both_namings
@torch.no_grad()
def test_got_ocr_2(naming: str, tmp_path: Path) -> None:
    module = module_of("got_ocr2")
    text = {"model_type": "qwen2"} | TEXT
    config = transformers.GotOcr2Config(vision_config=SAM, text_config=text)
    peer: Any = randomize(module.GotOcr2ForConditionalGeneration(config))
    conversion = convert_saved(peer, tmp_path, naming)
    assert isinstance(conversion.model, SamEncoder) and conversion.report.initialized == []
    pixels = torch.randn(*PIXELS)
    neck = peer.model.vision_tower(pixels).last_hidden_state
    projector = peer.model.multi_modal_projector
    theirs = projector.conv_upsampler2(projector.conv_upsampler1(neck))
    report_difference(f"GOT-OCR-2.0, {naming}", conversion.model(pixels).last_hidden_state, theirs)


@torch.no_grad()
def test_fields_that_a_file_leaves_out_are_transformers_defaults(tmp_path: Path) -> None:
    """transformers 4 wrote only the fields that differ from its defaults."""
    peer: Any = randomize(
        transformers.CLIPVisionModel(transformers.CLIPVisionConfig(num_hidden_layers=1, hidden_act="gelu"))
    )
    peer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip_vision_model", "hidden_act": "gelu"}))
    model = convert_checkpoint(tmp_path).model
    assert model.config.hidden_act == "gelu"
    pixels = torch.randn(1, 3, 224, 224)
    report_difference("CLIPVisionModel", model(pixels).last_hidden_state, peer(pixels).last_hidden_state)


@pytest.mark.parametrize("model_class", ["SamModel", "SamVisionModel"])
@torch.no_grad()
def test_sam(model_class: str, tmp_path: Path) -> None:
    module = module_of("sam")
    vision = transformers.SamVisionConfig(**SAM, layer_norm_eps=1e-2, hidden_act="relu")
    decoder = {"hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    whole = transformers.SamConfig(
        vision_config=vision,
        mask_decoder_config=decoder | {"iou_head_hidden_dim": 16},
        prompt_encoder_config={"hidden_size": 16, "image_size": 256},
    )
    peer: Any = randomize(getattr(module, model_class)(whole if model_class == "SamModel" else vision))
    conversion = convert_saved(peer, tmp_path, "files")
    model: Any = conversion.model
    assert isinstance(model, SamEncoder)
    assert conversion.report.initialized == ["compressor.convs.0.weight", "compressor.convs.1.weight"]
    pixels = torch.randn(*PIXELS)
    theirs = peer.vision_encoder(pixels).last_hidden_state
    seen: list[torch.Tensor] = []
    model.neck.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(pixels)
    report_difference(model_class, seen[0], theirs)


@pytest.mark.parametrize("model_class", ["CLIPModel", "CLIPVisionModel", "CLIPVisionModelWithProjection"])
@both_namings
@torch.no_grad()
def test_clip(model_class: str, naming: str, tmp_path: Path) -> None:
    vision = TOWER | {"hidden_act": "gelu", "layer_norm_eps": 1e-4}
    if model_class == "CLIPModel":
        text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        config: Any = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)
    else:
        config = transformers.CLIPVisionConfig(**vision, projection_dim=24)
    peer: Any = randomize(getattr(transformers, model_class)(config))
    conversion = convert_saved(peer, tmp_path, naming)
    model: Any = conversion.model
    assert isinstance(model, ClipVisionEncoder) and conversion.report.initialized == []
    pixels = torch.randn(1, 3, 64, 64)
    ours = model(pixels)
    tower = peer if model_class == "CLIPVisionModel" else peer.vision_model
    theirs = tower(pixels)
    report_difference(f"{model_class}, {naming}, tokens", ours.last_hidden_state, theirs.last_hidden_state)
    report_difference(f"{model_class}, {naming}, pooled", ours.pooler_output, theirs.pooler_output)
    if model_class != "CLIPVisionModel":
        report_difference("projection", ours.image_embeds, peer.visual_projection(theirs.pooler_output))


@pytest.mark.parametrize("model_class", ["ViTModel", "ViTForImageClassification"])
@both_namings
@torch.no_grad()
def test_vit(model_class: str, naming: str, tmp_path: Path) -> None:
    config = transformers.ViTConfig(**TOWER, hidden_act="gelu_new", layer_norm_eps=1e-5)
    peer: Any = randomize(getattr(transformers, model_class)(config))
    conversion = convert_saved(peer, tmp_path, naming)
    model: Any = conversion.model
    assert isinstance(model, ClipVisionEncoder) and conversion.report.initialized == []
    pixels = torch.randn(1, 3, 64, 64)
    tower = peer if model_class == "ViTModel" else peer.vit
    theirs = tower(pixels).last_hidden_state
    report_difference(f"{model_class}, {naming}", model(pixels).last_hidden_state, theirs)


class QuickGELU(nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values * torch.sigmoid(1.702 * values)


class OpenAIBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads)
        parts = {"c_fc": nn.Linear(width, 2 * width), "gelu": QuickGELU(), "c_proj": nn.Linear(2 * width, width)}
        self.mlp = nn.Sequential(OrderedDict(parts))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        normed = self.ln_1(tokens)
        tokens = tokens + self.attn(normed, normed, normed, need_weights=False)[0]
        return tokens + self.mlp(self.ln_2(tokens))


class OpenAITower(nn.Module):
    """CLIP's image tower, after its paper and the names in its checkpoints. Inside: `(tokens, batch, width)`."""

    def __init__(self, width: int = 48, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 16, 16, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn(17, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(*(OpenAIBlock(width, heads) for _ in range(layers)))
        self.proj = nn.Parameter(torch.randn(width, 24))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(patches), 1, -1)
        tokens = self.ln_pre(torch.cat([first, patches], dim=1) + self.positional_embedding)
        tokens = self.transformer.resblocks(tokens.transpose(0, 1)).transpose(0, 1)  # type: ignore[operator]
        return self.ln_post(tokens[:, 0]) @ self.proj


class OpenAI(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = OpenAITower()
        self.text_projection = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("input_resolution", torch.tensor(64))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.visual(pixels)


@pytest.mark.parametrize("kind", ["state dict", "TorchScript"])
@torch.no_grad()
def test_clip_by_openai(kind: str, tmp_path: Path) -> None:
    peer = randomize(OpenAI())
    pixels = torch.randn(2, 3, 64, 64)
    path = tmp_path / "ViT.pt"
    if kind == "state dict":
        torch.save(peer.state_dict(), path)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated, but CLIP was published in it.
            torch.jit.save(torch.jit.trace(peer, pixels), path)
    conversion = convert_checkpoint(path, num_attention_heads=4)
    assert isinstance(conversion.model, ClipVisionEncoder) and conversion.report.initialized == []
    assert list(conversion.report.assumed) == ["hidden_act"]
    report_difference(f"OpenAI's CLIP, {kind}", conversion.model.eval()(pixels).image_embeds, peer(pixels))


class TimmBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 2 * width), "fc2": nn.Linear(2 * width, width)})

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        batch, length, width = tokens.shape
        qkv = self.attn["qkv"](self.norm1(tokens)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = (qkv[:, :, part].transpose(1, 2) for part in range(3))
        weights = (query @ key.transpose(2, 3) * (width // self.heads) ** -0.5).softmax(dim=-1)
        tokens = tokens + self.attn["proj"]((weights @ value).transpose(1, 2).reshape(batch, length, width))
        return tokens + self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](self.norm2(tokens))))


class TimmTower(nn.Module):
    """A plain ViT with the names of timm's checkpoints."""

    def __init__(self, width: int = 48, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, 16, 16)})
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, width))
        self.blocks = nn.Sequential(*(TimmBlock(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, 5)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(patches), 1, -1), patches], dim=1) + self.pos_embed
        return self.norm(self.blocks(tokens))


@torch.no_grad()
def test_vit_by_timm(tmp_path: Path) -> None:
    peer = randomize(TimmTower())
    save_file(peer.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_64", "num_classes": 5}))
    conversion = convert_checkpoint(tmp_path, num_attention_heads=4)
    assert sorted(conversion.report.left_behind) == ["head.bias", "head.weight"]
    pixels = torch.randn(2, 3, 64, 64)
    report_difference("timm's ViT", conversion.model.eval()(pixels).last_hidden_state, peer(pixels))
