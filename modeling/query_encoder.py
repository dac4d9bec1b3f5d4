"""The query encoder: a language model's layers in which learned queries read an image one after another.

Unusual: the sequence is the image and then the queries. A token of the image sees the whole image; a query sees the
image and the queries up to itself. So the mask is the causal one, with the image's keys visible to everybody.
transformers' own functions make it in the form that each attention kernel takes, booleans for SDPA and a block mask
for flex attention, and its Qwen2 layers do the work.
"""

import torch
from torch import nn
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2Attention,
    Qwen2DecoderLayer,
    Qwen2RMSNorm,
    Qwen2RotaryEmbedding,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..configuration.query_encoder import QueryEncoderConfig
from .base import DeepEncoderPreTrainedModel
from .inputs import check_options, check_tensor

__all__ = ["QueryEncoder"]


class QueryEncoder(DeepEncoderPreTrainedModel):
    """The transformer of DeepSeek-OCR-2 that reads SAM's map into learned queries."""

    config: QueryEncoderConfig
    base_model_prefix = "query_encoder"
    main_input_name = "image_tokens"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["Qwen2DecoderLayer"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": Qwen2DecoderLayer, "attentions": Qwen2Attention}

    def __init__(self, config: QueryEncoderConfig) -> None:
        super().__init__(config)
        # These classes read their sizes by name, and our configuration has the same names as Qwen2's.
        self.layers = nn.ModuleList(
            Qwen2DecoderLayer(config, index)  # type: ignore[arg-type]
            for index in range(config.num_hidden_layers)
        )
        self.norm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_embedding = Qwen2RotaryEmbedding(config)  # type: ignore[arg-type]
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, image_tokens: torch.Tensor, queries: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutput:
        """Read images.

        Args:
            image_tokens (`torch.Tensor` of shape `(batch, N, hidden)`): the image, row-major.
            queries (`torch.Tensor` of shape `(n, hidden)`): the learned queries.

        Returns:
            [`~transformers.modeling_outputs.BaseModelOutput`]: `last_hidden_state` of shape `(batch, n, hidden)`, the
            queries after the last layer and its norm. On request `hidden_states`, the input and the output of each
            layer before the norm, `(batch, N + n, hidden)`, and `attentions` (`eager` only),
            `(batch, heads, N + n, N + n)`.

        Raises:
            `TypeError`, `ValueError`: `image_tokens` is no tensor of floats, or an unknown option.
        """
        options = check_options(kwargs, "QueryEncoder")
        check_tensor(image_tokens, "image_tokens")
        batch, length, _ = image_tokens.shape
        queries = queries.to(image_tokens.device, image_tokens.dtype)
        hidden_states = torch.cat([image_tokens, queries.expand(batch, -1, -1)], dim=1)
        positions = torch.arange(hidden_states.shape[1], device=hidden_states.device)[None]
        mask = create_causal_mask(
            self.config,
            hidden_states,
            attention_mask=None,
            past_key_values=None,
            or_mask_function=lambda batch_index, head, query, key: key < length,
        )
        rotations = self.rotary_embedding(hidden_states, positions)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states, attention_mask=mask, position_ids=positions, position_embeddings=rotations, **options
            )
        return BaseModelOutput(last_hidden_state=self.norm(hidden_states[:, length:]))
