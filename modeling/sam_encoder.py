"""The SAM encoder: a ViT with windowed and global attention, SAM's neck and a convolutional compressor.

Unusual: windows are padded **behind** the first norm and padded positions are not masked. They are keys and values
like any other, equal to the bias of the qkv projection, so the projection runs on real positions only.
"""

import itertools
from collections.abc import Callable
from typing import Any

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
from .attention import Windows, cut_windows, get_relative_position_attention, group_windows
from .base import DeepEncoderPreTrainedModel
from .inputs import check_pixel_values
from .positions import PositionTableCache, relative_positions, resize_position_grid

__all__ = ["SamEncoder"]


# Positions in float32 that go through a block together on a CPU: what is made of them stays in the processor's cache,
# and below the 32 MB from which the C library gives memory back after each use. Of half the bytes, twice as many.
ATTENTION_TOKENS = 2048
FEED_FORWARD_TOKENS = 1024


def tokens_together(tokens: int, hidden_states: torch.Tensor) -> int:
    """How many positions of this dtype take the memory of `tokens` in float32."""
    return tokens * 4 // hidden_states.element_size()


class SamEncoderEmbeddings(nn.Module):
    """Patches and their absolute positions: `(batch, channels, H, W)` -> `(batch, H / patch, W / patch, hidden)`."""

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
        # (batch, hidden, height, width) -> (batch, height, width, hidden). In memory, too: sums keep the strides of
        # their terms, and each norm of each block would make a copy.
        patches = patches.permute(0, 2, 3, 1).contiguous()
        grid = (patches.shape[1], patches.shape[2])
        return patches + self.position_tables.get(
            self.position_embedding, grid, lambda table: resize_position_grid(table, grid)
        )


class SamEncoderAttention(nn.Module):
    """Self-attention of a feature map, in windows of `window_size` or, where that is 0, over the whole map."""

    def __init__(self, config: SamEncoderConfig, window_size: int) -> None:
        super().__init__()
        self.config = config
        self.window_size = window_size
        self.num_heads = config.num_attention_heads
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        num_distances = 2 * (window_size or config.grid_size) - 1
        self.rel_pos_h = nn.Parameter(torch.zeros(num_distances, config.head_dim))
        self.rel_pos_w = nn.Parameter(torch.zeros(num_distances, config.head_dim))
        self.position_tables = PositionTableCache(max_entries=16)

    def relative_positions(self, parameter: torch.Tensor, axis: str, size: int) -> torch.Tensor:
        return self.position_tables.get(parameter, (axis, size), lambda table: relative_positions(table, size))

    def works_in_pieces(self, hidden_states: torch.Tensor) -> bool:
        """Whether to run on some rows at a time, whose intermediate results stay in the processor's cache.

        On a CPU, in inference, and where each module may run several times: `eager` returns whole attention weights,
        weights that are offloaded would be loaded for each piece, and a graph for any batch has no pieces of it.
        """
        return (
            hidden_states.device.type == "cpu"
            and self.config._attn_implementation == "sdpa"
            and not (torch.is_grad_enabled() or torch.jit.is_tracing())
            and isinstance(hidden_states.shape[0], int)
            and not self.qkv.weight.is_meta
        )

    def split_heads(self, features: torch.Tensor, length: int) -> tuple[torch.Tensor, ...]:
        """`(batch, n * length, parts * hidden)` -> parts x `(batch * n, heads, length, head_dim)`."""
        features = features.unflatten(2, (-1, self.num_heads, self.head_dim)).unflatten(1, (-1, length))
        return features.flatten(0, 1).permute(2, 0, 3, 1, 4).unbind(0)

    def project_in_pieces(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values, `(batch, heads, N, head_dim)` in memory as well, without all of them as one."""
        batch, length, _ = hidden_states.shape
        tokens = tokens_together(FEED_FORWARD_TOKENS, hidden_states)
        step = -(-length // -(-length // tokens))  # about the same in each piece
        if torch.compiler.is_compiling():
            pieces = [self.split_heads(self.qkv(piece), piece.shape[1]) for piece in hidden_states.split(step, dim=1)]
            return tuple(torch.cat(parts, dim=2) for parts in zip(*pieces, strict=True))
        whole = tuple(hidden_states.new_empty(batch, self.num_heads, length, self.head_dim) for _ in range(3))
        for image, start in itertools.product(range(batch), range(0, length, step)):
            piece = hidden_states[image : image + 1, start : start + step]
            for tensor, part in zip(whole, self.split_heads(self.qkv(piece), piece.shape[1]), strict=True):
                tensor[image : image + 1, :, start : start + step] = part
        return whole

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, grid: tuple[int, int], size: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend from the first `size` rows and columns to all of a grid: `(batch, N, heads, head_dim)`, weights."""
        function = get_relative_position_attention(self.config._attn_implementation)
        return function(
            self,
            query,
            key,
            value,
            self.relative_positions(self.rel_pos_h, "height", grid[0]).to(query.dtype)[: size[0]],
            self.relative_positions(self.rel_pos_w, "width", grid[1]).to(query.dtype)[: size[1]],
            scaling=self.scaling,
            dropout=self.config.attention_dropout,
        )

    def attend_in_groups(self, hidden_states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Attend in windows, without the queries of padding: `(batch, N or N + 1, hidden)` -> `(batch, N, hidden)`."""
        batch, _, hidden_size = hidden_states.shape
        window = (self.window_size, self.window_size)
        groups, places = group_windows(grid, self.window_size, hidden_states.device)
        qkv = self.qkv(hidden_states)
        outputs = []
        for group in groups:
            size = (group.rows, group.columns)
            (query,) = self.split_heads(qkv[..., :hidden_size][:, group.queries], group.rows * group.columns)
            key, value = self.split_heads(qkv[..., hidden_size:][:, group.keys], self.window_size**2)
            outputs.append(self.attend(query, key, value, window, size)[0].reshape(batch, -1, hidden_size))
        return torch.cat(outputs, dim=1)[:, places]

    def forward(
        self, hidden_states: torch.Tensor, windows: Windows | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch, height, width, hidden_size = hidden_states.shape
        grid = (height, width)
        in_pieces = self.works_in_pieces(hidden_states)
        hidden_states = hidden_states.flatten(1, 2)
        if self.window_size and (height % self.window_size or width % self.window_size):
            # One zero, projected along, stands for all padding.
            hidden_states = torch.cat([hidden_states, hidden_states.new_zeros(batch, 1, hidden_size)], dim=1)
        weights = None
        if not self.window_size:
            if in_pieces:
                query, key, value = self.project_in_pieces(hidden_states)
            else:
                query, key, value = self.split_heads(self.qkv(hidden_states), height * width)
            output, weights = self.attend(query, key, value, grid, grid)
        elif in_pieces and not torch.compiler.is_compiling():  # for each group is code of its own to compile
            output = self.attend_in_groups(hidden_states, grid)
        else:
            if windows is None:
                windows = cut_windows(grid, self.window_size, hidden_states.device)
            window = (self.window_size, self.window_size)
            qkv = self.qkv(hidden_states)[:, windows.positions]
            query, key, value = self.split_heads(qkv, self.window_size**2)
            output, weights = self.attend(query, key, value, window, window)
            # (batch * windows, window_size ** 2, heads, head_dim) -> (batch, height * width, hidden)
            output = output.reshape(batch, -1, hidden_size)[:, windows.places]
        return self.proj(output.reshape(batch, height, width, hidden_size)), weights


class SamEncoderMLP(nn.Module):
    def __init__(self, config: SamEncoderConfig) -> None:
        super().__init__()
        self.lin1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = ACT2FN[config.hidden_act]
        self.lin2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.lin2(self.act(self.lin1(hidden_states)))


def add_in_pieces(
    function: Callable[[torch.Tensor], torch.Tensor], features: torch.Tensor, tokens: int, rows_together: int = 1
) -> torch.Tensor:
    """Return `features + function(features)`, computed on some images, or on some rows of one image, at a time.

    Args:
        function: gives what it takes, `(images, rows, width, dim)`.
        features (`torch.Tensor` of shape `(batch, height, width, dim)`): the input.
        tokens (`int`): positions to have in a piece at most, if `rows_together` allow it.
        rows_together (`int`, defaults to 1): what the rows of a piece are a multiple of.

    Returns:
        `torch.Tensor` of shape `(batch, height, width, dim)`.
    """
    batch, height, width, _ = features.shape
    images = max(1, tokens // (height * width))
    bands = -(-height // rows_together)
    pieces = -(-bands // max(1, tokens // (rows_together * width)))
    rows = -(-bands // pieces) * rows_together  # about the same in each piece
    if torch.compiler.is_compiling():  # Inductor writes what is put together in its place; of slices it makes masks
        strips = [[strip + function(strip) for strip in part.split(rows, dim=1)] for part in features.split(images)]
        return torch.cat([torch.cat(strip, dim=1) for strip in strips])
    output = torch.empty_like(features)
    for image in range(0, batch, images):
        for row in range(0, height, rows):
            piece = (slice(image, image + images), slice(row, row + rows))
            torch.add(features[piece], function(features[piece]), out=output[piece])  # without a copy between
    return output


class SamEncoderLayer(GradientCheckpointingLayer):
    """A pre-norm block on `(batch, height, width, hidden)`."""

    def __init__(self, config: SamEncoderConfig, window_size: int) -> None:
        super().__init__()
        self.config = config
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = SamEncoderAttention(config, window_size)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = SamEncoderMLP(config)

    def attend(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return self.attn(self.layer_norm1(hidden_states), **kwargs)[0]

    def feed_forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.layer_norm2(hidden_states))

    def forward(
        self, hidden_states: torch.Tensor, windows: Windows | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        if not self.attn.works_in_pieces(hidden_states):
            hidden_states = hidden_states + self.attend(hidden_states, windows=windows, **kwargs)
            return hidden_states + self.feed_forward(hidden_states)
        _, height, width, _ = hidden_states.shape
        tokens, rows_together = tokens_together(ATTENTION_TOKENS, hidden_states), self.attn.window_size
        if not rows_together:
            tokens, rows_together = height * width, height
        attended = add_in_pieces(lambda piece: self.attend(piece, **kwargs), hidden_states, tokens, rows_together)
        tokens = tokens_together(FEED_FORWARD_TOKENS, hidden_states)
        return add_in_pieces(self.feed_forward, attended, tokens)


class SamEncoderLayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of `(batch, channels, height, width)`."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SamEncoderNeck(nn.Module):
    """`(batch, height, width, hidden)` -> `(batch, output_channels, height, width)`.

    Its norms have an epsilon of their own, whatever the blocks' is, here as in Meta's and in transformers' SAM.
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
    _supports_attention_backend = False  # its own functions: the usual ones have no place for two position terms
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
        return True  # each forward looks its function up

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
            and `attentions` (`eager` only), `(batch, heads, N, N)` of global and `(batch * windows, heads, n, n)` of
            windowed blocks.

        Raises:
            `ValueError`: wrong number of dimensions or channels, or a side that is no multiple of the patch size.
        """
        hidden_states = self.embeddings(pixel_values)
        grid = (hidden_states.shape[1], hidden_states.shape[2])
        windows = cut_windows(grid, self.config.window_size, hidden_states.device)
        for layer in self.layers:
            hidden_states = layer(hidden_states, windows=windows, **kwargs)
        return BaseModelOutput(last_hidden_state=self.compressor(self.neck(hidden_states)))
