"""The image processor's fields: given to it, given for one call, or read from a damaged `preprocessor_config.json`."""

from typing import Any

import numpy as np

from deepencoder import DeepEncoderImageProcessor

from ..extraction.corpus import picture
from .mutations import NUMBERS, mutate_fields, nasty_json, nasty_value
from .trials import Trial, ViolationError

__all__ = ["FIELDS", "run"]

FIELDS: dict[str, Any] = {
    "size": {"height": 64, "width": 64},
    "do_resize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "rescale_factor": 1 / 255,
    "resample": 3,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "crop_to_patches": True,
    "min_patches": 2,
    "max_patches": 4,
    "tile_size": 32,
    "background_color": [127, 127, 127],
    "patch_size": 16,
    "downsample_ratio": 4,
    "mode": None,
}


def run(trial: Trial) -> None:
    random = trial.random
    way = random.choice(("new", "dict", "file", "call", "count"))
    fields = mutate_fields(random, FIELDS)
    trial.note(way=way, fields=fields)
    image = picture(0, (random.choice((1, 50, 100)), random.choice((1, 40, 150))))
    with trial.may_raise(ValueError, TypeError, OSError):
        if way == "count":
            return _count(trial, fields)
        if way == "call":
            processor, given = DeepEncoderImageProcessor(**FIELDS), fields
        else:
            processor, given = _make(trial, way, fields), {}
        inputs = processor(image, return_tensors=random.choice(("pt", "np")), **given)
    for name in ("pixel_values", "pixel_values_local"):
        if name in inputs and not np.isfinite(np.asarray(inputs[name])).all():
            raise ViolationError(f"gave {name} that are not finite")
    if sum(inputs["num_local_patches"].tolist()) != len(inputs.get("pixel_values_local", ())):
        raise ViolationError("gave another number of tiles than it says")


def _make(trial: Trial, way: str, fields: dict[str, Any]) -> Any:
    if way == "new":
        return DeepEncoderImageProcessor(**fields)
    if way == "dict":
        return DeepEncoderImageProcessor.from_dict(fields)
    content = nasty_json(trial.random, FIELDS | {"image_processor_type": "DeepEncoderImageProcessor"})
    trial.note(content=content[:300])
    (trial.folder / "preprocessor_config.json").write_bytes(content)
    return DeepEncoderImageProcessor.from_pretrained(trial.folder)


def _count(trial: Trial, fields: dict[str, Any]) -> None:
    """Count the tokens of a page of any size, and locate them unless they are too many to be quick."""
    random = trial.random
    height, width = (random.choice((*NUMBERS, 100, 3000, nasty_value(random))) for _ in range(2))
    trial.note(height=height, width=width)
    processor = DeepEncoderImageProcessor(**FIELDS)
    count = processor.get_number_of_image_tokens(height, width, **fields)
    if not isinstance(count, int) or count < 1:
        raise ViolationError(f"counted {count!r} tokens")
    if count <= 2**16:
        layout = processor.get_token_layout(height, width, **fields)
        located = np.isfinite(layout.boxes).all(axis=1)
        if len(layout) != count or not np.array_equal(located, np.isin(layout.kind, ["view", "tile"])):
            raise ViolationError(f"located {located.sum()} of {len(layout)} tokens, and counted {count}")
