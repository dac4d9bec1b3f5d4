"""Damage: what printing, scanning and photographing do to a page.

Unusual: damage that moves pixels also moves the boxes of the characters.
"""

import io
import random
from dataclasses import replace

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from .pages import Page

__all__ = ["damage_page"]


def _rotate(page: Page, degrees: float) -> Page:
    """Turn a page about its centre; what is uncovered takes the colour of the corner."""
    image = page.image
    corner = image.getpixel((0, 0))
    turned = image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=corner)
    angle = -np.deg2rad(degrees)  # The y axis points down.
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], dtype=np.float32)
    middle = np.array([image.width, image.height], dtype=np.float32) / 2
    centers = (page.boxes[:, :2] + page.boxes[:, 2:]) / 2
    halves = (page.boxes[:, 2:] - page.boxes[:, :2]) / 2
    centers = (centers - middle) @ turn.T + middle
    inside = ((centers >= 0) & (centers < 2 * middle)).all(axis=1)
    boxes = np.concatenate([centers - halves, centers + halves], axis=1)[inside]
    return replace(page, image=turned, boxes=boxes, characters=page.characters[inside], lines=page.lines[inside])


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
