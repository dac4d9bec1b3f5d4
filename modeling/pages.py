"""What whole encoders share: a page's view and tiles, the checks of both, and the fields that come out.

Unusual: each image has a global view and, in some modes, local tiles of another size. Images of one batch may have
different numbers of tiles. All tiles run as one batch, and `vision_tokens` is a tuple with one tensor for each image.
What a model computes of a view, and how the tokens of an image's views become one sequence, its own file says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .base import DeepEncoderPreTrainedModel
from .inputs import check_options, check_pixel_values
from .memory_budgets import MEMORY_BUDGETS, split_views
from .onednn import Linear
from .vision_tokens import read_tile_grids

__all__ = ["DeepEncoderOutput", "EncodedViews", "PagePreTrainedModel", "Projector"]


@dataclass
class DeepEncoderOutput(BaseModelOutputWithPooling):
    """What a [`DeepEncoder`] or a [`DeepEncoderV2`] returns.

    The fields of tiles are None without tiles, those on request without request. The vision tokens of a page are laid
    out like this:

    ```
     tile 1 | tile 2     DeepEncoder: the tiles, stitched to a mosaic of columns x rows tiles: row by row, a newline
     -------+-------     token after each row of the mosaic (not of each tile)
     tile 3 | tile 4     DeepEncoderV2: the queries of the first tile, those of the second, and so on
     ---------------
       global view       DeepEncoder: row by row, a newline token after each row
                         DeepEncoderV2: its queries
     ---------------
       separator         one token
    ```

    `processor.get_token_layout(height, width)` gives the kind of each token and its box on the page.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch, n, hidden)`): tokens of the global view. [`DeepEncoder`]:
            fused tokens, CLIP's channels before SAM's, row-major. [`DeepEncoderV2`]: the outputs of the learned
            queries.
        pooler_output (`torch.Tensor` of shape `(batch, pooled)`): one vector for each global view. [`DeepEncoder`]:
            CLIP's class token. [`DeepEncoderV2`]: the last query, the only one that has read the image and all other
            queries.
        hidden_states (`tuple[torch.Tensor]`, *optional*): on request, the hidden states of the second part for the
            global view: its input and the output of each block. [`DeepEncoder`]: CLIP's, `(batch, 1 + h * w,
            clip_hidden)`, the class token first. [`DeepEncoderV2`]: the query encoder's, `(batch, h * w + n, hidden)`,
            the image first.
        attentions (`tuple[torch.Tensor]`, *optional*): on request, the attention weights of the second part for the
            global view, `(batch, heads, N, N)` for each block, with the `N` positions of `hidden_states`.
        vision_tokens (`tuple[torch.Tensor]`): for each image its projected tokens, of shape `(L_i, projection_dim)`,
            in the order that the decoder reads. In a graph of `torch.export` for batches of any size, one tensor of
            shape `(batch, L, projection_dim)`.
        local_last_hidden_state (`torch.Tensor` of shape `(tiles, n, hidden)`, *optional*): tokens of the tiles.
        local_hidden_states (`tuple[torch.Tensor]`, *optional*): `hidden_states` of the tiles.
        local_attentions (`tuple[torch.Tensor]`, *optional*): `attentions` of the tiles.
        sam_hidden_states (`tuple[torch.Tensor]`, *optional*): on request, SAM's hidden states of the global view: the
            embedded patches and the output of each block, `(batch, H / 16, W / 16, sam_hidden)`. A fused token covers
            4 x 4 of these patches.
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
    """Concatenate the results of [`PagePreTrainedModel.encode_view`] for the parts of a batch."""
    tokens = torch.cat([part[1] for part in parts])
    outputs = [part[2] for part in parts]
    output = DeepEncoderOutput(**{name: _join([output[name] for output in outputs]) for name in outputs[0]})
    return output.last_hidden_state, tokens, output  # type: ignore[return-value]  # always a tensor here


class Projector(nn.Module):
    """Projects tokens to vision tokens: `(.., hidden)` -> `(.., projection_dim)`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        if config.projector_type != "identity":
            self.layers.append(Linear(config.hidden_size, config.projection_dim))
        if config.projector_type == "mlp_gelu":
            for _ in range(config.projector_depth - 1):
                self.layers.append(nn.GELU())
                self.layers.append(Linear(config.projection_dim, config.projection_dim))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.layers(tokens)


class PagePreTrainedModel(DeepEncoderPreTrainedModel):
    """Base class of the models that turn pages into vision tokens.

    A subclass has the part `sam_encoder`, a second part that reads SAM's map, whose name is `second_part`, and a
    `projector`. It computes a view in `encode_views` and lays out an image's tokens in `lay_out`.
    """

    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _can_compile_fullgraph = True
    _input_embed_layer = "patch_embedding"
    memory_budgets = MEMORY_BUDGETS
    sam_encoder: Any
    projector: Any
    second_part: ClassVar[str]
    bare_parameters: ClassVar[tuple[str, ...]]
    """Names of the parameters of the model itself, which are special tokens of width `projection_dim`."""

    @classmethod
    def from_pretrained(cls, *args: Any, device_map: Any = None, **kwargs: Any) -> Any:
        """Load a model as transformers' `from_pretrained` does, with any `device_map` that it accepts."""
        if isinstance(device_map, dict) and "disk" in device_map.values():
            # accelerate's hooks load modules from disk, but no bare parameters. These have 10 KB: keep them.
            main_device = next((device for device in device_map.values() if device not in ("cpu", "disk")), "cpu")
            kept = {name: main_device for name in cls.bare_parameters if device_map.get(name) == "disk"}
            device_map = device_map | kept
        return super().from_pretrained(*args, device_map=device_map, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PagePreTrainedModel):
            for name in module.bare_parameters:
                init.normal_(getattr(module, name), std=self.config.projection_dim**-0.5)

    def get_input_embeddings(self) -> nn.Module:
        return self.sam_encoder.embeddings.patch_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.sam_encoder.embeddings.patch_embedding = value

    def options_of(self, part: nn.Module, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options for one part, which is not asked for attention weights that only the other computes."""
        parts = (self.sam_encoder, getattr(self, self.second_part))
        eager = [one for one in parts if one.config._attn_implementation == "eager"]
        others = {"output_attentions": False} if len(eager) == 1 and part is not eager[0] else {}
        return {**options, **others, "return_dict": True}

    def encode_view(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> EncodedViews:
        """Encode views of one size, whichever images they belong to.

        In inference, large batches are split into parts; see `MemoryBudgets.views`.

        Args:
            pixel_values (`torch.Tensor` of shape `(views, channels, height, width)`): normalised pixels.

        Returns:
            the tokens, `(views, n, hidden)`, the projected tokens, `(views, h, w, projection_dim)` or, where they form
            no grid, `(views, n, projection_dim)`, and a [`DeepEncoderOutput`] of these views without `vision_tokens`.
        """
        sam_config = self.config.sam_config
        check_pixel_values(pixel_values, "pixel_values", sam_config.num_channels, sam_config.patch_size)
        parts = split_views(pixel_values, sam_config, self.dtype, self.memory_budgets)
        if len(parts) > 1:
            return join_views([self.encode_views(part, **kwargs) for part in parts])
        return self.encode_views(pixel_values, **kwargs)

    def encode_views(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> EncodedViews:
        """Encode views together; see [`encode_view`]."""
        raise NotImplementedError

    def lay_out(self, view: torch.Tensor, tiles: torch.Tensor | None, tile_grid: tuple[int, int]) -> torch.Tensor:
        """Lay out the projected tokens of one image's views as the decoder reads them.

        Args:
            view: those of the global view, without the first axis of what `encode_view` returns; without tiles, also
                those of a batch, with it.
            tiles: those of its tiles, row-major, or None.
            tile_grid: columns and rows of tiles.

        Returns:
            `torch.Tensor` of shape `(L, projection_dim)`, or `(batch, L, projection_dim)`.
        """
        raise NotImplementedError

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
            kwargs: `output_hidden_states=True` and `output_attentions=True` ask for those of both parts:
                `hidden_states`, `attentions` (of the second part), `sam_hidden_states`, `sam_attentions` and, with
                tiles, `local_hidden_states`, `local_attentions`, `local_sam_hidden_states`, `local_sam_attentions`.
                Only a part that runs `attn_implementation="eager"` gives attention weights. `return_dict=False`
                returns a tuple.

        Returns:
            [`DeepEncoderOutput`], which describes each field.

        Raises:
            `TypeError`: pixels that are not a tensor, or an unknown option.
            `ValueError`: pixels that are not floats or have a wrong shape, or tiles that do not fit `patches_grid`.
        """
        options = check_options(kwargs, type(self).__name__)
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

        if isinstance(view_tokens.shape[0], torch.SymInt):
            output.vision_tokens = self.lay_out(view_tokens, None, (1, 1))
            return output
        output.vision_tokens = tuple(
            self.lay_out(view, image_tiles, grid)
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
