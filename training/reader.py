"""The models that are trained: the page reader and its reading head, and what the training adds to them.

Unusual: the head's classifier also reads SAM's patches during training. That teaches the shapes of the characters
first, and the tokens then learn to keep what the patches know.
"""

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, normalize

from deepencoder import ClipVisionEncoderConfig, DeepEncoder, DeepEncoderConfig, SamEncoderConfig
from deepencoder.reading import ReadingHead, ReadingHeadConfig

from .alignment import alignment_loss
from .pages import REGIONS
from .starting_weights import start_weights
from .targets import CELLS, SLOTS
from .virtual_pages import crop_position_tables

__all__ = ["ReadingObjective", "page_reader_config"]

PATCHES = 4
"""Rows, and columns, of SAM's patches in a token's box."""
NEGATIVES = 512
"""Vectors of earlier pages that the pair loss also tells apart."""


def page_reader_config() -> DeepEncoderConfig:
    """Return the configuration of the page reader: 5.8 million parameters, every part of the architecture present."""
    sam = SamEncoderConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=5,
        num_attention_heads=4,
        window_size=8,
        global_attn_indexes=(1, 3),
        image_size=640,
        output_channels=128,
        downsample_channels=(224, 320),
    )
    clip = ClipVisionEncoderConfig(
        hidden_size=320,
        intermediate_size=640,
        num_hidden_layers=2,
        num_attention_heads=5,
        image_size=640,
        patch_size=64,
        use_patch_embedding=False,
    )
    return DeepEncoderConfig(sam_config=sam, clip_config=clip, projection_dim=448)


def slots_by_patch(slots: torch.Tensor) -> torch.Tensor:
    """Undo the head's `slots_by_cell` for targets: `(.., 8, 8, 3)` -> `(.., 16, 12)`."""
    slots = slots.unflatten(-2, (PATCHES, -1)).unflatten(-4, (PATCHES, -1))
    # (.., rows, cell rows, columns, cell columns, slots) -> (.., rows, columns, cell rows, cell columns, slots)
    return slots.transpose(-4, -3).flatten(-3).flatten(-3, -2)


def group_patches(patches: torch.Tensor) -> torch.Tensor:
    """Group patches by token: `(batch, 4h, 4w, d)` -> `(batch, h, w, 16, d)`."""
    return patches.unflatten(2, (-1, PATCHES)).unflatten(1, (-1, PATCHES)).transpose(2, 3).flatten(3, 4)


def slot_loss(logits: torch.Tensor, targets: torch.Tensor, empty_weight: float = 1.0) -> torch.Tensor:
    """Cross-entropy over slots, summed, for each character.

    Args:
        logits: `(.., characters)`.
        targets: the character of each slot, `(..)`.
        empty_weight: weight of an empty slot. Less than 1 lets the reader learn characters sooner, and makes it
            invent some where it is in doubt.
    """
    targets = targets.flatten()
    losses = cross_entropy(logits.flatten(0, -2).float(), targets, reduction="none")
    filled = targets > 0
    return (losses * torch.where(filled, 1.0, empty_weight)).sum() / filled.sum().clamp_min(1)


@torch.no_grad()
def share_right(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the share of characters that are in their place."""
    filled = targets > 0
    return (logits[filled].argmax(-1) == targets[filled]).float().mean()


def pair_loss(pages: torch.Tensor, others: torch.Tensor | None = None, temperature: float = 0.07) -> torch.Tensor:
    """Contrastive loss of page vectors `(2 * n, d)`: page `i` shows the same text as page `i + n`.

    Args:
        pages: vectors of pages.
        others: normalised vectors of other pages, `(m, d)`.
        temperature: divides the cosine similarities.
    """
    vectors = normalize(pages.float(), dim=-1)
    scores = vectors @ vectors.T
    scores = scores.masked_fill(torch.eye(len(scores), dtype=torch.bool, device=scores.device), float("-inf"))
    if others is not None:
        scores = torch.cat([scores, vectors @ others.T], dim=1)
    count = len(pages) // 2
    partners = torch.arange(2 * count, device=pages.device).roll(count)
    return cross_entropy(scores / temperature, partners)


class ReadingObjective(nn.Module):
    """The page reader with its heads; `forward` gives the losses of a batch."""

    others: torch.Tensor

    def __init__(self, config: DeepEncoderConfig | None = None) -> None:
        super().__init__()
        config = page_reader_config() if config is None else config
        self.encoder = DeepEncoder(config)
        head = ReadingHeadConfig(token_dim=config.projection_dim, patches=PATCHES, cells=CELLS, slots=SLOTS)
        self.head = ReadingHead(head)
        self.read_patches = nn.Linear(config.sam_config.hidden_size, head.hidden_size)
        self.regions = nn.Linear(config.projection_dim, len(REGIONS))
        self.register_buffer("others", torch.zeros(NEGATIVES, config.clip_config.hidden_size))
        start_weights(self.encoder)

    def forward(
        self,
        pixels: torch.Tensor,
        slots: torch.Tensor,
        regions: torch.Tensor,
        page_side: int = 0,
        has_pairs: bool = False,
        empty_weight: float = 1.0,
        aligns: bool = True,
    ) -> dict[str, torch.Tensor]:
        """Compute the losses.

        Args:
            pixels (`(batch, 3, height, width)`): normalised pixels. With pairs, the second half of the batch shows
                the same texts as the first.
            slots (`(batch, h, w, 8, 8, 3)`): the characters of each token.
            regions (`(batch, h, w)`): kind of region of each token.
            page_side: side in pixels of the page that the crops were cut from, for [`crop_position_tables`]. 0 for
                whole pages.
            has_pairs: whether to compute the pair loss.
            empty_weight: weight of an empty slot; see [`slot_loss`].
            aligns: whether to compute the loss of the tokens' texts.
        """
        if page_side:
            tables = crop_position_tables(self.encoder, pixels.shape[-1], page_side)
            tables = {f"encoder.{name}": table for name, table in tables.items()}
            return functional_call(self, tables, (pixels, slots, regions, 0, has_pairs, empty_weight, aligns))
        patches, tokens, pages = self.encode(pixels)
        targets = slots_by_patch(slots)
        patch_logits = self.head.classify(self.head.norm(self.read_patches(group_patches(patches))))
        token_logits = self.head.classify(self.head.expand_tokens(tokens))
        losses = {
            "patches": slot_loss(patch_logits, targets, empty_weight),
            "tokens": slot_loss(token_logits, targets, empty_weight),
            "regions": cross_entropy(self.regions(tokens).flatten(0, 2).float(), regions.flatten()),
        }
        if aligns:
            in_order = self.head.slots_by_cell(token_logits.float().log_softmax(-1)).flatten(-4, -2)
            losses["texts"] = alignment_loss(in_order.flatten(0, 2), slots.flatten(3).flatten(0, 2))
        if has_pairs:
            losses["pages"] = pair_loss(pages, self.others.clone())
            self._remember(pages)
        losses["right"] = share_right(token_logits, targets)
        losses["patches_right"] = share_right(patch_logits, targets)
        return losses

    @torch.no_grad()
    def _remember(self, pages: torch.Tensor) -> None:
        vectors = normalize(pages.detach().float(), dim=-1)
        self.others.copy_(torch.cat([vectors, self.others])[: len(self.others)])

    def encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return SAM's patches before the neck, the projected tokens and the page vectors.

        Returns:
            `(batch, 4h, 4w, d)`, `(batch, h, w, p)` and `(batch, clip_hidden)`.
        """
        _, tokens, output = self.encoder.encode_view(pixels, output_hidden_states=True)
        assert output.sam_hidden_states is not None and output.pooler_output is not None
        return output.sam_hidden_states[-1], tokens, output.pooler_output
