"""Pages as the input of sentence-transformers: a module that turns images into token embeddings with a mask.

Unusual: a token that shows only the padding of its page is masked like the padding of the batch, so that neither mean
pooling nor MaxSim sees it. The folder that a model is saved to is at the same time that of its DeepEncoder, so
`AutoModel` loads it as well.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from ..configuration.composite import reads_pages
from ..extraction.outputs import OUTPUTS, VectorInputs, check_outputs, take_outputs
from ..processing.images import to_rgb
from ..processing.token_layout import TokenLayout
from ..processing.token_pooling import VectorOptions

try:
    from sentence_transformers.base.modules import InputModule
except ImportError as error:
    raise ImportError('PageEmbedder needs sentence-transformers 6: pip install "deepencoder[search]".') from error

__all__ = ["PageEmbedder"]


def _mask_vision_tokens(layout: TokenLayout) -> np.ndarray:
    """Return which vision tokens `(L,)` show any of the page. Newlines and the separator do not."""
    return np.isin(layout.kind, ("tile", "view", "query")) & ~layout.is_padding


def _mask_tokens(layout: TokenLayout) -> np.ndarray:
    """Return which tokens show any of the page: those of the view, and then those of each tile."""
    shown = _mask_vision_tokens(layout)
    return np.concatenate([shown[layout.view_index].ravel(), shown[layout.tile_index].ravel()])


def _mask_view(layout: TokenLayout) -> np.ndarray:
    """Return which tokens `(h, w)` of the global view show any of the page."""
    return _mask_vision_tokens(layout)[layout.view_index]


POOLED = "pooled"
MASKS: dict[str, Callable[[TokenLayout], np.ndarray]] = {
    "tokens": _mask_tokens,
    "vision_tokens": _mask_vision_tokens,
    "multi_vector": _mask_view,
}
"""For each output with a vector for each token, the function that says which tokens show any of a page. For
`multi_vector` these are the tokens that are averaged; there, a vector of zeros shows nothing of the page."""


class PageEmbedder(InputModule):
    """The first module of a `SentenceTransformer` or a `MultiVectorEncoder` that reads pages.

    ```python
    embedder = PageEmbedder(model, image_processor, output="multi_vector")
    pages = MultiVectorEncoder(modules=[embedder])
    scores = pages.similarity(pages.encode(["query.png"]), pages.encode(["one.png", "two.png"]))
    ```

    Inputs are images as the image processor takes them: `PIL.Image`, arrays and tensors with three dimensions, paths
    and URLs; or `{"image": image}`. Pages of a batch may have any sizes, and different numbers of tiles.

    Needs sentence-transformers 6. To load what was saved, it asks for `trust_remote_code=True`, as it does for every
    module that is not its own; `save` writes no code, and `load` runs none.

    Args:
        model ([`DeepEncoder`] or [`DeepEncoderV2`]): the encoder.
        processor ([`DeepEncoderImageProcessor`]): its image processor.
        output (`str`, defaults to `"tokens"`): one of the outputs of `deepencoder extract`: `"pooled"` gives a
            `sentence_embedding` `(batch, pooled)`. `"tokens"`, `"vision_tokens"` and `"multi_vector"` give
            `token_embeddings` `(batch, n, width)` and an `attention_mask` `(batch, n)`, which is 0 for the padding of
            pages and of the batch, for newlines and for the separator.
        mode (`str`, *optional*): a mode that overrides the image processor's own fields.
        vector_pool (`int`, defaults to 2), vector_width (`int`, defaults to 128): for `"multi_vector"`, the side of a
            cell in tokens and the length of a vector; see [`VectorOptions`].

    Raises:
        `ValueError`: the model is no [`DeepEncoder`], or another argument has none of the values above.
    """

    config_file_name = "page_embedder.json"
    config_keys = ["output", "mode", "vector_pool", "vector_width"]
    model: Any
    vectors: VectorOptions
    projection: torch.Tensor | None

    def __init__(
        self,
        model: Any,
        processor: Any,
        output: str = "tokens",
        *,
        mode: str | None = None,
        vector_pool: int = VectorOptions.pool,
        vector_width: int = VectorOptions.width,
    ) -> None:
        super().__init__()
        if not reads_pages(getattr(model, "config", None)):
            raise ValueError(f"model must be a DeepEncoder, got a {type(model).__name__}.")
        if output not in (POOLED, *MASKS):
            raise ValueError(f"output must be one of {', '.join(map(repr, (POOLED, *MASKS)))}, got {output!r}.")
        check_outputs((output,), "float32", model.config)
        self.vectors = VectorOptions(vector_pool, vector_width)
        processor.get_tile_grid(1, 1, mode)  # checks the mode
        self.model, self.processor = model, processor
        self.tokenizer = None  # type: ignore[assignment]  # sentence-transformers asks every model for one.
        self.output, self.mode, self.vector_pool, self.vector_width = output, mode, vector_pool, vector_width
        projection = self.vectors.make_projection(model.config.hidden_size) if output == "multi_vector" else None
        # A buffer moves with the module. It is not saved, since it follows from its size.
        self.register_buffer(
            "projection", None if projection is None else torch.from_numpy(projection), persistent=False
        )

    @property
    def modalities(self) -> list[Any]:
        return ["image"]

    def get_embedding_dimension(self) -> int:
        """Return the length of the vectors that this module gives."""
        return OUTPUTS[self.output].width(self.model.config, self.vectors)

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Turn a batch of pages into what `forward` takes.

        Args:
            inputs: images, or dictionaries with an `image` each.
            prompt, kwargs: ignored; pages have no prompts.

        Raises:
            `ValueError`: an image cannot be used; the message names it.
        """
        images = [
            to_rgb(value["image"] if isinstance(value, dict) and "image" in value else value, index)
            for index, value in enumerate(inputs)
        ]
        features = dict(self.processor(images, mode=self.mode, return_tensors="pt"))
        # As lists, these two are not moved to a GPU, where reading them would wait for it.
        features |= {name: features[name].tolist() for name in ("patches_grid", "num_local_patches")}
        if self.output != POOLED:
            mask = MASKS[self.output]
            layouts = (self.processor.get_token_layout(image.height, image.width, mode=self.mode) for image in images)
            features["attention_mask"] = pad_sequence(
                [torch.from_numpy(mask(layout)) for layout in layouts], batch_first=True
            )
        return features

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Encode a batch of pages; see the class for what is added to `features`."""
        encoded = self.model(
            pixel_values=features["pixel_values"],
            pixel_values_local=features.get("pixel_values_local"),
            patches_grid=features["patches_grid"],
        )
        if self.output == POOLED:
            return features | {"sentence_embedding": encoded.pooler_output}
        mask, vector_inputs = features["attention_mask"], None
        if self.output == "multi_vector":
            vector_inputs = VectorInputs(mask, self.vectors.pool, self.projection)
        pages = take_outputs(encoded, features["num_local_patches"], (self.output,), vector_inputs)
        vectors = [page[self.output].to(encoded.last_hidden_state.dtype) for page in pages]
        embeddings = pad_sequence(vectors, batch_first=True)  # (batch, n, width)
        mask = embeddings.any(-1) if vector_inputs else mask
        return features | {"token_embeddings": embeddings, "attention_mask": mask.long()}

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Save the encoder, its image processor and the arguments of this module to a folder, as safetensors."""
        self.model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)
        self.save_config(output_path)

    @classmethod
    def load(  # type: ignore[override]  # It takes what sentence-transformers passes to every module, by name.
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        cache_folder: str | None = None,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        backend: str = "torch",
        **kwargs: Any,
    ) -> "PageEmbedder":
        """Load what [`save`] saved, from a folder or from the Hub. No code of the repository is run.

        Args:
            model_name_or_path, subfolder, cache_folder, kwargs: as sentence-transformers passes them: `token`,
                `revision` and `local_files_only` decide what is loaded.
            model_kwargs, processor_kwargs (`dict`, *optional*): for `from_pretrained` of the model and of the image
                processor: `dtype`, `device_map` and so on.
            backend (`str`): `"torch"`, as there is no other.

        Raises:
            `ValueError`: another backend, or the model is no [`DeepEncoder`].
        """
        if backend != "torch":
            raise ValueError(f"backend must be 'torch', got {backend!r}.")
        place: dict[str, Any] = {
            name: kwargs[name] for name in ("token", "revision", "local_files_only") if name in kwargs
        }
        settings = cls.load_config(model_name_or_path, subfolder=subfolder, cache_folder=cache_folder, **place)
        place |= {"subfolder": subfolder, "cache_dir": cache_folder}
        config = AutoConfig.from_pretrained(model_name_or_path, **place)
        if not reads_pages(config):
            raise ValueError(f"model_name_or_path must name a DeepEncoder, got a {config.model_type!r}.")
        model = AutoModel.from_pretrained(model_name_or_path, **place, **(model_kwargs or {}))
        processor = AutoImageProcessor.from_pretrained(model_name_or_path, **place, **(processor_kwargs or {}))
        known = {name: value for name, value in settings.items() if name in cls.config_keys}
        return cls(model, processor, **known)
