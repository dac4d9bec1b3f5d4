"""The names of tensors in other code and in ours, as tables.

Unusual: names of other code appear here and in `layouts.py`, and nowhere else. The command line's help reads these
tables by way of the layouts, so this file imports no torch.
"""

from dataclasses import dataclass, replace

__all__ = [
    "CLIP_DEEPSEEK_OCR",
    "CLIP_OPENAI",
    "CLIP_PROJECTED_TRANSFORMERS",
    "CLIP_TRANSFORMERS",
    "DEEPENCODER_DEEPSEEK_OCR",
    "DEEPENCODER_LLAMA_CPP",
    "DEEPENCODER_OLLAMA",
    "DEEPENCODER_PARTS",
    "DEEPENCODER_UNLIMITED_OCR",
    "DEEPENCODER_UNLIMITED_OCR_VISION",
    "DEEPENCODER_V2_DEEPSEEK_OCR_2",
    "DEEPENCODER_V2_TRANSFORMERS",
    "SAM_GOT_TRANSFORMERS",
    "SAM_META",
    "SAM_TRANSFORMERS",
    "VIT_TIMM",
    "VIT_TRANSFORMERS",
    "VIT_TRANSFORMERS_FILES",
    "KeyRow",
    "KeyTable",
    "prefixed",
    "row",
]


@dataclass(frozen=True)
class KeyRow:
    """What a tensor is called in our code and in other code.

    Args:
        here: its name in our model. `{i}` stands for the number of a block, `*` for the rest of the name.
        there: its name in the other code. Several names are tensors that our model joins along their first axis, in
            this order.
        transposed: whether the other code stores the matrix transposed.
    """

    here: str
    there: tuple[str, ...]
    transposed: bool = False


KeyTable = tuple[KeyRow, ...]


def row(here: str, *there: str, transposed: bool = False) -> KeyRow:
    """Return a row; see [`KeyRow`]."""
    return KeyRow(here, there, transposed)


def prefixed(table: KeyTable, here: str = "", there: str = "") -> KeyTable:
    """Return `table` with a prefix before every name of our model, and another before every name of the other code."""
    return tuple(
        replace(item, here=here + item.here, there=tuple(there + name for name in item.there)) for item in table
    )


_SAM_VISION_TRANSFORMERS: KeyTable = (
    row("embeddings.patch_embedding.*", "patch_embed.projection.*"),
    row("embeddings.position_embedding", "pos_embed"),
    row("layers.{i}.*", "layers.{i}.*"),
    row("neck.*", "neck.*"),
)

# transformers' SamVisionEncoder; `proj` is the compressor of its OCR models.
SAM_TRANSFORMERS: KeyTable = (
    *_SAM_VISION_TRANSFORMERS,
    row("compressor.convs.0.*", "proj.conv1.*"),
    row("compressor.convs.1.*", "proj.conv2.*"),
)

# transformers' GOT-OCR-2.0, which keeps the compressor outside of the vision tower.
SAM_GOT_TRANSFORMERS: KeyTable = (
    *prefixed(_SAM_VISION_TRANSFORMERS, there="vision_tower."),
    row("compressor.convs.0.*", "multi_modal_projector.conv_upsampler1.*"),
    row("compressor.convs.1.*", "multi_modal_projector.conv_upsampler2.*"),
)

# Meta's ImageEncoderViT; `net_2` and `net_3` are the compressor that Vary, GOT and DeepSeek-OCR add to it.
SAM_META: KeyTable = (
    row("embeddings.patch_embedding.*", "patch_embed.proj.*"),
    row("embeddings.position_embedding", "pos_embed"),
    row("layers.{i}.layer_norm1.*", "blocks.{i}.norm1.*"),
    row("layers.{i}.attn.*", "blocks.{i}.attn.*"),
    row("layers.{i}.layer_norm2.*", "blocks.{i}.norm2.*"),
    row("layers.{i}.mlp.*", "blocks.{i}.mlp.*"),
    row("neck.conv1.*", "neck.0.*"),
    row("neck.layer_norm1.*", "neck.1.*"),
    row("neck.conv2.*", "neck.2.*"),
    row("neck.layer_norm2.*", "neck.3.*"),
    row("compressor.convs.0.*", "net_2.*"),
    row("compressor.convs.1.*", "net_3.*"),
)

_CLIP_EMBEDDINGS: KeyTable = (
    row("embeddings.class_embedding", "embeddings.class_embedding"),
    row("embeddings.patch_embedding.*", "embeddings.patch_embedding.*"),
    row("embeddings.position_embedding", "embeddings.position_embedding.weight"),
    row("pre_layernorm.*", "pre_layrnorm.*"),
)

_CLIP_VISION_TRANSFORMERS: KeyTable = (
    *_CLIP_EMBEDDINGS,
    row("layers.{i}.layer_norm1.*", "encoder.layers.{i}.layer_norm1.*"),
    row(
        "layers.{i}.self_attn.qkv_proj.*",
        "encoder.layers.{i}.self_attn.q_proj.*",
        "encoder.layers.{i}.self_attn.k_proj.*",
        "encoder.layers.{i}.self_attn.v_proj.*",
    ),
    row("layers.{i}.self_attn.out_proj.*", "encoder.layers.{i}.self_attn.out_proj.*"),
    row("layers.{i}.layer_norm2.*", "encoder.layers.{i}.layer_norm2.*"),
    row("layers.{i}.mlp.*", "encoder.layers.{i}.mlp.*"),
    row("post_layernorm.*", "post_layernorm.*"),
)

# transformers' CLIPVisionModel, and the encoders of its OCR models.
CLIP_TRANSFORMERS: KeyTable = (
    *_CLIP_VISION_TRANSFORMERS,
    row("visual_projection.*", "visual_projection.*"),
)

# transformers' CLIPModel and CLIPVisionModelWithProjection, which keep the projection outside of the tower.
CLIP_PROJECTED_TRANSFORMERS: KeyTable = (
    *prefixed(_CLIP_VISION_TRANSFORMERS, there="vision_model."),
    row("visual_projection.*", "visual_projection.*"),
)

# The CLIP of DeepSeek-OCR's own code.
CLIP_DEEPSEEK_OCR: KeyTable = (
    *_CLIP_EMBEDDINGS,
    row("layers.{i}.*", "transformer.layers.{i}.*"),
)

# OpenAI's and open_clip's VisionTransformer.
CLIP_OPENAI: KeyTable = (
    row("embeddings.class_embedding", "class_embedding"),
    row("embeddings.patch_embedding.*", "conv1.*"),
    row("embeddings.position_embedding", "positional_embedding"),
    row("pre_layernorm.*", "ln_pre.*"),
    row("layers.{i}.layer_norm1.*", "transformer.resblocks.{i}.ln_1.*"),
    row("layers.{i}.self_attn.qkv_proj.weight", "transformer.resblocks.{i}.attn.in_proj_weight"),
    row("layers.{i}.self_attn.qkv_proj.bias", "transformer.resblocks.{i}.attn.in_proj_bias"),
    row("layers.{i}.self_attn.out_proj.*", "transformer.resblocks.{i}.attn.out_proj.*"),
    row("layers.{i}.layer_norm2.*", "transformer.resblocks.{i}.ln_2.*"),
    row("layers.{i}.mlp.fc1.*", "transformer.resblocks.{i}.mlp.c_fc.*"),
    row("layers.{i}.mlp.fc2.*", "transformer.resblocks.{i}.mlp.c_proj.*"),
    row("post_layernorm.*", "ln_post.*"),
    row("visual_projection.weight", "proj", transposed=True),
)

_VIT_EMBEDDINGS: KeyTable = (
    row("embeddings.class_embedding", "embeddings.cls_token"),
    row("embeddings.patch_embedding.*", "embeddings.patch_embeddings.projection.*"),
    row("embeddings.position_embedding", "embeddings.position_embeddings"),
)

# transformers' ViTModel in memory.
VIT_TRANSFORMERS: KeyTable = (
    *_VIT_EMBEDDINGS,
    row("layers.{i}.layer_norm1.*", "layers.{i}.layernorm_before.*"),
    row(
        "layers.{i}.self_attn.qkv_proj.*",
        "layers.{i}.attention.q_proj.*",
        "layers.{i}.attention.k_proj.*",
        "layers.{i}.attention.v_proj.*",
    ),
    row("layers.{i}.self_attn.out_proj.*", "layers.{i}.attention.o_proj.*"),
    row("layers.{i}.layer_norm2.*", "layers.{i}.layernorm_after.*"),
    row("layers.{i}.mlp.*", "layers.{i}.mlp.*"),
    row("post_layernorm.*", "layernorm.*"),
)

# transformers' ViTModel in files, which keep the names of its first version.
VIT_TRANSFORMERS_FILES: KeyTable = (
    *_VIT_EMBEDDINGS,
    row("layers.{i}.layer_norm1.*", "encoder.layer.{i}.layernorm_before.*"),
    row(
        "layers.{i}.self_attn.qkv_proj.*",
        "encoder.layer.{i}.attention.attention.query.*",
        "encoder.layer.{i}.attention.attention.key.*",
        "encoder.layer.{i}.attention.attention.value.*",
    ),
    row("layers.{i}.self_attn.out_proj.*", "encoder.layer.{i}.attention.output.dense.*"),
    row("layers.{i}.layer_norm2.*", "encoder.layer.{i}.layernorm_after.*"),
    row("layers.{i}.mlp.fc1.*", "encoder.layer.{i}.intermediate.dense.*"),
    row("layers.{i}.mlp.fc2.*", "encoder.layer.{i}.output.dense.*"),
    row("post_layernorm.*", "layernorm.*"),
)

# timm's VisionTransformer.
VIT_TIMM: KeyTable = (
    row("embeddings.class_embedding", "cls_token"),
    row("embeddings.patch_embedding.*", "patch_embed.proj.*"),
    row("embeddings.position_embedding", "pos_embed"),
    row("layers.{i}.layer_norm1.*", "blocks.{i}.norm1.*"),
    row("layers.{i}.self_attn.qkv_proj.*", "blocks.{i}.attn.qkv.*"),
    row("layers.{i}.self_attn.out_proj.*", "blocks.{i}.attn.proj.*"),
    row("layers.{i}.layer_norm2.*", "blocks.{i}.norm2.*"),
    row("layers.{i}.mlp.*", "blocks.{i}.mlp.*"),
    row("post_layernorm.*", "norm.*"),
)

# The vision half of DeepSeek-OCR's own checkpoints; `view_seperator` is their spelling.
DEEPENCODER_DEEPSEEK_OCR: KeyTable = (
    *prefixed(SAM_META, "sam_encoder.", "sam_model."),
    *prefixed(CLIP_DEEPSEEK_OCR, "clip_encoder.", "vision_model."),
    row("projector.layers.0.*", "projector.layers.*"),
    row("image_newline", "image_newline"),
    row("view_separator", "view_seperator"),
)

# The same in one file for each part (`sam_encoder.pth`, `clip_encoder.pth`, `projector.pth`), without prefixes.
DEEPENCODER_PARTS: KeyTable = (
    *prefixed(SAM_META, "sam_encoder."),
    *prefixed(CLIP_DEEPSEEK_OCR, "clip_encoder."),
    row("projector.layers.0.*", "layers.*"),
    row("image_newline", "image_newline"),
    row("view_separator", "view_seperator"),
)

# transformers' UnlimitedOcrVisionModel.
DEEPENCODER_UNLIMITED_OCR_VISION: KeyTable = (
    *prefixed(SAM_TRANSFORMERS, "sam_encoder.", "sam_encoder."),
    *prefixed(CLIP_TRANSFORMERS, "clip_encoder.", "vision_encoder."),
)

# transformers' UnlimitedOcrModel, which keeps the projector, newline and separator outside of the vision model.
DEEPENCODER_UNLIMITED_OCR: KeyTable = (
    *prefixed(DEEPENCODER_UNLIMITED_OCR_VISION, there="vision_tower."),
    row("projector.layers.0.*", "multi_modal_projector.*"),
    row("image_newline", "image_newline"),
    row("view_separator", "view_separator"),
)

# llama.cpp's `mmproj` files of DeepSeek-OCR. Their two tables of positions have `.weight` at the end, CLIP's class
# embedding has not.
DEEPENCODER_LLAMA_CPP: KeyTable = (
    row("sam_encoder.embeddings.patch_embedding.*", "v.sam.patch_embd.*"),
    row("sam_encoder.embeddings.position_embedding", "v.sam.pos_embd.weight"),
    row("sam_encoder.layers.{i}.layer_norm1.*", "v.sam.blk.{i}.pre_ln.*"),
    row("sam_encoder.layers.{i}.attn.qkv.*", "v.sam.blk.{i}.attn.qkv.*"),
    row("sam_encoder.layers.{i}.attn.proj.*", "v.sam.blk.{i}.attn.out.*"),
    row("sam_encoder.layers.{i}.attn.rel_pos_h", "v.sam.blk.{i}.attn.pos_h.weight"),
    row("sam_encoder.layers.{i}.attn.rel_pos_w", "v.sam.blk.{i}.attn.pos_w.weight"),
    row("sam_encoder.layers.{i}.layer_norm2.*", "v.sam.blk.{i}.post_ln.*"),
    row("sam_encoder.layers.{i}.mlp.*", "v.sam.blk.{i}.mlp.*"),
    row("sam_encoder.neck.conv1.*", "v.sam.neck.0.*"),
    row("sam_encoder.neck.layer_norm1.*", "v.sam.neck.1.*"),
    row("sam_encoder.neck.conv2.*", "v.sam.neck.2.*"),
    row("sam_encoder.neck.layer_norm2.*", "v.sam.neck.3.*"),
    row("sam_encoder.compressor.convs.0.*", "v.sam.net_2.*"),
    row("sam_encoder.compressor.convs.1.*", "v.sam.net_3.*"),
    row("clip_encoder.embeddings.class_embedding", "v.class_embd"),
    row("clip_encoder.embeddings.position_embedding", "v.position_embd.weight"),
    row("clip_encoder.pre_layernorm.*", "v.pre_ln.*"),
    row("clip_encoder.layers.{i}.layer_norm1.*", "v.blk.{i}.ln1.*"),
    row("clip_encoder.layers.{i}.self_attn.qkv_proj.*", "v.blk.{i}.attn_qkv.*"),
    row("clip_encoder.layers.{i}.self_attn.out_proj.*", "v.blk.{i}.attn_out.*"),
    row("clip_encoder.layers.{i}.layer_norm2.*", "v.blk.{i}.ln2.*"),
    row("clip_encoder.layers.{i}.mlp.fc1.*", "v.blk.{i}.ffn_up.*"),
    row("clip_encoder.layers.{i}.mlp.fc2.*", "v.blk.{i}.ffn_down.*"),
    row("projector.layers.0.*", "mm.model.fc.*"),
    row("image_newline", "v.image_newline"),
    row("view_separator", "v.view_seperator"),
)

# Ollama's files, which hold the language model as well. Their converter changes the beginnings of the names.
DEEPENCODER_OLLAMA: KeyTable = (
    row("sam_encoder.embeddings.patch_embedding.*", "s.patch_embd.*"),
    row("sam_encoder.embeddings.position_embedding", "s.position_embd"),
    row("sam_encoder.layers.{i}.layer_norm1.*", "s.blk.{i}.norm1.*"),
    row("sam_encoder.layers.{i}.attn.*", "s.blk.{i}.attn.*"),
    row("sam_encoder.layers.{i}.layer_norm2.*", "s.blk.{i}.norm2.*"),
    row("sam_encoder.layers.{i}.mlp.*", "s.blk.{i}.mlp.*"),
    row("sam_encoder.neck.conv1.*", "s.neck.0.*"),
    row("sam_encoder.neck.layer_norm1.*", "s.neck.1.*"),
    row("sam_encoder.neck.conv2.*", "s.neck.2.*"),
    row("sam_encoder.neck.layer_norm2.*", "s.neck.3.*"),
    row("sam_encoder.compressor.convs.0.*", "s.net_2.*"),
    row("sam_encoder.compressor.convs.1.*", "s.net_3.*"),
    row("clip_encoder.embeddings.class_embedding", "v.class_embd"),
    row("clip_encoder.embeddings.position_embedding", "v.position_embd.weight"),
    row("clip_encoder.pre_layernorm.*", "v.pre_layrnorm.*"),
    row("clip_encoder.layers.{i}.*", "v.blk.{i}.*"),
    row("projector.layers.0.*", "mm.layers.*"),
    row("image_newline", "mm.image_newline"),
    row("view_separator", "mm.view_seperator"),
)

# The vision half of DeepSeek-OCR-2's own checkpoints.
DEEPENCODER_V2_DEEPSEEK_OCR_2: KeyTable = (
    *prefixed(SAM_META, "sam_encoder.", "sam_model."),
    row("queries.table_0", "qwen2_model.query_768.weight"),
    row("queries.table_1", "qwen2_model.query_1024.weight"),
    row("query_encoder.layers.{i}.*", "qwen2_model.model.model.layers.{i}.*"),
    row("query_encoder.norm.*", "qwen2_model.model.model.norm.*"),
    row("projector.layers.0.*", "projector.layers.*"),
    row("view_separator", "view_seperator"),
)

# transformers' DeepseekOcr2Model.
DEEPENCODER_V2_TRANSFORMERS: KeyTable = (
    *prefixed(SAM_TRANSFORMERS, "sam_encoder.", "vision_tower.sam_encoder."),
    row("queries.table_0", "vision_tower.query_768_resolution.weight"),
    row("queries.table_1", "vision_tower.query_1024_resolution.weight"),
    row("query_encoder.layers.{i}.*", "vision_tower.vision_encoder.layers.{i}.*"),
    row("query_encoder.norm.*", "vision_tower.vision_encoder.norm.*"),
    row("projector.layers.0.*", "multi_modal_projector.*"),
    row("view_separator", "view_separator"),
)
