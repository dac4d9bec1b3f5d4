"""Vision tokens that were computed before, as embeddings of a language model's prompt.

Unusual: nothing here depends on the language model. Every model of transformers generates from `inputs_embeds`.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch

__all__ = ["insert_vision_tokens"]


def insert_vision_tokens(
    inputs_embeds: torch.Tensor,
    input_ids: torch.Tensor,
    vision_tokens: Sequence[torch.Tensor],
    image_token_id: int,
) -> torch.Tensor:
    """Put the vision tokens of pages in the place of a prompt's placeholders.

    The tokens of a page may be in any floating dtype, as `deepencoder extract` stored them, and on any device.

    Args:
        inputs_embeds (`torch.Tensor` of shape `(batch, length, width)`): embeddings of `input_ids`, from
            `model.get_input_embeddings()`.
        input_ids (`torch.Tensor` of shape `(batch, length)`): the prompts, with as many placeholders for each page as
            the page has vision tokens.
        vision_tokens (sequence of `torch.Tensor` of shape `(L_i, width)`): the vision tokens of all pages, in the
            order in which their placeholders appear, prompt after prompt.
        image_token_id (`int`): id of the placeholder.

    Returns:
        `torch.Tensor` of shape `(batch, length, width)`: a copy of `inputs_embeds` for `generate` or `forward`.

    Raises:
        `ValueError`: shapes do not fit together, the number of placeholders is not the number of vision tokens, or a
            page would begin in one prompt and end in the next.
    """
    if inputs_embeds.ndim != 3 or inputs_embeds.shape[:2] != input_ids.shape:
        raise ValueError(
            "inputs_embeds must have shape (batch, length, width) for input_ids of shape (batch, length), got "
            f"{tuple(inputs_embeds.shape)} and {tuple(input_ids.shape)}."
        )
    width = inputs_embeds.shape[2]
    for index, tokens in enumerate(vision_tokens):
        if tokens.ndim != 2 or tokens.shape[1] != width:
            raise ValueError(f"vision_tokens[{index}] must have shape (length, {width}), got {tuple(tokens.shape)}.")
    is_placeholder = input_ids == image_token_id
    placeholders, found = int(is_placeholder.sum()), sum(map(len, vision_tokens))
    if placeholders != found:
        raise ValueError(
            f"vision_tokens: {found} tokens for {placeholders} placeholders {image_token_id} in input_ids."
        )
    page_ends = {0, *accumulate(map(len, vision_tokens))}
    for index, prompt_end in enumerate(accumulate(is_placeholder.sum(dim=1).tolist())):
        if prompt_end not in page_ends:
            raise ValueError(
                f"vision_tokens: a page begins in prompt {index} and ends in the next. Give pages in the order "
                "of their placeholders."
            )
    if not found:
        return inputs_embeds.clone()
    tokens = torch.cat([part.to(inputs_embeds.device, inputs_embeds.dtype) for part in vision_tokens])
    # (batch, length) -> (batch, length, width)
    mask = is_placeholder.to(inputs_embeds.device)[..., None].expand_as(inputs_embeds)
    return inputs_embeds.masked_scatter(mask, tokens)
