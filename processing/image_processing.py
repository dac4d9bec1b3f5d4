"""The image processor: pages in, a global view and on demand local tiles out.

Unusual: pixels equal Pillow's own `ImageOps.pad` and `resize` to the last bit, because these are what runs;
torchvision is not needed. A mode is only a named set of the ordinary fields.
"""

from collections.abc import Mapping
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
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs
from transformers.utils import IMAGE_PROCESSOR_NAME, TensorType

from ..configuration.package_services import call_service
from ..configuration.remote_code import SharedPart
from .images import flatten_images, to_rgb
from .modes import MODES, mode_fields
from .normalization import Normalization
from .tiling import choose_tile_grid, count_image_tokens
from .views import make_global_views, make_tiles

__all__ = ["DeepEncoderImageProcessor", "DeepEncoderImageProcessorKwargs"]


def _choose_grid(height: int, width: int, fields: Mapping[str, Any]) -> tuple[int, int]:
    """Return columns and rows of an image's tiles; `(1, 1)` for an image that is not cut."""
    if not fields["crop_to_patches"]:
        return (1, 1)
    return choose_tile_grid(height, width, fields["min_patches"], fields["max_patches"], fields["tile_size"])


def _count_tiles(grid: tuple[int, int]) -> int:
    columns, rows = grid
    return columns * rows if columns * rows > 1 else 0


class DeepEncoderImageProcessorKwargs(ImagesKwargs, total=False):
    """
    Args:
        crop_to_patches (`bool`): cut images larger than a tile into tiles, beside the global view.
        min_patches (`int`): fewest tiles.
        max_patches (`int`): most tiles.
        tile_size (`int`): side of a tile in pixels.
        background_color (`int` or `tuple[int, int, int]`): colour of the padding, 0 to 255.
        patch_size (`int`): side of the encoder's patches in pixels, to count tokens.
        downsample_ratio (`int`): patches along a side of a token, to count tokens.
    """

    crop_to_patches: bool
    min_patches: int
    max_patches: int
    tile_size: int
    background_color: int | list[int] | tuple[int, ...]
    patch_size: int
    downsample_ratio: int


class DeepEncoderImageProcessor(SharedPart, PilBackend):
    r"""Prepares pages for a [`DeepEncoder`], as DeepSeek-OCR does.

    | mode | global view | tiles |
    |---|---|---|
    | tiny | 512 pixels, squashed | |
    | small | 640 pixels, squashed | |
    | base | 1024 pixels, padded | |
    | large | 1280 pixels, padded | |
    | gundam | 1024 pixels, padded | `min_patches` to `max_patches` of 640 pixels |

    Args:
        mode (`str`, *optional*): sets `size`, `do_pad`, `crop_to_patches` and `tile_size` to those of a mode; each
            can also be given by hand, and wins. The defaults are those of `"base"`.
        kwargs: the fields of [`DeepEncoderImageProcessorKwargs`]. `size` is the global view's, in pixels; with
            `do_pad` an image keeps its aspect ratio and is padded to it, without it is squashed.
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

    def __init__(self, mode: str | None = None, **kwargs: Any) -> None:
        super().__init__(**(kwargs if mode is None else mode_fields(mode) | kwargs))

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], mode: str | None = None, **kwargs: Any) -> Any:
        """Build a processor from its fields; a `mode` and other keywords overrule them."""
        return super().from_dict(image_processor_dict, **(kwargs if mode is None else mode_fields(mode) | kwargs))

    @classmethod
    def from_original(cls, source: str | Path, mode: str | None = None, **kwargs: Any) -> Any:
        """Make the image processor of a checkpoint of other code, with the mode that its configuration names.

        Args:
            source: as in `DeepEncoder.from_original`; no tensors are downloaded.
            mode (`str`, *optional*): another mode.
            kwargs: fields that overrule those found; `revision`, `token`, `cache_dir` and so on, as there.

        Raises:
            `ValueError`: a checkpoint whose pages are prepared by another class, or see `DeepEncoder.from_original`.
            `OSError`: there is no such source, or it cannot be reached.
        """
        fields = {name: kwargs.pop(name) for name in list(kwargs) if name in cls.valid_kwargs.__annotations__}
        found = call_service("load_original_image_processor", source, **kwargs)
        if type(found).__name__ != cls.__name__:
            raise ValueError(f"source: {source} comes with a {type(found).__name__}.")
        return cls.from_dict(found.to_dict(), mode=mode, **fields)

    @property
    def mode(self) -> str | None:
        """The mode whose fields this processor has, or None for a set of its own."""
        for name, fields in MODES.items():
            values = {field: getattr(self, field) for field in fields}
            values["size"] = {"height": self.size["height"], "width": self.size["width"]}
            if not values["crop_to_patches"]:
                values["tile_size"] = fields["tile_size"]  # of no effect
            if values == fields:
                return name
        return None

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        kwargs = super()._standardize_kwargs(**kwargs)
        for name in ("min_patches", "max_patches", "tile_size", "patch_size", "downsample_ratio"):
            if not isinstance(kwargs[name], int) or kwargs[name] < 1:
                raise ValueError(f"{name} must be a positive integer, got {kwargs[name]!r}.")
        if kwargs["min_patches"] > kwargs["max_patches"]:
            raise ValueError(
                f"min_patches must be at most max_patches, got {kwargs['min_patches']} and {kwargs['max_patches']}."
            )
        size = kwargs["size"]
        if not (size.height and size.width and size.height > 0 and size.width > 0):
            raise ValueError(f"size must give a positive height and width in pixels, got {dict(size)}.")
        color = kwargs["background_color"]
        channels = (color,) * 3 if isinstance(color, int) else tuple(color)
        if len(channels) != 3 or not all(0 <= channel <= 255 for channel in channels):
            raise ValueError(f"background_color must be one or three integers in [0, 255], got {color}.")
        kwargs["background_color"] = channels
        if kwargs["crop_to_patches"] and not kwargs["do_resize"]:
            raise ValueError("crop_to_patches=True needs do_resize=True: tiles are cut from a resized image.")
        return kwargs

    def preprocess(self, images: Any, *args: Any, mode: str | None = None, **kwargs: Any) -> BatchFeature:
        """Prepare one image or a batch.

        Args:
            images: a `PIL.Image`, an array or tensor (see [`to_rgb`]), a path, a URL, or a list of these.
            mode (`str`, *optional*): overrules the processor's own fields for this call.
            kwargs: any field, for this call; `return_tensors` (`"pt"` or `"np"`).

        Returns:
            [`BatchFeature`]: `pixel_values` `(batch, 3, height, width)`; with tiles `pixel_values_local`
            `(tiles, 3, tile_size, tile_size)`; `patches_grid` `(batch, 2)`, columns and rows of tiles, `(1, 1)`
            without; `num_local_patches` `(batch,)`.

        Raises:
            `ValueError`: an image that cannot be used (the message says which one), or a bad field.
        """
        return super().preprocess(images, *args, **(kwargs if mode is None else mode_fields(mode) | kwargs))

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
                raise ValueError(f"images[{index}] holds floats, whose range is recognised: do_rescale must stay on.")
        return [to_rgb(image, index, input_data_format) for index, image in enumerate(flat)]

    def _preprocess(  # type: ignore[override]  # It takes PIL images, and fields that only this class has.
        self,
        images: list[Image.Image],
        return_tensors: str | TensorType | None = None,
        **fields: Any,
    ) -> BatchFeature:
        as_bytes = not (fields["do_rescale"] or fields["do_normalize"])
        normalization = None if as_bytes else Normalization.from_fields(**fields)
        grids = [_choose_grid(image.height, image.width, fields) for image in images]
        counts = [_count_tiles(grid) for grid in grids]
        size = (int(fields["size"]["width"]), int(fields["size"]["height"])) if fields["do_resize"] else None
        color = fields["background_color"] if fields["do_pad"] else None
        views = make_global_views(images, size, fields["resample"], color, normalization)
        data: dict[str, Any] = {"pixel_values": views if return_tensors else list(views)}
        if any(counts):
            tiles = make_tiles(images, grids, fields["tile_size"], fields["resample"], normalization)
            data["pixel_values_local"] = tiles if return_tensors else list(tiles)
        data["patches_grid"] = [list(grid) for grid in grids]
        data["num_local_patches"] = counts
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
        """Count the views of an image: its tiles and the global view. Named by transformers' convention."""
        return 1 + _count_tiles(self.get_tile_grid(height, width, **(images_kwargs or {})))

    def get_tile_grid(self, height: int, width: int, mode: str | None = None, **kwargs: Any) -> tuple[int, int]:
        """Return columns and rows of the tiles of an image of this size in pixels; `(1, 1)` for an image without."""
        return _choose_grid(height, width, self._fields(mode, kwargs))

    def get_number_of_image_tokens(self, height: int, width: int, mode: str | None = None, **kwargs: Any) -> int:
        """Count the vision tokens of an image without looking at it, newlines and separator included.

        Args:
            height, width (`int`): size of the image in pixels.
            mode (`str`, *optional*): overrules the processor's own fields, as do `kwargs`.

        Returns:
            `int`: the length of the image's `vision_tokens`.
        """
        if height < 1 or width < 1:
            raise ValueError(f"height and width must be positive, got {height} and {width}.")
        fields = self._fields(mode, kwargs)
        stride = fields["patch_size"] * fields["downsample_ratio"]
        size = fields["size"]
        if not fields["do_resize"]:
            size = SizeDict(height=height, width=width)
        tile_tokens = -(-fields["tile_size"] // stride)
        return count_image_tokens(
            (-(-size.width // stride), -(-size.height // stride)),
            self.get_tile_grid(height, width, mode, **kwargs),
            (tile_tokens, tile_tokens),
        )

    def _fields(self, mode: str | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        fields = {name: getattr(self, name, None) for name in self._valid_kwargs_names}
        unknown = set(kwargs) - set(fields)
        if unknown:
            raise ValueError(f"Unknown fields of an image processor: {', '.join(sorted(unknown))}.")
        return self._standardize_kwargs(**(fields | ({} if mode is None else mode_fields(mode)) | dict(kwargs)))
