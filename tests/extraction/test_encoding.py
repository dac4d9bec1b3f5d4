"""Encoding pages: features equal the model's own and keep their order, even if pages fail or batches do not fit."""

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deepencoder import DeepEncoderImageProcessor
from deepencoder.extraction import OUTPUTS, ModelError, Page, list_pages
from deepencoder.extraction.batching import BatchBudget
from deepencoder.extraction.preparation import prepare_image
from deepencoder.extraction.settings import MAX_LOST_PAGES

from .corpus import picture, write_bad_pages, write_pdf, write_pictures
from .helpers import encode, iterate, load, load_once, own_features

FIRST_HEIGHT = 100


def list_numbered_pages(folder: Path, count: int) -> list[Page]:
    """Write pages whose heights encode their numbers, and list them."""
    folder.mkdir()
    for number in range(count):
        picture(number, (90, FIRST_HEIGHT + number)).save(folder / f"{number}.png")
    return list(list_pages([folder]))


class Dangerous(DeepEncoderImageProcessor):
    """Fails on chosen pages as decoders do: it kills its process every time or once, hangs, or raises."""

    deadly = deadly_once = slow = unable = -1
    once = Path()

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        number = images.height - FIRST_HEIGHT
        if number == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == self.deadly_once and not self.once.exists():
            self.once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if number == self.slow:
            time.sleep(600)
        if number == self.unable:
            raise ImportError("PDFs need pypdfium2")
        return super().__call__(images, *args, **kwargs)


def test_features_that_the_dtype_cannot_hold_fail(fixed: Path, tmp_path: Path) -> None:
    """float16 ends at 65,504; no infinity is written."""
    model, processor = load(fixed)
    image = prepare_image(picture(0), processor)
    with torch.no_grad():
        model.projector.layers[0].bias[0] = 70_000
    for dtype, works in (("float16", False), ("bfloat16", True), ("float32", True)):
        (found,) = encode([image], model, processor, ("pooled", "vision_tokens"), dtype)
        assert isinstance(found, dict) == works, found
        if isinstance(found, dict):
            assert found["vision_tokens"].dtype == np.float32 and found["vision_tokens"].max() > 60_000
        else:
            assert "vision_tokens reaches 7" in str(found) and "float16" in str(found)
    with torch.no_grad():
        model.projector.layers[0].bias[0] = torch.nan
    (found,) = encode([image], model, processor, ("vision_tokens",), "float32")
    assert "not finite" in str(found)


def test_a_model_without_usable_features_ends_the_run(fixed: Path, tmp_path: Path) -> None:
    model, processor = load(fixed)
    pages = list_numbered_pages(tmp_path / "pages", MAX_LOST_PAGES + 8)
    (tmp_path / "pages" / "3.png").write_bytes(b"nonsense")  # neither counts nor interrupts
    calls: list[int] = []

    def overflow(module: Any, args: Any, output: Any) -> None:
        calls.append(1)
        if len(calls) != 3:  # a single good page in between
            output.pooler_output.fill_(torch.inf)

    def take(**options: Any) -> list[Any]:
        rows: list[Any] = []
        for row in iterate(pages, model, processor, ("pooled",), batch_size=1, workers=0, **options):
            rows.append(row)
            found.append(row.page.index)
        return rows

    found: list[int] = []
    hook = model.register_forward_hook(overflow)
    with pytest.raises(ModelError, match=f"for {MAX_LOST_PAGES} pages in a row: pooled .* overflows in torch.float32"):
        take()
    assert len(found) == 3 + MAX_LOST_PAGES + 1
    hook.remove()
    with torch.no_grad():
        model.clip_encoder.layers[0].mlp.fc1.weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match="its weight .*fc1.weight has values that are not finite"):
        take()
    assert len(list(iterate(pages[: MAX_LOST_PAGES - 1], model, processor, workers=0))) == MAX_LOST_PAGES - 1


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("stops", [False, True])
def test_the_next_batch_is_launched_before_features_are_taken(
    fixed: Path, tmp_path: Path, ahead: int, stops: bool
) -> None:
    model, processor = load(fixed)
    write_pictures(tmp_path, 8)
    launched, taken = [], []
    model.register_forward_hook(lambda module, args, output: launched.append(len(taken)))
    for row in iterate(
        list_pages([tmp_path]),
        model,
        processor,
        outputs=("pooled",),
        batch_size=2,
        workers=0,
        ahead=ahead,
        stop=lambda: stops and len(taken) >= 2,
    ):
        taken.append(row.page.index)
    # Number of pages that were taken before each launch. Batches launched before a stop are still given.
    expected = {0: [0, 2, 4, 6], 1: [0, 0, 2, 4]}[ahead]
    assert launched == (expected[: 1 + ahead] if stops else expected)
    assert taken == list(range(2 * len(launched)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_features_from_cuda_are_those_of_the_cpu(fixed: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path, 12)
    pages, (model, processor) = list(list_pages([tmp_path])), load(fixed)
    runs = []
    for device in ("cpu", "cuda"):
        model.to(device)
        runs.append(
            list(iterate(pages, model, processor, outputs=tuple(OUTPUTS), dtype="float32", batch_size=2, workers=2))
        )
    assert BatchBudget(2, torch.device("cuda")).ahead == 1
    for ours, expected in zip(*runs, strict=True):
        assert ours.page == expected.page and not ours.error
        for name in tuple(OUTPUTS):
            np.testing.assert_allclose(ours.outputs[name], expected.outputs[name], atol=1e-3)


@pytest.mark.parametrize("workers, ahead", [(0, 0), (2, 0), (2, 1)])
@pytest.mark.parametrize("batch_size", ["auto", 3])
def test_the_iterator_keeps_order_and_failures(
    tiled: Path, tmp_path: Path, workers: int, ahead: int, batch_size: int | str
) -> None:
    for number in range(8):
        (tmp_path / "a").mkdir(exist_ok=True)
        picture(number, (60 + 50 * (number % 4), 140)).save(tmp_path / "a" / f"{number}.png")
    bad = write_bad_pages(tmp_path / "a" / "bad")
    write_pdf(tmp_path / "a" / "z.pdf", 3)
    pages = list(list_pages([tmp_path / "a"], dpi=72))
    model, processor = load(tiled)
    found = list(
        iterate(iter(pages), model, processor, dtype="float32", batch_size=batch_size, ahead=ahead, workers=workers)
    )
    assert [row.page for row in found] == pages
    assert sum(bool(row.error) for row in found) == len(bad)
    grids = set()
    for row in found[:8]:
        grids.add(row.grid)
        with torch.no_grad():
            expected = own_features(tiled, row.page.path)
        assert row.num_tokens == len(row.outputs["vision_tokens"]) == len(expected["vision_tokens"])
        for name in tuple(OUTPUTS):
            np.testing.assert_allclose(row.outputs[name], expected[name], atol=2e-5)
    assert len(grids) > 2  # one batch holds pages with different tile grids


def test_a_page_that_kills_its_process_fails_and_no_other(fixed: Path, tmp_path: Path) -> None:
    """A segmentation fault happens at every try, while the kernel may kill a process for memory only once."""
    pages, before = list_numbered_pages(tmp_path / "a", 8), set(multiprocessing.active_children())
    processor = Dangerous.from_pretrained(fixed)
    processor.deadly, processor.deadly_once, processor.once = 3, 5, tmp_path / "once"
    for workers in (1, 2):
        processor.once.unlink(missing_ok=True)
        found = list(iterate(pages, load_once(fixed)[0], processor, outputs=("pooled",), workers=workers))
        assert [row.page for row in found] == pages and processor.once.exists()
        assert [bool(row.error) for row in found] == [row.index == 3 for row in pages]
        assert "its process died of signal 9" in found[3].error
    assert set(multiprocessing.active_children()) <= before


def test_any_time_limit_is_taken(fixed: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", 1)
    for limit in (None, float("inf"), 1e12):
        (row,) = iterate(
            list_pages([tmp_path / "a"]), *load_once(fixed), outputs=("pooled",), workers=1, page_timeout=limit
        )
        assert not row.error
    for limit in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="page_timeout"):
            iterate([], *load_once(fixed), page_timeout=limit)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_page_that_hangs_fails_and_no_other(fixed: Path, tmp_path: Path, workers: int) -> None:
    pages, before = list_numbered_pages(tmp_path / "a", 5), set(multiprocessing.active_children())
    processor = Dangerous.from_pretrained(fixed)
    processor.slow = 2
    options: dict[str, Any] = {"outputs": ("pooled",), "workers": workers, "page_timeout": 2.0}
    found = list(iterate(pages, load_once(fixed)[0], processor, **options))
    assert [row.page for row in found] == pages
    assert [row.error for row in found] == ["", "", "decoding it failed: it took longer than 2 s", "", ""]
    assert set(multiprocessing.active_children()) <= before


def test_other_errors_of_worker_processes_are_raised(fixed: Path, tmp_path: Path) -> None:
    pages, before = list_numbered_pages(tmp_path / "a", 8), set(multiprocessing.active_children())
    processor = Dangerous.from_pretrained(fixed)
    processor.unable = 0
    with pytest.raises(ImportError, match="pypdfium2"):
        list(iterate(pages, load_once(fixed)[0], processor, outputs=("pooled",), workers=2))
    assert set(multiprocessing.active_children()) <= before


def test_pages_are_drawn_as_needed(fixed: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path, 1)
    drawn = []

    def endless() -> Any:
        while True:
            drawn.append(1)
            yield next(list_pages([tmp_path]))

    rows = iterate(endless(), *load(fixed), outputs=("pooled",), batch_size=4, workers=1)
    for _ in range(10):
        next(rows)
    assert len(drawn) < 30
    rows.close()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("x")])
def test_a_batch_that_does_not_fit_is_halved(
    fixed: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    model, processor = load(fixed)
    if type(error) is RuntimeError:  # the error that torch's CPU allocator raises
        with pytest.raises(RuntimeError) as caught:
            torch.empty(1 << 60)
        error = caught.value
    sizes = []
    forward = model.forward

    def limited(pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        sizes.append(len(pixel_values))
        if len(pixel_values) > 2 or (pixel_values[:, 0, 0, 0] == 1).any():  # a white image does not fit even alone
            raise error
        return forward(pixel_values, **kwargs)

    monkeypatch.setattr(model, "forward", limited)
    white = Image.new("RGB", (10, 10), "white")
    images = [prepare_image(image, processor) for image in (picture(0), picture(1), white, *map(picture, range(2, 7)))]
    budget = BatchBudget("auto", torch.device("cpu"))
    found = encode(images, model, processor, ("pooled",), "float32", budget)
    assert sizes[:3] == [8, 4, 2] and budget.pixels < 8 * 128 * 128
    assert [isinstance(row, dict) for row in found] == [True, True, False, *[True] * 5]
    assert "not enough memory" in str(found[2])
    np.testing.assert_allclose(found[1]["pooled"], own_features(fixed, picture(1))["pooled"], atol=2e-5)  # type: ignore[index]


def test_features_keep_no_more_memory_than_theirs(fixed: Path) -> None:
    for row in encode([prepare_image(picture(0), load_once(fixed)[1])] * 3, *load_once(fixed), dtype="float32"):
        assert isinstance(row, dict)
        for array in row.values():
            assert array.base.untyped_storage().nbytes() == array.nbytes  # type: ignore[union-attr]


def test_errors_that_are_not_about_memory_are_raised(fixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = load(fixed)

    def fail(**kwargs: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(model, "forward", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        encode([prepare_image(picture(0), processor)], model, processor)
