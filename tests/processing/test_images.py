"""Which inputs are images, what their pixels are, and which inputs are refused."""

import base64
import pickle
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, PngImagePlugin

from deepencoder.processing.images import flatten_images, image_formats, to_rgb

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
GREY = PIXELS[..., 0]


def as_array(image: Any, **kwargs: Any) -> np.ndarray:
    converted = to_rgb(image, **kwargs)
    assert converted.mode == "RGB"
    return np.asarray(converted)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"])
def test_modes_equal_pillows_conversion(mode: str) -> None:
    image = Image.fromarray(PIXELS)
    image = image.convert("L").convert("LA") if mode == "LA" else image.convert("RGB" if mode == "LAB" else mode)
    if mode == "LAB":
        image = Image.frombytes("LAB", (30, 20), PIXELS.tobytes())
    if mode == "RGBA":
        image.putalpha(Image.fromarray(GREY))
    assert np.array_equal(as_array(image), np.asarray(image.convert("RGB")))


def test_transparent_palettes_keep_their_colours(recwarn: pytest.WarningsRecorder) -> None:
    image = Image.fromarray(PIXELS).convert("P")
    image.info["transparency"] = bytes(range(256))
    assert np.array_equal(as_array(image), np.asarray(Image.fromarray(PIXELS).convert("P").convert("RGB")))
    assert len(recwarn) == 0


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_keep_the_upper_eight(suffix: str, tmp_path: Path) -> None:
    wide = GREY.astype(np.uint16) * 257
    expected = np.repeat(GREY[..., None], 3, axis=2)
    path = tmp_path / f"wide{suffix}"
    Image.fromarray(wide).save(path)
    for image in (path, Image.open(path), wide, torch.from_numpy(wide.astype(np.int32)), Image.fromarray(wide)):
        assert np.array_equal(as_array(image), expected)
    assert np.array_equal(as_array(Image.fromarray(wide.astype(np.int32))), expected)
    dark = np.full((4, 4), 200, np.uint16)  # All values fit eight bits, but the dtype says sixteen.
    assert as_array(dark).max() == 0


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_array_layouts(kind: Any) -> None:
    grey = np.repeat(GREY[..., None], 3, axis=2)
    alpha = np.dstack([PIXELS, GREY])
    for array, expected in (
        (PIXELS, PIXELS),
        (PIXELS.transpose(2, 0, 1).copy(), PIXELS),
        (GREY, grey),
        (GREY[None], grey),
        (GREY[..., None], grey),
        (alpha, PIXELS),
        (alpha.transpose(2, 0, 1).copy(), PIXELS),
    ):
        assert np.array_equal(as_array(kind(array)), expected)


def test_thin_arrays() -> None:
    assert as_array(PIXELS[:1]).shape == (1, 30, 3)
    assert as_array(PIXELS[:, :1]).shape == (20, 1, 3)
    assert as_array(PIXELS[:1].transpose(2, 0, 1)).shape == (1, 30, 3)
    assert as_array(PIXELS[:3], input_data_format="channels_last").shape == (3, 30, 3)
    assert as_array(PIXELS[:3].transpose(2, 0, 1)).shape == (3, 30, 3)
    assert as_array(PIXELS[:1, :1]).shape == (1, 1, 3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_in_either_range(dtype: Any) -> None:
    assert np.array_equal(as_array(PIXELS.astype(dtype)), PIXELS)
    assert np.array_equal(as_array((PIXELS / 255).astype(dtype)), PIXELS)
    assert np.array_equal(as_array(torch.from_numpy(PIXELS / 255).to(torch.float32)), PIXELS)


def test_other_dtypes() -> None:
    assert np.array_equal(as_array(PIXELS.astype(np.int64)), PIXELS)
    assert np.array_equal(as_array(GREY > 100)[..., 0], (GREY > 100) * 255)
    assert as_array(torch.rand(3, 4, 5).bfloat16()).shape == (4, 5, 3)
    assert np.array_equal(as_array(Image.fromarray(GREY.astype(np.float32)))[..., 0], GREY)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tiff", ".webp", ".gif"])
@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("orientation", [None, 1, 3])
def test_an_image_outlives_its_file(suffix: str, frames: int, orientation: int | None, tmp_path: Path) -> None:
    path, exif = tmp_path / f"image{suffix}", Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    pages = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    several = {} if frames == 1 or suffix == ".jpg" else {"save_all": True, "append_images": pages[1:]}
    pages[0].save(path, exif=exif, **several)
    with Image.open(path) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    image = to_rgb(path)
    path.unlink()
    assert image.mode == "RGB" and np.array_equal(np.asarray(image), expected)
    assert np.array_equal(np.asarray(image.resize((7, 5))), np.asarray(Image.fromarray(expected).resize((7, 5))))
    assert np.array_equal(np.asarray(pickle.loads(pickle.dumps(image))), expected)


def test_orientation_is_honoured_for_files_only(tmp_path: Path) -> None:
    path = tmp_path / "rotated.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # Rotated by 90 degrees.
    Image.fromarray(PIXELS).save(path, exif=exif)
    for name in (path, str(path)):
        assert np.array_equal(as_array(name), np.rot90(PIXELS, -1))
    assert np.array_equal(as_array(Image.open(path)), PIXELS)


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            found = self.path == "/page.png"
            self.send_response(200 if found else 404)
            self.end_headers()
            if found:
                buffer = BytesIO()
                Image.fromarray(PIXELS).save(buffer, "png")
                self.wfile.write(buffer.getvalue())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    httpd = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()


def test_urls(server: str) -> None:
    assert np.array_equal(as_array(f"{server}/page.png"), PIXELS)
    with pytest.raises(ValueError, match=r"images\[2\].*missing.png.*404"):
        to_rgb(f"{server}/missing.png", 2)


def test_data_urls() -> None:
    buffer = BytesIO()
    Image.fromarray(PIXELS).save(buffer, "png")
    assert np.array_equal(as_array("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()), PIXELS)
    with pytest.raises(ValueError, match=r"images\[0\]"):
        to_rgb("data:image/png;base64,****")


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


def iptc(content: bytes) -> bytes:
    """Return an IPTC file that holds an image of another format."""

    def field(record: int, tag: int, value: bytes) -> bytes:
        return bytes([0x1C, record, tag]) + len(value).to_bytes(2, "big") + value

    facts = {60: b"\x01\x00", 65: b"\x01", 20: b"\x09", 30: b"\x09", 120: b"\x05"}
    return b"".join(field(3, tag, value) for tag, value in facts.items()) + field(8, 10, content)


@pytest.mark.parametrize("content", [POSTSCRIPT, iptc(POSTSCRIPT)], ids=["EPS", "IPTC"])
def test_no_external_program_decodes_an_image(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would run Ghostscript for PostScript, whatever the name of the file and the format around it."""
    started = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args: started.append(1) or Image.new("L", (9, 9)).im)
    path = tmp_path / "page.png"
    path.write_bytes(content)
    for image in (path, "data:image/png;base64," + base64.b64encode(content).decode()):
        with pytest.raises(ValueError, match=r"images\[0\].*not an image"):
            to_rgb(image)
    with Image.open(path) as opened, pytest.raises(ValueError, match=r"images\[0\] is of the format (EPS|IPTC)"):
        to_rgb(opened)
    assert not started


def test_formats_of_other_packages_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(PngImagePlugin.PngImageFile):
        pass

    monkeypatch.setattr(Image, "ID", [*image_formats(), "OTHER"])
    monkeypatch.setitem(Image.OPEN, "OTHER", (Other, None))
    assert "OTHER" in image_formats() and {"PNG", "TIFF"} <= set(image_formats())
    assert not {"EPS", "IPTC", "WMF", "HDF5"} & set(image_formats())


def bad_files(folder: Path) -> dict[str, Path]:
    whole = BytesIO()
    Image.fromarray(RNG.integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(whole, "jpeg")
    paths = {name: folder / name for name in ("text.png", "truncated.jpg", "empty.png")}
    paths["text.png"].write_text("not an image")
    paths["truncated.jpg"].write_bytes(whole.getvalue()[:2000])
    paths["empty.png"].touch()
    return paths


@pytest.mark.parametrize(
    ("name", "reason"), [("text.png", "not an image"), ("truncated.jpg", "truncated"), ("empty.png", "not an image")]
)
def test_bad_files_are_named(name: str, reason: str, tmp_path: Path) -> None:
    path = bad_files(tmp_path)[name]
    with pytest.raises(ValueError) as error:
        to_rgb(path, 7)
    assert "images[7]" in str(error.value) and name in str(error.value) and reason in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"images\[1\].*nothing.png"):
        to_rgb(tmp_path / "nothing.png", 1)
    with pytest.raises(FileNotFoundError, match=r"images\[1\]"):
        to_rgb("", 1)
    with pytest.raises(ValueError, match=r"images\[1\]"):
        to_rgb(tmp_path, 1)  # This is a folder.


def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (300, 300)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"images\[3\].*bomb.png.*too large"):
        to_rgb(path, 3)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((0, 4, 3), np.uint8), ["empty", "(0, 4, 3)"]),
        (np.zeros((3, 4, 0), np.uint8), ["empty"]),
        (Image.new("RGB", (0, 5)), ["empty", "0 x 5"]),
        (np.full((4, 4, 3), np.nan), ["finite"]),
        (torch.full((3, 4, 4), float("inf")), ["finite"]),
        (np.zeros(12, np.uint8), ["2 or 3 dimensions", "(12,)"]),
        (np.zeros((1, 2, 3, 4, 5), np.uint8), ["2 or 3 dimensions"]),
        (np.zeros((5, 6, 7), np.uint8), ["channels", "(5, 6, 7)"]),
        (np.full((4, 4, 3), -0.5), ["[0, 1]", "-0.5"]),
        (np.full((4, 4, 3), 1.004), ["[0, 1]", "1.004"]),
        (Image.new("La", (4, 4)), ["decoded", "La"]),
        (np.full((4, 4, 3), 300.0), ["[0, 255]", "300.0"]),
        (np.full((4, 4, 3), -1), ["integers", "-1"]),
        (np.full((4, 4, 3), 70000), ["16-bit", "70000"]),
        (np.zeros((4, 4, 3), np.complex64), ["dtype", "complex64"]),
        (torch.zeros(3, 4, 4, device="meta"), ["cannot be read", "meta"]),
        (torch.zeros(3, 4, 4).to_sparse(), ["cannot be read"]),
    ],
)
def test_bad_arrays_are_named(image: Any, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        to_rgb(image, 4)
    assert all(word in str(error.value) for word in ["images[4]", *words]), str(error.value)


def test_other_types_are_refused() -> None:
    for image in (None, 3, {"image": 1}, b"bytes"):
        with pytest.raises(TypeError, match=r"images\[2\]"):
            to_rgb(image, 2)


def test_flattening() -> None:
    image = Image.fromarray(PIXELS)
    assert flatten_images(image) == [image]
    assert flatten_images([image, (image, [image])]) == [image] * 3
    assert [item.shape for item in flatten_images(np.zeros((2, 3, 4, 4)))] == [(3, 4, 4)] * 2
    assert flatten_images("page.png") == ["page.png"]
    for nothing in ([], [[]], np.zeros((0, 3, 4, 4))):
        with pytest.raises(ValueError, match="at least one image"):
            flatten_images(nothing)
