"""Our models equal transformers' own classes, which are independent code, with the same random weights in float32."""

import importlib
from typing import Any

import pytest
import torch
from torch import nn

from deepencoder import (
    ClipVisionEncoder,
    ClipVisionEncoderConfig,
    DeepEncoder,
    DeepEncoderConfig,
    SamEncoder,
    SamEncoderConfig,
)
from deepencoder.conversion.key_mapping import convert_state_dict
from deepencoder.conversion.key_tables import (
    CLIP_PROJECTED_TRANSFORMERS,
    CLIP_TRANSFORMERS,
    DEEPENCODER_UNLIMITED_OCR,
    DEEPENCODER_UNLIMITED_OCR_VISION,
    SAM_TRANSFORMERS,
    VIT_TRANSFORMERS,
    KeyTable,
    prefixed,
)

from .conftest import randomize, report_difference

SAM_SIZES = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "output_channels": 32}
PIXEL_SIZES = [(512, 512), (640, 640), (1024, 1024), (1280, 1280), (448, 704)]


def peer_module(name: str) -> Any:
    try:
        return importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    except ModuleNotFoundError:
        pytest.skip(f"this transformers has no {name}")


def load(model: nn.Module, peer: nn.Module, table: KeyTable, left_behind: set[str] | None = None) -> Any:
    """Load the peer's weights into our model, and check that no weight of either is left over."""
    converted, unused = convert_state_dict(peer.state_dict(), table, model.state_dict())
    assert set(unused) == (left_behind or set())
    missing, unexpected = model.load_state_dict(converted, strict=False)
    assert not unexpected
    outside = ("projector.", "image_newline", "view_separator")  # The peer's vision model has no projector.
    assert [name for name in missing if not name.startswith(outside)] == []
    return model.eval()


def deepencoder_pair(**sizes: Any) -> tuple[Any, Any]:
    """Build transformers' UnlimitedOcrVisionModel and ours in the same small size, for pages of 1024 pixels."""
    module = peer_module("unlimited_ocr")
    clip_sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
    channels = {"downsample_channels": (40, 48)}
    peer_config = module.UnlimitedOcrVisionConfig(
        sam_config=SAM_SIZES | channels | {"mlp_dim": 128, "global_attn_indexes": (1, 3)},
        encoder_config=clip_sizes,
        attn_implementation="eager",
    )
    peer = randomize(module.UnlimitedOcrVisionModel(peer_config))
    config = DeepEncoderConfig(
        sam_config=SAM_SIZES | channels | {"intermediate_size": 128, "global_attn_indexes": (1, 3)},
        clip_config=clip_sizes,
    )
    return peer, load(DeepEncoder(config), peer, DEEPENCODER_UNLIMITED_OCR_VISION)


@pytest.mark.parametrize("size", PIXEL_SIZES, ids=str)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_deepencoder_equals_unlimited_ocr(size: tuple[int, int], implementation: str) -> None:
    peer, model = deepencoder_pair()
    model.set_attn_implementation(implementation)
    pixels = torch.randn(1, 3, *size)
    ours, theirs = model(pixels).last_hidden_state, peer(pixels).last_hidden_state
    report_difference(f"DeepEncoder {implementation} {size}", ours, theirs)


@torch.no_grad()
def test_layers_equal_those_of_unlimited_ocr() -> None:
    """28 x 44 patches: windows with padding, and resized tables."""
    peer, model = deepencoder_pair()
    model.set_attn_implementation("eager")
    pixels, wanted = torch.randn(2, 3, 448, 704), {"output_hidden_states": True, "output_attentions": True}
    ours, theirs, theirs_sam = model(pixels, **wanted), peer(pixels, **wanted), peer.sam_encoder(pixels, **wanted)
    # The last hidden state of a peer is its output.
    for name, half in (("", theirs), ("sam_", theirs_sam)):
        states, expected = ours[f"{name}hidden_states"], half.hidden_states
        assert len(states) == len(expected) > 3
        for index, state in enumerate(states[:-1]):
            report_difference(f"{name}hidden state {index}", state, expected[index])
        for index, weights in enumerate(ours[f"{name}attentions"]):
            # SAM's: (batch * windows * heads, n, n) -> (batch * windows, heads, n, n)
            expected = half.attentions[index].reshape(weights.shape)
            report_difference(f"{name}logarithm of attention weights {index}", weights.log(), expected.log())


@pytest.mark.parametrize("size", [(512, 512), (1024, 1024), (448, 704)], ids=str)
@torch.no_grad()
def test_deepencoder_is_as_exact_as_unlimited_ocr_in_bfloat16(size: tuple[int, int]) -> None:
    peer, model = deepencoder_pair()
    pixels = torch.randn(2, 3, *size)
    exact = peer(pixels).last_hidden_state
    peer.set_attn_implementation("sdpa")
    errors = [
        ((half(pixels.bfloat16()).last_hidden_state.float() - exact).norm() / exact.norm()).item()
        for half in (model.bfloat16(), peer.bfloat16())
    ]
    print(f"relative error in bfloat16, {size}: ours {errors[0]:.5f}, theirs {errors[1]:.5f}")
    assert errors[0] < 1.1 * errors[1] and errors[1] < 0.1


@torch.no_grad()
def test_deepencoder_equals_unlimited_ocr_at_full_depth() -> None:
    module = peer_module("unlimited_ocr")
    peer = randomize(module.UnlimitedOcrVisionModel(module.UnlimitedOcrVisionConfig(attn_implementation="sdpa")))
    with torch.device("meta"):
        model = DeepEncoder(DeepEncoderConfig())
    model = load(model.to_empty(device="cpu"), peer, DEEPENCODER_UNLIMITED_OCR_VISION)
    pixels = torch.randn(1, 3, 512, 512)
    ours, theirs = model(pixels), peer(pixels)
    report_difference("DeepEncoder, full depth, 512", ours.last_hidden_state, theirs.last_hidden_state)


@torch.no_grad()
def test_vision_tokens_equal_unlimited_ocr() -> None:
    """Compare with get_image_features of the peer's language model, for images with different numbers of tiles."""
    module = peer_module("unlimited_ocr")
    text_config = {
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 64,
        "pad_token_id": 0,
    }
    vision_config = module.UnlimitedOcrVisionConfig(
        sam_config=SAM_SIZES
        | {"downsample_channels": (40, 48), "mlp_dim": 128, "global_attn_indexes": (1, 3), "image_size": 256},
        encoder_config={
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "image_size": 56,
        },
    )
    config = module.UnlimitedOcrConfig(vision_config=vision_config, text_config=text_config, image_token_id=5)
    peer: Any = randomize(module.UnlimitedOcrModel(config))
    our_config = DeepEncoderConfig(
        sam_config=SAM_SIZES
        | {
            "downsample_channels": (40, 48),
            "intermediate_size": 128,
            "global_attn_indexes": (1, 3),
            "image_size": 256,
        },
        clip_config={
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "image_size": 56,
        },
        projection_dim=24,
    )
    model: Any = DeepEncoder(our_config)
    table = DEEPENCODER_UNLIMITED_OCR
    vision = {key: value for key, value in peer.state_dict().items() if not key.startswith("language_model.")}
    converted, unused = convert_state_dict(vision, table, model.state_dict())
    assert unused == []
    model.load_state_dict(converted)
    grids = [[2, 3], [1, 1], [3, 1]]
    pixels, tiles = torch.randn(3, 3, 256, 256), torch.randn(9, 3, 192, 192)
    theirs = peer.get_image_features(pixels, tiles, [6, 0, 3], grids).pooler_output
    ours = model.eval().get_image_features(pixels, tiles, patches_grid=grids, num_local_patches=[6, 0, 3])
    assert len(ours.pooler_output) == len(theirs) == 3
    for index, (tokens, expected) in enumerate(zip(ours.pooler_output, theirs, strict=True)):
        report_difference(f"vision tokens of image {index}", tokens, expected)


@pytest.mark.parametrize("size", PIXEL_SIZES, ids=str)
@torch.no_grad()
def test_sam_encoder_equals_deepseek_ocr2(size: tuple[int, int]) -> None:
    module = peer_module("deepseek_ocr2")
    channels = {"downsample_channels": [40, 56]}
    peer_config = module.DeepseekOcr2SamVisionConfig(
        **SAM_SIZES, **channels, mlp_dim=128, global_attn_indexes=[1, 3], attn_implementation="eager"
    )
    peer: Any = randomize(module.DeepseekOcr2SamVisionEncoder(peer_config))
    config = SamEncoderConfig(**SAM_SIZES, **channels, intermediate_size=128, global_attn_indexes=(1, 3))
    model = load(SamEncoder(config), peer, SAM_TRANSFORMERS)
    pixels = torch.randn(2, 3, *size)
    ours, theirs = model(pixels).last_hidden_state, peer(pixels).last_hidden_state
    report_difference(f"SamEncoder, DeepSeek-OCR-2 {size}", ours, theirs)


@torch.no_grad()
def test_sam_encoder_equals_sam() -> None:
    module = peer_module("sam")
    peer_config = module.SamVisionConfig(
        **SAM_SIZES, mlp_dim=128, global_attn_indexes=[1, 3], image_size=512, attn_implementation="eager"
    )
    peer: Any = randomize(module.SamVisionModel(peer_config))
    config = SamEncoderConfig(
        **SAM_SIZES, intermediate_size=128, global_attn_indexes=(1, 3), image_size=512, downsample_channels=()
    )
    model = load(SamEncoder(config), peer, prefixed(SAM_TRANSFORMERS, there="vision_encoder."))
    pixels = torch.randn(2, 3, 512, 512)
    model.set_attn_implementation("eager")
    ours = model(pixels, output_hidden_states=True, output_attentions=True)
    theirs = peer(pixels, output_hidden_states=True, output_attentions=True)
    report_difference("SamEncoder, SAM without compressor", ours.last_hidden_state, theirs.last_hidden_state)
    for index, (state, expected) in enumerate(zip(ours.hidden_states, theirs.hidden_states, strict=True)):
        report_difference(f"SamEncoder, hidden state {index}", state, expected)
    for index, (weights, expected) in enumerate(zip(ours.attentions, theirs.attentions, strict=True)):
        # (batch * windows * heads, n, n) -> (batch * windows, heads, n, n)
        expected = expected.unflatten(0, (-1, SAM_SIZES["num_attention_heads"]))
        report_difference(f"SamEncoder, logarithm of attention weights {index}", weights.log(), expected.log())


@pytest.mark.parametrize("projection_dim", [None, 24])
@torch.no_grad()
def test_clip_vision_encoder_equals_clip(projection_dim: int | None) -> None:
    module = peer_module("clip")
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
    peer_config = module.CLIPVisionConfig(
        **sizes, image_size=112, patch_size=16, projection_dim=projection_dim or 8, attn_implementation="eager"
    )
    peer_class = module.CLIPVisionModelWithProjection if projection_dim else module.CLIPVisionModel
    peer: Any = randomize(peer_class(peer_config))
    config = ClipVisionEncoderConfig(
        **sizes, image_size=112, patch_size=16, post_norm="pooled", projection_dim=projection_dim
    )
    table = CLIP_TRANSFORMERS
    if projection_dim or any(key.startswith("vision_model.") for key in peer.state_dict()):
        table = CLIP_PROJECTED_TRANSFORMERS
    model = load(ClipVisionEncoder(config), peer, table)
    pixels = torch.randn(2, 3, 112, 112)
    ours, theirs = model(pixels), peer(pixels)
    report_difference("ClipVisionEncoder, CLIP", ours.last_hidden_state, theirs.last_hidden_state)
    if projection_dim:
        report_difference("ClipVisionEncoder, projection", ours.image_embeds, theirs.image_embeds)
    else:
        assert ours.image_embeds is None
        report_difference("ClipVisionEncoder, pooled", ours.pooler_output, theirs.pooler_output)


@torch.no_grad()
def test_clip_vision_encoder_equals_vit() -> None:
    module = peer_module("vit")
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
    peer_config = module.ViTConfig(
        **sizes, image_size=96, patch_size=16, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6
    )
    peer: Any = randomize(module.ViTModel(peer_config, add_pooling_layer=False))
    if not any(key.startswith("layers.0.attention.q_proj") for key in peer.state_dict()):
        pytest.skip("this transformers names ViT's parts otherwise")
    config = ClipVisionEncoderConfig(
        **sizes,
        image_size=96,
        patch_size=16,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
        use_patch_bias=True,
        use_pre_norm=False,
        post_norm="all",
    )
    model = load(ClipVisionEncoder(config), peer, VIT_TRANSFORMERS)
    pixels = torch.randn(2, 3, 96, 96)
    ours, theirs = model(pixels), peer(pixels)
    report_difference("ClipVisionEncoder, ViT", ours.last_hidden_state, theirs.last_hidden_state)
    torch.testing.assert_close(ours.pooler_output, ours.last_hidden_state[:, 0])
