"""DeepEncoderV2 and its image processor equal transformers' classes for DeepSeek-OCR-2, with the same weights."""

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deepencoder import DeepEncoderImageProcessor, DeepEncoderV2, DeepEncoderV2Config
from deepencoder.conversion.key_mapping import convert_state_dict
from deepencoder.conversion.key_tables import DEEPENCODER_V2_TRANSFORMERS
from deepencoder.processing.placement import contain_page

from .conftest import randomize, report_difference

SAM_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "output_channels": 32,
    "downsample_channels": [40, 48],
    "global_attn_indexes": [1, 3],
}
QUERY_SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
TEXT_SIZES: dict[str, Any] = {
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "vocab_size": 8,
    "bos_token_id": None,
    "eos_token_id": None,
    "mlp_layer_types": ["dense"],
}


def peer_and_ours(sam: dict[str, Any], query: dict[str, Any], projection_dim: int) -> tuple[Any, Any]:
    """Return transformers' whole model, with a small language model, and our encoder with its vision weights."""
    module = importlib.import_module("transformers.models.deepseek_ocr2.modeling_deepseek_ocr2")
    vision = {"sam_config": sam, "encoder_config": query}
    text = TEXT_SIZES | {"hidden_size": projection_dim}
    config = module.DeepseekOcr2Config(vision_config=vision, text_config=text, image_token_id=5)
    peer: Any = randomize(module.DeepseekOcr2Model(config))
    widths = {"mlp_dim": "intermediate_size"}
    ours = DeepEncoderV2Config(
        sam_config={widths.get(name, name): value for name, value in sam.items()},
        query_config=query,
        projection_dim=projection_dim,
    )
    with torch.device("meta"):
        model: Any = DeepEncoderV2(ours)
    state = {name: value for name, value in peer.state_dict().items() if not name.startswith("language_model.")}
    converted, unused = convert_state_dict(state, DEEPENCODER_V2_TRANSFORMERS, model.state_dict())
    assert unused == []
    model = DeepEncoderV2.from_pretrained(None, config=ours, state_dict=converted)
    return peer, model.eval()


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    return peer_and_ours(SAM_SIZES | {"mlp_dim": 128}, QUERY_SIZES, 24)


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
@torch.no_grad()
def test_queries_equal_those_of_deepseek_ocr2(pair: tuple[Any, Any], implementation: str) -> None:
    peer, model = pair
    model.query_encoder.set_attn_implementation(implementation)
    try:
        for size in (768, 1024):
            pixels = torch.randn(2, 3, size, size)
            ours, theirs = model(pixels), peer.vision_tower(pixels)
            report_difference(f"queries {implementation} {size}", ours.last_hidden_state, theirs.last_hidden_state)
            assert torch.equal(ours.pooler_output, ours.last_hidden_state[:, -1])
    finally:
        model.query_encoder.set_attn_implementation("sdpa")


@torch.no_grad()
def test_vision_tokens_of_ragged_batches_equal_those_of_deepseek_ocr2(pair: tuple[Any, Any]) -> None:
    """Compare with get_image_features, for images with different numbers of tiles."""
    peer, model = pair
    grids, counts = [[2, 2], [1, 1], [3, 1]], [4, 0, 3]
    pixels, tiles = torch.randn(3, 3, 1024, 1024), torch.randn(7, 3, 768, 768)
    theirs = peer.get_image_features(pixels, tiles, counts)
    ours = model.get_image_features(pixels, tiles, patches_grid=grids, num_local_patches=counts)
    assert [len(tokens) for tokens in ours.pooler_output] == [144 * count + 257 for count in counts]
    for index, (tokens, expected) in enumerate(zip(ours.pooler_output, theirs.pooler_output, strict=True)):
        report_difference(f"vision tokens of image {index}", tokens, expected)
    report_difference("queries of tiles", ours.local_last_hidden_state, theirs.local_last_hidden_state)


@torch.no_grad()
def test_layers_equal_those_of_deepseek_ocr2(pair: tuple[Any, Any]) -> None:
    peer, model = pair
    wanted = {"output_hidden_states": True, "output_attentions": True}
    model.set_attn_implementation("eager")
    peer.set_attn_implementation("eager")
    try:
        pixels = torch.randn(1, 3, 768, 768)
        ours, theirs = model(pixels, **wanted), peer.vision_tower(pixels, **wanted)
    finally:
        model.set_attn_implementation("sdpa")
        peer.set_attn_implementation("sdpa")
    # The last hidden state of the peer is its output.
    assert len(ours.hidden_states) == len(theirs.hidden_states) == 4 and ours.hidden_states[0].shape == (1, 288, 48)
    for index, state in enumerate(ours.hidden_states[:-1]):
        report_difference(f"hidden state {index}", state, theirs.hidden_states[index])
    for index, weights in enumerate(ours.attentions):
        report_difference(f"attention weights {index}", weights, theirs.attentions[index], tolerance=2e-6)
        assert (weights[..., :144, 144:] == 0).all(), "a token of the image sees a query"
        assert (weights[..., 144:, 144:].triu(1) == 0).all(), "a query sees a later one"
    assert len(ours.sam_hidden_states) == 5 and len(ours.sam_attentions) == 4


@pytest.mark.slow
@torch.no_grad()
def test_the_published_size_equals_deepseek_ocr2() -> None:
    sam = {"downsample_channels": [512, 896]}
    query = {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2}
    query |= {"intermediate_size": 4864, "rope_parameters": QUERY_SIZES["rope_parameters"]}
    peer, model = peer_and_ours(sam, query, 1280)
    with torch.device("meta"):
        published = DeepEncoderV2(DeepEncoderV2Config()).state_dict()
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        name: tensor.shape for name, tensor in published.items()
    }
    pixels, tiles = torch.randn(1, 3, 1024, 1024), torch.randn(2, 3, 768, 768)
    theirs = peer.get_image_features(pixels, tiles, [2])
    ours = model(pixels, tiles, patches_grid=[[2, 1]])
    report_difference("queries, full size", ours.last_hidden_state, theirs.last_hidden_state)
    report_difference("queries of tiles, full size", ours.local_last_hidden_state, theirs.local_last_hidden_state)
    report_difference("vision tokens, full size", ours.vision_tokens[0], theirs.pooler_output[0])


SIZES = [(1240, 1754), (768, 768), (769, 500), (300, 1500), (1500, 300), (2000, 1000), (1024, 1024), (640, 480)]
EVEN = [(1240, 1754), (768, 768), (2000, 1000), (1024, 1024), (640, 480)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_equal_those_of_deepseek_ocr2(size: tuple[int, int]) -> None:
    module = importlib.import_module("transformers.models.deepseek_ocr2.image_processing_pil_deepseek_ocr2")
    pixels = np.random.default_rng(sum(size)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image, processor = Image.fromarray(pixels), DeepEncoderImageProcessor(mode="v2")
    raw: dict[str, Any] = {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}
    ours, theirs = processor(image, **raw), module.DeepseekOcr2ImageProcessorPil()(image, **raw)
    # transformers rounds the offset of a page down. Pillow's `ImageOps.pad`, which DeepSeek's own code calls, rounds
    # half to even, so that some pages lie one pixel further to the right or to the bottom.
    place = contain_page((size[1], size[0]), (1024, 1024))
    shift = (place.top - (1024 - place.height) // 2, place.left - (1024 - place.width) // 2)
    assert shift in ((0, 0), (1, 0), (0, 1)) and (size not in EVEN or shift == (0, 0))
    assert np.array_equal(ours["pixel_values"], np.roll(theirs["pixel_values"], shift, axis=(2, 3)))
    assert ours["num_local_patches"].tolist() == theirs["num_local_patches"].tolist()
    assert ("pixel_values_local" in ours) == ("pixel_values_local" in theirs)
    if "pixel_values_local" in ours:
        assert np.array_equal(ours["pixel_values_local"], theirs["pixel_values_local"])
    scaled = processor(image, return_tensors="pt")["pixel_values"]
    expected = module.DeepseekOcr2ImageProcessorPil()(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(scaled, expected.roll(shift, (2, 3)), atol=1e-6, rtol=0)
    tokens = 144 * int(ours["num_local_patches"][0]) + 257
    assert processor.get_number_of_image_tokens(size[1], size[0]) == tokens
