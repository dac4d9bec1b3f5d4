"""Damage: what printing, scanning and photographing do to a page.

Unusual: damage that moves pixels also moves the boxes of the characters.
"""

import io
import random
from dataclasses import replace

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from .pages import Page

__all__ = ["damage_page", "photograph_page"]


def _move(page: Page, image: Image.Image, centers: np.ndarray) -> Page:
    """Return a page with another image, its characters moved to new centres; those beyond the edges are left out."""
    halves = (page.boxes[:, 2:] - page.boxes[:, :2]) / 2
    inside = ((centers >= 0) & (centers < image.size)).all(axis=1)
    boxes = np.concatenate([centers - halves, centers + halves], axis=1)[inside]
    return replace(page, image=image, boxes=boxes, characters=page.characters[inside], lines=page.lines[inside])


def _rotate(page: Page, degrees: float) -> Page:
    """Turn a page about its centre; what is uncovered takes the colour of the corner."""
    image = page.image
    corner = image.getpixel((0, 0))
    turned = image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=corner)
    angle = -np.deg2rad(degrees)  # The y axis points down.
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], dtype=np.float32)
    middle = np.array([image.width, image.height], dtype=np.float32) / 2
    centers = (page.boxes[:, :2] + page.boxes[:, 2:]) / 2
    return _move(page, turned, (centers - middle) @ turn.T + middle)


def _perspective(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the matrix `(3, 3)` of the perspective that takes four points `(4, 2)` to four others."""
    rows, values = [], []
    for (x, y), (u, v) in zip(before, after, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.append(np.linalg.solve(np.array(rows, dtype=np.float64), np.array(values)), 1.0).reshape(3, 3)


def _add_noise(image: Image.Image, generator: np.random.Generator, strength: float) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float32)
    noise = generator.standard_normal(pixels.shape[:2], dtype=np.float32)[..., None] * strength
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def _shade(image: Image.Image, generator: random.Random) -> Image.Image:
    """Darken a page from one side to the other, as a lamp does."""
    low, high = sorted((generator.uniform(0.7, 1.0), generator.uniform(0.85, 1.0)))
    ramp = np.linspace(low, high, image.width if generator.random() < 0.5 else image.height, dtype=np.float32)
    ramp = ramp[None, :, None] if len(ramp) == image.width else ramp[:, None, None]
    return Image.fromarray((np.asarray(image) * ramp).astype(np.uint8))


def _compress(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def damage_page(page: Page, seed: int, strength: float = 1.0) -> Page:
    """Return a damaged copy of a page.

    Args:
        page: the page; it is not changed.
        seed: the same seed gives the same damage.
        strength: 0 leaves the page as it is; 1 is what a bad scan shows.
    """
    generator = random.Random(seed)

    def happens(chance: float) -> bool:
        return generator.random() < chance * strength

    if happens(0.3):
        page = _rotate(page, generator.uniform(-1.5, 1.5) * strength)
    image = page.image
    if happens(0.25):
        image = ImageEnhance.Contrast(image).enhance(generator.uniform(0.4, 1.0))
    if happens(0.2):
        image = _shade(image, generator)
    if happens(0.3):
        image = image.filter(ImageFilter.GaussianBlur(generator.uniform(0.3, 1.0) * strength))
    if happens(0.3):
        image = _add_noise(image, np.random.default_rng(seed), generator.uniform(3, 18) * strength)
    if happens(0.3):
        image = _compress(image, generator.randint(35, 90))
    if happens(0.15):
        image = image.convert("L").convert("RGB")
    return replace(page, image=image)


def photograph_page(page: Page, seed: int) -> Page:
    """Return what a hand-held camera sees: the page in perspective, on a table, unevenly lit, blurred and noisy.

    Args:
        page: the page; it is not changed.
        seed: the same seed gives the same photograph.
    """
    generator = random.Random(seed)
    width, height = page.image.size
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], dtype=np.float64)
    reach = 0.05 * width
    moved = corners + [[generator.uniform(-reach, reach) for _ in range(2)] for _ in corners]
    # Pillow asks where each pixel comes from.
    source = _perspective(corners, moved)
    table = tuple(generator.randrange(60, 160) for _ in range(3))
    image = page.image.transform(
        page.image.size,
        Image.Transform.PERSPECTIVE,
        source.ravel()[:8].tolist(),
        Image.Resampling.BICUBIC,
        fillcolor=table,
    )
    image = image.filter(ImageFilter.GaussianBlur(generator.uniform(0.4, 0.9)))
    pixels = np.asarray(image, dtype=np.float32)
    across, down = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    light = 0.85 + generator.uniform(-0.15, 0.15) * across + generator.uniform(-0.15, 0.15) * down
    noise = np.random.default_rng(seed).standard_normal(pixels.shape[:2]) * generator.uniform(2, 8)
    tint = np.array([generator.uniform(0.9, 1.05) for _ in range(3)])
    pixels = pixels * light[..., None] * tint + noise[..., None]
    centers = (page.boxes[:, :2] + page.boxes[:, 2:]) / 2
    homogeneous = np.concatenate([centers, np.ones((len(centers), 1))], axis=1) @ np.linalg.inv(source).T
    centers = (homogeneous[:, :2] / homogeneous[:, 2:]).astype(np.float32)
    return _move(page, Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), centers)
