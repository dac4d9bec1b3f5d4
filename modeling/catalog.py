"""One row a model: its classes, what it is called, and what it gives.

Unusual: registration, conversion, export, sharing and the command line all read this table, so that a new model is one
more row. It does not travel to the Hub with the models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from .clip_vision_encoder import ClipVisionEncoder
from .deepencoder import DeepEncoder
from .deepencoder_v2 import DeepEncoderV2
from .sam_encoder import SamEncoder

__all__ = ["MODELS", "ModelKind", "model_kind"]


@dataclass(frozen=True)
class ModelKind:
    """What the rest of the package needs to know of one of our models.

    Args:
        model_class: the class that `AutoModel` loads.
        summary: what the model is, in a sentence or two, for its model card.
        main_output: Python expression of the output that most users want, given `outputs`.
        exported_outputs: names of the outputs of an exported graph, in their order, with shapes and meaning.
    """

    model_class: type[PreTrainedModel]
    summary: str
    main_output: str
    exported_outputs: Mapping[str, str]

    @property
    def config_class(self) -> Any:
        return self.model_class.config_class

    @property
    def model_type(self) -> str:
        return str(self.config_class.model_type)

    @property
    def name(self) -> str:
        """The name of the model's class."""
        return self.model_class.__name__


MODELS: dict[str, ModelKind] = {
    kind.model_type: kind
    for kind in (
        ModelKind(
            DeepEncoder,
            summary="DeepSeek-OCR's vision encoder: a SAM ViT, a 16x convolutional compressor, a CLIP ViT on the "
            "compressed map, and a projector. It turns a page into vision tokens.",
            main_output="outputs.vision_tokens[0]",
            exported_outputs={
                "last_hidden_state": "(batch, tokens, hidden): fused tokens, CLIP's channels before SAM's, row-major",
                "pooler_output": "(batch, clip_hidden): CLIP's class token",
                "projected_tokens": "(batch, tokens, projection_dim): projected tokens, row-major; those of tiles "
                "are still to be stitched",
                "vision_tokens": "(batch, length, projection_dim): tokens of a page without tiles, with newlines and "
                "separator",
                "image_newline": "(projection_dim,): the token after each row of the mosaic of tiles and of the view",
                "view_separator": "(projection_dim,): the last token of a page",
            },
        ),
        ModelKind(
            DeepEncoderV2,
            summary="DeepSeek-OCR-2's vision encoder: a SAM ViT, a 16x convolutional compressor, learned queries that "
            "read the compressed map in a language model's layers, and a projector. It turns a page into vision "
            "tokens.",
            main_output="outputs.vision_tokens[0]",
            exported_outputs={
                "last_hidden_state": "(batch, queries, hidden): the queries' outputs",
                "pooler_output": "(batch, hidden): the last query, which has read the image and all other queries",
                "projected_tokens": "(batch, queries, projection_dim): projected queries",
                "vision_tokens": "(batch, queries + 1, projection_dim): tokens of a page without tiles, with the "
                "separator",
                "view_separator": "(projection_dim,): the last token of a page",
            },
        ),
        ModelKind(
            SamEncoder,
            summary="A SAM image encoder with the convolutional compressor of DeepSeek-OCR, GOT-OCR and Vary. It "
            "turns pixels into a feature map.",
            main_output="outputs.last_hidden_state",
            exported_outputs={"last_hidden_state": "(batch, channels, rows, columns): the feature map"},
        ),
        ModelKind(
            ClipVisionEncoder,
            summary="A CLIP image tower, or a plain ViT. It turns pixels into tokens and a class token.",
            main_output="outputs.pooler_output",
            exported_outputs={
                "last_hidden_state": "(batch, 1 + tokens, hidden): the class token first",
                "pooler_output": "(batch, hidden): the pooled class token",
            },
        ),
    )
}
"""The models of this package, by `model_type`."""


def model_kind(model: Any) -> ModelKind | None:
    """Return the row of a model or configuration, or None if it is not one of this package."""
    config = getattr(model, "config", model)
    return MODELS.get(getattr(config, "model_type", ""))
