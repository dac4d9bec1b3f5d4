"""The reading head: which characters are in the box of a vision token.

Unusual: the head does not write from left to right. A token is expanded to the 4 x 4 patches of its box, each patch to
cells, and all slots of all cells are classified at once. The slots in row-major order, without the empty ones, are the
token's text, and the cells say where in the box each character is.
"""

from typing import Any

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn.functional import gelu
from transformers import PreTrainedConfig, PreTrainedModel

from ..configuration.validation import (
    MAX_CHANNELS,
    check_divides,
    check_parameters,
    check_positive,
    raises_value_errors,
)
from .alphabet import ALPHABET, EMPTY

__all__ = ["ReadingHead", "ReadingHeadConfig"]

MAX_CELLS = 64
"""Largest number of rows of patches or of cells in a box, and of slots in a cell."""


@raises_value_errors
@strict
class ReadingHeadConfig(PreTrainedConfig):
    r"""Configuration of a [`ReadingHead`]. The defaults are those of the page reader's head.

    Args:
        token_dim (`int`, defaults to 448): width of the vision tokens, the encoder's `projection_dim`.
        hidden_size (`int`, defaults to 128): width of the features of a patch.
        intermediate_size (`int`, defaults to 768): width of the MLP on a token.
        patches (`int`, defaults to 4): rows, and columns, of patches in a token's box.
        cells (`int`, defaults to 8): rows, and columns, of cells in a token's box; a multiple of `patches`.
        slots (`int`, defaults to 3): characters that a cell can hold.
        alphabet (`str`): the character of each class; the first one stands for an empty slot.

    Raises:
        `ValueError`: a size is not positive, `patches` does not divide `cells`, or `alphabet` repeats a character
            or has one that cannot be printed.
    """

    model_type = "deepencoder_reading_head"

    token_dim: int = 448
    hidden_size: int = 128
    intermediate_size: int = 768
    patches: int = 4
    cells: int = 8
    slots: int = 3
    alphabet: str = ALPHABET

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        check_positive(self, MAX_CHANNELS, "token_dim", "hidden_size", "intermediate_size")
        check_positive(self, MAX_CELLS, "patches", "cells", "slots")
        check_divides(self, "patches", "cells")
        outputs = self.slots_per_patch * len(self.alphabet) + self.patches**2 * self.token_dim
        check_parameters(
            self,
            self.hidden_size * outputs + 2 * self.token_dim * self.intermediate_size,
            "hidden_size",
            "token_dim",
            "intermediate_size",
            "cells",
            "slots",
        )
        characters = self.alphabet[1:]
        if not characters or len(set(self.alphabet)) != len(self.alphabet) or not characters.isprintable():
            raise ValueError(
                "alphabet must have one character for empty slots, and then different printable characters, got "
                f"{self.alphabet[:40]!r}."
            )

    @property
    def slots_per_patch(self) -> int:
        return (self.cells // self.patches) ** 2 * self.slots


class ReadingHead(PreTrainedModel):
    """Reads the characters in the box of each vision token.

    It suits the encoder that it was trained with, and no other.
    """

    config: ReadingHeadConfig
    base_model_prefix = "reading_head"
    main_input_name = "tokens"

    def __init__(self, config: ReadingHeadConfig) -> None:
        super().__init__(config)
        width = config.token_dim
        self.token_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, width)
        self.expand = nn.Linear(width, config.patches**2 * config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, config.slots_per_patch * len(config.alphabet))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Keep torch's own initialisation of linear layers and norms."""

    def expand_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Expand tokens to the patches of their boxes: `(.., token_dim)` -> `(.., patches**2, hidden_size)`."""
        tokens = tokens + self.down(gelu(self.up(self.token_norm(tokens))))
        return self.norm(self.expand(tokens).unflatten(-1, (self.config.patches**2, -1)))

    def classify(self, patches: torch.Tensor) -> torch.Tensor:
        """Classify the slots of patches: `(.., patches**2, hidden_size)` -> `(.., patches**2, slots, characters)`."""
        return self.classifier(patches).unflatten(-1, (self.config.slots_per_patch, -1))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Compute the logits of all slots.

        Args:
            tokens (`torch.Tensor` of shape `(.., token_dim)`): vision tokens.

        Returns:
            `torch.Tensor` of shape `(.., cells, cells, slots, characters)`: rows of cells, columns of cells, slots.

        Raises:
            `ValueError`: tokens of another width.
        """
        if tokens.shape[-1:] != (self.config.token_dim,):
            raise ValueError(
                f"tokens must have the width token_dim={self.config.token_dim}, got the shape {tuple(tokens.shape)}."
            )
        return self.slots_by_cell(self.classify(self.expand_tokens(tokens)))

    def slots_by_cell(self, values: torch.Tensor) -> torch.Tensor:
        """Order slots as they lie in the box: `(.., patches**2, slots, V)` -> `(.., cells, cells, slots, V)`."""
        side, per_patch = self.config.patches, self.config.cells // self.config.patches
        values = values.unflatten(-2, (per_patch, per_patch, self.config.slots)).unflatten(-5, (side, side))
        # (.., rows, columns, cell rows, cell columns, slots, V) -> (.., rows, cell rows, columns, cell columns, ..)
        return values.transpose(-5, -4).flatten(-4, -3).flatten(-5, -4)

    @torch.no_grad()
    def read(self, tokens: torch.Tensor) -> np.ndarray:
        """Return the most probable character of each slot, `""` for an empty one.

        Args:
            tokens (`torch.Tensor` of shape `(.., token_dim)`): vision tokens.

        Returns:
            `np.ndarray` of shape `(.., cells, cells, slots)`, strings of at most one character.
        """
        characters = np.array(["" if index == EMPTY else text for index, text in enumerate(self.config.alphabet)])
        best = self(tokens.to(self.dtype)).argmax(-1)
        return characters[best.cpu().numpy()]
