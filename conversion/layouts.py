"""The layouts of checkpoints that hold one of our models, and how they are recognised.

Unusual: a layout is recognised from its tensor names alone, never from the name of a file or a repository. A new
spelling of a known family is one more row; the command line's help lists the rows, so this file imports no torch.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from .families import (
    CLIP,
    DEEPSEEK_OCR,
    DEEPSEEK_OCR_2,
    DEEPSEEK_OCR_CLIP,
    DEEPSEEK_OCR_SAM,
    GOT_OCR,
    OPEN_CLIP,
    SAM,
    VIT,
    Family,
)
from .key_tables import (
    CLIP_DEEPSEEK_OCR,
    CLIP_OPENAI,
    CLIP_PROJECTED_TRANSFORMERS,
    CLIP_TRANSFORMERS,
    DEEPENCODER_DEEPSEEK_OCR,
    DEEPENCODER_LLAMA_CPP,
    DEEPENCODER_OLLAMA,
    DEEPENCODER_PARTS,
    DEEPENCODER_UNLIMITED_OCR,
    DEEPENCODER_V2_DEEPSEEK_OCR_2,
    DEEPENCODER_V2_TRANSFORMERS,
    SAM_GOT_TRANSFORMERS,
    SAM_META,
    SAM_TRANSFORMERS,
    VIT_TIMM,
    VIT_TRANSFORMERS,
    VIT_TRANSFORMERS_FILES,
    KeyTable,
    prefixed,
)

__all__ = ["GGUF_TYPES", "LAYOUTS", "PREFIXES", "Layout", "recognize"]


@dataclass(frozen=True)
class Layout:
    """One way in which other code names the tensors of a checkpoint.

    Args:
        name: its name in reports.
        slug: its name on the command line.
        family ([`Family`]): what it shares with other layouts.
        table: the names of its tensors.
        needs: tensor names that identify the layout if all of them are present.
        lacks: prefixes of tensor names that must be absent, because they identify a larger layout.
        claims: prefixes of the tensors that belong to the encoder. Each such tensor must be in `table` or in
            `left_behind`; all others are ignored.
        left_behind: tensor names that the model has no use for (`*` matches any rest), with the reason.
        defaults: fields of the configuration that tensor shapes do not determine.
        assumed: those fields of `defaults` that are right for most checkpoints of the layout but not for all, with the
            reason.
        reference_prefixes: pairs of a prefix and its replacement, by which transformers' class for the original, which
            verifies a conversion, finds the tensors. They are independent of `table`, which is what is verified.
        reference_projection: names of the projector's weight and bias, the newline and the separator, which that class
            does not have; likewise independent of `table`.
        also_written_for: slugs of layouts whose checkpoints transformers saves with the names of this one.
        is_gguf: whether its checkpoints are GGUF files, into which no encoder is put back: a new one is written.
        part_of: slug of a layout of which this is a part. A checkpoint of that layout has this one only if a model of
            this kind is asked for.
    """

    name: str
    slug: str
    family: Family
    table: KeyTable
    needs: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    claims: tuple[str, ...] = ("",)
    left_behind: tuple[tuple[str, str], ...] = ()
    defaults: tuple[tuple[str, Any], ...] = ()
    assumed: tuple[tuple[str, str], ...] = ()
    reference_prefixes: tuple[tuple[str, str], ...] = ()
    reference_projection: tuple[str, ...] = ()
    also_written_for: tuple[str, ...] = ()
    is_gguf: bool = False
    part_of: str | None = None

    @property
    def model_type(self) -> str:
        """`model_type` of the model that a checkpoint becomes."""
        return self.family.model_type

    @property
    def renamed_by(self) -> str:
        """Who renames the tensors for transformers' class when a conversion is verified."""
        return "transformers" if self.reference_prefixes else "this package"


_POSITION_IDS = "position numbers, which the model computes"
_UNUSED_PATCHES = "CLIP's patch embedding, which neither the original nor this model uses: CLIP reads SAM's map"
_UNUSED_WORDS = "a vocabulary, which the queries do not need"
_CLASSIFIER = "a task head, which is not part of the tower"
_VIT_LEFT_BEHIND = (("embeddings.mask_token", "a token used in pretraining only"),)
_VIT_DEFAULTS = (("post_norm", "all"), ("hidden_act", "gelu"), ("layer_norm_eps", 1e-12))

LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "DeepSeek-OCR",
        "deepseek-ocr",
        DEEPSEEK_OCR,
        DEEPENCODER_DEEPSEEK_OCR,
        needs=("sam_model.pos_embed", "vision_model.embeddings.class_embedding"),
        claims=("sam_model.", "vision_model.", "projector.", "image_newline", "view_seperator"),
        left_behind=(
            ("vision_model.embeddings.patch_embedding.*", _UNUSED_PATCHES),
            ("vision_model.embeddings.position_ids", _POSITION_IDS),
        ),
        reference_prefixes=(("sam_model.", "sam_encoder."), ("vision_model.", "vision_encoder.")),
        reference_projection=("projector.layers.weight", "projector.layers.bias", "image_newline", "view_seperator"),
        also_written_for=("unlimited-ocr",),
    ),
    Layout(
        "DeepSeek-OCR in a file for each part",
        "deepseek-ocr-parts",
        DEEPSEEK_OCR,
        DEEPENCODER_PARTS,
        needs=("pos_embed", "blocks.0.attn.rel_pos_h", "embeddings.class_embedding", "layers.weight"),
        left_behind=(
            ("embeddings.patch_embedding.*", _UNUSED_PATCHES),
            ("embeddings.position_ids", _POSITION_IDS),
        ),
    ),
    Layout(
        "Unlimited-OCR in transformers",
        "unlimited-ocr",
        DEEPSEEK_OCR,
        DEEPENCODER_UNLIMITED_OCR,
        needs=("vision_tower.sam_encoder.pos_embed", "vision_tower.vision_encoder.embeddings.class_embedding"),
        claims=("vision_tower.", "multi_modal_projector.", "image_newline", "view_separator"),
        left_behind=(("vision_tower.vision_encoder.embeddings.patch_embedding.*", _UNUSED_PATCHES),),
        reference_prefixes=(("vision_tower.", ""),),
        reference_projection=(
            "multi_modal_projector.weight",
            "multi_modal_projector.bias",
            "image_newline",
            "view_separator",
        ),
    ),
    Layout(
        "DeepSeek-OCR or Unlimited-OCR in llama.cpp",
        "llama-cpp",
        DEEPSEEK_OCR,
        DEEPENCODER_LLAMA_CPP,
        needs=("v.sam.pos_embd.weight", "v.class_embd"),
        left_behind=(("v.patch_embd.*", _UNUSED_PATCHES),),
        is_gguf=True,
    ),
    Layout(
        "DeepSeek-OCR in Ollama",
        "ollama",
        DEEPSEEK_OCR,
        DEEPENCODER_OLLAMA,
        needs=("s.position_embd", "v.class_embd"),
        claims=("s.", "v.", "mm."),
        left_behind=(("v.patch_embd.*", _UNUSED_PATCHES),),
        is_gguf=True,
    ),
    Layout(
        "CLIP of DeepSeek-OCR",
        "deepseek-ocr-clip",
        DEEPSEEK_OCR_CLIP,
        prefixed(CLIP_DEEPSEEK_OCR, there="vision_model."),
        needs=(
            "vision_model.embeddings.class_embedding",
            "vision_model.transformer.layers.0.self_attn.qkv_proj.weight",
        ),
        lacks=("sam_model.",),
        claims=("vision_model.",),
        left_behind=(("vision_model.embeddings.position_ids", _POSITION_IDS),),
    ),
    Layout(
        "DeepSeek-OCR-2",
        "deepseek-ocr-2",
        DEEPSEEK_OCR_2,
        DEEPENCODER_V2_DEEPSEEK_OCR_2,
        needs=("sam_model.pos_embed", "qwen2_model.query_1024.weight"),
        claims=("sam_model.", "qwen2_model.", "projector.", "view_seperator"),
        left_behind=(("qwen2_model.model.model.embed_tokens.*", _UNUSED_WORDS),),
        reference_prefixes=tuple(
            (name, name) for name in ("sam_model.", "qwen2_model.", "projector.", "view_seperator")
        ),
        also_written_for=("deepseek-ocr-2-transformers",),
    ),
    Layout(
        "DeepSeek-OCR-2 in transformers",
        "deepseek-ocr-2-transformers",
        DEEPSEEK_OCR_2,
        DEEPENCODER_V2_TRANSFORMERS,
        needs=("vision_tower.sam_encoder.pos_embed", "vision_tower.query_1024_resolution.weight"),
        claims=("vision_tower.", "multi_modal_projector.", "view_separator"),
        reference_prefixes=tuple(
            (name, name) for name in ("vision_tower.", "multi_modal_projector.", "view_separator")
        ),
    ),
    Layout(
        "SAM of DeepSeek-OCR-2",
        "deepseek-ocr-2-sam",
        DEEPSEEK_OCR_SAM,
        prefixed(SAM_META, there="sam_model."),
        needs=("sam_model.pos_embed",),
        lacks=("vision_model.",),
        claims=("sam_model.",),
        reference_prefixes=(("sam_model.", ""),),
        part_of="deepseek-ocr-2",
    ),
    Layout(
        "SAM of DeepSeek-OCR-2 in transformers",
        "deepseek-ocr-2-sam-transformers",
        DEEPSEEK_OCR_SAM,
        prefixed(SAM_TRANSFORMERS, there="vision_tower.sam_encoder."),
        needs=("vision_tower.sam_encoder.pos_embed",),
        lacks=("vision_tower.vision_encoder.embeddings.",),
        claims=("vision_tower.sam_encoder.",),
        reference_prefixes=(("vision_tower.sam_encoder.", ""),),
        part_of="deepseek-ocr-2-transformers",
    ),
    Layout(
        "GOT-OCR-2.0 or Vary",
        "got-ocr",
        GOT_OCR,
        prefixed(SAM_META, there="vision_tower_high."),
        needs=("vision_tower_high.pos_embed",),
        claims=("vision_tower_high.",),
        reference_prefixes=(("vision_tower_high.", ""),),
    ),
    Layout(
        "GOT-OCR-2.0 in transformers",
        "got-ocr-transformers",
        GOT_OCR,
        SAM_GOT_TRANSFORMERS,
        needs=("vision_tower.pos_embed", "multi_modal_projector.conv_upsampler1.weight"),
        claims=("vision_tower.", "multi_modal_projector.conv_upsampler"),
        reference_prefixes=(("vision_tower.", ""), ("multi_modal_projector.conv_upsampler", "proj.conv")),
    ),
    Layout(
        "SAM",
        "sam",
        SAM,
        prefixed(SAM_META, there="image_encoder."),
        needs=("image_encoder.pos_embed",),
        claims=("image_encoder.",),
        reference_prefixes=(("image_encoder.", ""),),
    ),
    Layout(
        "SAM in transformers",
        "sam-transformers",
        SAM,
        prefixed(SAM_TRANSFORMERS, there="vision_encoder."),
        needs=("vision_encoder.pos_embed",),
        claims=("vision_encoder.",),
        reference_prefixes=(("vision_encoder.", ""),),
    ),
    Layout(
        "CLIP by OpenAI or open_clip",
        "clip",
        OPEN_CLIP,
        prefixed(CLIP_OPENAI, there="visual."),
        needs=("visual.class_embedding", "visual.ln_pre.weight"),
        claims=("visual.",),
        defaults=(("post_norm", "pooled"), ("hidden_act", "quick_gelu")),
        assumed=(("hidden_act", "quick_gelu, as in OpenAI's models; most of open_clip's own use gelu"),),
    ),
    Layout(
        "CLIP in transformers",
        "clip-transformers",
        CLIP,
        CLIP_PROJECTED_TRANSFORMERS,
        needs=("vision_model.embeddings.class_embedding", "vision_model.post_layernorm.weight"),
        claims=("vision_model.", "visual_projection."),
        left_behind=(("vision_model.embeddings.position_ids", _POSITION_IDS),),
        defaults=(("post_norm", "pooled"),),
    ),
    Layout(
        "CLIP's vision model in transformers",
        "clip-vision-transformers",
        CLIP,
        CLIP_TRANSFORMERS,
        needs=("embeddings.class_embedding", "post_layernorm.weight"),
        left_behind=(("embeddings.position_ids", _POSITION_IDS),),
        defaults=(("post_norm", "pooled"),),
    ),
    Layout(
        "ViT in timm",
        "vit-timm",
        VIT,
        VIT_TIMM,
        needs=("cls_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "norm.weight"),
        left_behind=(("head.*", _CLASSIFIER), ("pre_logits.*", _CLASSIFIER)),
        defaults=(("post_norm", "all"), ("hidden_act", "gelu"), ("layer_norm_eps", 1e-6)),
    ),
    Layout(
        "ViT in transformers",
        "vit-transformers",
        VIT,
        VIT_TRANSFORMERS_FILES,
        needs=("embeddings.cls_token", "encoder.layer.0.attention.attention.query.weight"),
        claims=("embeddings.", "encoder.", "layernorm."),
        left_behind=_VIT_LEFT_BEHIND,
        defaults=_VIT_DEFAULTS,
    ),
    Layout(
        "ViT in transformers' memory",
        "vit-transformers-memory",
        VIT,
        VIT_TRANSFORMERS,
        needs=("embeddings.cls_token", "layers.0.attention.q_proj.weight"),
        claims=("embeddings.", "layers.", "layernorm."),
        left_behind=_VIT_LEFT_BEHIND,
        defaults=_VIT_DEFAULTS,
    ),
)
# Prefixes under which a larger model, torch.compile or DistributedDataParallel may keep a layout.
PREFIXES = ("", "model.", "vit.", "module.", "module.model.", "_orig_mod.", "_orig_mod.model.")


GGUF_TYPES = ("f32", "f16", "bf16", "q8_0")
"""Types that the matrices may have in the GGUF files that this package writes."""


def _matches(layout: Layout, prefix: str, names: Collection[str]) -> bool:
    lacks = tuple(prefix + name for name in layout.lacks)
    return all(prefix + name in names for name in layout.needs) and not (
        lacks and any(name.startswith(lacks) for name in names)
    )


def _choose_part(found: list[tuple[Layout, str]], model_type: str | None) -> list[tuple[Layout, str]]:
    """Leave out the parts of layouts that are found, too; or their wholes, if a model of a part's kind is wanted."""
    parts = [(layout, prefix) for layout, prefix in found if layout.model_type == model_type and layout.part_of]
    slugs = {layout.slug for layout, _ in found}
    return parts or [(layout, prefix) for layout, prefix in found if layout.part_of not in slugs]


def recognize(
    keys: Collection[str], layouts: Sequence[Layout] = LAYOUTS, model_type: str | None = None
) -> tuple[Layout, str]:
    """Recognise the layout of a checkpoint from its tensor names.

    Args:
        keys: the names.
        layouts: rows to choose from.
        model_type: `model_type` of the model that is wanted. It only matters where a layout has parts that are models
            of their own.

    Returns:
        The layout, and the prefix that all its names have in this checkpoint.

    Raises:
        `ValueError`: no layout matches, or more than one does.
    """
    names = set(keys)
    found = [(layout, prefix) for layout in layouts for prefix in PREFIXES if _matches(layout, prefix, names)]
    found = _choose_part(found, model_type)
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"The checkpoint could be any of: {', '.join(layout.name for layout, _ in found)}.")
    examples = ", ".join(repr(name) for name in sorted(names)[:3]) or "no tensors"
    known = ", ".join(layout.name for layout in layouts)
    raise ValueError(f"The checkpoint is none of: {known}. Its first tensor names are: {examples}.")
