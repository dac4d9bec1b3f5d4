"""Valid inputs of every kind, small ones, which the areas change; and the canary.

Unusual: everything is written once, before the worker processes start, and inherited by them. The canary is a folder
that nothing may read or write: inputs name it, and its name in any event of the interpreter breaks a rule.
"""

import io
import pickle
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from deepencoder import ClipVisionEncoder, ClipVisionEncoderConfig, SamEncoder, SamEncoderConfig
from deepencoder.conversion.layouts import LAYOUTS

from ..conftest import randomize
from ..conversion.samples import write_checkpoint
from ..extraction.corpus import picture, save_model, write_parquet, write_pdf, write_pictures, write_tar, write_tiff
from ..extraction.helpers import extract, load, settings

__all__ = ["CANARY", "SECRET_COLOR", "Materials", "prepare"]

CANARY = "canary-of-the-fuzz-run"
SECRET_COLOR = (3, 141, 59)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n10 10 scale showpage\n%%EOF\n"


class _Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Sequential(nn.Conv2d(3, 4, 2), nn.LayerNorm([4, 3, 3]))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.visual(pixels)


@dataclass
class Materials:
    """The valid inputs.

    Args:
        root: the folder of everything.
        images: encoded images, by the suffix of their format.
        checkpoints: folders of checkpoints of other code, by the slug of their layout.
        weights: bytes of weight files, by their suffix.
        containers: bytes of files with several pages, by their suffix.
    """

    root: Path
    images: dict[str, list[bytes]] = field(default_factory=dict)
    checkpoints: dict[str, Path] = field(default_factory=dict)
    weights: dict[str, list[bytes]] = field(default_factory=dict)
    containers: dict[str, bytes] = field(default_factory=dict)

    @property
    def scratch(self) -> Path:
        return self.root / "scratch"

    @property
    def canary(self) -> Path:
        return self.root / CANARY

    @property
    def secret(self) -> Path:
        """A valid image that no input may make the package read."""
        return self.canary / "secret.png"

    def model(self, name: str = "deepencoder") -> Path:
        """The folder of one of our models: `deepencoder`, `sam` or `clip`."""
        return self.root / "models" / name

    @property
    def pages(self) -> Path:
        """A folder of three images."""
        return self.root / "pages"

    @property
    def output(self) -> Path:
        """A finished extraction of the pages, with a failed page and two shards."""
        return self.root / "output"


def _encode(image: Image.Image, suffix: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.copy().save(buffer, Image.registered_extensions()[suffix], **options)
    return buffer.getvalue()


def _make_images() -> dict[str, list[bytes]]:
    rgb, noise = picture(0, (40, 30)), Image.effect_noise((33, 47), 60)
    rgba, palette, deep = (
        rgb.convert("RGBA"),
        rgb.convert("P"),
        Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)),
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        ".png": [_encode(image, ".png") for image in (rgb, rgba, palette, noise, deep, rgb.convert("1"))],
        ".jpg": [_encode(rgb, ".jpg", exif=exif), _encode(noise, ".jpg"), _encode(rgb.convert("CMYK"), ".jpg")],
        ".tiff": [
            _encode(rgb, ".tiff", save_all=True, append_images=[rgb.copy(), noise.copy()]),
            _encode(noise, ".tiff", compression="tiff_lzw"),
            _encode(deep, ".tiff"),
        ],
        ".gif": [_encode(palette, ".gif", save_all=True, append_images=[noise.copy()]), _encode(noise, ".gif")],
        ".webp": [_encode(rgba, ".webp"), _encode(rgb, ".webp", lossless=True)],
        ".bmp": [_encode(rgb, ".bmp"), _encode(palette, ".bmp")],
        ".ppm": [_encode(rgb, ".ppm"), b"P1 3 3 1 0 1 0 1 0 1 0 1"],
        ".ico": [_encode(rgb, ".ico")],
        ".tga": [_encode(rgb, ".tga", rle=True)],
        ".jp2": [_encode(rgb, ".jp2")],
        ".eps": [EPS, b"\n" + EPS],
    }


def _make_weights(folder: Path) -> dict[str, list[bytes]]:
    state = torch.load(io.BytesIO(_saved({"w": torch.ones(2, 3), "b": torch.zeros(3).half()})))
    archive = folder / "scripted.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but CLIP was published in it.
        torch.jit.save(torch.jit.trace(_Scripted().eval(), torch.randn(1, 3, 4, 4)), archive)
    return {
        ".pt": [
            _saved(state),
            _saved({"model": {"state_dict": state}, "epoch": 3}),
            _saved(state, _use_new_zipfile_serialization=False),
            archive.read_bytes(),
            pickle.dumps(state, protocol=2),
        ],
    }


def _saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def _make_models(folder: Path) -> None:
    save_model(folder / "deepencoder", side=64)
    randomize(SamEncoder(SamEncoderConfig.tiny(image_size=128))).save_pretrained(folder / "sam")
    randomize(ClipVisionEncoder(ClipVisionEncoderConfig.tiny())).save_pretrained(folder / "clip")


def _make_output(materials: Materials) -> None:
    write_pictures(materials.pages, 3)
    (materials.pages / "empty.png").write_bytes(b"")
    extract(settings(materials.pages), materials.output, lambda: load(materials.model()), shard_size=128)


def prepare(root: Path) -> Materials:
    """Write all valid inputs below a folder."""
    materials = Materials(root, images=_make_images())
    for folder in (materials.scratch, materials.canary, root / "checkpoints", root / "files"):
        folder.mkdir(parents=True)
    Image.new("RGB", (16, 16), SECRET_COLOR).save(materials.secret)
    _make_models(root / "models")
    for layout in LAYOUTS:
        folder = root / "checkpoints" / layout.slug
        write_checkpoint(folder, layout.slug)
        materials.checkpoints[layout.slug] = folder
    materials.weights = _make_weights(root / "files")
    files = root / "files"
    materials.containers = {
        ".pdf": write_pdf(files / "a.pdf", 3).read_bytes(),
        ".parquet": write_parquet(files / "a.parquet", 5).read_bytes(),
        ".tar": write_tar(files / "a.tar", 3).read_bytes(),
        ".tar.gz": write_tar(files / "a.tar.gz", 3, "w:gz").read_bytes(),
        ".tiff": write_tiff(files / "a.tiff", 3).read_bytes(),
    }
    _make_output(materials)
    return materials
