"""The image processor: it turns pages into a global view and, on request, local tiles.

Unusual: pixels equal those of Pillow's `ImageOps.pad` and `resize` bit for bit, because Pillow does the resizing;
torchvision is not needed. A mode is only a named set of the ordinary fields.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    ChannelDimension,
    PILImageResampling,
)
from transformers.processing_utils import ImagesKwargs
from transformers.utils import IMAGE_PROCESSOR_NAME, TensorType

from ..configuration.package_services import call_service
from ..configuration.remote_code import SharedPart
from .field_checks import check_fields, check_types
from .images import flatten_images, to_rgb
from .modes import MODES, mode_fields
from .normalization import Normalization
from .placement import PageGeometry
from .token_layout import TokenLayout, find_view_padding, lay_out_tokens
from .views import make_global_views, make_tiles

__all__ = ["DeepEncoderImageProcessor", "DeepEncoderImageProcessorKwargs"]


class DeepEncoderImageProcessorKwargs(ImagesKwargs, total=False):
    """Fields of [`DeepEncoderImageProcessor`] beyond those of every image processor.

    Args:
        crop_to_patches (`bool`): whether to cut images larger than a tile into tiles, in addition to the global view.
        min_patches (`int`): minimum number of tiles of an image that is cut.
        max_patches (`int`): maximum number of tiles, at most 1024.
        tile_size (`int`): side of a tile in pixels. `max_patches` tiles may have 2**27 pixels: 327 tiles of 640 x 640.
        background_color (`int` or `tuple[int, int, int]`): colour of the padding, each channel in [0, 255].
        patch_size (`int`): side of the encoder's patches in pixels; only used to count tokens.
        downsample_ratio (`int`): number of patches along the side of a token; only used to count tokens.
        token_scheme (`str`): `"cells"` if a token is a cell of a view, with newlines after each row, as in a
            [`DeepEncoder`]; `"queries"` if it is a learned query, as in a [`DeepEncoderV2`]. Only used to count and to
            locate tokens.
    """

    # transformers accepts only floats here, but a file may just as well say 0 or 1.
    rescale_factor: float | int | None
    image_mean: float | int | list[float | int] | tuple[float | int, ...] | None
    image_std: float | int | list[float | int] | tuple[float | int, ...] | None
    crop_to_patches: bool
    min_patches: int
    max_patches: int
    tile_size: int
    background_color: int | list[int] | tuple[int, ...]
    patch_size: int
    downsample_ratio: int
    token_scheme: str


class DeepEncoderImageProcessor(SharedPart, PilBackend):
    r"""Prepares pages for a [`DeepEncoder`] or a [`DeepEncoderV2`] in the same way as DeepSeek-OCR.

    | mode | global view | tiles |
    |---|---|---|
    | tiny | 512 pixels, squashed | |
    | small | 640 pixels, squashed | |
    | base | 1024 pixels, padded | |
    | large | 1280 pixels, padded | |
    | gundam | 1024 pixels, padded | `min_patches` to `max_patches` of 640 pixels |
    | v2 | 1024 pixels, padded | 2 to 6 of 768 pixels |

    The mode `"v2"` is that of a [`DeepEncoderV2`].

    Args:
        mode (`str`, *optional*): name of a mode, which sets `size`, `do_pad`, `crop_to_patches` and `tile_size`;
            `"v2"` also sets `min_patches`, `max_patches` and `token_scheme`. Each of these can also be given
            explicitly and then takes precedence. The default fields are those of `"base"`.
        kwargs: the fields of [`DeepEncoderImageProcessorKwargs`]. `size` is the size of the global view in pixels.
            With `do_pad`, images keep their aspect ratio and are padded to that size; without, they are squashed.

    Raises:
        `ValueError`: a field has a wrong type or value, or would take more memory than `field_checks.py` allows.
    """

    _shared_as = ("AutoImageProcessor", IMAGE_PROCESSOR_NAME)
    valid_kwargs = DeepEncoderImageProcessorKwargs
    model_input_names = ["pixel_values", "pixel_values_local", "patches_grid", "num_local_patches"]

    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    size = {"height": 1024, "width": 1024}
    do_resize = True
    do_pad = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    crop_to_patches = False
    min_patches = 2
    max_patches = 9
    tile_size = 640
    background_color = (127, 127, 127)
    patch_size = 16
    downsample_ratio = 4
    token_scheme = "cells"

    def __init__(self, mode: str | None = None, **kwargs: Any) -> None:
        super().__init__(**(mode_fields(mode) | kwargs))

    @classmethod
    def get_image_processor_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read saved fields as transformers does; a file that is nested too deeply is a `ValueError`, too."""
        try:
            return super().get_image_processor_dict(*args, **kwargs)
        except RecursionError as error:
            raise ValueError(f"{IMAGE_PROCESSOR_NAME} is too deeply nested.") from error

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], mode: str | None = None, **kwargs: Any) -> Any:
        """Build a processor from saved fields; a `mode` and further keyword arguments take precedence over them.

        Raises:
            `ValueError`: a field is invalid, or the saved fields are no dictionary.
        """
        if not isinstance(image_processor_dict, dict):
            raise ValueError(f"image_processor_dict must be a dict, got {type(image_processor_dict).__name__}.")
        return super().from_dict(image_processor_dict, **(mode_fields(mode) | kwargs))

    @classmethod
    def from_original(cls, source: str | Path, mode: str | None = None, **kwargs: Any) -> Any:
        """Build the image processor for a checkpoint of other code, in the mode that its configuration names.

        Args:
            source: the checkpoint, as in `DeepEncoder.from_original`; no tensors are downloaded.
            mode (`str`, *optional*): a mode to use instead.
            kwargs: fields that take precedence over those found; and `revision`, `token`, `cache_dir` and so on, as
                in `DeepEncoder.from_original`.

        Raises:
            `ValueError`: another class prepares the pages for this checkpoint; or an error of
                `DeepEncoder.from_original`.
            `OSError`: the source does not exist or cannot be reached.
        """
        fields = {name: kwargs.pop(name) for name in list(kwargs) if name in cls.valid_kwargs.__annotations__}
        found = call_service("load_original_image_processor", source, **kwargs)
        if type(found).__name__ != cls.__name__:
            raise ValueError(f"source: {source} comes with a {type(found).__name__}.")
        return cls.from_dict(found.to_dict(), mode=mode, **fields)

    @property
    def mode(self) -> str | None:
        """The mode whose fields this processor has, or None if no mode has the same fields."""
        for name, fields in MODES.items():
            values = {field: getattr(self, field) for field in fields}
            values["size"] = {"height": self.size["height"], "width": self.size["width"]}
            if not values["crop_to_patches"]:
                values["tile_size"] = fields["tile_size"]  # Without tiles, their size has no effect.
            if values == fields:
                return name
        return None

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        check_types(self.valid_kwargs, kwargs)
        kwargs = super()._standardize_kwargs(**kwargs)
        kwargs["background_color"] = check_fields(kwargs)
        return kwargs

    def __repr__(self) -> str:
        return f"{type(self).__name__}(mode={self.mode!r}) {self.to_json_string()}"

    def __call__(self, images: Any, *args: Any, mode: str | None = None, **kwargs: Any) -> BatchFeature:
        r"""Prepare one image or a batch of images.

        Args:
            images: a `PIL.Image`, an array or tensor (see [`to_rgb`]), a path, a URL, or a list of these.
            mode (`str`, *optional*): a mode for this call, instead of the processor's own fields: `"tiny"`, `"small"`,
                `"base"`, `"large"`, `"gundam"` or `"v2"`; see [`DeepEncoderImageProcessor`].
            kwargs: fields for this call, as in [`DeepEncoderImageProcessorKwargs`]; and `return_tensors` (`"pt"` or
                `"np"`; lists of arrays without).

        Returns:
            [`BatchFeature`] with
            - `pixel_values` `(batch, 3, height, width)`: the global views;
            - `pixel_values_local` `(tiles, 3, tile_size, tile_size)`: the tiles of all images; absent if no image has
              tiles;
            - `patches_grid` `(batch, 2)`: columns and rows of each image's tiles; `(1, 1)` for an image without;
            - `num_local_patches` `(batch,)`: number of each image's tiles.

        Raises:
            `ValueError`: an image cannot be used (the message names it), or a field is invalid.

        Example:

        ```python
        processor = DeepEncoderImageProcessor(mode="base")
        inputs = processor(["page-1.png", "page-2.png"], mode="gundam", max_patches=6, return_tensors="pt")
        inputs["pixel_values"].shape  # (2, 3, 1024, 1024)
        outputs = model(**inputs)
        layout = processor.get_token_layout(1754, 1240, mode="gundam", max_patches=6)  # which token is where
        ```
        """
        return self.preprocess(images, *args, mode=mode, **kwargs)

    def preprocess(self, images: Any, *args: Any, mode: str | None = None, **kwargs: Any) -> BatchFeature:
        """Prepare images as a call does; see `__call__`."""
        fields = {name: value for name, value in kwargs.items() if name in self._valid_kwargs_names}
        check_types(self.valid_kwargs, fields)
        return super().preprocess(images, *args, **(mode_fields(mode) | kwargs))

    def _prepare_image_like_inputs(
        self,
        images: Any,
        *args: Any,
        input_data_format: str | ChannelDimension | None = None,
        do_rescale: bool | None = None,
        **kwargs: Any,
    ) -> list[Image.Image]:
        flat = flatten_images(images)
        for index, image in enumerate(flat):
            is_float = isinstance(image, (np.ndarray, torch.Tensor)) and "float" in str(image.dtype)
            if is_float and not do_rescale:
                raise ValueError(f"images[{index}] holds floats, whose range is inferred: this needs do_rescale=True.")
        return [to_rgb(image, index, input_data_format) for index, image in enumerate(flat)]

    def _preprocess(  # type: ignore[override]  # It takes PIL images, and fields that only this class has.
        self,
        images: list[Image.Image],
        return_tensors: str | TensorType | None = None,
        **fields: Any,
    ) -> BatchFeature:
        as_bytes = not (fields["do_rescale"] or fields["do_normalize"])
        normalization = None if as_bytes else Normalization.from_fields(**fields)
        geometries = [PageGeometry.from_fields(image.height, image.width, fields) for image in images]
        grids = [geometry.tile_grid for geometry in geometries]
        size = (int(fields["size"]["width"]), int(fields["size"]["height"])) if fields["do_resize"] else None
        color = fields["background_color"] if fields["do_pad"] else None
        # Tiles come first because their resized images are the largest: the views then reuse that memory.
        tiles = make_tiles(images, grids, fields["tile_size"], fields["resample"], normalization)
        views = make_global_views(images, size, fields["resample"], color, normalization)
        data: dict[str, Any] = {"pixel_values": views if return_tensors else list(views)}
        if len(tiles):
            data["pixel_values_local"] = tiles if return_tensors else list(tiles)
        data["patches_grid"] = [list(grid) for grid in grids]
        data["num_local_patches"] = [geometry.num_tiles for geometry in geometries]
        return BatchFeature(data=data, tensor_type=return_tensors)

    def normalize_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Rescale and normalise pixels as the processor's fields say, to the values that a call gives, bit for bit.

        Args:
            pixels (`torch.Tensor` of shape `(..., 3, height, width)`): bytes, or floats in [0, 255].

        Returns:
            `torch.Tensor`: float32 values of the same shape, on the same device.
        """
        return self._normalization().normalize(pixels)

    def denormalize_pixels(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Turn values that this processor normalised back into pixels: the inverse of [`normalize_pixels`].

        Args:
            pixel_values (`torch.Tensor` of shape `(..., 3, height, width)`): normalised values.

        Returns:
            `torch.Tensor`: uint8 pixels of the same shape, rounded and clamped, on the same device.
        """
        return self._normalization().denormalize(pixel_values)

    def _normalization(self) -> Normalization:
        return Normalization.from_fields(
            self.do_rescale, self.rescale_factor, self.do_normalize, self.image_mean, self.image_std
        )

    def get_number_of_image_patches(
        self, height: int, width: int, images_kwargs: Mapping[str, Any] | None = None
    ) -> int:
        """Return the number of views of an image: its tiles and the global view. transformers prescribes the name."""
        return 1 + self._geometry(height, width, None, images_kwargs or {}).num_tiles

    def get_tile_grid(self, height: int, width: int, mode: str | None = None, **kwargs: Any) -> tuple[int, int]:
        """Return the columns and rows of tiles of an image of this size in pixels; `(1, 1)` for one without tiles."""
        return self._geometry(height, width, mode, kwargs).tile_grid

    def get_number_of_image_tokens(self, height: int, width: int, mode: str | None = None, **kwargs: Any) -> int:
        """Return the number of vision tokens of an image from its size, newlines and separator included.

        Args:
            height, width (`int`): size of the image in pixels.
            mode (`str`, *optional*): a mode to use instead of the processor's own fields.
            kwargs: fields to use instead of the processor's own.

        Returns:
            `int`: the length of the image's `vision_tokens`.
        """
        return self._geometry(height, width, mode, kwargs).num_tokens

    def get_token_layout(self, height: int, width: int, mode: str | None = None, **kwargs: Any) -> TokenLayout:
        """Say which part of an image each of its vision tokens is, from the image's size.

        Args:
            height, width (`int`): size of the image in pixels, after its EXIF rotation.
            mode (`str`, *optional*): a mode to use instead of the processor's own fields.
            kwargs: fields to use instead of the processor's own.

        Returns:
            [`TokenLayout`]: kind, box in pixels of the image, and padding of each token, in the order of the image's
            `vision_tokens`.

        Raises:
            `ValueError`: a size or a field is invalid, or there would be more than 2**21 tokens.
        """
        return lay_out_tokens(self._geometry(height, width, mode, kwargs))

    def get_token_mask(
        self, image_sizes: Iterable[tuple[int, int]], mode: str | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Say which tokens of `last_hidden_state` show the image rather than its padding, for pooling.

        Args:
            image_sizes: height and width of each image of a batch, in pixels.
            mode (`str`, *optional*): a mode to use instead of the processor's own fields.
            kwargs: fields to use instead of the processor's own.

        Returns:
            `torch.BoolTensor` of shape `(batch, N)`: False for tokens without any pixel of the image.

        Raises:
            `ValueError`: a size or a field is invalid, or views of different sizes (`do_resize=False`) do not form a
                batch.
        """
        fields = self._fields(mode, kwargs)
        try:
            sizes = [(height, width) for height, width in image_sizes]
        except (TypeError, ValueError) as error:
            raise ValueError("image_sizes must hold a height and a width for each image.") from error
        geometries = [PageGeometry.from_fields(height, width, fields) for height, width in sizes]
        if len({geometry.view_size for geometry in geometries}) != 1:
            raise ValueError("image_sizes must hold at least one image, and only images whose views have one size.")
        masks = [~find_view_padding(geometry).ravel() for geometry in geometries]
        return torch.from_numpy(np.stack(masks))

    def _geometry(self, height: int, width: int, mode: str | None, kwargs: Mapping[str, Any]) -> PageGeometry:
        return PageGeometry.from_fields(height, width, self._fields(mode, kwargs))

    def _fields(self, mode: str | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        fields = {name: getattr(self, name, None) for name in self._valid_kwargs_names}
        unknown = set(kwargs) - set(fields)
        if unknown:
            raise ValueError(f"Unknown fields of an image processor: {', '.join(sorted(unknown))}.")
        return self._standardize_kwargs(**(fields | mode_fields(mode) | dict(kwargs)))
