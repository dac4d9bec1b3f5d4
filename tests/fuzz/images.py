"""Encoded images: damaged files of every format that Pillow knows, under true and false names."""

import base64
import struct
import zlib
from pathlib import Path
from random import Random

from PIL import Image

from deepencoder import DeepEncoderImageProcessor
from deepencoder.extraction.pages import ImagePage, PageError, load_page
from deepencoder.processing.images import to_rgb

from .mutations import mutate_bytes
from .trials import Trial, ViolationError

__all__ = ["damaged_image", "run"]

PNG_HEADER = struct.Struct(">4s4sIIBBBBB")
SIDES = (0, 1, 63, 5000, 9_000, 20_000, 65_535, 2**31 - 1, 2**31, 2**32 - 1)


def _with_checksums(data: bytes) -> bytes:
    """Correct the checksums of a PNG file, so that a decoder reads on."""
    parts, place = [data[:8]], 8
    while place + 12 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        chunk = data[place + 4 : place + 8 + size]
        if len(chunk) < 4 + size:
            break
        parts += [data[place : place + 4], chunk, zlib.crc32(chunk).to_bytes(4, "big")]
        place += 12 + size
    return b"".join([*parts, data[place:]])


def _with_other_size(random: Random, data: bytes) -> bytes:
    """Have the header of a PNG file state other sides."""
    fields = list(PNG_HEADER.unpack_from(data, 8))
    fields[2 + random.randrange(2)] = random.choice(SIDES)
    content = bytearray(data)
    PNG_HEADER.pack_into(content, 8, *fields)
    return bytes(content)


def damaged_image(trial: Trial) -> tuple[str, bytes]:
    """Return the suffix of a format, and a file of that format that is mostly damaged."""
    random, images = trial.random, trial.materials.images
    suffix = random.choice(sorted(images))
    data = random.choice(images[suffix])
    other = random.choice(images[random.choice(sorted(images))])
    if suffix == ".png" and trial.chance(0.3):
        data = _with_other_size(random, data)
    if trial.chance(0.9):
        data = mutate_bytes(random, data, other)
    if suffix == ".png" and trial.chance(0.6):
        data = _with_checksums(data)
    return suffix, data


def _check(image: Image.Image) -> None:
    if image.mode != "RGB" or 0 in image.size:
        raise ViolationError(f"gave an image of mode {image.mode} with {image.size} pixels")


def run(trial: Trial) -> None:
    random = trial.random
    suffix, data = damaged_image(trial)
    name = trial.folder / f"page{random.choice((suffix, suffix, '.png', '.jpg', ''))}"
    way = random.choice(("page", "page", "file", "part", "path", "path", "data", "processor"))
    trial.note(format=suffix, name=name.name, way=way, size=len(data), head=data[:60])
    name.write_bytes(data)
    if way in ("page", "file", "part"):
        with trial.may_raise(PageError, one_line=True):
            image = load_page(_make_page(trial, name, data, way))
        return _check(image)
    address = f"data:image/png;base64,{base64.b64encode(data).decode()}" if way == "data" else str(name)
    with trial.may_raise(ValueError, one_line=True):
        if way == "processor":
            processor = DeepEncoderImageProcessor(size={"height": 64, "width": 64}, do_pad=trial.chance(0.5))
            processor(address, return_tensors="pt")
        else:
            _check(to_rgb(address))


def _make_page(trial: Trial, name: Path, data: bytes, way: str) -> ImagePage:
    frame = trial.random.choice((0, 0, 0, 1, 2, 10**9))
    if way == "page":
        return ImagePage("page", data=data, frame=frame)
    if way == "file":
        return ImagePage("page", path=str(name), frame=frame)
    start = trial.random.randrange(10)
    return ImagePage("page", path=str(name), offset=start, size=trial.random.choice((1, len(data), 10**9)))
