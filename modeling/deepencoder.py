"""The DeepEncoder: SAM, CLIP on SAM's feature map, a projector, and DeepSeek-OCR's token layout.

Unusual: each image has a global view and, in some modes, local tiles of another size. Images of one batch may have
different numbers of tiles. All tiles run as one batch, and `vision_tokens` is a tuple with one tensor for each image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from ..configuration.deepencoder import DeepEncoderConfig
from .base import DeepEncoderPreTrainedModel
from .clip_vision_encoder import ClipVisionEncoder, ClipVisionEncoderOutput
from .inputs import check_options, check_pixel_values
from .memory_budgets import MEMORY_BUDGETS
from .sam_encoder import SamEncoder
from .vision_tokens import lay_out_vision_tokens, read_tile_grids

__all__ = ["DeepEncoder", "DeepEncoderOutput"]


@dataclass
class DeepEncoderOutput(BaseModelOutputWithPooling):
    """
    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch, h * w, hidden)`): fused tokens of the global view, CLIP's
            channels before SAM's, row-major.
        pooler_output (`torch.Tensor` of shape `(batch, clip_hidden)`): CLIP's class token of the global view.
        hidden_states (`tuple[torch.Tensor]`, *optional*): CLIP's hidden states of the global view.
        attentions (`tuple[torch.Tensor]`, *optional*): CLIP's attention weights of the global view.
        vision_tokens (`tuple[torch.Tensor]`): for each image its projected tokens, of shape `(L_i, projection_dim)`,
            in the order that DeepSeek-OCR's decoder reads: the tiles' rows, then the view's rows, a newline token
            after each row, one separator at the end.
        local_last_hidden_state (`torch.Tensor` of shape `(tiles, n, hidden)`, *optional*): fused tokens of the tiles.
        local_hidden_states (`tuple[torch.Tensor]`, *optional*): CLIP's hidden states of the tiles.
        local_attentions (`tuple[torch.Tensor]`, *optional*): CLIP's attention weights of the tiles.
    """

    vision_tokens: tuple[torch.Tensor, ...] | None = None
    local_last_hidden_state: torch.Tensor | None = None
    local_hidden_states: tuple[torch.Tensor, ...] | None = None
    local_attentions: tuple[torch.Tensor, ...] | None = None


EncodedViews = tuple[torch.Tensor, torch.Tensor, ClipVisionEncoderOutput]


def join_views(parts: list[EncodedViews]) -> EncodedViews:
    """Concatenate the results of [`DeepEncoder.encode_view`] for the parts of a batch."""
    fused, tokens, outputs = zip(*parts, strict=True)
    joined: dict[str, Any] = {}
    for name, value in outputs[0].items():
        values = [output[name] for output in outputs]
        # A tensor, or a tuple with one tensor for each layer.
        is_tuple = isinstance(value, tuple)
        joined[name] = tuple(map(torch.cat, zip(*values, strict=True))) if is_tuple else torch.cat(values)
    return torch.cat(fused), torch.cat(tokens), ClipVisionEncoderOutput(**joined)


class DeepEncoderProjector(nn.Module):
    """Projects fused tokens to vision tokens: `(.., hidden)` -> `(.., projection_dim)`."""

    def __init__(self, config: DeepEncoderConfig) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        if config.projector_type != "identity":
            self.layers.append(nn.Linear(config.hidden_size, config.projection_dim))
        if config.projector_type == "mlp_gelu":
            for _ in range(config.projector_depth - 1):
                self.layers.append(nn.GELU())
                self.layers.append(nn.Linear(config.projection_dim, config.projection_dim))

    def forward(self, fused: torch.Tensor) -> torch.Tensor:
        return self.layers(fused)


class DeepEncoder(DeepEncoderPreTrainedModel):
    """DeepSeek-OCR's vision encoder, which turns pages into vision tokens.

    Source: Wei et al., *DeepSeek-OCR: Contexts Optical Compression* (2025).
    """

    config: DeepEncoderConfig
    base_model_prefix = "deepencoder"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = [*SamEncoder._no_split_modules, *ClipVisionEncoder._no_split_modules, "DeepEncoderProjector"]
    _supports_sdpa = True
    _can_compile_fullgraph = True
    _input_embed_layer = "patch_embedding"
    memory_budgets = MEMORY_BUDGETS

    def __init__(self, config: DeepEncoderConfig) -> None:
        super().__init__(config)
        self.sam_encoder = SamEncoder(config.sam_config)
        self.clip_encoder = ClipVisionEncoder(config.clip_config)
        self.projector = DeepEncoderProjector(config)
        self.image_newline = nn.Parameter(torch.zeros(config.projection_dim))
        self.view_separator = nn.Parameter(torch.zeros(config.projection_dim))
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, device_map: Any = None, **kwargs: Any) -> Any:
        """Load a model as transformers' `from_pretrained` does, with any `device_map` that it accepts."""
        if isinstance(device_map, dict) and "disk" in device_map.values():
            # accelerate's hooks load modules from disk, but no bare parameters. These two have 10 KB: keep them.
            main_device = next((device for device in device_map.values() if device not in ("cpu", "disk")), "cpu")
            bare = ("image_newline", "view_separator")
            device_map = device_map | {name: main_device for name in bare if device_map.get(name) == "disk"}
        return super().from_pretrained(*args, device_map=device_map, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DeepEncoder):
            std = self.config.projection_dim**-0.5
            init.normal_(module.image_newline, std=std)
            init.normal_(module.view_separator, std=std)

    def get_input_embeddings(self) -> nn.Module:
        return self.sam_encoder.embeddings.patch_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.sam_encoder.embeddings.patch_embedding = value  # type: ignore[assignment]

    def encode_view(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> EncodedViews:
        """Encode views of one size, whichever images they belong to.

        In inference, large batches are split into parts; see `MemoryBudgets.views`.

        Args:
            pixel_values (`torch.Tensor` of shape `(views, channels, height, width)`): normalised pixels.

        Returns:
            the fused tokens, `(views, h * w, hidden)`, the projected tokens, `(views, h, w, projection_dim)`, and the
            output of the CLIP encoder.
        """
        patch_size = self.config.sam_config.patch_size
        check_pixel_values(pixel_values, "pixel_values", self.config.sam_config.num_channels, patch_size)
        positions = (pixel_values.shape[2] // patch_size) * (pixel_values.shape[3] // patch_size)
        bytes_per_view = positions * self.config.sam_config.hidden_size * self.dtype.itemsize
        views = max(1, self.memory_budgets.views // bytes_per_view)
        is_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if not (is_graph or torch.is_grad_enabled()) and pixel_values.shape[0] > views:
            return join_views([self.encode_view(part, **kwargs) for part in pixel_values.split(views)])
        # The output flags apply to CLIP only: SAM's attention weights would have 4096 x 4096 values for each head.
        sam_map = self.sam_encoder(pixel_values, return_dict=True).last_hidden_state
        clip_output = self.clip_encoder(patch_embeds=sam_map, return_dict=True, **kwargs)
        clip_tokens = clip_output.last_hidden_state[:, 1:]
        # The two halves may be on different devices.
        sam_tokens = sam_map.flatten(2).transpose(1, 2).to(clip_tokens.device)  # (views, c, h, w) -> (views, h * w, c)
        fused = torch.cat([clip_tokens, sam_tokens], dim=-1)
        return fused, self.projector(fused).unflatten(1, tuple(sam_map.shape[2:])), clip_output

    def check_inputs(
        self,
        pixel_values: torch.Tensor,
        pixel_values_local: torch.Tensor | None,
        patches_grid: torch.Tensor | Sequence[Sequence[int]] | None,
        num_local_patches: torch.Tensor | Sequence[int] | None,
    ) -> tuple[list[tuple[int, int]], list[int]]:
        """Check the arguments of `forward`; return the tile grid and the number of tiles of each image."""
        channels, patch_size = self.config.sam_config.num_channels, self.config.sam_config.patch_size
        check_pixel_values(pixel_values, "pixel_values", channels, patch_size)
        batch_size = pixel_values.shape[0]
        grids: list[tuple[int, int]] = [(1, 1)] * batch_size
        if pixel_values_local is not None:
            check_pixel_values(pixel_values_local, "pixel_values_local", channels, patch_size)
            return read_tile_grids(batch_size, pixel_values_local.shape[0], patches_grid, num_local_patches)
        if (patches_grid is not None or num_local_patches is not None) and not torch.compiler.is_compiling():
            read_tile_grids(batch_size, 0, grids if patches_grid is None else patches_grid, num_local_patches)
        return grids, [0] * batch_size

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_values_local: torch.Tensor | None = None,
        patches_grid: torch.Tensor | Sequence[Sequence[int]] | None = None,
        num_local_patches: torch.Tensor | Sequence[int] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DeepEncoderOutput:
        """Encode pages.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, 3, height, width)`): global views, normalised.
            pixel_values_local (`torch.Tensor` of shape `(tiles, 3, t, t)`, *optional*): the tiles of all images, image
                after image, each image's in row-major order.
            patches_grid (`(batch, 2)` integers, *optional*): columns and rows of tiles of each image; `(1, 1)` for an
                image without tiles. Required with tiles. A list or a tensor on the CPU avoids a synchronisation with
                the GPU, and `torch.compile(fullgraph=True)` needs a list.
            num_local_patches (`(batch,)` integers, *optional*): number of tiles of each image, for a check.

        Returns:
            [`DeepEncoderOutput`].

        Raises:
            `TypeError`: pixels that are not a tensor, or an unknown option.
            `ValueError`: pixels that are not floats or have a wrong shape, or tiles that do not fit `patches_grid`.
        """
        options = check_options(kwargs, "DeepEncoder")
        grids, counts = self.check_inputs(pixel_values, pixel_values_local, patches_grid, num_local_patches)
        for flag in ("output_hidden_states", "output_attentions"):
            if getattr(self.config, flag):
                options.setdefault(flag, True)
        fused, view_tokens, clip_output = self.encode_view(pixel_values, **options)
        output = DeepEncoderOutput(
            last_hidden_state=fused,
            pooler_output=clip_output.pooler_output,
            hidden_states=clip_output.hidden_states,
            attentions=clip_output.attentions,
        )
        tiles: list[torch.Tensor | None] = [None] * len(grids)
        if pixel_values_local is not None and any(counts):
            local_fused, tile_tokens, local_output = self.encode_view(pixel_values_local, **options)
            output.local_last_hidden_state = local_fused
            output.local_hidden_states = local_output.hidden_states
            output.local_attentions = local_output.attentions
            tiles = [part if len(part) else None for part in tile_tokens.split(counts)]

        newline = self.image_newline.to(view_tokens.device, view_tokens.dtype)
        separator = self.view_separator.to(view_tokens.device, view_tokens.dtype)
        output.vision_tokens = tuple(
            lay_out_vision_tokens(view, image_tiles, grid, newline, separator)
            for view, image_tiles, grid in zip(view_tokens, tiles, grids, strict=True)
        )
        return output

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        pixel_values_local: torch.Tensor | None = None,
        patches_grid: torch.Tensor | Sequence[Sequence[int]] | None = None,
        num_local_patches: torch.Tensor | Sequence[int] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode pages for a language model, by transformers' convention for vision-language models.

        The arguments are those of `forward`.

        Returns:
            [`~transformers.modeling_outputs.BaseModelOutputWithPooling`] whose `pooler_output` is the list of the
            images' `vision_tokens`; its other fields are those of `forward`.
        """
        # Through __call__, so that hooks can place offloaded parameters.
        output = self(
            pixel_values,
            pixel_values_local=pixel_values_local,
            patches_grid=patches_grid,
            num_local_patches=num_local_patches,
            return_dict=True,
            **kwargs,
        )
        return BaseModelOutputWithPooling(
            last_hidden_state=output.last_hidden_state,
            pooler_output=list(output.vision_tokens),  # type: ignore[arg-type]  # the convention of get_image_features
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
