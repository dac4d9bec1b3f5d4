"""The models that are trained: the page reader and its reading head, and what the training adds to them.

Unusual: the head does not write from left to right. A token is expanded to the 4 x 4 patches of its box, each patch to
its cells, and all slots are classified at once. The same classifier also reads SAM's patches during training: that
teaches the shapes of the characters first, and the tokens then learn to keep what the patches know.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from deepencoder import ClipVisionEncoderConfig, DeepEncoder, DeepEncoderConfig, SamEncoderConfig

from .alphabet import ALPHABET
from .pages import REGIONS
from .targets import CELLS, SLOTS

__all__ = ["ReadingHead", "ReadingObjective", "page_reader_config"]

PATCHES = 4
"""Rows, and columns, of SAM's patches in a token's box."""
SLOTS_PER_PATCH = (CELLS // PATCHES) ** 2 * SLOTS


def page_reader_config() -> DeepEncoderConfig:
    """Return the configuration of the page reader: 5.6 million parameters, every part of the architecture present."""
    sam = SamEncoderConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=6,
        window_size=8,
        global_attn_indexes=(2, 5),
        image_size=512,
        output_channels=128,
        downsample_channels=(192, 256),
    )
    clip = ClipVisionEncoderConfig(
        hidden_size=256, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=4, use_patch_embedding=False
    )
    return DeepEncoderConfig(sam_config=sam, clip_config=clip, projection_dim=384)


class ReadingHead(nn.Module):
    """Reads the characters of a token's box: `(.., token_dim)` -> `(.., cells, cells, slots, characters)`."""

    def __init__(self, token_dim: int = 384, hidden_size: int = 128, num_layers: int = 2) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.expand = nn.Linear(token_dim, PATCHES**2 * hidden_size)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                hidden_size, 4, 3 * hidden_size, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size)
        self.classifier = nn.Linear(hidden_size, SLOTS_PER_PATCH * len(ALPHABET))

    def expand_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Expand tokens to the patches of their boxes: `(n, token_dim)` -> `(n, 16, hidden_size)`."""
        patches = self.expand(tokens).unflatten(-1, (PATCHES**2, self.hidden_size))
        for layer in self.layers:
            patches = layer(patches)
        return self.norm(patches)

    def classify(self, patches: torch.Tensor) -> torch.Tensor:
        """Classify the slots of patches: `(.., 16, hidden_size)` -> `(.., 8, 8, 3, characters)`."""
        cells = CELLS // PATCHES
        logits = self.classifier(patches).unflatten(-1, (cells, cells, SLOTS, len(ALPHABET)))
        logits = logits.unflatten(-5, (PATCHES, PATCHES))
        # (.., rows, columns, cell rows, cell columns, slots, V) -> (.., rows, cell rows, columns, cell columns, ..)
        logits = logits.transpose(-5, -4)
        return logits.flatten(-4, -3).flatten(-5, -4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.classify(self.expand_tokens(tokens))


def slot_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over slots; all empty slots together weigh as much as all characters."""
    losses = cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), reduction="none")
    filled = (targets.flatten() > 0).float()
    characters = (losses * filled).sum() / filled.sum().clamp_min(1)
    empty = (losses * (1 - filled)).sum() / (1 - filled).sum().clamp_min(1)
    return characters + empty


def pair_loss(pages: torch.Tensor, temperature: float = 0.07) -> torch.Tensor:
    """Contrastive loss of page vectors `(2 * n, d)`: page `i` shows the same text as page `i + n`."""
    vectors = normalize(pages.float(), dim=-1)
    scores = vectors @ vectors.T / temperature
    scores = scores.masked_fill(torch.eye(len(scores), dtype=torch.bool, device=scores.device), float("-inf"))
    count = len(pages) // 2
    partners = torch.arange(2 * count, device=pages.device).roll(count)
    return cross_entropy(scores, partners)


class ReadingObjective(nn.Module):
    """The page reader with its heads; `forward` gives the losses of a batch."""

    def __init__(self, config: DeepEncoderConfig | None = None) -> None:
        super().__init__()
        config = page_reader_config() if config is None else config
        self.encoder = DeepEncoder(config)
        self.head = ReadingHead(config.projection_dim)
        self.read_patches = nn.Linear(config.sam_config.hidden_size, self.head.hidden_size)
        self.regions = nn.Linear(config.projection_dim, len(REGIONS))

    def forward(self, pixels: torch.Tensor, slots: torch.Tensor, regions: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the losses.

        Args:
            pixels (`(batch, 3, height, width)`): normalised pixels. With pairs, the second half of the batch shows
                the same texts as the first.
            slots (`(batch, h, w, 8, 8, 3)`): the characters of each token.
            regions (`(batch, h, w)`): kind of region of each token.
        """
        patches, tokens, pages = self.encode(pixels)
        batch, height, width, _ = tokens.shape
        # SAM's patches in the order of tokens: (batch, 4h, 4w, d) -> (batch, h, w, 16, d)
        grouped = patches.unflatten(2, (width, PATCHES)).unflatten(1, (height, PATCHES)).transpose(2, 3).flatten(3, 4)
        patch_logits = self.head.classify(self.head.norm(self.read_patches(grouped)))
        expanded = self.head.expand_tokens(tokens.flatten(0, 2))
        token_logits = self.head.classify(expanded).unflatten(0, (batch, height, width))
        filled = slots > 0
        with torch.no_grad():
            right = ((token_logits.argmax(-1) == slots) & filled).sum() / filled.sum().clamp_min(1)
            patches_right = ((patch_logits.argmax(-1) == slots) & filled).sum() / filled.sum().clamp_min(1)
        return {
            "patches": slot_loss(patch_logits, slots),
            "tokens": slot_loss(token_logits, slots),
            "regions": cross_entropy(self.regions(tokens).flatten(0, 2).float(), regions.flatten()),
            "pages": pair_loss(pages),
            "right": right,
            "patches_right": patches_right,
        }

    def encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return SAM's patches before the neck, the projected tokens and the page vectors.

        Returns:
            `(batch, 4h, 4w, d)`, `(batch, h, w, p)` and `(batch, clip_hidden)`.
        """
        _, tokens, output = self.encoder.encode_view(pixels, output_hidden_states=True)
        assert output.sam_hidden_states is not None and output.pooler_output is not None
        return output.sam_hidden_states[-1], tokens, output.pooler_output
