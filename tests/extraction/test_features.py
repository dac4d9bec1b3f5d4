"""Features: equal to the model's own, typed as declared, in order, through datasets.map and through the iterator."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pytest
import torch
from datasets.fingerprint import Hasher
from transformers import AutoModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from deepencoder.extraction import batches
from deepencoder.extraction.batches import OUTPUTS, BatchBudget, encode_images, iterate_features, prepare_image
from deepencoder.extraction.features import FeatureExtractor, feature_fields, identify_model, to_arrow
from deepencoder.extraction.listing import list_pages
from deepencoder.extraction.pages import FailedPage

from ..conftest import ROOT
from .corpus import encoded, picture, save_model, write_bad_pages, write_pdf, write_pictures

TILED = {"crop_to_patches": True, "min_patches": 2, "max_patches": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_model(tmp_path_factory.mktemp("models") / "fixed")


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_model(tmp_path_factory.mktemp("models") / "tiled", **TILED)


@cache
def load_once(folder: Path) -> tuple[Any, Any]:
    return load(folder)


def load(folder: Path) -> tuple[Any, Any]:
    return AutoModel.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)


def own_features(folder: Path, image: Any) -> dict[str, np.ndarray]:
    """What the model says of one image, without any of our batches."""
    model, processor = load_once(folder)
    with torch.no_grad():
        found = model(**processor(image, return_tensors="pt"))
    tokens = [found.last_hidden_state[0]]
    if found.local_last_hidden_state is not None:
        tokens.append(found.local_last_hidden_state.flatten(0, 1))
    expected = {"pooled": found.pooler_output[0], "tokens": torch.cat(tokens), "vision_tokens": found.vision_tokens[0]}
    return {name: tensor.numpy() for name, tensor in expected.items()}


def dataset(count: int = 6) -> datasets.Dataset:
    images = [picture(number, (90 + 40 * (number % 3), 120)) for number in range(count)]
    features = datasets.Features({"name": datasets.Value("string"), "image": datasets.Image()})
    return datasets.Dataset.from_dict(
        {"name": [str(number) for number in range(count)], "image": images}, features=features
    )


@pytest.mark.parametrize("name", ["fixed", "tiled"])
def test_map_gives_the_models_features_as_declared(name: str, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue("folder" if name == "fixed" else "tiled")
    data = dataset()
    extractor = FeatureExtractor(source, outputs=OUTPUTS, dtype="float32")
    mapped = data.map(extractor, batched=True, batch_size=4, features=extractor.extend(data.features))
    assert {name: mapped.features[name] for name in OUTPUTS} == dict(extractor.features)
    assert mapped["name"] == data["name"]
    for row, image in zip(mapped.select_columns(list(OUTPUTS)).with_format("numpy"), data["image"], strict=True):
        for output, expected in own_features(source, image).items():
            assert row[output].dtype == np.float32
            np.testing.assert_allclose(row[output], expected, atol=2e-5)


def test_declared_types(folder: Path, tiled: Path) -> None:
    half, single = pyarrow.float16(), pyarrow.float32()
    assert FeatureExtractor(folder, outputs=OUTPUTS).schema == pyarrow.schema(
        {
            "pooled": pyarrow.list_(half, 32),
            "tokens": pyarrow.list_(pyarrow.list_(half, 64), 4),
            "vision_tokens": pyarrow.list_(pyarrow.list_(half, 48), 7),
        }
    )
    assert FeatureExtractor(tiled, outputs=("vision_tokens",), dtype="bfloat16").schema == pyarrow.schema(
        {"vision_tokens": pyarrow.list_(pyarrow.list_(single, 48))}
    )
    shape = FeatureExtractor(tiled, outputs=("tokens",), mode="base").schema.field("tokens").type
    assert shape.list_size == 256  # the mode decides


def test_processes_streams_and_pickles_give_the_same(folder: Path, tmp_path: Path) -> None:
    data = dataset()
    extractor = FeatureExtractor(folder, outputs=("pooled", "tokens"))
    options: dict[str, Any] = {"batched": True, "batch_size": 2, "remove_columns": data.column_names}
    expected = data.map(extractor, features=extractor.features, **options)
    assert expected.features == extractor.features
    assert np.isfinite(np.array(expected["tokens"], np.float32)).all()

    several = data.map(extractor, features=extractor.features, num_proc=2, with_rank=True, **options)
    streamed = data.to_iterable_dataset().map(extractor, features=extractor.features, **options)
    assert streamed.features == extractor.features
    again = pickle.loads(pickle.dumps(extractor))
    for found in (several, list(streamed), data.map(again, features=extractor.features, **options)):
        for ours, theirs in zip(found, expected, strict=True):
            for name in ("pooled", "tokens"):
                np.testing.assert_allclose(ours[name], theirs[name], atol=2e-3)


def test_a_second_map_is_read_from_the_cache(folder: Path, tmp_path: Path) -> None:
    """In another process, too; and other weights are another map."""
    first = FeatureExtractor(folder)
    fingerprint = Hasher.hash(first)
    first({"image": [picture(0)]})  # its model is loaded now
    assert first._loaded is not None and Hasher.hash(first) == fingerprint
    assert Hasher.hash(FeatureExtractor(folder)) == fingerprint
    assert Hasher.hash(FeatureExtractor(folder, outputs=("tokens",))) != fingerprint

    dataset(3).save_to_disk(tmp_path / "data")
    code = (
        "import datasets, sys\n"
        "from deepencoder.extraction.features import FeatureExtractor\n"
        f"data = datasets.load_from_disk({str(tmp_path / 'data')!r})\n"
        f"extractor = FeatureExtractor({str(folder)!r})\n"
        "mapped = data.map(extractor, batched=True, features=extractor.extend(data.features))\n"
        "print(mapped._fingerprint, extractor._loaded is None)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    prints = [
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    (one, ran), (two, cached) = (done.stdout.split() for done in prints)
    assert one == two and (ran, cached) == ("False", "True")

    weights = folder / "model.safetensors"
    before = weights.read_bytes()
    try:
        weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        assert Hasher.hash(FeatureExtractor(folder)) != fingerprint
    finally:
        weights.write_bytes(before)


def test_a_file_of_weights_is_named_by_what_it_holds(tmp_path: Path) -> None:
    for name, content in (("a.safetensors", b"a"), ("b.safetensors", b"b")):
        (tmp_path / name).write_bytes(content)
    names = {identify_model(tmp_path / name) for name in ("a.safetensors", "b.safetensors")}
    assert len(names) == 2


def test_any_image_column(folder: Path) -> None:
    extractor = FeatureExtractor(folder, column="page", dtype="float32")
    values = [picture(0), encoded(0), {"bytes": encoded(0), "path": None}, np.asarray(picture(0))]
    found = extractor({"page": values})["pooled"]
    for row in found:
        np.testing.assert_allclose(row, own_features(folder, picture(0))["pooled"], atol=2e-5)
    with pytest.raises(ValueError, match="column must be one of image"):
        extractor({"image": values})


def test_bad_rows_raise_or_are_none(folder: Path) -> None:
    rows = {"image": [encoded(0), b"nonsense", encoded(1)]}
    with pytest.raises(ValueError, match=r"image\[1\].*not an image"):
        FeatureExtractor(folder)(rows)
    extractor = FeatureExtractor(folder, on_error="none", outputs=("tokens",))
    data = datasets.Dataset.from_dict(rows)
    mapped = data.map(extractor, batched=True, features=extractor.extend(data.features))
    assert [row is None for row in mapped["tokens"]] == [False, True, False]
    assert mapped["error"][0] is None and "not an image" in mapped["error"][1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"outputs": ("nothing",)}, "outputs must be some of"),
        ({"outputs": "pooled"}, "outputs must be some of"),
        ({"outputs": ()}, "outputs must be some of"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"on_error": "skip"}, "on_error must be"),
        ({"mode": "huge"}, "mode must be one of"),
    ],
)
def test_arguments_are_checked(folder: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FeatureExtractor(folder, **arguments)


def test_features_that_the_dtype_cannot_hold_fail(folder: Path, tmp_path: Path) -> None:
    """65,504 is float16's last word: no infinity is written down."""
    model, processor = load(folder)
    image = prepare_image(picture(0), processor)
    with torch.no_grad():
        model.projector.layers[0].bias[0] = 70_000
    for dtype, works in (("float16", False), ("bfloat16", True), ("float32", True)):
        (found,) = encode_images([image], model, processor, ("pooled", "vision_tokens"), dtype)
        assert isinstance(found, dict) == works, found
        if isinstance(found, dict):
            assert found["vision_tokens"].dtype == np.float32 and found["vision_tokens"].max() > 60_000
        else:
            assert "vision_tokens reaches 7" in str(found) and "float16" in str(found)
    with torch.no_grad():
        model.projector.layers[0].bias[0] = torch.nan
    (found,) = encode_images([image], model, processor, ("vision_tokens",), "float32")
    assert "not finite" in str(found)


def launch_ahead(monkeypatch: pytest.MonkeyPatch, batches_ahead: int) -> None:
    """Launch as on an accelerator, where a batch is begun before the last one's features are taken."""
    prepare = BatchBudget.__init__

    def prepare_ahead(self: BatchBudget, *args: Any) -> None:
        prepare(self, *args)
        self.ahead = batches_ahead

    monkeypatch.setattr(BatchBudget, "__init__", prepare_ahead)


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("stops", [False, True])
def test_the_next_batch_is_launched_before_features_are_taken(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: int, stops: bool
) -> None:
    launch_ahead(monkeypatch, ahead)
    model, processor = load(folder)
    write_pictures(tmp_path, 8)
    launched, taken = [], []
    model.register_forward_hook(lambda module, args, output: launched.append(len(taken)))
    for row in iterate_features(
        list_pages([tmp_path]),
        model,
        processor,
        outputs=("pooled",),
        batch_size=2,
        workers=0,
        stop=lambda: stops and len(taken) >= 2,
    ):
        taken.append(row.page.index)
    # Pages that had been taken at each launch; what was launched before a stop is given.
    expected = {0: [0, 2, 4, 6], 1: [0, 0, 2, 4]}[ahead]
    assert launched == (expected[: 1 + ahead] if stops else expected)
    assert taken == list(range(2 * len(launched)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_features_from_cuda_are_those_of_the_cpu(folder: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path, 12)
    pages, (model, processor) = list(list_pages([tmp_path])), load(folder)
    runs = []
    for device in ("cpu", "cuda"):
        model.to(device)
        runs.append(
            list(iterate_features(pages, model, processor, outputs=OUTPUTS, dtype="float32", batch_size=2, workers=2))
        )
    assert BatchBudget(2, torch.device("cuda")).ahead == 1
    for ours, expected in zip(*runs, strict=True):
        assert ours.page == expected.page and not ours.error
        for name in OUTPUTS:
            np.testing.assert_allclose(ours.outputs[name], expected.outputs[name], atol=1e-3)


@pytest.mark.parametrize("workers, ahead", [(0, 0), (2, 0), (2, 1)])
@pytest.mark.parametrize("batch_size", ["auto", 3])
def test_the_iterator_keeps_order_and_failures(
    tiled: Path, tmp_path: Path, workers: int, ahead: int, batch_size: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch_ahead(monkeypatch, ahead)
    for number in range(8):
        (tmp_path / "a").mkdir(exist_ok=True)
        picture(number, (60 + 50 * (number % 4), 140)).save(tmp_path / "a" / f"{number}.png")
    bad = write_bad_pages(tmp_path / "a" / "bad")
    write_pdf(tmp_path / "a" / "z.pdf", 3)
    pages = list(list_pages([tmp_path / "a"], dpi=72))
    model, processor = load(tiled)
    found = list(
        iterate_features(
            iter(pages), model, processor, outputs=OUTPUTS, dtype="float32", batch_size=batch_size, workers=workers
        )
    )
    assert [row.page for row in found] == pages
    assert sum(bool(row.error) for row in found) == len(bad)
    grids = set()
    for row in found[:8]:
        grids.add(row.grid)
        with torch.no_grad():
            expected = own_features(tiled, row.page.path)
        assert row.num_tokens == len(row.outputs["vision_tokens"]) == len(expected["vision_tokens"])
        for name in OUTPUTS:
            np.testing.assert_allclose(row.outputs[name], expected[name], atol=2e-5)
    assert len(grids) > 2  # tiles of many kinds in one batch


def test_failed_pages_do_not_pile_up_behind_a_batch(folder: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path, 1)
    good, drawn = next(list_pages([tmp_path])), []

    def one_good_page() -> Any:
        yield good
        for number in range(1000):
            drawn.append(number)
            yield FailedPage("bad", number, error="x")

    rows = iterate_features(one_good_page(), *load_once(folder), outputs=("pooled",), batch_size=4, workers=0)
    assert next(rows).page == good and len(drawn) < 100
    assert [row.page.page for row in rows] == list(range(1000))


def test_a_page_that_kills_its_process_fails_and_no_other(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a decoder's segmentation fault does each time, and the kernel out of memory perhaps once."""
    write_pictures(tmp_path / "a", 8)
    once, load_page = tmp_path / "once", batches.load_page

    def load_dangerously(page: Any) -> Any:
        if page.index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if page.index == 5 and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return load_page(page)

    monkeypatch.setattr(batches, "load_page", load_dangerously)
    pages, before = list(list_pages([tmp_path / "a"])), multiprocessing.active_children()
    for workers in (1, 2):
        once.unlink(missing_ok=True)
        found = list(iterate_features(pages, *load_once(folder), outputs=("pooled",), workers=workers))
        assert [row.page for row in found] == pages and once.exists()
        assert [bool(row.error) for row in found] == [row.index == 3 for row in pages]
        assert "its process died of signal 9" in found[3].error
    assert multiprocessing.active_children() == before


def test_any_time_limit_is_taken(folder: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", 1)
    for limit in (None, float("inf"), 1e12):
        (row,) = iterate_features(
            list_pages([tmp_path / "a"]), *load_once(folder), outputs=("pooled",), workers=1, page_timeout=limit
        )
        assert not row.error
    for limit in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="page_timeout"):
            iterate_features([], *load_once(folder), page_timeout=limit)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_page_that_hangs_fails_and_no_other(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    write_pictures(tmp_path / "a", 5)
    load_page = batches.load_page

    def load_slowly(page: Any) -> Any:
        if page.index == 2:
            time.sleep(600)
        return load_page(page)

    monkeypatch.setattr(batches, "load_page", load_slowly)
    pages, before = list(list_pages([tmp_path / "a"])), multiprocessing.active_children()
    options = {"outputs": ("pooled",), "workers": workers, "page_timeout": 2.0}
    found = list(iterate_features(pages, *load_once(folder), **options))
    assert [row.page for row in found] == pages
    assert [row.error for row in found] == ["", "", "decoding it failed: it took longer than 2 s", "", ""]
    assert multiprocessing.active_children() == before


def test_other_errors_of_worker_processes_are_raised(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(page: Any) -> Any:
        raise ImportError("PDFs need pypdfium2")

    monkeypatch.setattr(batches, "load_page", fail)
    pages, before = list_pages([write_pictures(tmp_path / "a", 8)]), multiprocessing.active_children()
    with pytest.raises(ImportError, match="pypdfium2"):
        list(iterate_features(pages, *load_once(folder), outputs=("pooled",), workers=2))
    assert multiprocessing.active_children() == before


def test_pages_are_drawn_as_needed(folder: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path, 1)
    drawn = []

    def endless() -> Any:
        while True:
            drawn.append(1)
            yield next(list_pages([tmp_path]))

    rows = iterate_features(endless(), *load(folder), outputs=("pooled",), batch_size=4, workers=1)
    for _ in range(10):
        next(rows)
    assert len(drawn) < 30
    rows.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("x")])
def test_a_batch_that_does_not_fit_is_halved(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    model, processor = load(folder)
    if type(error) is RuntimeError:  # torch's own, of its CPU allocator
        with pytest.raises(RuntimeError) as caught:
            torch.empty(1 << 60)
        error = caught.value
    sizes = []
    forward = model.forward

    def limited(pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        sizes.append(len(pixel_values))
        if len(pixel_values) > 2 or (pixel_values[:, 0, 0, 0] == 1).any():  # white does not fit at all
            raise error
        return forward(pixel_values, **kwargs)

    monkeypatch.setattr(model, "forward", limited)
    from PIL import Image

    white = Image.new("RGB", (10, 10), "white")
    images = [prepare_image(image, processor) for image in (picture(0), picture(1), white, *map(picture, range(2, 7)))]
    budget = BatchBudget("auto", torch.device("cpu"))
    found = encode_images(images, model, processor, ("pooled",), "float32", budget)
    assert sizes[:3] == [8, 4, 2] and budget.pixels < 8 * 128 * 128
    assert [isinstance(row, dict) for row in found] == [True, True, False, *[True] * 5]
    assert "not enough memory" in str(found[2])
    np.testing.assert_allclose(found[1]["pooled"], own_features(folder, picture(1))["pooled"], atol=2e-5)  # type: ignore[index]


def test_features_keep_no_more_memory_than_theirs(folder: Path) -> None:
    for row in encode_images(
        [prepare_image(picture(0), load_once(folder)[1])] * 3, *load_once(folder), dtype="float32"
    ):
        assert isinstance(row, dict)
        for array in row.values():
            assert array.base.untyped_storage().nbytes() == array.nbytes  # type: ignore[union-attr]


def test_errors_that_are_not_about_memory_are_raised(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = load(folder)

    def fail(**kwargs: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(model, "forward", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        encode_images([prepare_image(picture(0), processor)], model, processor)


def test_workers_send_the_processors_pixels(tiled: Path) -> None:
    _, processor = load(tiled)
    image = prepare_image(picture(0, (150, 100)), processor)
    expected = processor(picture(0, (150, 100)), return_tensors="pt")
    assert image.view.dtype == np.uint8 and image.tiles is not None
    for ours, theirs in ((image.view[None], "pixel_values"), (image.tiles, "pixel_values_local")):
        assert torch.equal(batches._to_pixel_values(ours, processor, torch.device("cpu")), expected[theirs])


def test_arrow_arrays_are_checked_and_equal(folder: Path) -> None:
    kind = pyarrow.list_(pyarrow.list_(pyarrow.float16(), 3))
    arrays = [np.arange(6, dtype=np.float16).reshape(2, 3), np.zeros((0, 3), np.float16), np.ones((1, 3), np.float16)]
    laid_out = to_arrow(arrays, kind)
    assert laid_out.type == kind and laid_out.to_pylist() == [array.tolist() for array in arrays]
    with pytest.raises(ValueError, match="shape"):
        to_arrow([np.zeros((2, 4), np.float16)], kind)
    model, processor = load(folder)
    for field in feature_fields(model.config, processor, OUTPUTS, "float16"):
        assert to_arrow([], field.type).type == field.type
