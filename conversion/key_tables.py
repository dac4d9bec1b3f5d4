"""What a tensor is called elsewhere and here: tables, and the functions that read them.

Unusual: names of other code appear here and in `layouts.py`, and nowhere else. A row is `(name here, name there, ..)`;
`{i}` is the number of a block, `*` the rest of the name. More than one name there means tensors joined along their
first axis, in that order; `^T` behind a name means a matrix that is stored transposed.
"""

__all__ = [
    "CLIP_DEEPSEEK_OCR",
    "CLIP_OPENAI",
    "CLIP_TRANSFORMERS",
    "DEEPENCODER_DEEPSEEK_OCR",
    "DEEPENCODER_UNLIMITED_OCR",
    "SAM_META",
    "SAM_TRANSFORMERS",
    "VIT_TIMM",
    "VIT_TRANSFORMERS",
    "VIT_TRANSFORMERS_FILES",
    "KeyTable",
    "prefixed",
]

TRANSPOSED = "^T"
KeyRow = tuple[str, ...]
KeyTable = tuple[KeyRow, ...]

# transformers' SamVisionEncoder; `proj` is the compressor of its OCR models.
SAM_TRANSFORMERS: KeyTable = (
    ("embeddings.patch_embedding.*", "patch_embed.projection.*"),
    ("embeddings.position_embedding", "pos_embed"),
    ("layers.{i}.*", "layers.{i}.*"),
    ("neck.*", "neck.*"),
    ("compressor.convs.0.*", "proj.conv1.*"),
    ("compressor.convs.1.*", "proj.conv2.*"),
)

# Meta's ImageEncoderViT; `net_2` and `net_3` are the compressor that Vary, GOT and DeepSeek-OCR add to it.
SAM_META: KeyTable = (
    ("embeddings.patch_embedding.*", "patch_embed.proj.*"),
    ("embeddings.position_embedding", "pos_embed"),
    ("layers.{i}.layer_norm1.*", "blocks.{i}.norm1.*"),
    ("layers.{i}.attn.*", "blocks.{i}.attn.*"),
    ("layers.{i}.layer_norm2.*", "blocks.{i}.norm2.*"),
    ("layers.{i}.mlp.*", "blocks.{i}.mlp.*"),
    ("neck.conv1.*", "neck.0.*"),
    ("neck.layer_norm1.*", "neck.1.*"),
    ("neck.conv2.*", "neck.2.*"),
    ("neck.layer_norm2.*", "neck.3.*"),
    ("compressor.convs.0.*", "net_2.*"),
    ("compressor.convs.1.*", "net_3.*"),
)

_CLIP_EMBEDDINGS: KeyTable = (
    ("embeddings.class_embedding", "embeddings.class_embedding"),
    ("embeddings.patch_embedding.*", "embeddings.patch_embedding.*"),
    ("embeddings.position_embedding", "embeddings.position_embedding.weight"),
    ("pre_layernorm.*", "pre_layrnorm.*"),
)

# transformers' CLIPVisionModel, and the encoders of its OCR models.
CLIP_TRANSFORMERS: KeyTable = (
    *_CLIP_EMBEDDINGS,
    ("layers.{i}.layer_norm1.*", "encoder.layers.{i}.layer_norm1.*"),
    (
        "layers.{i}.self_attn.qkv_proj.*",
        "encoder.layers.{i}.self_attn.q_proj.*",
        "encoder.layers.{i}.self_attn.k_proj.*",
        "encoder.layers.{i}.self_attn.v_proj.*",
    ),
    ("layers.{i}.self_attn.out_proj.*", "encoder.layers.{i}.self_attn.out_proj.*"),
    ("layers.{i}.layer_norm2.*", "encoder.layers.{i}.layer_norm2.*"),
    ("layers.{i}.mlp.*", "encoder.layers.{i}.mlp.*"),
    ("post_layernorm.*", "post_layernorm.*"),
    ("visual_projection.*", "visual_projection.*"),
)

# The CLIP of DeepSeek-OCR's own code.
CLIP_DEEPSEEK_OCR: KeyTable = (
    *_CLIP_EMBEDDINGS,
    ("layers.{i}.*", "transformer.layers.{i}.*"),
)

# OpenAI's and open_clip's VisionTransformer.
CLIP_OPENAI: KeyTable = (
    ("embeddings.class_embedding", "class_embedding"),
    ("embeddings.patch_embedding.*", "conv1.*"),
    ("embeddings.position_embedding", "positional_embedding"),
    ("pre_layernorm.*", "ln_pre.*"),
    ("layers.{i}.layer_norm1.*", "transformer.resblocks.{i}.ln_1.*"),
    ("layers.{i}.self_attn.qkv_proj.weight", "transformer.resblocks.{i}.attn.in_proj_weight"),
    ("layers.{i}.self_attn.qkv_proj.bias", "transformer.resblocks.{i}.attn.in_proj_bias"),
    ("layers.{i}.self_attn.out_proj.*", "transformer.resblocks.{i}.attn.out_proj.*"),
    ("layers.{i}.layer_norm2.*", "transformer.resblocks.{i}.ln_2.*"),
    ("layers.{i}.mlp.fc1.*", "transformer.resblocks.{i}.mlp.c_fc.*"),
    ("layers.{i}.mlp.fc2.*", "transformer.resblocks.{i}.mlp.c_proj.*"),
    ("post_layernorm.*", "ln_post.*"),
    ("visual_projection.weight", "proj^T"),
)

# transformers' ViTModel in memory.
VIT_TRANSFORMERS: KeyTable = (
    ("embeddings.class_embedding", "embeddings.cls_token"),
    ("embeddings.patch_embedding.*", "embeddings.patch_embeddings.projection.*"),
    ("embeddings.position_embedding", "embeddings.position_embeddings"),
    ("layers.{i}.layer_norm1.*", "layers.{i}.layernorm_before.*"),
    (
        "layers.{i}.self_attn.qkv_proj.*",
        "layers.{i}.attention.q_proj.*",
        "layers.{i}.attention.k_proj.*",
        "layers.{i}.attention.v_proj.*",
    ),
    ("layers.{i}.self_attn.out_proj.*", "layers.{i}.attention.o_proj.*"),
    ("layers.{i}.layer_norm2.*", "layers.{i}.layernorm_after.*"),
    ("layers.{i}.mlp.*", "layers.{i}.mlp.*"),
    ("post_layernorm.*", "layernorm.*"),
)

# transformers' ViTModel in files, which keep the names of its first version.
VIT_TRANSFORMERS_FILES: KeyTable = (
    *VIT_TRANSFORMERS[:3],
    ("layers.{i}.layer_norm1.*", "encoder.layer.{i}.layernorm_before.*"),
    (
        "layers.{i}.self_attn.qkv_proj.*",
        "encoder.layer.{i}.attention.attention.query.*",
        "encoder.layer.{i}.attention.attention.key.*",
        "encoder.layer.{i}.attention.attention.value.*",
    ),
    ("layers.{i}.self_attn.out_proj.*", "encoder.layer.{i}.attention.output.dense.*"),
    ("layers.{i}.layer_norm2.*", "encoder.layer.{i}.layernorm_after.*"),
    ("layers.{i}.mlp.fc1.*", "encoder.layer.{i}.intermediate.dense.*"),
    ("layers.{i}.mlp.fc2.*", "encoder.layer.{i}.output.dense.*"),
    ("post_layernorm.*", "layernorm.*"),
)

# timm's VisionTransformer.
VIT_TIMM: KeyTable = (
    ("embeddings.class_embedding", "cls_token"),
    ("embeddings.patch_embedding.*", "patch_embed.proj.*"),
    ("embeddings.position_embedding", "pos_embed"),
    ("layers.{i}.layer_norm1.*", "blocks.{i}.norm1.*"),
    ("layers.{i}.self_attn.qkv_proj.*", "blocks.{i}.attn.qkv.*"),
    ("layers.{i}.self_attn.out_proj.*", "blocks.{i}.attn.proj.*"),
    ("layers.{i}.layer_norm2.*", "blocks.{i}.norm2.*"),
    ("layers.{i}.mlp.*", "blocks.{i}.mlp.*"),
    ("post_layernorm.*", "norm.*"),
)


def prefixed(table: KeyTable, here: str = "", there: str = "") -> KeyTable:
    """Return `table` with a prefix before every name here, and one before every name there."""
    return tuple((here + row[0], *(there + name for name in row[1:])) for row in table)


# The vision half of DeepSeek-OCR's own checkpoints.
DEEPENCODER_DEEPSEEK_OCR: KeyTable = (
    *prefixed(SAM_META, "sam_encoder.", "model.sam_model."),
    *prefixed(CLIP_DEEPSEEK_OCR, "clip_encoder.", "model.vision_model."),
    ("projector.layers.0.*", "model.projector.layers.*"),
    ("image_newline", "model.image_newline"),
    ("view_separator", "model.view_seperator"),
)

# transformers' UnlimitedOcrVisionModel, whose newline, separator and projector live outside of it.
DEEPENCODER_UNLIMITED_OCR: KeyTable = (
    *prefixed(SAM_TRANSFORMERS, "sam_encoder.", "sam_encoder."),
    *prefixed(CLIP_TRANSFORMERS, "clip_encoder.", "vision_encoder."),
)
