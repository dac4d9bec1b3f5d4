"""The encoder inside other people's models and libraries."""

from typing import TYPE_CHECKING

from ..lazy import lazy_attributes

if TYPE_CHECKING:
    from .page_embedder import PageEmbedder
    from .ready_tokens import insert_vision_tokens
    from .vision_towers import replace_vision_tower, restore_vision_tower

__all__ = ["PageEmbedder", "insert_vision_tokens", "replace_vision_tower", "restore_vision_tower"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "PageEmbedder": ".page_embedder",
            "insert_vision_tokens": ".ready_tokens",
            "replace_vision_tower": ".vision_towers",
            "restore_vision_tower": ".vision_towers",
        },
    )
