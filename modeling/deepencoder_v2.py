"""The DeepEncoder of DeepSeek-OCR-2: SAM, learned queries that read SAM's map, and a projector.

Unusual: a vision token is no cell of the page. It is what one learned query has read, and the queries read one after
another, like a language model. Each size of views has its own table of queries, with one query for each position of
SAM's map, so that only views of `query_sizes` pixels can be encoded.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from ..configuration.deepencoder_v2 import DeepEncoderV2Config
from .pages import DeepEncoderOutput, EncodedViews, PagePreTrainedModel, Projector
from .query_encoder import QueryEncoder
from .sam_encoder import SamEncoder
from .vision_tokens import join_vision_tokens

__all__ = ["DeepEncoderV2"]


class LearnedQueries(nn.Module):
    """The tables of learned queries, `table_0` for views of the first of `query_sizes` and so on.

    Every table takes part in each forward pass, so that all of them have gradients in data-parallel training.
    """

    def __init__(self, config: DeepEncoderV2Config) -> None:
        super().__init__()
        self.sizes, self.counts = config.query_sizes, config.query_counts
        self.initializer_range = config.initializer_range
        for index, count in enumerate(self.counts):
            self.register_parameter(f"table_{index}", nn.Parameter(torch.zeros(count, config.hidden_size)))

    def forward(self, height: int, width: int) -> torch.Tensor:
        """Return the queries `(n, hidden)` for views of this height and width in pixels."""
        wanted = [index for index, size in enumerate(self.sizes) if height == width == size]
        if not wanted:
            sizes = " or ".join(map(str, self.sizes))
            raise ValueError(
                f"pixel_values must be square views of {sizes} pixels, for which there are learned queries, got "
                f"{height} x {width}."
            )
        tables = [getattr(self, f"table_{index}") for index in range(len(self.counts))]
        return torch.cat(tables).split(self.counts)[wanted[0]]


class DeepEncoderV2(PagePreTrainedModel):
    """DeepSeek-OCR-2's vision encoder, which turns pages into vision tokens.

    Source: DeepSeek-AI, *DeepSeek-OCR 2: Visual Causal Flow* (2026).

    Example:

    ```python
    >>> import torch
    >>> from deepencoder import DeepEncoderImageProcessor, DeepEncoderV2, DeepEncoderV2Config

    >>> model = DeepEncoderV2(DeepEncoderV2Config.tiny()).eval()
    >>> processor = DeepEncoderImageProcessor(mode="v2")
    >>> inputs = processor(torch.zeros(3, 1536, 768), return_tensors="pt")  # a page of two tiles
    >>> with torch.no_grad():
    ...     outputs = model(**inputs)
    >>> outputs.vision_tokens[0].shape  # 2 * 144 + 256 queries, and the separator
    torch.Size([545, 48])
    >>> outputs.last_hidden_state.shape  # of the global view
    torch.Size([1, 256, 32])
    >>> outputs.local_last_hidden_state.shape  # of its tiles
    torch.Size([2, 144, 32])
    ```
    """

    config: DeepEncoderV2Config
    base_model_prefix = "deepencoder_v2"
    _no_split_modules = [*SamEncoder._no_split_modules, *QueryEncoder._no_split_modules, "LearnedQueries", "Projector"]
    second_part = "query_encoder"
    bare_parameters = ("view_separator",)

    def __init__(self, config: DeepEncoderV2Config) -> None:
        super().__init__(config)
        self.sam_encoder = SamEncoder(config.sam_config)
        self.queries = LearnedQueries(config)
        self.query_encoder = QueryEncoder(config.query_config)
        self.projector = Projector(config)
        self.view_separator = nn.Parameter(torch.zeros(config.projection_dim))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LearnedQueries):
            for table in module.parameters(recurse=False):
                init.normal_(table, std=module.initializer_range)

    def encode_views(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> EncodedViews:
        """Encode views together; see [`PagePreTrainedModel.encode_view`].

        Raises:
            `ValueError`: there are no queries for views of this size.
        """
        queries = self.queries(pixel_values.shape[2], pixel_values.shape[3])
        sam_output = self.sam_encoder(pixel_values, **self.options_of(self.sam_encoder, kwargs))
        image_tokens = sam_output.last_hidden_state.flatten(2).transpose(1, 2)  # (views, c, h, w) -> (views, h * w, c)
        output = self.query_encoder(image_tokens, queries=queries, **self.options_of(self.query_encoder, kwargs))
        read = output.last_hidden_state
        return (
            read,
            self.projector(read),
            DeepEncoderOutput(
                last_hidden_state=read,
                pooler_output=read[:, -1],
                hidden_states=output.hidden_states,
                attentions=output.attentions,
                sam_hidden_states=sam_output.hidden_states,
                sam_attentions=sam_output.attentions,
            ),
        )

    def lay_out(self, view: torch.Tensor, tiles: torch.Tensor | None, tile_grid: tuple[int, int]) -> torch.Tensor:
        """Join the queries of the tiles, those of the view, and the separator."""
        return join_vision_tokens(view, tiles, self.view_separator.to(view.device, view.dtype))
