"""The page reader: an encoder, its image processor and its reading head, as one thing that reads pages.

Unusual: this demonstrates what vision tokens carry, and is no OCR product. The shipped model knows printed English in
an alphabet of 105 characters.
"""

import os
from typing import Any

import torch
from transformers import AutoModel
from transformers.utils import CONFIG_NAME, cached_file

from ..processing.image_processing import DeepEncoderImageProcessor
from ..processing.images import to_rgb
from ..processing.placement import cell_fields
from .page_text import PageText, read_page
from .reading_head import ReadingHead

__all__ = ["HEAD_FOLDER", "PageReader", "load_head"]

HEAD_FOLDER = "reading_head"
"""Subfolder of a model in which its reading head is."""
HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only")
"""Those options of `from_pretrained` that also hold for the image processor and the head."""


def load_head(model: str | os.PathLike[str], **kwargs: Any) -> ReadingHead:
    """Load the reading head of a model, in float32.

    Args:
        model: a folder or a Hub id.
        kwargs: `revision`, `token`, `cache_dir` and `local_files_only`, as in `from_pretrained`.

    Raises:
        `ValueError`: the model has no reading head.
    """
    found = cached_file(
        model, CONFIG_NAME, subfolder=HEAD_FOLDER, _raise_exceptions_for_missing_entries=False, **kwargs
    )
    if found is None:
        raise ValueError(
            f"{os.fspath(model)!r} has no reading head (subfolder {HEAD_FOLDER!r}), so its tokens cannot be read. "
            "deepencoder.page_reader() is a model that has one."
        )
    return ReadingHead.from_pretrained(model, subfolder=HEAD_FOLDER, dtype=torch.float32, **kwargs).eval()


class PageReader:
    """Reads pages of print, token by token.

    Args:
        encoder: a [`DeepEncoder`].
        processor: its image processor.
        head: its reading head.
    """

    def __init__(self, encoder: Any, processor: DeepEncoderImageProcessor, head: ReadingHead) -> None:
        self.encoder, self.processor, self.head = encoder, processor, head

    @classmethod
    def from_pretrained(cls, model: str | os.PathLike[str], **kwargs: Any) -> "PageReader":
        """Load a page reader, such as `deepencoder.page_reader()`.

        Args:
            model: a folder or a Hub id.
            kwargs: `device_map`, `revision`, `token` and so on, as in `from_pretrained`.

        Raises:
            `ValueError`: the model has no reading head.
            `OSError`: the model does not exist.
        """
        hub = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        head = load_head(model, **hub)
        encoder = AutoModel.from_pretrained(model, **kwargs).eval()
        return cls(encoder, DeepEncoderImageProcessor.from_pretrained(model, **hub), head.to(encoder.device))

    @torch.inference_mode()
    def read(self, images: Any, mode: str | None = None, batch_size: int = 4) -> list[PageText]:
        """Read pages.

        Args:
            images: a page or a list of pages: paths, URLs, PIL images, or arrays.
            mode (`str`, *optional*): mode of the image processor, by default its own fields.
            batch_size (`int`, defaults to 4): pages that are encoded together.

        Returns:
            a [`PageText`] for each page.

        Raises:
            `ValueError`: an image cannot be used, `mode` is unknown or `batch_size` is not positive.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}.")
        pages = [to_rgb(page, index) for index, page in enumerate(images if isinstance(images, list) else [images])]
        options: dict[str, Any] = {} if mode is None else {"mode": mode}
        options |= cell_fields(self.encoder.config)
        texts = []
        for start in range(0, len(pages), batch_size):
            batch = pages[start : start + batch_size]
            inputs = self.processor(batch, return_tensors="pt", mode=mode).to(self.encoder.device)
            for page, tokens in zip(batch, self.encoder(**inputs).vision_tokens, strict=True):
                layout = self.processor.get_token_layout(page.height, page.width, **options)
                texts.append(read_page(self.head, tokens, layout))
        return texts
