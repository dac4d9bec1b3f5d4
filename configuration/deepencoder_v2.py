"""Configuration of the DeepEncoder of DeepSeek-OCR-2: a SAM encoder, a query encoder and a projector.

Unusual: views of only a few sizes can be encoded, those in `query_sizes`, because each has its own table of learned
queries: one query for each position of SAM's map.
"""

from reprlib import repr as shorten
from typing import Any

from huggingface_hub.dataclasses import strict

from .composite import CompositeConfig
from .query_encoder import QueryEncoderConfig
from .sam_encoder import SamEncoderConfig
from .validation import MAX_QUERY_TABLES, MAX_SIDE, check_parameters, raises_value_errors

__all__ = ["DeepEncoderV2Config"]


@raises_value_errors
@strict
class DeepEncoderV2Config(CompositeConfig):
    r"""Configuration of a [`DeepEncoderV2`]. The defaults are DeepSeek-OCR-2's vision encoder.

    Args:
        sam_config (`SamEncoderConfig` or `dict`, *optional*): configuration of the SAM half; defaults to the published
            one, whose map has 896 channels.
        query_config (`QueryEncoderConfig` or `dict`, *optional*): configuration of the query encoder; defaults to the
            published one.
        query_sizes (`tuple[int, ...]`, defaults to `(768, 1024)`): sides, in pixels, of the views that can be
            encoded, ascending. A view of `size` pixels has `(size / total_stride) ** 2` queries: 144 and 256. Any
            other size is an error, as there are no queries for it.
        projector_type (`str`, defaults to `"linear"`): as in [`DeepEncoderConfig`].
        projector_depth (`int`, defaults to 1): as in [`DeepEncoderConfig`].
        projection_dim (`int`, defaults to 1280): width of a vision token.
        initializer_range (`float`, defaults to 0.02): standard deviation of new queries and of a new projector.

    Raises:
        `ValueError`: the number of SAM's output channels is not the `hidden_size` of `query_config`, `query_sizes` are
            not ascending multiples of SAM's total stride, or a part is invalid.
    """

    model_type = "deepencoder_v2"
    sub_configs = {"sam_config": SamEncoderConfig, "query_config": QueryEncoderConfig}
    part_defaults = {"sam_config": {"downsample_channels": (512, 896)}}
    token_scheme = "queries"

    sam_config: Any = None
    query_config: Any = None
    query_sizes: list[int] | tuple[int, ...] = (768, 1024)

    def __post_init__(self, **kwargs: Any) -> None:
        self.query_sizes = tuple(self.query_sizes)  # JSON has no tuples.
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Raise `ValueError` if the parts do not fit together."""
        super().validate_architecture()
        if self.sam_config.out_hidden_size != self.query_config.hidden_size:
            raise ValueError(
                "DeepEncoderV2Config: the last of sam_config.downsample_channels must equal query_config.hidden_size, "
                f"got {self.sam_config.out_hidden_size} and {self.query_config.hidden_size}."
            )
        sizes, stride = self.query_sizes, self.sam_config.total_stride
        if not 0 < len(sizes) <= MAX_QUERY_TABLES or list(sizes) != sorted(set(sizes)):
            raise ValueError(
                f"DeepEncoderV2Config.query_sizes must hold 1 to {MAX_QUERY_TABLES} sizes, ascending, got "
                f"{shorten(sizes)}."
            )
        for size in sizes:
            if type(size) is not int or not 0 < size <= MAX_SIDE or size % stride:
                raise ValueError(
                    f"DeepEncoderV2Config.query_sizes must be multiples of the total stride {stride} of sam_config, "
                    f"positive and at most {MAX_SIDE}, got {shorten(size)}."
                )
        check_parameters(self, sum(self.query_counts) * self.hidden_size, "query_sizes")

    @property
    def query_counts(self) -> tuple[int, ...]:
        """Number of learned queries of a view of each of the `query_sizes`."""
        return tuple((size // self.sam_config.total_stride) ** 2 for size in self.query_sizes)

    @property
    def hidden_size(self) -> int:
        """Width of a query."""
        return self.query_config.hidden_size

    @property
    def pooled_size(self) -> int:
        """Width of `pooler_output`, which is a query."""
        return self.query_config.hidden_size

    @classmethod
    def tiny(cls, image_size: int = 256, **overrides: Any) -> "DeepEncoderV2Config":
        """A model of 0.1M parameters with every part of the published one, for tests and demos.

        Args:
            image_size (`int`, defaults to 256): side, in pixels, of the images that the position tables are made for.
                There are queries for views of three quarters of this size, if that is a multiple of the stride, of
                this size, and of the published sizes.
        """
        sam_config = SamEncoderConfig.tiny(image_size=image_size)
        stride = sam_config.total_stride
        sizes = {size for size in (image_size * 3 // 4, image_size, 768, 1024) if size and size % stride == 0}
        defaults: dict[str, Any] = {
            "sam_config": sam_config,
            "query_config": QueryEncoderConfig.tiny(),
            "query_sizes": tuple(sorted(sizes)),
        }
        if overrides.get("projector_type") != "identity":
            defaults["projection_dim"] = 48
        return cls(**(defaults | overrides))
