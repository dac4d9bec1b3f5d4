"""The SAM encoder: a ViT with windowed and global attention, SAM's neck and a convolutional compressor.

Unusual: windows are padded **behind** the first norm and padded positions are not masked. They are keys and values
like any other and equal the bias of the `qkv` projection, so the projection runs on real positions and on one zero.
On a CPU in inference, layers run in strips: `cpu_execution.py`.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..configuration.sam_encoder import SamEncoderConfig
from .attention import AttentionInputs
from .attention_schedules import attend
from .base import DeepEncoderPreTrainedModel
from .cpu_execution import run_layer_in_strips, runs_in_strips
from .inputs import check_options, check_pixel_values
from .memory_budgets import MEMORY_BUDGETS
from .onednn import Linear
from .positions import PositionTableCache, relative_positions, resize_position_grid
from .windows import WindowCache, Windows

__all__ = ["SamEncoder"]


class SamEncoderEmbeddings(nn.Module):
    """Patches plus their absolute positions: `(batch, channels, H, W)` -> `(batch, H / 16, W / 16, hidden)`."""

    def __init__(self, config: SamEncoderConfig) -> None:
        super().__init__()
        self.num_channels = config.num_channels
        self.patch_size = config.patch_size
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.position_embedding = nn.Parameter(torch.zeros(1, config.grid_size, config.grid_size, config.hidden_size))
        self.position_tables = PositionTableCache()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        check_pixel_values(pixel_values, "pixel_values", self.num_channels, self.patch_size)
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        # (batch, hidden, height, width) -> (batch, height, width, hidden). Contiguous, because sums keep the strides
        # of their terms, and otherwise every norm of every layer would copy its input.
        patches = patches.permute(0, 2, 3, 1).contiguous()
        grid = (patches.shape[1], patches.shape[2])
        return patches + self.position_tables.get(
            self.position_embedding, grid, lambda table: resize_position_grid(table, grid)
        )


class SamEncoderAttention(nn.Module):
    """Self-attention with relative positions, in windows of `window_size` or, where that is 0, over the whole map."""

    memory_budgets = MEMORY_BUDGETS

    def __init__(self, config: SamEncoderConfig, window_size: int) -> None:
        super().__init__()
        self.config = config
        self.window_size = window_size
        self.num_heads = config.num_attention_heads
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = Linear(config.hidden_size, config.hidden_size)
        num_distances = 2 * (window_size or config.grid_size) - 1
        self.rel_pos_h = nn.Parameter(torch.zeros(num_distances, config.head_dim))
        self.rel_pos_w = nn.Parameter(torch.zeros(num_distances, config.head_dim))
        self.position_tables = PositionTableCache(max_entries=16)

    def relative_positions(self, parameter: torch.Tensor, axis: str, size: int) -> torch.Tensor:
        """Return the relative positions of an axis with `size` positions, `(size, size, head_dim)`."""
        return self.position_tables.get(parameter, (axis, size), lambda table: relative_positions(table, size))

    def split_heads(self, features: torch.Tensor, length: int) -> tuple[torch.Tensor, ...]:
        """`(batch, n * length, parts * hidden)` -> one `(batch * n, heads, length, head_dim)` for each part."""
        features = features.unflatten(2, (-1, self.num_heads, self.head_dim)).unflatten(1, (-1, length))
        # (batch, n, length, parts, heads, head_dim) -> (parts, batch * n, heads, length, head_dim)
        return features.flatten(0, 1).permute(2, 0, 3, 1, 4).unbind(0)

    def project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`(batch, N, hidden)` -> queries, keys and values, each `(batch, heads, N, head_dim)`."""
        return self.split_heads(self.qkv(hidden_states), hidden_states.shape[1])

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_grid: tuple[int, int],
        query_grid: tuple[int, int],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend from the top left `query_grid` of a map or window to all of it; see [`AttentionInputs`]."""
        inputs = AttentionInputs(
            query,
            key,
            value,
            self.relative_positions(self.rel_pos_h, "height", key_grid[0]).to(query.dtype)[: query_grid[0]],
            self.relative_positions(self.rel_pos_w, "width", key_grid[1]).to(query.dtype)[: query_grid[1]],
            scaling=self.scaling,
            dropout=self.config.attention_dropout if self.training else 0.0,
        )
        return attend(inputs, self.config._attn_implementation, self.memory_budgets)

    def attend_in_windows(
        self, hidden_states: torch.Tensor, windows: Windows
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`(batch, N, hidden)` -> `(batch, N, hidden)` before the output projection, and the attention weights."""
        batch, _, hidden_size = hidden_states.shape
        window = (self.window_size, self.window_size)
        if windows.has_padding:
            # One zero behind the last position stands for all padding.
            hidden_states = torch.cat([hidden_states, hidden_states.new_zeros(batch, 1, hidden_size)], dim=1)
        qkv = self.qkv(hidden_states)
        outputs, weights = [], None
        for rows, columns, queries, keys in windows.groups:
            (query,) = self.split_heads(qkv[:, queries, :hidden_size], rows * columns)
            key, value = self.split_heads(qkv[:, keys, hidden_size:], self.window_size**2)
            output, weights = self.attend(query, key, value, window, (rows, columns))
            # (batch * windows, rows * columns, heads, head_dim) -> (batch, windows * rows * columns, hidden)
            outputs.append(output.reshape(batch, len(queries), hidden_size))
        return torch.cat(outputs, dim=1)[:, windows.places], weights

    def forward(
        self,
        hidden_states: torch.Tensor,
        windows: Windows | None = None,
        project: Callable[["SamEncoderAttention", torch.Tensor], tuple[torch.Tensor, ...]] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend: `(batch, height, width, hidden)` -> the same shape, and the attention weights of `"eager"`.

        Args:
            windows: how the map is cut, for windowed attention.
            project: does what [`project`] does, in other steps, for global attention.
        """
        batch, height, width, hidden_size = hidden_states.shape
        grid = (height, width)
        hidden_states = hidden_states.flatten(1, 2)
        if windows is not None:
            output, weights = self.attend_in_windows(hidden_states, windows)
        else:
            query, key, value = self.project(hidden_states) if project is None else project(self, hidden_states)
            output, weights = self.attend(query, key, value, grid, grid)
        # (batch, N, hidden) or (batch, N, heads, head_dim) -> (batch, height, width, hidden)
        return self.proj(output.reshape(batch, height, width, hidden_size)), weights


class SamEncoderMLP(nn.Module):
    def __init__(self, config: SamEncoderConfig) -> None:
        super().__init__()
        self.lin1 = Linear(config.hidden_size, config.intermediate_size)
        self.act = ACT2FN[config.hidden_act]
        self.lin2 = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.lin2(self.act(self.lin1(hidden_states)))


class SamEncoderLayer(GradientCheckpointingLayer):
    """A pre-norm block on `(batch, height, width, hidden)`."""

    memory_budgets = MEMORY_BUDGETS

    def __init__(self, config: SamEncoderConfig, window_size: int) -> None:
        super().__init__()
        self.config = config
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = SamEncoderAttention(config, window_size)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = SamEncoderMLP(config)

    def forward(self, hidden_states: torch.Tensor, windows: WindowCache) -> torch.Tensor:
        if runs_in_strips(self, hidden_states):
            return run_layer_in_strips(self, hidden_states, windows)
        cut = None
        if self.attn.window_size:
            cut = windows.get((hidden_states.shape[1], hidden_states.shape[2]), hidden_states.device)
        attended, _ = self.attn(self.layer_norm1(hidden_states), windows=cut)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class SamEncoderLayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of `(batch, channels, height, width)`."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SamEncoderNeck(nn.Module):
    """SAM's neck: `(batch, height, width, hidden)` -> `(batch, output_channels, height, width)`.

    Its norms have a fixed epsilon, whatever that of the blocks is, as in Meta's SAM and in transformers'.
    """

    layer_norm_eps = 1e-6

    def __init__(self, config: SamEncoderConfig) -> None:
        super().__init__()
        channels = config.output_channels
        self.conv1 = nn.Conv2d(config.hidden_size, channels, kernel_size=1, bias=False)
        self.layer_norm1 = SamEncoderLayerNorm2d(channels, eps=self.layer_norm_eps)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.layer_norm2 = SamEncoderLayerNorm2d(channels, eps=self.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        features = self.layer_norm1(self.conv1(hidden_states.permute(0, 3, 1, 2)))
        return self.layer_norm2(self.conv2(features))


class SamEncoderCompressor(nn.Module):
    """Stride-2 convolutions, each of which halves both sides (rounding up); no biases, no activations."""

    def __init__(self, config: SamEncoderConfig) -> None:
        super().__init__()
        widths = (config.output_channels, *config.downsample_channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(width, next_width, kernel_size=3, stride=2, padding=1, bias=False)
            for width, next_width in zip(widths[:-1], widths[1:], strict=True)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        for conv in self.convs:
            features = conv(features)
        return features


class SamEncoder(DeepEncoderPreTrainedModel):
    """SAM's image encoder with DeepSeek-OCR's 16x compressor.

    Source: Kirillov et al., *Segment Anything* (2023), and Wei et al., *DeepSeek-OCR* (2025).
    """

    config: SamEncoderConfig
    base_model_prefix = "sam_encoder"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["SamEncoderEmbeddings", "SamEncoderLayer", "SamEncoderNeck"]
    _supports_sdpa = True
    _supports_attention_backend = False  # transformers' attention functions have no argument for position terms.
    _can_compile_fullgraph = True
    _input_embed_layer = "patch_embedding"
    _can_record_outputs = {"hidden_states": SamEncoderLayer, "attentions": SamEncoderAttention}

    def __init__(self, config: SamEncoderConfig) -> None:
        super().__init__(config)
        self.embeddings = SamEncoderEmbeddings(config)
        self.layers = nn.ModuleList(
            SamEncoderLayer(config, 0 if index in config.global_attn_indexes else config.window_size)
            for index in range(config.num_hidden_layers)
        )
        self.neck = SamEncoderNeck(config)
        self.compressor = SamEncoderCompressor(config)
        self.gradient_checkpointing = False
        self.post_init()

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # Each forward pass looks up its attention function.

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, SamEncoderEmbeddings):
            init.trunc_normal_(module.position_embedding, std=std)
        elif isinstance(module, SamEncoderAttention):
            init.trunc_normal_(module.rel_pos_h, std=std)
            init.trunc_normal_(module.rel_pos_w, std=std)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutput:
        """Encode images of any size whose sides are multiples of the patch size.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): normalised pixels, cast to the
                dtype of the patch embedding.

        Returns:
            [`~transformers.modeling_outputs.BaseModelOutput`]: `last_hidden_state` of shape
            `(batch, channels, ceil(height / 64), ceil(width / 64))` with the published strides. On request
            `hidden_states`, the embeddings and the output of each block, `(batch, height / 16, width / 16, hidden)`,
            and `attentions` (`eager` only), `(batch, heads, N, N)` for global blocks and
            `(batch * windows, heads, n, n)` for windowed blocks, padding included; see
            [`~deepencoder.window_positions`].

        Raises:
            `TypeError`: `pixel_values` is not a tensor, or an unknown option.
            `ValueError`: pixels that are not floats, wrong number of dimensions or channels, or a side that is not a
                multiple of the patch size.
        """
        check_options(kwargs, "SamEncoder")
        hidden_states = self.embeddings(pixel_values)
        windows = WindowCache(self.config.window_size)
        for layer in self.layers:
            hidden_states = layer(hidden_states, windows=windows)
        return BaseModelOutput(last_hidden_state=self.compressor(self.neck(hidden_states)))
