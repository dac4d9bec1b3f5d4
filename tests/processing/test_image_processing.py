"""The image processor: its pixels against Pillow's, its modes, token counts, saved files and errors."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from transformers import pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from deepencoder import DeepEncoder, DeepEncoderConfig, DeepEncoderImageProcessor
from deepencoder.processing.modes import MODES
from deepencoder.processing.tiling import choose_tile_grid

RNG = np.random.default_rng(0)
NAN, INFINITY = float("nan"), float("inf")
SIDES = {"tiny": 512, "small": 640, "base": 1024, "large": 1280, "gundam": 1024, "v2": 1024}
# Paddings of an odd number of pixels, squares, banners, sides of one pixel, and sizes around the tiling threshold.
SIZES = [
    (1240, 1754),
    (640, 640),
    (641, 633),
    (1, 300),
    (300, 1),
    (1, 1),
    (1500, 300),
    (300, 1500),
    (999, 1001),
    (37, 91),
]


def random_image(width: int, height: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def reference(image: Image.Image, mode: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the view and the tiles as DeepSeek-OCR's own code makes them with Pillow: uint8, channels first."""
    side = SIDES[mode]
    tiles = None
    if mode in ("tiny", "small"):
        view = image.resize((side, side))
    else:
        view = ImageOps.pad(image, (side, side), color=(127, 127, 127))
    size, most = {"gundam": (640, 9), "v2": (768, 6)}.get(mode, (10**9, 0))
    if image.width > size or image.height > size:
        columns, rows = choose_tile_grid(image.height, image.width, 2, most, size)
        resized = image.resize((size * columns, size * rows))
        boxes = [(size * c, size * r, size * c + size, size * r + size) for r in range(rows) for c in range(columns)]
        tiles = np.stack([np.asarray(resized.crop(box)).transpose(2, 0, 1) for box in boxes])
    return np.asarray(view).transpose(2, 0, 1), tiles


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_equal_pillows(mode: str, size: tuple[int, int]) -> None:
    image = random_image(*size)
    view, tiles = reference(image, mode)
    processor = DeepEncoderImageProcessor(mode=mode)
    raw = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")
    assert raw["pixel_values"].dtype == np.uint8
    assert np.array_equal(raw["pixel_values"][0], view)
    scaled = processor(image, return_tensors="pt")
    expected = (torch.from_numpy(view.copy()).float() / 255 - 0.5) / 0.5
    assert scaled["pixel_values"].dtype == torch.float32
    torch.testing.assert_close(scaled["pixel_values"][0], expected, atol=1e-6, rtol=0)
    assert ("pixel_values_local" in raw) == (tiles is not None)
    if tiles is not None:
        assert np.array_equal(raw["pixel_values_local"], tiles)
        expected = (torch.from_numpy(tiles).float() / 255 - 0.5) / 0.5
        torch.testing.assert_close(scaled["pixel_values_local"], expected, atol=1e-6, rtol=0)
        assert int(raw["num_local_patches"][0]) == len(tiles)
    else:
        assert raw["patches_grid"].tolist() == [[1, 1]] and raw["num_local_patches"].tolist() == [0]


def test_padding_is_pillows() -> None:
    """The padding is our own code, so it is compared with `ImageOps.pad` for every parity of the sizes."""
    processor = DeepEncoderImageProcessor(size={"height": 36, "width": 45}, background_color=(1, 20, 255))
    for width in range(5, 60, 3):
        for height in range(5, 60, 2):
            image = random_image(width, height)
            expected = ImageOps.pad(image, (45, 36), Image.Resampling.BICUBIC, color=(1, 20, 255))
            found = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
            assert np.array_equal(found, np.asarray(expected).transpose(2, 0, 1)), (width, height)


def test_normalised_to_the_last_bit() -> None:
    """Views and tiles go through the same multiplication and addition in float32."""
    image = random_image(1300, 900)
    raw = {"do_rescale": False, "do_normalize": False}
    values = {"image_mean": (0.5, 0.4, 0.3), "image_std": (0.5, 0.2, 0.1)}
    factor = (np.full(3, 1 / 255) / np.array(values["image_std"])).astype(np.float32)
    shift = (-np.array(values["image_mean"]) / np.array(values["image_std"])).astype(np.float32)
    processor = DeepEncoderImageProcessor(mode="gundam", **values)
    pixels, scaled = processor(image, return_tensors="np", **raw), processor(image, return_tensors="np")
    for name in ("pixel_values", "pixel_values_local"):
        expected = pixels[name].astype(np.float32) * factor[:, None, None] + shift[:, None, None]
        assert np.array_equal(scaled[name], expected) and scaled[name].dtype == np.float32


def test_threads_get_what_one_gets() -> None:
    processor = DeepEncoderImageProcessor(mode="gundam")
    images = [random_image(700 + 100 * index, 900) for index in range(6)]
    expected = [processor(image, return_tensors="pt") for image in images]
    with ThreadPoolExecutor(6) as pool:
        for one, other in zip(expected, pool.map(lambda i: processor(i, return_tensors="pt"), images), strict=True):
            assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_batch_of_everything(example_page: Path) -> None:
    images = [
        str(example_page),
        example_page,
        Image.open(example_page),
        np.asarray(Image.open(example_page)),
        torch.zeros(3, 90, 40),
    ]
    output = DeepEncoderImageProcessor()(images, mode="gundam", return_tensors="pt")
    assert output["pixel_values"].shape == (5, 3, 1024, 1024)
    assert output["pixel_values_local"].shape == (24, 3, 640, 640)
    assert output["patches_grid"].tolist() == [[2, 3]] * 4 + [[1, 1]]
    assert output["num_local_patches"].tolist() == [6, 6, 6, 6, 0]
    assert torch.equal(output["pixel_values"][0], output["pixel_values"][3])


def test_without_return_tensors_lists_come_back() -> None:
    output = DeepEncoderImageProcessor(mode="gundam")([random_image(700, 300)])
    assert isinstance(output["pixel_values"], list) and output["pixel_values"][0].shape == (3, 1024, 1024)
    assert output["patches_grid"] == [[2, 1]] and output["num_local_patches"] == [2]


@pytest.fixture(scope="module")
def small_model() -> Any:
    return DeepEncoder(DeepEncoderConfig.tiny(image_size=64)).eval()


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    view=st.sampled_from([(64, 64), (128, 64), (80, 48), (64, 192)]),
    tile_size=st.sampled_from([32, 48, 64, 112]),
    crop=st.booleans(),
)
def test_counts_equal_the_models_tokens(
    small_model: Any, width: int, height: int, view: tuple[int, int], tile_size: int, crop: bool
) -> None:
    processor = DeepEncoderImageProcessor(
        size={"height": view[0], "width": view[1]}, tile_size=tile_size, crop_to_patches=crop, max_patches=4
    )
    inputs = processor(Image.new("RGB", (width, height)), return_tensors="pt")
    with torch.no_grad():
        tokens = small_model(**inputs).vision_tokens[0]
    assert processor.get_number_of_image_tokens(height, width) == len(tokens)
    assert processor.get_number_of_image_patches(height, width) == 1 + int(inputs["num_local_patches"][0])


@pytest.mark.parametrize(("mode", "tokens"), [("tiny", 73), ("small", 111), ("base", 273), ("large", 421)])
def test_counts_of_the_modes(mode: str, tokens: int) -> None:
    processor = DeepEncoderImageProcessor()
    for height, width in ((1754, 1240), (5, 5000), (640, 640)):
        assert processor.get_number_of_image_tokens(height, width, mode=mode) == tokens
        assert processor.get_number_of_image_tokens(height, width, mode="gundam") >= 273
    assert processor.get_number_of_image_tokens(1754, 1240, mode="gundam") == 273 + (10 * 2 + 1) * 10 * 3
    assert processor.get_number_of_image_tokens(600, 600, mode="gundam") == 273
    assert processor.get_number_of_image_tokens(3000, 3000, mode="gundam", max_patches=6) == 273 + 21 * 20
    assert processor.get_number_of_image_patches(3000, 3000, {"crop_to_patches": True}) == 10


def test_modes_are_named_sets_of_fields() -> None:
    processor = DeepEncoderImageProcessor()
    assert processor.mode == "base" and processor.max_patches == 9
    assert [DeepEncoderImageProcessor(mode=mode).mode for mode in MODES] == list(MODES)
    processor = DeepEncoderImageProcessor(mode="gundam", max_patches=6)
    assert processor.crop_to_patches and processor.max_patches == 6 and processor.mode == "gundam"
    assert DeepEncoderImageProcessor(mode="gundam", size={"height": 64, "width": 64}).mode is None
    output = processor(random_image(1900, 1900), mode="tiny", size={"height": 96, "width": 64}, return_tensors="pt")
    assert output["pixel_values"].shape == (1, 3, 96, 64) and "pixel_values_local" not in output
    assert processor.mode == "gundam"  # The fields of a call do not change the processor's own.


def test_help_and_repr_say_what_a_processor_does() -> None:
    text = " ".join((DeepEncoderImageProcessor.__call__.__doc__ or "").split())
    assert all(f'`"{mode}"`' in text for mode in MODES)
    assert "`(batch, 3, height, width)`" in text and "Example:" in text and "patches_grid" in text
    assert repr(DeepEncoderImageProcessor(mode="gundam")).startswith("DeepEncoderImageProcessor(mode='gundam') {")
    assert repr(DeepEncoderImageProcessor(size=64)).startswith("DeepEncoderImageProcessor(mode=None) {")


def test_saved_and_reloaded(tmp_path: Path) -> None:
    import deepencoder  # noqa: F401  # registers the processor

    processor = DeepEncoderImageProcessor(mode="gundam", max_patches=6, background_color=(1, 2, 3))
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is DeepEncoderImageProcessor
    assert loaded.to_dict() == processor.to_dict()
    image = random_image(700, 900)
    assert torch.equal(
        loaded(image, return_tensors="pt")["pixel_values_local"],
        processor(image, return_tensors="pt")["pixel_values_local"],
    )
    assert AutoImageProcessor.from_pretrained(tmp_path, mode="tiny").mode == "tiny"
    assert AutoImageProcessor.from_pretrained(tmp_path, mode="gundam", max_patches=4).max_patches == 4


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mode": "huge"}, ["mode", "'huge'", "'gundam'"]),
        ({"min_patches": 0}, ["min_patches", "0"]),
        ({"min_patches": 7, "max_patches": 6}, ["min_patches", "7", "6"]),
        ({"tile_size": -1}, ["tile_size", "-1"]),
        ({"crop_to_patches": True, "do_resize": False}, ["crop_to_patches", "do_resize"]),
        ({"size": {"height": 0, "width": 64}}, ["size", "0"]),
        ({"size": {"shortest_edge": 64}}, ["size", "shortest_edge"]),
        ({"background_color": (1, 2)}, ["background_color", "1, 2"]),
        ({"background_color": 300}, ["background_color", "300"]),
        ({"max_patches": 10**6}, ["max_patches", "1024", "1000000"]),
        ({"crop_to_patches": True, "max_patches": 1000, "tile_size": 1000}, ["tile_size", "1000", "134217728 pixels"]),
        ({"crop_to_patches": True, "tile_size": 10**30}, ["tile_size", "134217728 pixels"]),
        ({"size": {"height": 10**6, "width": 10**6}}, ["size", "1000000", "134217728 pixels"]),
        ({"size": {"height": "1024", "width": 1024}}, ["size"]),
        ({"size": {"height": 64.5, "width": 64}}, ["size"]),
        ({"size": "1024"}, ["size", "1024"]),
        ({"size": [64]}, ["size", "64"]),
        ({"image_std": [0, 0, 0]}, ["image_std", "positive", "0, 0, 0"]),
        ({"image_std": [0.5, 0.5, -0.5]}, ["image_std", "positive", "-0.5"]),
        ({"image_std": NAN}, ["image_std", "nan"]),
        ({"image_mean": [0.5, NAN, 0.5]}, ["image_mean", "finite", "nan"]),
        ({"image_mean": INFINITY}, ["image_mean", "finite", "inf"]),
        ({"image_mean": [0.5, 0.5]}, ["image_mean", "three", "0.5, 0.5"]),
        ({"image_std": 1e-300}, ["image_std", "float32", "1e-300"]),
        ({"image_mean": 10**400}, ["image_mean"]),
        ({"rescale_factor": NAN}, ["rescale_factor", "nan"]),
        ({"rescale_factor": 0}, ["rescale_factor", "positive", "0"]),
        ({"rescale_factor": "a"}, ["rescale_factor", "'a'"]),
        ({"image_mean": "a"}, ["image_mean", "'a'"]),
        ({"do_resize": "yes"}, ["do_resize", "'yes'"]),
        ({"do_normalize": 3}, ["do_normalize", "3"]),
        ({"crop_to_patches": "yes"}, ["crop_to_patches", "yes"]),
        ({"max_patches": True}, ["max_patches", "True"]),
        ({"background_color": [1, 2, "a"]}, ["background_color"]),
        ({"background_color": {"a": 1}}, ["background_color"]),
        ({"resample": 17}, ["resample", "17"]),
        ({"mode": ["gundam"]}, ["mode", "['gundam']"]),
    ],
)
def test_bad_fields(fields: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    saved = DeepEncoderImageProcessor().to_dict() | fields
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(saved), encoding="utf-8")
    for attempt in (
        lambda: DeepEncoderImageProcessor(**fields),
        lambda: DeepEncoderImageProcessor()(Image.new("RGB", (9, 9)), **fields),
        lambda: DeepEncoderImageProcessor().get_number_of_image_tokens(9, 9, **fields),
        lambda: DeepEncoderImageProcessor.from_pretrained(tmp_path),
    ):
        with pytest.raises(ValueError) as error:
            attempt()
        message = str(error.value)
        assert all(word in message for word in words) and "\n" not in message and len(message) < 500, message


@pytest.mark.parametrize(
    "fields",
    [
        {"rescale_factor": 1, "image_mean": [0, 0, 0], "image_std": 255},
        {"do_normalize": False, "image_std": [0, 0, 0]},
        {"size": 64, "background_color": 0},
        {"size": [64, 64], "max_patches": 1024},
        {"crop_to_patches": True, "max_patches": 1024, "tile_size": 256},
    ],
)
def test_good_fields(fields: dict[str, Any], tmp_path: Path) -> None:
    """Whole numbers are as good as floats, what is not used is not refused, and the bounds are allowed."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields), encoding="utf-8")
    image = Image.new("RGB", (9, 9))
    for processor in (DeepEncoderImageProcessor(**fields), DeepEncoderImageProcessor.from_pretrained(tmp_path)):
        assert np.isfinite(processor(image, return_tensors="np")["pixel_values"]).all()
    assert np.isfinite(DeepEncoderImageProcessor()(image, return_tensors="np", **fields)["pixel_values"]).all()


def test_bad_calls() -> None:
    processor = DeepEncoderImageProcessor()
    with pytest.raises(ValueError, match="at least one image"):
        processor([])
    with pytest.raises(ValueError, match=r"images\[1\]"):
        processor([random_image(5, 5), np.zeros((0, 3, 3))])
    with pytest.raises(ValueError, match=r"images\[0\].*do_rescale"):
        processor(np.zeros((4, 4, 3)), do_rescale=False)
    with pytest.raises(ValueError, match="max_patches.*6.5"):
        DeepEncoderImageProcessor(max_patches=6.5)
    with pytest.raises(ValueError, match="crop_to_patches"):
        processor.get_number_of_image_tokens(1000, 1000, mode="gundam", do_resize=False)
    with pytest.raises(ValueError, match="nonsense"):
        processor.get_number_of_image_tokens(5, 5, nonsense=1)
    with pytest.raises(ValueError, match="height and width"):
        processor.get_number_of_image_tokens(0, 5)
    with pytest.raises(ValueError, match="size.*None"):
        processor(random_image(5, 5), size=None)


def test_the_feature_extraction_pipeline(small_model: Any, example_page: Path, tmp_path: Path) -> None:
    small_model.save_pretrained(tmp_path)
    DeepEncoderImageProcessor(mode="tiny").save_pretrained(tmp_path)
    extract = pipeline("image-feature-extraction", model=str(tmp_path))
    features = extract(str(example_page), return_tensors=True)
    inputs = DeepEncoderImageProcessor(mode="tiny")(example_page, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(features, small_model(**inputs).last_hidden_state)
    assert np.shape(extract([str(example_page)] * 2, pool=True, batch_size=2)) == (2, 1, 32)
    tiled = extract(str(example_page), return_tensors=True, image_processor_kwargs={"mode": "gundam"})
    assert tiled.shape == (1, 256, 64)


@pytest.mark.parametrize("content", ["[" * 100_000, "3", '"text"', "[1]", "null"])
def test_saved_fields_that_are_no_dictionary_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises((ValueError, OSError)) as error:
        DeepEncoderImageProcessor.from_pretrained(tmp_path)
    assert len(str(error.value).splitlines()) == 1
