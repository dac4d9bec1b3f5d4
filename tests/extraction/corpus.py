"""Writes the sources of a corpus: real files of every kind, and a tiny model for them."""

import io
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from deepencoder import DeepEncoder, DeepEncoderConfig, DeepEncoderImageProcessor
from deepencoder.extraction.pages import Page, load_page

from ..conftest import randomize


def save_model(folder: Path, side: int = 128, **fields: object) -> Path:
    """Save a tiny model. By default a view is 128 pixels wide and gives 2 x 2 tokens; a tile gives one."""
    randomize(DeepEncoder(DeepEncoderConfig.tiny())).save_pretrained(folder)
    size = {"height": side, "width": side}
    DeepEncoderImageProcessor(size=size, **({"tile_size": 64} | fields)).save_pretrained(folder)
    return folder


def picture(seed: int, size: tuple[int, int] = (90, 120)) -> Image.Image:
    """Return an image that differs from those of all other seeds."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size)


def encoded(seed: int) -> bytes:
    """Return [`picture`] as a PNG file."""
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def same(page: Page, image: Image.Image) -> bool:
    """Whether a page decodes to exactly this image."""
    return np.array_equal(np.asarray(load_page(page)), np.asarray(image.convert("RGB")))


def write_pictures(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture(number).save(folder / f"{number:05d}.png")
    return folder


def write_pdf(path: Path, count: int) -> Path:
    first, *others = (picture(number, (72, 144)) for number in range(count))
    first.save(path, save_all=True, append_images=others, resolution=72)
    return path


def write_encrypted_pdf(path: Path) -> Path:
    """Write a PDF that no password opens: the standard security handler with keys that match no password."""
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 72 72]>>",
        b"<</Filter/Standard/V 1/R 2/P -4/O<" + b"41" * 32 + b">/U<" + b"42" * 32 + b">>>",
    ]
    content, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(content)
    content += b"xref\n0 5\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    identity = b"<" + b"00" * 16 + b">"
    content += b"trailer\n<</Size 5/Root 1 0 R/Encrypt 4 0 R/ID[%s%s]>>\nstartxref\n%d\n%%%%EOF\n" % (
        identity,
        identity,
        start,
    )
    path.write_bytes(content)
    return path


def write_huge_pdf(path: Path) -> Path:
    """Write a PDF with one page of 14,400 x 14,400 points."""
    picture(0, (10, 10)).save(path, resolution=10 * 72 / 14400)
    return path


def write_endless_pdf(path: Path) -> Path:
    """Write a PDF of under 200 bytes that claims a million pages."""
    path.write_bytes(
        b"%PDF-1.4\n1 0 obj\n<</Type/Catalog/Pages 2 0 R>>\nendobj\n"
        b"2 0 obj\n<</Type/Pages/Kids[]/Count 1000000>>\nendobj\ntrailer\n<</Root 1 0 R>>\n%%EOF\n"
    )
    return path


def write_tiff(path: Path, count: int) -> Path:
    first, *others = (picture(number, (64 + number, 96)) for number in range(count))
    first.save(path, save_all=True, append_images=others)
    return path


def write_parquet(path: Path, count: int, row_group_size: int = 2) -> Path:
    images = [{"bytes": encoded(number), "path": f"{number}.png"} for number in range(count)]
    table = pyarrow.table({"name": [f"n{number}" for number in range(count)], "image": images})
    pyarrow.parquet.write_table(table, path, row_group_size=row_group_size)
    return path


def write_tar(path: Path, count: int, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for number in range(count):
            for suffix, content in ((".png", encoded(number)), (".json", b"{}")):
                member = tarfile.TarInfo(f"part/{number:04d}{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def write_bad_pages(folder: Path) -> dict[str, str]:
    """Write files that are not pages. Returns for each name some words of the reason that is reported."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "corrupt.png").write_bytes(b"nonsense")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7\nnonsense")
    (folder / "no.pdf").write_bytes(b"nonsense")
    (folder / "no.parquet").write_bytes(b"PAR1nonsense")
    (folder / "no.tar").write_bytes(b"nonsense")
    write_encrypted_pdf(folder / "encrypted.pdf")
    write_huge_pdf(folder / "huge.pdf")
    whole = io.BytesIO()
    Image.effect_noise((200, 200), 50).convert("RGB").save(whole, "JPEG")
    (folder / "truncated.jpg").write_bytes(whole.getvalue()[:-2000])
    bomb = io.BytesIO()
    Image.new("1", (16, 16)).save(bomb, "PNG")
    header = bytearray(bomb.getvalue())
    header[16:24] = (100_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    (folder / "bomb.png").write_bytes(bytes(header))
    gif = bytearray(b"GIF89a\0\0\0\0\0\0\0;")
    (folder / "zero.gif").write_bytes(bytes(gif))
    return {
        "corrupt.png": "not an image",
        "empty.jpg": "empty",
        "broken.pdf": "cannot be read",
        "no.pdf": "not a PDF",
        "no.parquet": "cannot be read",
        "no.tar": "cannot be read",
        "encrypted.pdf": "password",
        "huge.pdf": "pixels at",
        "truncated.jpg": "truncated",
        "bomb.png": "too large",
        "zero.gif": "",
    }
