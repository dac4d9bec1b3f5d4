"""The layouts of checkpoints that hold one of our models, and how they are told apart.

Unusual: a layout is recognised by the names of its tensors alone, never by the name of a file or a repository.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from .key_tables import (
    CLIP_DEEPSEEK_OCR,
    CLIP_OPENAI,
    CLIP_TRANSFORMERS,
    DEEPENCODER_DEEPSEEK_OCR,
    DEEPENCODER_UNLIMITED_OCR,
    SAM_META,
    SAM_TRANSFORMERS,
    VIT_TIMM,
    VIT_TRANSFORMERS,
    VIT_TRANSFORMERS_FILES,
    KeyTable,
    prefixed,
)

__all__ = ["LAYOUTS", "PREFIXES", "Layout", "recognize"]


@dataclass(frozen=True)
class Layout:
    """A way in which other code lays a checkpoint out.

    Args:
        name: what it is called in reports.
        slug: what it is called on the command line.
        pixels: whose image processor it is used with: `"deepseek"`, `"got"`, `"sam"`, `"clip"` or `"vit"`.
        model_type: what is made of it.
        table: its rows.
        needs: names that only this layout has all of.
        lacks: beginnings of names that tell a larger layout apart.
        claims: beginnings of the names that belong to the encoder; each must be in the table or left behind.
        left_behind: names that nothing is made of (`*` for any rest), with the reason.
        defaults: fields of the configuration that no shape tells.
        assumed: of these, the ones that are true of most checkpoints of the layout and not of all, with the reason.
    """

    name: str
    slug: str
    pixels: str
    model_type: str
    table: KeyTable
    needs: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    claims: tuple[str, ...] = ("",)
    left_behind: tuple[tuple[str, str], ...] = ()
    defaults: tuple[tuple[str, Any], ...] = ()
    assumed: tuple[tuple[str, str], ...] = ()

    @property
    def is_tower(self) -> bool:
        """Whether a configuration beside the checkpoint is the tower's own, and not that of a language model."""
        return self.pixels in ("clip", "sam", "vit") and self.slug != "deepseek-ocr-clip"


_POSITION_IDS = "numbers that are counted anew"
_UNUSED_PATCHES = "CLIP's patch embedding, which runs on SAM's map here and in the original alike"
_CLASSIFIER = "a head for a task, not a part of the tower"
_VIT_LEFT_BEHIND = (("embeddings.mask_token", "a token of its pretraining, which the tower never sees"),)
_VIT_DEFAULTS = (("post_norm", "all"), ("hidden_act", "gelu"), ("layer_norm_eps", 1e-12))

_DEEPSEEK_OCR = Layout(
    "DeepSeek-OCR",
    "deepseek-ocr",
    "deepseek",
    "deepencoder",
    tuple((row[0], *(name.removeprefix("model.") for name in row[1:])) for row in DEEPENCODER_DEEPSEEK_OCR),
    needs=("sam_model.pos_embed", "vision_model.embeddings.class_embedding"),
    claims=("sam_model.", "vision_model.", "projector.", "image_newline", "view_seperator"),
    left_behind=(
        ("vision_model.embeddings.patch_embedding.*", _UNUSED_PATCHES),
        ("vision_model.embeddings.position_ids", _POSITION_IDS),
    ),
)
_UNLIMITED_OCR = Layout(
    "Unlimited-OCR in transformers",
    "unlimited-ocr",
    "deepseek",
    "deepencoder",
    (
        *prefixed(DEEPENCODER_UNLIMITED_OCR, there="vision_tower."),
        ("projector.layers.0.*", "multi_modal_projector.*"),
        ("image_newline", "image_newline"),
        ("view_separator", "view_separator"),
    ),
    needs=("vision_tower.sam_encoder.pos_embed", "vision_tower.vision_encoder.embeddings.class_embedding"),
    claims=("vision_tower.", "multi_modal_projector.", "image_newline", "view_separator"),
    left_behind=(("vision_tower.vision_encoder.embeddings.patch_embedding.*", _UNUSED_PATCHES),),
)

LAYOUTS: tuple[Layout, ...] = (
    _DEEPSEEK_OCR,
    _UNLIMITED_OCR,
    Layout(
        "CLIP of DeepSeek-OCR",
        "deepseek-ocr-clip",
        "clip",
        "deepencoder_clip_vision",
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
        "deepseek",
        "deepencoder_sam",
        prefixed(SAM_META, there="sam_model."),
        needs=("sam_model.pos_embed",),
        lacks=("vision_model.",),
        claims=("sam_model.",),
    ),
    Layout(
        "DeepSeek-OCR-2 in transformers",
        "deepseek-ocr-2-transformers",
        "deepseek",
        "deepencoder_sam",
        prefixed(SAM_TRANSFORMERS, there="vision_tower.sam_encoder."),
        needs=("vision_tower.sam_encoder.pos_embed",),
        lacks=("vision_tower.vision_encoder.embeddings.",),
        claims=("vision_tower.sam_encoder.",),
    ),
    Layout(
        "GOT-OCR-2.0 or Vary",
        "got-ocr",
        "got",
        "deepencoder_sam",
        prefixed(SAM_META, there="vision_tower_high."),
        needs=("vision_tower_high.pos_embed",),
        claims=("vision_tower_high.",),
    ),
    Layout(
        "GOT-OCR-2.0 in transformers",
        "got-ocr-transformers",
        "got",
        "deepencoder_sam",
        (
            *prefixed(SAM_TRANSFORMERS[:-2], there="vision_tower."),
            ("compressor.convs.0.*", "multi_modal_projector.conv_upsampler1.*"),
            ("compressor.convs.1.*", "multi_modal_projector.conv_upsampler2.*"),
        ),
        needs=("vision_tower.pos_embed", "multi_modal_projector.conv_upsampler1.weight"),
        claims=("vision_tower.", "multi_modal_projector.conv_upsampler"),
    ),
    Layout(
        "SAM",
        "sam",
        "sam",
        "deepencoder_sam",
        prefixed(SAM_META, there="image_encoder."),
        needs=("image_encoder.pos_embed",),
        claims=("image_encoder.",),
    ),
    Layout(
        "SAM in transformers",
        "sam-transformers",
        "sam",
        "deepencoder_sam",
        prefixed(SAM_TRANSFORMERS, there="vision_encoder."),
        needs=("vision_encoder.pos_embed",),
        claims=("vision_encoder.",),
    ),
    Layout(
        "CLIP by OpenAI or open_clip",
        "clip",
        "clip",
        "deepencoder_clip_vision",
        tuple((row[0], *(f"visual.{name}" for name in row[1:])) for row in CLIP_OPENAI),
        needs=("visual.class_embedding", "visual.ln_pre.weight"),
        claims=("visual.",),
        defaults=(("post_norm", "pooled"), ("hidden_act", "quick_gelu")),
        assumed=(("hidden_act", "quick_gelu, as OpenAI's; most of open_clip's own models have gelu"),),
    ),
    Layout(
        "CLIP in transformers",
        "clip-transformers",
        "clip",
        "deepencoder_clip_vision",
        (*prefixed(CLIP_TRANSFORMERS[:-1], there="vision_model."), CLIP_TRANSFORMERS[-1]),
        needs=("vision_model.embeddings.class_embedding", "vision_model.post_layernorm.weight"),
        claims=("vision_model.", "visual_projection."),
        left_behind=(("vision_model.embeddings.position_ids", _POSITION_IDS),),
        defaults=(("post_norm", "pooled"),),
    ),
    Layout(
        "CLIP's vision model in transformers",
        "clip-vision-transformers",
        "clip",
        "deepencoder_clip_vision",
        CLIP_TRANSFORMERS,
        needs=("embeddings.class_embedding", "post_layernorm.weight"),
        left_behind=(("embeddings.position_ids", _POSITION_IDS),),
        defaults=(("post_norm", "pooled"),),
    ),
    Layout(
        "ViT in timm",
        "vit-timm",
        "vit",
        "deepencoder_clip_vision",
        VIT_TIMM,
        needs=("cls_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "norm.weight"),
        left_behind=(("head.*", _CLASSIFIER), ("pre_logits.*", _CLASSIFIER)),
        defaults=(("post_norm", "all"), ("hidden_act", "gelu"), ("layer_norm_eps", 1e-6)),
    ),
    Layout(
        "ViT in transformers",
        "vit-transformers",
        "vit",
        "deepencoder_clip_vision",
        VIT_TRANSFORMERS_FILES,
        needs=("embeddings.cls_token", "encoder.layer.0.attention.attention.query.weight"),
        claims=("embeddings.", "encoder.", "layernorm."),
        left_behind=_VIT_LEFT_BEHIND,
        defaults=_VIT_DEFAULTS,
    ),
    Layout(
        "ViT in transformers' memory",
        "vit-transformers-memory",
        "vit",
        "deepencoder_clip_vision",
        VIT_TRANSFORMERS,
        needs=("embeddings.cls_token", "layers.0.attention.q_proj.weight"),
        claims=("embeddings.", "layers.", "layernorm."),
        left_behind=_VIT_LEFT_BEHIND,
        defaults=_VIT_DEFAULTS,
    ),
)
# Where in a larger model a layout may sit.
PREFIXES = ("", "model.", "vit.", "module.", "module.model.", "_orig_mod.", "_orig_mod.model.")


def recognize(keys: Collection[str]) -> tuple[Layout, str]:
    """Tell what a checkpoint is from the names of its tensors.

    Returns:
        the layout, and the prefix that all its names have there.

    Raises:
        `ValueError`: nothing that we know, or more than one thing.
    """
    names = set(keys)
    found = []
    for layout in LAYOUTS:
        for prefix in PREFIXES:
            lacks = tuple(prefix + name for name in layout.lacks)
            if all(prefix + name in names for name in layout.needs) and not (
                lacks and any(name.startswith(lacks) for name in names)
            ):
                found.append((layout, prefix))
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"The checkpoint could be any of: {', '.join(layout.name for layout, _ in found)}.")
    examples = ", ".join(repr(name) for name in sorted(names)[:3]) or "no tensors"
    known = ", ".join(layout.name for layout in LAYOUTS)
    raise ValueError(f"The checkpoint is none of: {known}. It begins with {examples}.")
