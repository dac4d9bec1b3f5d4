"""The CLIP vision encoder, on pixels or on patches that another model embedded.

Unusual: in a DeepEncoder, SAM's feature map replaces the patch embedding, and no norm follows the last block. The
class token still attends through every block.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import dropout as apply_dropout
from torch.nn.functional import softmax
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..configuration.clip_vision_encoder import ClipVisionEncoderConfig
from .base import DeepEncoderPreTrainedModel
from .inputs import check_options, check_pixel_values, check_tensor
from .onednn import Linear
from .positions import PositionTableCache, resize_position_grid

__all__ = ["ClipVisionEncoder", "ClipVisionEncoderOutput"]


@dataclass
class ClipVisionEncoderOutput(BaseModelOutputWithPooling):
    """
    Args:
        image_embeds (`torch.Tensor` of shape `(batch, projection_dim)`, *optional*): the projected pooled token of a
            model with `projection_dim`.
    """

    image_embeds: torch.Tensor | None = None


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend in plain operations: `(batch, heads, N, head_dim)` -> `(batch, N, heads, head_dim)` and the weights."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    weights = apply_dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class ClipVisionEncoderEmbeddings(nn.Module):
    """The class token and the patches plus their positions, `(batch, 1 + height * width, hidden)`."""

    def __init__(self, config: ClipVisionEncoderConfig) -> None:
        super().__init__()
        self.hidden_size = config.hidden_size
        self.num_channels = config.num_channels
        self.patch_size = config.patch_size
        self.native_grid = (config.grid_size, config.grid_size)
        self.patch_embedding = None
        if config.use_patch_embedding:
            self.patch_embedding = nn.Conv2d(
                config.num_channels,
                config.hidden_size,
                kernel_size=config.patch_size,
                stride=config.patch_size,
                bias=config.use_patch_bias,
            )
        self.class_embedding = nn.Parameter(torch.zeros(config.hidden_size))
        # Not an nn.Embedding, since it is resized and not looked up; and offloading hooks load it with this module.
        self.position_embedding = nn.Parameter(torch.zeros(1 + config.grid_size**2, config.hidden_size))
        self.position_tables = PositionTableCache()

    def embed_patches(self, pixel_values: torch.Tensor | None, patch_embeds: torch.Tensor | None) -> torch.Tensor:
        """Return a feature map of shape `(batch, hidden, height, width)`."""
        if pixel_values is not None and patch_embeds is not None:
            raise ValueError("Pass one of pixel_values and patch_embeds, got both.")
        if patch_embeds is not None:
            check_tensor(patch_embeds, "patch_embeds")
            shape = tuple(patch_embeds.shape)
            if len(shape) != 4 or shape[1] != self.hidden_size or 0 in shape[2:]:
                raise ValueError(
                    f"patch_embeds must have shape (batch, {self.hidden_size}, height, width), got {shape}."
                )
            return patch_embeds.to(self.position_embedding.dtype)
        if pixel_values is None:
            raise ValueError("Pass one of pixel_values and patch_embeds, got neither.")
        if self.patch_embedding is None:
            raise ValueError(
                "pixel_values need a patch embedding, but the model has use_patch_embedding=False: pass patch_embeds."
            )
        check_pixel_values(pixel_values, "pixel_values", self.num_channels, self.patch_size)
        return self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))

    def resize_positions(self, table: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Resize the patches' part of the position table: `(1 + n * n, hidden)` -> `(1 + height * width, hidden)`."""
        if grid == self.native_grid:
            return table
        patches = resize_position_grid(table[1:].unflatten(0, self.native_grid)[None], grid)
        return torch.cat([table[:1], patches.flatten(0, 2)])

    def forward(
        self, pixel_values: torch.Tensor | None = None, patch_embeds: torch.Tensor | None = None
    ) -> torch.Tensor:
        patches = self.embed_patches(pixel_values, patch_embeds)
        grid = (patches.shape[2], patches.shape[3])
        # (batch, hidden, height, width) -> (batch, height * width, hidden)
        patches = patches.flatten(2).transpose(1, 2)
        class_token = self.class_embedding.expand(patches.shape[0], 1, -1)
        positions = self.position_tables.get(
            self.position_embedding, grid, lambda table: self.resize_positions(table, grid)
        )
        return torch.cat([class_token, patches], dim=1) + positions


class ClipVisionEncoderAttention(nn.Module):
    def __init__(self, config: ClipVisionEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.is_causal = False
        self.qkv_proj = Linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch, length, hidden_size = hidden_states.shape
        # (batch, N, 3 * hidden) -> 3 x (batch, heads, N, head_dim)
        qkv = self.qkv_proj(hidden_states).reshape(batch, length, 3, self.num_heads, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        # transformers' functions reshape to an inferred size, which an empty batch does not define.
        implementation = self.config._attn_implementation if batch else "eager"
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask=None,
            scaling=self.scaling,
            dropout=self.config.attention_dropout if self.training else 0.0,
            **kwargs,
        )
        # (batch, N, heads, head_dim) -> (batch, N, hidden)
        return self.out_proj(output.reshape(batch, length, hidden_size)), weights


class ClipVisionEncoderMLP(nn.Module):
    def __init__(self, config: ClipVisionEncoderConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size)
        self.act = ACT2FN[config.hidden_act]
        self.fc2 = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(hidden_states)))


class ClipVisionEncoderLayer(GradientCheckpointingLayer):
    """A pre-norm block on `(batch, N, hidden)`."""

    def __init__(self, config: ClipVisionEncoderConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = ClipVisionEncoderAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ClipVisionEncoderMLP(config)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        attended, _ = self.self_attn(self.layer_norm1(hidden_states), **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class ClipVisionEncoder(DeepEncoderPreTrainedModel):
    """CLIP's vision tower. Its configuration can also describe a plain ViT.

    Source: Radford et al., *Learning Transferable Visual Models From Natural Language Supervision* (2021).
    """

    config: ClipVisionEncoderConfig
    base_model_prefix = "clip_encoder"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["ClipVisionEncoderEmbeddings", "ClipVisionEncoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _input_embed_layer = "patch_embedding"
    _can_record_outputs = {"hidden_states": ClipVisionEncoderLayer, "attentions": ClipVisionEncoderAttention}

    def __init__(self, config: ClipVisionEncoderConfig) -> None:
        super().__init__(config)
        self.embeddings = ClipVisionEncoderEmbeddings(config)
        self.pre_layernorm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.use_pre_norm else None
        )
        self.layers = nn.ModuleList(ClipVisionEncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.post_layernorm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.post_norm != "none" else None
        )
        self.visual_projection = (
            Linear(config.hidden_size, config.projection_dim, bias=False) if config.projection_dim else None
        )
        self.gradient_checkpointing = False
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ClipVisionEncoderEmbeddings):
            std = self.config.initializer_range
            init.normal_(module.class_embedding, std=std)
            init.normal_(module.position_embedding, std=std)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        patch_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ClipVisionEncoderOutput:
        """Encode images, or feature maps that replace the embedded patches, of any size.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`, *optional*): normalised pixels,
                sides multiples of the patch size; cast to the dtype of the patch embedding.
            patch_embeds (`torch.Tensor` of shape `(batch, hidden, h, w)`, *optional*): embedded patches. One of the
                two is required.

        Returns:
            [`ClipVisionEncoderOutput`]: `last_hidden_state` of shape `(batch, 1 + h * w, hidden)`, the class token
            first, and `pooler_output`, the class token, `(batch, hidden)`; `image_embeds` with a projection. On
            request `hidden_states` and `attentions` (`eager` only).

        Raises:
            `TypeError`: an input that is not a tensor, or an unknown option.
            `ValueError`: inputs that are not floats, both inputs or neither, wrong channels, or a side that is not a
                multiple of the patch size.
        """
        options = check_options(kwargs, "ClipVisionEncoder", "patch_embeds")
        hidden_states = self.embeddings(pixel_values, patch_embeds)
        if self.pre_layernorm is not None:
            hidden_states = self.pre_layernorm(hidden_states)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **options)
        if self.post_layernorm is not None and self.config.post_norm == "all":
            hidden_states = self.post_layernorm(hidden_states)
        pooled = hidden_states[:, 0]
        if self.post_layernorm is not None and self.config.post_norm == "pooled":
            pooled = self.post_layernorm(pooled)
        return ClipVisionEncoderOutput(
            last_hidden_state=hidden_states,
            pooler_output=pooled,
            image_embeds=None if self.visual_projection is None else self.visual_projection(pooled),
        )
