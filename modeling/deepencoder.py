"""The DeepEncoder: SAM, CLIP on SAM's feature map, a projector, and DeepSeek-OCR's token layout.

Unusual: CLIP has no patch embedding, since SAM's feature map takes its place, and a token is the concatenation of what
CLIP and SAM say of the same cell. What happens to pages with tiles is in `pages.py`.
"""

from typing import Any

import torch
from torch import nn
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from ..configuration.deepencoder import DeepEncoderConfig
from ..configuration.package_services import call_service
from .clip_vision_encoder import ClipVisionEncoder
from .pages import DeepEncoderOutput, EncodedViews, PagePreTrainedModel, Projector
from .sam_encoder import SamEncoder
from .vision_tokens import lay_out_vision_tokens

__all__ = ["DeepEncoder"]


class DeepEncoder(PagePreTrainedModel):
    """DeepSeek-OCR's vision encoder, which turns pages into vision tokens.

    Source: Wei et al., *DeepSeek-OCR: Contexts Optical Compression* (2025).

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

    config: DeepEncoderConfig
    base_model_prefix = "deepencoder"
    _no_split_modules = [*SamEncoder._no_split_modules, *ClipVisionEncoder._no_split_modules, "Projector"]
    second_part = "clip_encoder"
    bare_parameters = ("image_newline", "view_separator")

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
        self.projector = Projector(config)
        self.image_newline = nn.Parameter(torch.zeros(config.projection_dim))
        self.view_separator = nn.Parameter(torch.zeros(config.projection_dim))
        self.post_init()

    def encode_views(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> EncodedViews:
        """Encode views together; see [`PagePreTrainedModel.encode_view`]."""
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

    def lay_out(self, view: torch.Tensor, tiles: torch.Tensor | None, tile_grid: tuple[int, int]) -> torch.Tensor:
        """Lay out tokens in rows, with newlines; see [`PagePreTrainedModel.lay_out`]."""
        newline = self.image_newline.to(view.device, view.dtype)
        separator = self.view_separator.to(view.device, view.dtype)
        return lay_out_vision_tokens(view, tiles, tile_grid, newline, separator)
