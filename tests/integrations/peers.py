"""Small models of other code that contain a vision tower: transformers' own, and a stand-in for code on the Hub.

Unusual: the stand-in has the attribute names and the calls of DeepSeek-OCR's own code, and computes by the
definitions, without resizing: its pages and tiles have 128 pixels.
"""

import importlib
from typing import Any

import pytest
import torch
from torch import nn

from ..conftest import randomize

IMAGE_TOKEN = 5
SIDE = 128  # pixels of a page and of a tile: 8 x 8 patches, 2 x 2 tokens
SAM = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "output_channels": 16}
SAM |= {"window_size": 3, "global_attn_indexes": (1,), "mlp_dim": 48, "image_size": SIDE}
CLIP = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40, "image_size": 28}
TEXT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
TEXT |= {"intermediate_size": 24, "vocab_size": 64, "pad_token_id": 0, "eos_token_id": 63, "n_routed_experts": 4}
TEXT |= {"moe_intermediate_size": 8, "num_experts_per_tok": 2, "n_shared_experts": 1}
TEXT |= {"mlp_layer_types": ["dense", "sparse"]}


def tiny_unlimited_ocr(seed: int = 0) -> Any:
    try:
        module = importlib.import_module("transformers.models.unlimited_ocr.modeling_unlimited_ocr")
    except ModuleNotFoundError:
        pytest.skip("this transformers has no Unlimited-OCR")
    vision = module.UnlimitedOcrVisionConfig(sam_config=SAM | {"downsample_channels": (20, 24)}, encoder_config=CLIP)
    config = module.UnlimitedOcrConfig(vision_config=vision, text_config=TEXT, image_token_id=IMAGE_TOKEN)
    return randomize(module.UnlimitedOcrForConditionalGeneration(config), seed)


def tiny_deepseek_ocr2() -> Any:
    try:
        module = importlib.import_module("transformers.models.deepseek_ocr2.modeling_deepseek_ocr2")
    except ModuleNotFoundError:
        pytest.skip("this transformers has no DeepSeek-OCR-2")
    encoder = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    encoder |= {"intermediate_size": 32}
    vision = module.DeepseekOcr2VisionConfig(
        sam_config=SAM | {"downsample_channels": [20, 24], "image_size": 1024}, encoder_config=encoder
    )
    config = module.DeepseekOcr2Config(vision_config=vision, text_config=TEXT, image_token_id=IMAGE_TOKEN)
    return randomize(module.DeepseekOcr2ForConditionalGeneration(config))


def prompt(seed: int = 1) -> dict[str, Any]:
    """Return a batch of two prompts: a page with two tiles above each other, and a page without."""
    torch.manual_seed(seed)
    lengths = [4 * 3 + 2 * 3 + 1, 2 * 3 + 1]  # rows of tokens with a newline each, and the separator
    rows = [[2, 3] + [IMAGE_TOKEN] * length + [7, 8] for length in lengths]
    longest = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[0] * (longest - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
        "pixel_values": torch.randn(2, 3, SIDE, SIDE),
        "pixel_values_local": torch.randn(2, 3, SIDE, SIDE),
        "num_local_patches": [2, 0],
        "patches_grid": [[1, 2], [1, 1]],
    }


def same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Tell whether two state dicts hold the same, in any order."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class MetaAttention(nn.Module):
    def __init__(self, dim: int, heads: int, side: int) -> None:
        super().__init__()
        self.num_heads, self.side = heads, side
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, dim // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, dim // heads))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, side, _, dim = x.shape
        query, key, value = self.qkv(x).reshape(count, side**2, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        distances = torch.arange(side)[:, None] - torch.arange(side) + side - 1
        places = query.unflatten(2, (side, side))  # (count, heads, rows, columns, head_dim)
        by_row = torch.einsum("nhyxd,ykd->nhyxk", places, self.rel_pos_h[distances])
        by_column = torch.einsum("nhyxd,xkd->nhyxk", places, self.rel_pos_w[distances])
        bias = (by_row[..., :, None] + by_column[..., None, :]).reshape(count, self.num_heads, side**2, side**2)
        weights = (query @ key.mT * query.shape[-1] ** -0.5 + bias).softmax(-1)
        return self.proj((weights @ value).transpose(1, 2).reshape(count, side, side, dim))


class MetaBlock(nn.Module):
    def __init__(self, dim: int, heads: int, window_size: int, grid: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = MetaAttention(dim, heads, window_size or grid)
        self.mlp = nn.ModuleDict({"lin1": nn.Linear(dim, 48), "lin2": nn.Linear(48, dim)})
        self.window_size = window_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed, grid, size = self.norm1(x), x.shape[1], self.window_size
        if size:
            cells = -(-grid // size)
            padded = nn.functional.pad(normed, (0, 0, 0, cells * size - grid, 0, cells * size - grid))
            windows = padded.unflatten(2, (cells, size)).unflatten(1, (cells, size)).transpose(2, 3).flatten(0, 2)
            attended = self.attn(windows).unflatten(0, (-1, cells, cells)).transpose(2, 3)
            attended = attended.flatten(3, 4).flatten(1, 2)[:, :grid, :grid]
        else:
            attended = self.attn(normed)
        x = x + attended
        return x + self.mlp["lin2"](nn.functional.gelu(self.mlp["lin1"](self.norm2(x))))


class ChannelNorm(nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class SamModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, 32, 16, 16)})
        self.pos_embed = nn.Parameter(torch.zeros(1, 8, 8, 32))
        self.blocks = nn.ModuleList(MetaBlock(32, 2, size, grid=8) for size in (3, 0, 3))
        convs = nn.Conv2d(32, 16, 1, bias=False), nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.neck = nn.Sequential(convs[0], ChannelNorm(16, eps=1e-6), convs[1], ChannelNorm(16, eps=1e-6))
        self.net_2 = nn.Conv2d(16, 20, 3, stride=2, padding=1, bias=False)
        self.net_3 = nn.Conv2d(20, 24, 3, stride=2, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed["proj"](x).movedim(1, -1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.net_3(self.net_2(self.neck(x.movedim(-1, 1))))


class ClipAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 3
        self.qkv_proj, self.out_proj = nn.Linear(24, 72), nn.Linear(24, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv_proj(x).unflatten(-1, (3, 3, 8)).permute(2, 0, 3, 1, 4)
        return self.out_proj(((query @ key.mT / 8**0.5).softmax(-1) @ value).transpose(1, 2).flatten(2))


class ClipBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(24), nn.LayerNorm(24)
        self.self_attn = ClipAttention()
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(24, 40), "fc2": nn.Linear(40, 24)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        hidden = self.mlp["fc1"](self.layer_norm2(x))
        return x + self.mlp["fc2"](hidden * torch.sigmoid(1.702 * hidden))


class ClipEmbeddings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(24))
        self.patch_embedding = nn.Conv2d(3, 24, 14, 14, bias=False)  # which nothing uses
        self.position_embedding = nn.Embedding(5, 24)
        self.register_buffer("position_ids", torch.arange(5)[None])

    def forward(self, x: torch.Tensor, patch_embeds: torch.Tensor) -> torch.Tensor:
        tokens = patch_embeds.flatten(2).transpose(1, 2)
        return torch.cat([self.class_embedding.expand(len(x), 1, -1), tokens], 1) + self.position_embedding.weight


class VisionModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = ClipEmbeddings()
        self.transformer = nn.ModuleDict()
        self.transformer.layers = nn.ModuleList(ClipBlock() for _ in range(2))
        self.pre_layrnorm = nn.LayerNorm(24)

    def forward(self, x: torch.Tensor, patch_embeds: torch.Tensor) -> torch.Tensor:
        x = self.pre_layrnorm(self.embeddings(x, patch_embeds))
        for layer in self.transformer.layers:
            x = layer(x)
        return x


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sam_model, self.vision_model = SamModel(), VisionModel()
        self.projector = nn.ModuleDict({"layers": nn.Linear(48, 16)})
        self.image_newline, self.view_seperator = nn.Parameter(torch.zeros(16)), nn.Parameter(torch.zeros(16))
        self.embed_tokens = nn.Embedding(64, 16)

    def forward(self, images: list[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
        """Return projected tokens of each page's tiles and then of its view; newlines play no part here."""
        found = []
        for tiles, view in images:
            for pixels in (tiles, view):
                sam_map = self.sam_model(pixels)
                tokens = self.vision_model(pixels, sam_map)
                fused = torch.cat((tokens[:, 1:], sam_map.flatten(2).permute(0, 2, 1)), dim=-1)
                found.append(self.projector["layers"](fused))
        return found


class DeepseekOCR(nn.Module):
    """The stand-in for the model of DeepSeek-OCR's own code."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Inner()
        self.lm_head = nn.Linear(16, 64, bias=False)

    def forward(self, images: list[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
        return [self.lm_head(tokens) for tokens in self.model(images)]


def tiny_deepseek_ocr() -> Any:
    return randomize(DeepseekOCR())


def deepseek_images(seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(seed)
    return [(torch.randn(count, 3, SIDE, SIDE), torch.randn(1, 3, SIDE, SIDE)) for count in (2, 3)]
