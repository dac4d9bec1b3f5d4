"""Pages in sentence-transformers: masks, dimensions, batches of different pages, saving and loading."""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import AutoModel

from deepencoder import DeepEncoder, DeepEncoderConfig, DeepEncoderImageProcessor
from deepencoder.extraction import FeatureExtractor
from deepencoder.integrations import PageEmbedder
from deepencoder.processing.token_pooling import VectorOptions

from ..conftest import randomize

SIZES = ((60, 140), (40, 30), (300, 90))  # Padded left and right; without tiles; padded above and below.


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size)


@pytest.fixture(scope="module")
def pages() -> list[Image.Image]:
    return [picture(seed, size) for seed, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def encoder() -> Any:
    torch.manual_seed(0)
    return randomize(DeepEncoder(DeepEncoderConfig.tiny())).eval()


@pytest.fixture(scope="module")
def processor() -> Any:
    """Views of 256 x 256 pixels give 4 x 4 tokens, and tiles of 128 give 2 x 2."""
    size = {"height": 256, "width": 256}
    return DeepEncoderImageProcessor(size=size, crop_to_patches=True, tile_size=128, max_patches=4)


def shown_of(page: Image.Image, processor: Any) -> list[bool]:
    """Say which tokens of the view show a page, from a white page on black padding."""
    white = Image.new("RGB", page.size, "white")
    view = processor(white, background_color=0, do_rescale=False, do_normalize=False)["pixel_values"][0]
    return [view[:, y : y + 64, x : x + 64].any() for y in range(0, 256, 64) for x in range(0, 256, 64)]


def tokens_of(page: Image.Image, encoder: Any, processor: Any) -> torch.Tensor:
    """Return the fused tokens that show a page, encoded alone."""
    with torch.no_grad():
        found = encoder(**processor(page, return_tensors="pt"))
    tokens = found.last_hidden_state[0][torch.tensor(shown_of(page, processor))]
    tiles = found.local_last_hidden_state
    return tokens if tiles is None else torch.cat([tokens, tiles.flatten(0, 1)])


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(torch.as_tensor(found).cpu(), expected, atol=2e-5, rtol=2e-4)


def test_late_interaction_sees_the_pages_own_tokens(pages: Any, encoder: Any, processor: Any) -> None:
    model = MultiVectorEncoder(modules=[PageEmbedder(encoder, processor)], device="cpu")
    assert model.get_embedding_dimension() == 64 and model.modalities == ["image"]
    found = model.encode(pages, batch_size=3)
    expected = [tokens_of(page, encoder, processor) for page in pages]
    assert [len(tokens) for tokens in expected] == [8 + 8, 16, 8 + 12]
    for tokens, own in zip(found, expected, strict=True):
        close(tokens, own)
    scores = [[float((query @ page.T).amax(1).sum()) for page in expected] for query in expected]
    torch.testing.assert_close(model.similarity(found, found), torch.tensor(scores), rtol=1e-3, atol=1e-3)


def test_pooled_output_and_mean_of_tokens(pages: Any, encoder: Any, processor: Any) -> None:
    pooled = SentenceTransformer(modules=[PageEmbedder(encoder, processor, "pooled")], device="cpu")
    with torch.no_grad():
        expected = encoder(**processor(pages, return_tensors="pt")).pooler_output
    close(pooled.encode(pages, convert_to_tensor=True), expected)
    assert pooled.get_embedding_dimension() == 32 == expected.shape[1]

    modules = [PageEmbedder(encoder, processor, "tokens"), Pooling(64, "mean")]
    mean = SentenceTransformer(modules=modules, device="cpu")
    own = torch.stack([tokens_of(page, encoder, processor).mean(0) for page in pages])
    close(mean.encode(pages, batch_size=2, convert_to_tensor=True), own)
    assert mean.get_embedding_dimension() == 64


def test_vision_tokens_leave_out_newlines_and_padding(pages: Any, encoder: Any, processor: Any) -> None:
    model = MultiVectorEncoder(modules=[PageEmbedder(encoder, processor, "vision_tokens")], device="cpu")
    assert model.get_embedding_dimension() == 48
    for page, tokens in zip(pages, model.encode(pages), strict=True):
        own = encoder.projector(tokens_of(page, encoder, processor)).detach()
        assert tokens.shape == own.shape
        # Here the tiles come first, and row by row of their mosaic.
        nearest = torch.cdist(tokens.double(), own.double()).min(1)
        assert nearest.values.max() < 1e-4 and sorted(nearest.indices.tolist()) == list(range(len(own)))


def test_vectors_are_those_of_extract(pages: Any, encoder: Any, processor: Any, tmp_path: Path) -> None:
    """A query that is encoded here can be compared with a corpus that `deepencoder extract` has written."""
    encoder.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    options: Any = {"mode": None, "vector_pool": 2, "vector_width": 16}
    extractor = FeatureExtractor(tmp_path, outputs=("multi_vector",), dtype="float32", **options)
    stored = extractor({"image": pages})["multi_vector"]
    model = MultiVectorEncoder(modules=[PageEmbedder(encoder, processor, "multi_vector", **options)], device="cpu")
    assert model.get_embedding_dimension() == 16
    for vectors, row in zip(model.encode(pages), stored, strict=True):
        close(vectors, torch.from_numpy(row[row.any(-1)]))
        close(vectors.norm(dim=-1), torch.ones(len(vectors)))
    assert [len(row[row.any(-1)]) for row in stored] == [4 + 2, 4, 4 + 3]


@pytest.mark.parametrize(
    ("kind", "output", "others"),
    [
        (MultiVectorEncoder, "multi_vector", []),
        (MultiVectorEncoder, "tokens", [Dense(64, 8, bias=False, module_input_name="token_embeddings")]),
        (SentenceTransformer, "tokens", [Pooling(64, ("mean", "max"))]),
        (SentenceTransformer, "pooled", []),
    ],
)
def test_a_saved_model_loads(
    kind: Any, output: str, others: list[Any], pages: Any, encoder: Any, processor: Any, tmp_path: Path
) -> None:
    embedder = PageEmbedder(encoder, processor, output, vector_pool=3, vector_width=8)
    model = kind(modules=[embedder, *others], device="cpu")
    model.save_pretrained(str(tmp_path))
    loaded = kind(str(tmp_path), trust_remote_code=True, device="cpu")
    assert loaded[0].get_config_dict() == embedder.get_config_dict()
    assert loaded.get_embedding_dimension() == model.get_embedding_dimension()
    for before, after in zip(model.encode(pages), loaded.encode(pages), strict=True):
        close(after, torch.as_tensor(before))
    # The folder is that of the encoder, too.
    own = AutoModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(own[name], value) for name, value in encoder.state_dict().items())


def test_the_mode_is_kept(encoder: Any, tmp_path: Path) -> None:
    processor = DeepEncoderImageProcessor(mode="base")
    embedder = PageEmbedder(encoder, processor, "tokens", mode="tiny")
    assert embedder.preprocess([picture(0, (50, 80))])["pixel_values"].shape[2:] == (512, 512)
    MultiVectorEncoder(modules=[embedder], device="cpu").save_pretrained(str(tmp_path))
    loaded = PageEmbedder.load(str(tmp_path), model_kwargs={"dtype": torch.bfloat16})
    assert loaded.mode == "tiny" and loaded.processor.mode == "base" and loaded.model.dtype == torch.bfloat16
    features = loaded(loaded.preprocess([picture(0, (50, 80))]))
    assert features["token_embeddings"].dtype == torch.bfloat16 and features["attention_mask"].all()


def test_what_sentence_transformers_calls_an_image(encoder: Any, processor: Any, tmp_path: Path) -> None:
    page = picture(3, (200, 150))
    page.save(tmp_path / "page.png")
    model = SentenceTransformer(modules=[PageEmbedder(encoder, processor, "pooled")], device="cpu")
    inputs: list[Any] = [page, {"image": page}, str(tmp_path / "page.png"), np.asarray(page)]
    found = model.encode(inputs, convert_to_tensor=True)
    close(found, found[:1].expand_as(found).clone())
    assert model.encode(page).shape == (32,)
    with pytest.raises(ValueError, match="Modality 'text' is not supported"):
        model.encode("What is on this page?")


def test_it_trains(pages: Any, processor: Any) -> None:
    torch.manual_seed(0)
    encoder = randomize(DeepEncoder(DeepEncoderConfig.tiny()))
    embedder = PageEmbedder(encoder, processor, "multi_vector", vector_width=16).train()
    features = embedder(embedder.preprocess(pages))
    (features["token_embeddings"].sum(-1) * features["attention_mask"]).mean().backward()
    gradient = encoder.sam_encoder.embeddings.patch_embedding.weight.grad
    assert gradient is not None and gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"output": "pages"},
            "output must be one of 'pooled', 'tokens', 'vision_tokens', 'multi_vector', got 'pages'",
        ),
        ({"mode": "huge"}, "mode must be one of"),
        ({"vector_pool": 0}, "vector_pool must be a positive integer, got 0"),
        ({"model": torch.nn.Linear(1, 1)}, "model must be a DeepEncoder, got a Linear"),
    ],
)
def test_arguments_are_checked(fields: Any, words: str, encoder: Any, processor: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        PageEmbedder(**({"model": encoder, "processor": processor} | fields))


def test_models_of_other_kinds_and_backends_are_refused(encoder: Any, tmp_path: Path) -> None:
    encoder.sam_encoder.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_name_or_path must name a DeepEncoder, got a 'deepencoder_sam'"):
        PageEmbedder.load(str(tmp_path))
    with pytest.raises(ValueError, match="backend must be 'torch', got 'onnx'"):
        PageEmbedder.load(str(tmp_path), backend="onnx")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers.base.modules", None)
    monkeypatch.delitem(sys.modules, PageEmbedder.__module__)
    with pytest.raises(ImportError, match=r"deepencoder\[search\]"):
        importlib.import_module(PageEmbedder.__module__)


def test_dimensions_of_the_published_size() -> None:
    """The dimensions come from the configuration alone, so a model without memory has them, too."""
    with torch.device("meta"):
        model = DeepEncoder(DeepEncoderConfig())
    processor = DeepEncoderImageProcessor(mode="base")
    widths = {"pooled": 1024, "tokens": 2048, "vision_tokens": 1280, "multi_vector": VectorOptions.width}
    for output, width in widths.items():
        assert PageEmbedder(model, processor, output).get_embedding_dimension() == width
