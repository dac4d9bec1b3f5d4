"""The DeepEncoder: SAM, CLIP on SAM's feature map, a projector, and DeepSeek-OCR's token layout.

Unusual: each image has a global view and, in some modes, local tiles of another size. Images of one batch may have
different numbers of tiles. All tiles run as one batch, and `vision_tokens` is a tuple with one tensor for each image.
"""

from collections.abc import Mapping, Sequence
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
from ..configuration.package_services import call_service
from .base import DeepEncoderPreTrainedModel
from .clip_vision_encoder import ClipVisionEncoder
from .inputs import check_options, check_pixel_values
from .memory_budgets import MEMORY_BUDGETS, split_views
from .onednn import Linear
from .sam_encoder import SamEncoder
from .vision_tokens import lay_out_vision_tokens, read_tile_grids

__all__ = ["DeepEncoder", "DeepEncoderOutput"]


@dataclass
class DeepEncoderOutput(BaseModelOutputWithPooling):
    """What a [`DeepEncoder`] returns. The fields of tiles are None without tiles, those on request without request.

    The vision tokens of a page are laid out like this:

    ```
     tile 1 | tile 2     the tiles, stitched to a mosaic of columns x rows tiles: row by row, a newline token after
     -------+-------     each row of the mosaic (not of each tile)
     tile 3 | tile 4
     ---------------
       global view       row by row, a newline token after each row
     ---------------
       separator         one token
    ```

    `processor.get_token_layout(height, width)` gives the kind of each token and its box on the page.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch, h * w, hidden)`): fused tokens of the global view, CLIP's
            channels before SAM's, row-major.
        pooler_output (`torch.Tensor` of shape `(batch, clip_hidden)`): CLIP's class token of the global view.
        hidden_states (`tuple[torch.Tensor]`, *optional*): on request, CLIP's hidden states of the global view: its
            input and the output of each block, `(batch, 1 + h * w, clip_hidden)`, the class token first.
        attentions (`tuple[torch.Tensor]`, *optional*): on request, CLIP's attention weights of the global view,
            `(batch, heads, 1 + h * w, 1 + h * w)` for each block.
        vision_tokens (`tuple[torch.Tensor]`): for each image its projected tokens, of shape `(L_i, projection_dim)`,
            in the order that DeepSeek-OCR's decoder reads. In a graph of `torch.export` for batches of any size, one
            tensor of shape `(batch, L, projection_dim)`.
        local_last_hidden_state (`torch.Tensor` of shape `(tiles, n, hidden)`, *optional*): fused tokens of the tiles.
        local_hidden_states (`tuple[torch.Tensor]`, *optional*): `hidden_states` of the tiles.
        local_attentions (`tuple[torch.Tensor]`, *optional*): `attentions` of the tiles.
        sam_hidden_states (`tuple[torch.Tensor]`, *optional*): on request, SAM's hidden states of the global view: the
            embedded patches and the output of each block, `(batch, H / 16, W / 16, sam_hidden)`. A token of
            `last_hidden_state` covers 4 x 4 of these patches.
        sam_attentions (`tuple[torch.Tensor]`, *optional*): on request, SAM's attention weights of the global view. A
            global block has `(batch, heads, N, N)` with `N = H / 16 * W / 16`, row-major; a windowed block
            `(batch * windows, heads, window_size**2, window_size**2)`, padding included:
            [`~deepencoder.window_positions`] says which patch each position is.
        local_sam_hidden_states (`tuple[torch.Tensor]`, *optional*): `sam_hidden_states` of the tiles.
        local_sam_attentions (`tuple[torch.Tensor]`, *optional*): `sam_attentions` of the tiles.
    """

    vision_tokens: tuple[torch.Tensor, ...] | None = None
    local_last_hidden_state: torch.Tensor | None = None
    local_hidden_states: tuple[torch.Tensor, ...] | None = None
    local_attentions: tuple[torch.Tensor, ...] | None = None
    sam_hidden_states: tuple[torch.Tensor, ...] | None = None
    sam_attentions: tuple[torch.Tensor, ...] | None = None
    local_sam_hidden_states: tuple[torch.Tensor, ...] | None = None
    local_sam_attentions: tuple[torch.Tensor, ...] | None = None


EncodedViews = tuple[torch.Tensor, torch.Tensor, DeepEncoderOutput]


def _join(values: Sequence[Any]) -> Any:
    """Concatenate tensors, or tuples with a tensor for each layer; None is a layer that was not asked for."""
    if isinstance(values[0], tuple):
        return tuple(_join(layer) for layer in zip(*values, strict=True))
    return None if values[0] is None else torch.cat(values)  # type: ignore[arg-type]


def join_views(parts: list[EncodedViews]) -> EncodedViews:
    """Concatenate the results of [`DeepEncoder.encode_view`] for the parts of a batch."""
    tokens = torch.cat([part[1] for part in parts])
    outputs = [part[2] for part in parts]
    output = DeepEncoderOutput(**{name: _join([output[name] for output in outputs]) for name in outputs[0]})
    return output.last_hidden_state, tokens, output  # type: ignore[return-value]  # always a tensor here


class DeepEncoderProjector(nn.Module):
    """Projects fused tokens to vision tokens: `(.., hidden)` -> `(.., projection_dim)`."""

    def __init__(self, config: DeepEncoderConfig) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        if config.projector_type != "identity":
            self.layers.append(Linear(config.hidden_size, config.projection_dim))
        if config.projector_type == "mlp_gelu":
            for _ in range(config.projector_depth - 1):
                self.layers.append(nn.GELU())
                self.layers.append(Linear(config.projection_dim, config.projection_dim))

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

    @classmethod
    def from_halves(cls, sam: Any, clip: Any, **values: Any) -> "DeepEncoder":
        """Build a DeepEncoder for training from a SAM and a CLIP that were trained apart, as in the paper.

        The compressor is SAM's own if its width is that of the CLIP, and else newly initialised; so are the projector,
        the newline and the separator. What only pixels and the pooled token of the CLIP need is left behind: its patch
        embedding, its last norm and its projection. Position tables are kept, and resized to the grid of each page.

        Args:
            sam (`str`, `Path` or [`SamEncoder`]): a checkpoint that `SamEncoder.from_original` reads, or a model.
            clip (`str`, `Path` or [`ClipVisionEncoder`]): the same for the CLIP, or a plain ViT.
            values: fields of [`DeepEncoderConfig`], such as `projection_dim`.

        Returns:
            [`DeepEncoder`] in float32. Its `halves_report` says where each tensor came from.

        Raises:
            `TypeError`: a half is neither a name nor a model of its class.
            `ValueError`: a checkpoint is of another kind, or cannot be read.
        """
        model, model_report = call_service("join_halves", sam, clip, **values)
        model.halves_report = model_report.to_dict()
        return model

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

    def options_of(self, half: nn.Module, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options for one half, which is not asked for attention weights that only the other computes."""
        eager = [part for part in (self.sam_encoder, self.clip_encoder) if part.config._attn_implementation == "eager"]
        others = {"output_attentions": False} if len(eager) == 1 and half is not eager[0] else {}
        return {**options, **others, "return_dict": True}

    def encode_view(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> EncodedViews:
        """Encode views of one size, whichever images they belong to.

        In inference, large batches are split into parts; see `MemoryBudgets.views`.

        Args:
            pixel_values (`torch.Tensor` of shape `(views, channels, height, width)`): normalised pixels.

        Returns:
            the fused tokens, `(views, h * w, hidden)`, the projected tokens, `(views, h, w, projection_dim)`, and a
            [`DeepEncoderOutput`] of these views without `vision_tokens`.
        """
        sam_config = self.config.sam_config
        check_pixel_values(pixel_values, "pixel_values", sam_config.num_channels, sam_config.patch_size)
        parts = split_views(pixel_values, sam_config, self.dtype, self.memory_budgets)
        if len(parts) > 1:
            return join_views([self.encode_view(part, **kwargs) for part in parts])
        sam_output = self.sam_encoder(pixel_values, **self.options_of(self.sam_encoder, kwargs))
        sam_map = sam_output.last_hidden_state
        clip_output = self.clip_encoder(patch_embeds=sam_map, **self.options_of(self.clip_encoder, kwargs))
        clip_tokens = clip_output.last_hidden_state[:, 1:]
        # The two halves may be on different devices.
        sam_tokens = sam_map.flatten(2).transpose(1, 2).to(clip_tokens.device)  # (views, c, h, w) -> (views, h * w, c)
        fused = torch.cat([clip_tokens, sam_tokens], dim=-1)
        output = DeepEncoderOutput(
            last_hidden_state=fused,
            pooler_output=clip_output.pooler_output,
            hidden_states=clip_output.hidden_states,
            attentions=clip_output.attentions,
            sam_hidden_states=sam_output.hidden_states,
            sam_attentions=sam_output.attentions,
        )
        return fused, self.projector(fused).unflatten(1, tuple(sam_map.shape[2:])), output

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
        if isinstance(batch_size, torch.SymInt) and pixel_values_local is None:
            return [], []  # A graph for batches of any size has no list of images.
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
            kwargs: `output_hidden_states=True` and `output_attentions=True` ask for those of both halves:
                `hidden_states`, `attentions` (CLIP's), `sam_hidden_states`, `sam_attentions` and, with tiles,
                `local_hidden_states`, `local_attentions`, `local_sam_hidden_states`, `local_sam_attentions`. Only a
                half that runs `attn_implementation="eager"` gives attention weights. `return_dict=False` returns a
                tuple.

        Returns:
            [`DeepEncoderOutput`], which describes each field.

        Raises:
            `TypeError`: pixels that are not a tensor, or an unknown option.
            `ValueError`: pixels that are not floats or have a wrong shape, or tiles that do not fit `patches_grid`.

        Example:

        ```python
        >>> import torch
        >>> from deepencoder import DeepEncoder, DeepEncoderConfig, DeepEncoderImageProcessor

        >>> model = DeepEncoder(DeepEncoderConfig.tiny()).eval()
        >>> processor = DeepEncoderImageProcessor(mode="gundam")
        >>> inputs = processor(torch.zeros(3, 1280, 640), return_tensors="pt")  # a page of two tiles
        >>> with torch.no_grad():
        ...     outputs = model(**inputs, output_hidden_states=True)
        >>> outputs.vision_tokens[0].shape  # of the first page
        torch.Size([493, 48])
        >>> outputs.last_hidden_state.shape  # of the global view
        torch.Size([1, 256, 64])
        >>> outputs.local_last_hidden_state.shape  # of its tiles
        torch.Size([2, 100, 64])
        >>> outputs.sam_hidden_states[-1].shape, outputs.hidden_states[-1].shape  # of the last block of each half
        (torch.Size([1, 64, 64, 32]), torch.Size([1, 257, 32]))
        ```
        """
        options = check_options(kwargs, "DeepEncoder")
        grids, counts = self.check_inputs(pixel_values, pixel_values_local, patches_grid, num_local_patches)
        for flag in ("output_hidden_states", "output_attentions"):
            if getattr(self.config, flag):
                options.setdefault(flag, True)
        _, view_tokens, output = self.encode_view(pixel_values, **options)
        tiles: list[torch.Tensor | None] = [None] * len(grids)
        if pixel_values_local is not None and any(counts):
            local_fused, tile_tokens, local_output = self.encode_view(pixel_values_local, **options)
            output.local_last_hidden_state = local_fused
            output.local_hidden_states = local_output.hidden_states
            output.local_attentions = local_output.attentions
            output.local_sam_hidden_states = local_output.sam_hidden_states
            output.local_sam_attentions = local_output.sam_attentions
            tiles = [part if len(part) else None for part in tile_tokens.split(counts)]

        newline = self.image_newline.to(view_tokens.device, view_tokens.dtype)
        separator = self.view_separator.to(view_tokens.device, view_tokens.dtype)
        if isinstance(view_tokens.shape[0], torch.SymInt):
            output.vision_tokens = lay_out_vision_tokens(view_tokens, None, (1, 1), newline, separator)
            return output
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
    ) -> DeepEncoderOutput:
        """Encode pages for a language model, by transformers' convention for vision-language models.

        The arguments are those of `forward`.

        Returns:
            [`DeepEncoderOutput`] whose `pooler_output` is the list of the images' `vision_tokens`; its other fields
            are those of `forward`.
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
        output.pooler_output = list(output.vision_tokens)  # the convention of get_image_features
        return output
