"""Features of pages as columns: their exact Arrow types, and a callable for `datasets.map`.

Unusual: types are declared, and never guessed from the first batch. In modes without tiles every array has a fixed
shape, as nested fixed-size lists, which pyarrow and datasets both read as they are; with tiles the first dimension
varies. Arrow has no bfloat16: such values are kept as float32, which holds them exactly. The callable loads its model
when it first runs, once a process; what is pickled and fingerprinted is its settings and a hash of the weights.
"""

import hashlib
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from .batches import BatchBudget, PreparedImage, check_outputs, encode_images, prepare_image
from .pages import PageError, to_page_image

if TYPE_CHECKING:
    import datasets
    import pyarrow

__all__ = ["FeatureExtractor", "feature_fields", "identify_model", "to_arrow"]

MODEL_TYPE = "deepencoder"
WEIGHTS = ("*.safetensors", "*.bin", "*.pt*", "config.json", "preprocessor_config.json", "processor_config.json")


def feature_fields(
    config: Any, image_processor: Any, outputs: Sequence[str], dtype: str, mode: str | None = None
) -> "list[pyarrow.Field]":
    """Declare the columns of features.

    Args:
        config ([`DeepEncoderConfig`]): the model's.
        image_processor ([`DeepEncoderImageProcessor`]): the model's, which says how many tokens a page has.
        outputs: any of `"pooled"`, `"tokens"` and `"vision_tokens"`.
        dtype (`str`): `"float16"`, `"bfloat16"` (kept as float32) or `"float32"`.
        mode (`str`, *optional*): overrules the image processor's.

    Returns:
        `list[pyarrow.Field]`, one an output, in their order.
    """
    import pyarrow

    check_outputs(outputs, dtype)
    value = pyarrow.float16() if dtype == "float16" else pyarrow.float32()
    length: int | None = None
    fields = image_processor._fields(mode, {})
    if not fields["crop_to_patches"] and fields["do_resize"]:
        stride = config.sam_config.total_stride
        rows, columns = (-(-int(side) // stride) for side in (fields["size"].height, fields["size"].width))
        length = rows * columns
    widths = {
        "pooled": config.clip_config.hidden_size,
        "tokens": config.hidden_size,
        "vision_tokens": config.projection_dim,
    }
    found = []
    for name in outputs:
        kind = pyarrow.list_(value, widths[name])
        if name != "pooled":
            fixed = -1 if length is None else length if name == "tokens" else length + rows + 1
            kind = pyarrow.list_(kind, fixed)  # -1: of any length
        found.append(pyarrow.field(name, kind))
    return found


def to_arrow(arrays: Sequence[np.ndarray], kind: "pyarrow.DataType") -> "pyarrow.Array":
    """Lay arrays of one column out as Arrow holds them, without a copy a value.

    Args:
        arrays: of shape `(width,)` or `(n_i, width)`, as [`PageFeatures`] has them.
        kind (`pyarrow.DataType`): as [`feature_fields`] declares it.

    Raises:
        `ValueError`: an array of another shape than declared.
    """
    import pyarrow

    widths, inner = [], kind
    while pyarrow.types.is_list(inner) or pyarrow.types.is_fixed_size_list(inner):
        widths.append(inner.list_size if pyarrow.types.is_fixed_size_list(inner) else None)
        inner = inner.value_type
    for array in arrays:
        if array.ndim != len(widths) or any(
            size is not None and size != found for size, found in zip(widths, array.shape, strict=True)
        ):
            raise ValueError(f"arrays must have shape {tuple(widths)}, got {array.shape}.")
    values = np.concatenate([array.reshape(-1) for array in arrays]) if arrays else np.zeros(0, np.float32)
    laid_out = pyarrow.array(values, inner)
    for size in reversed(widths):
        if size is not None:
            laid_out = pyarrow.FixedSizeListArray.from_arrays(laid_out, size)
        else:
            offsets = np.cumsum([0, *(len(array) for array in arrays)], dtype=np.int32)
            laid_out = pyarrow.ListArray.from_arrays(pyarrow.array(offsets), laid_out)
    return laid_out


def identify_model(model: str | os.PathLike[str], config: Any = None) -> str:
    """Name the very weights: the commit of a model on the Hub, or `sha256:...` of a folder's files, or of a file."""
    commit = getattr(config, "_commit_hash", None)
    if commit:
        return str(commit)
    digest = hashlib.sha256()
    folder = Path(model)
    for path in [folder] if folder.is_file() else sorted({path for name in WEIGHTS for path in folder.glob(name)}):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            for block in iter(partial(file.read, 1 << 20), b""):
                digest.update(block)
    return f"sha256:{digest.hexdigest()}"


class FeatureExtractor:
    """Features of a column of images, for `datasets.map(batched=True)`.

    ```python
    extractor = FeatureExtractor("my-encoder", mode="base", outputs=("pooled",))
    features = dataset.map(extractor, batched=True, batch_size=8, remove_columns=dataset.column_names,
                           features=extractor.features)
    ```

    With `with_rank=True` and `num_proc` (`multiprocess` set to `"spawn"`), each process takes a GPU of its own. A
    second run of the same map is read from datasets' cache. To keep the other columns, say
    `features=extractor.extend(dataset.features)`.

    Args:
        model (`str`): a folder or a Hub id, loaded by `AutoModel`.
        mode (`str`, *optional*): overrules the image processor's.
        outputs: any of `"pooled"`, `"tokens"` and `"vision_tokens"`; the columns that it makes.
        dtype (`str`, defaults to `"float16"`): of the features; see [`feature_fields`].
        column (`str`, defaults to `"image"`): with the images: what `datasets.Image` decodes or leaves encoded, bytes,
            or paths.
        device (`str`, *optional*): where the model runs. Default: the accelerator of the process' rank, or the CPU.
        model_dtype (`str`, defaults to `"auto"`): in which the model computes.
        batch_size: of the model; see [`BatchBudget`].
        on_error (`str`, defaults to `"raise"`): `"raise"`, or `"none"` for rows of None and an `error` column.
        revision (`str`, *optional*), trust_remote_code (`bool`): as for `from_pretrained`.

    Raises:
        `ValueError`: an argument that is none of these, or a model that is no DeepEncoder; and, when called, an image
            that cannot be used.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        mode: str | None = None,
        outputs: Sequence[str] = ("pooled",),
        dtype: str = "float16",
        column: str = "image",
        device: str | None = None,
        model_dtype: str = "auto",
        batch_size: int | str = "auto",
        on_error: str = "raise",
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        check_outputs(outputs, dtype)
        BatchBudget(batch_size, torch.device("cpu"))
        if on_error not in ("raise", "none"):
            raise ValueError(f"on_error must be 'raise' or 'none', got {on_error!r}.")
        self.model, self.mode, self.outputs, self.dtype = os.fspath(model), mode, tuple(outputs), dtype
        self.column, self.device, self.model_dtype, self.batch_size = column, device, model_dtype, batch_size
        self.on_error, self.revision, self.trust_remote_code = on_error, revision, trust_remote_code
        config = AutoConfig.from_pretrained(self.model, **self._source)
        if config.model_type != MODEL_TYPE:
            raise ValueError(
                f"model must be a {MODEL_TYPE!r}, got a {config.model_type!r}: {self.model!r}. "
                "`deepencoder convert` makes one of checkpoints of other code."
            )
        processor = self._load_processor()
        self.identity = identify_model(self.model, config)
        self._fields = feature_fields(config, processor, self.outputs, dtype, mode)
        self._loaded: tuple[Any, Any, BatchBudget] | None = None

    @property
    def _source(self) -> dict[str, Any]:
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}

    def __getstate__(self) -> dict[str, Any]:
        # The model is loaded again where it is needed; and the fingerprint must not change once it is.
        return self.__dict__ | {"_loaded": None}

    @property
    def schema(self) -> "pyarrow.Schema":
        """The columns that it makes."""
        import pyarrow

        error = [pyarrow.field("error", pyarrow.string())] if self.on_error == "none" else []
        return pyarrow.schema([*self._fields, *error])

    @property
    def features(self) -> "datasets.Features":
        """The columns that it makes, for `map(..., features=...)` where the others are removed."""
        import datasets

        return datasets.Features.from_arrow_schema(self.schema)

    def extend(self, features: "Mapping[str, Any]") -> "datasets.Features":
        """Return a dataset's features and those that it makes."""
        import datasets

        return datasets.Features({**features, **self.features})

    def __call__(self, batch: Mapping[str, Sequence[Any]], rank: int | None = None) -> dict[str, list[Any]]:
        """Encode a batch of rows.

        Args:
            batch: columns, the images' among them.
            rank (`int`, *optional*): of the process, by `with_rank=True`.

        Returns:
            for each output a list of arrays, one a row; see [`PageFeatures`].
        """
        if self.column not in batch:
            raise ValueError(f"column must be one of {', '.join(batch)}, got {self.column!r}.")
        model, processor, budget = self._load(rank)
        rows: list[Any] = []
        waiting: list[tuple[int, PreparedImage]] = []

        def encode() -> None:
            results = encode_images(
                [image for _, image in waiting], model, processor, self.outputs, self.dtype, budget
            )
            for (row, _), result in zip(waiting, results, strict=True):
                rows[row] = result
            waiting.clear()

        for row, value in enumerate(batch[self.column]):
            rows.append(None)
            try:
                image = prepare_image(to_page_image(value), processor, self.mode)
            except PageError as error:
                rows[row] = error
                continue
            if waiting and (
                budget.is_full([other for _, other in waiting]) or image.view.shape != waiting[-1][1].view.shape
            ):
                encode()
            waiting.append((row, image))
        if waiting:
            encode()
        return self._to_columns(rows)

    def _to_columns(self, rows: Sequence[Any]) -> dict[str, list[Any]]:
        errors = [str(row) if isinstance(row, PageError) else None for row in rows]
        if self.on_error == "raise":
            for index, error in enumerate(errors):
                if error is not None:
                    raise ValueError(f"{self.column}[{index}] of this batch: {error}")
        columns: dict[str, list[Any]] = {
            name: [None if isinstance(row, PageError) else row[name] for row in rows] for name in self.outputs
        }
        return columns | ({"error": errors} if self.on_error == "none" else {})

    def _load_processor(self) -> Any:
        return AutoImageProcessor.from_pretrained(self.model, **self._source)

    def _load(self, rank: int | None) -> tuple[Any, Any, BatchBudget]:
        if self._loaded is None:
            device = self._pick_device(rank)
            if device.type == "cpu" and _is_child_process():
                # Processes share the cores; and OpenMP's threads do not survive a fork.
                torch.set_num_threads(1)
            model = AutoModel.from_pretrained(self.model, dtype=self.model_dtype, **self._source)
            budget = BatchBudget(self.batch_size, device)
            self._loaded = (model.to(device).eval(), self._load_processor(), budget)
        return self._loaded

    def _pick_device(self, rank: int | None) -> torch.device:
        if self.device is not None:
            return torch.device(self.device)
        if not torch.accelerator.is_available():
            return torch.device("cpu")
        found = torch.accelerator.current_accelerator()
        assert found is not None
        return torch.device(found.type, (rank or 0) % torch.accelerator.device_count())


def _is_child_process() -> bool:
    if multiprocessing.parent_process() is not None:
        return True
    try:  # what datasets starts its processes with
        import multiprocess
    except ImportError:
        return False
    return multiprocess.parent_process() is not None
