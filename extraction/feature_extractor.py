"""A callable that adds a page's features to the rows of a dataset, for `datasets.map`.

Unusual: the model is loaded when the callable first runs, once in each process. What is pickled, and fingerprinted by
datasets' cache, is only its settings and the identity of the weights.
"""

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..processing.token_pooling import VectorOptions
from .arrow import feature_fields
from .batching import BatchBudget
from .encoding import PageEncoder
from .models import IdentifiedModel
from .outputs import check_outputs
from .pages import PageError, to_page_image
from .preparation import PreparedImage, prepare_image

if TYPE_CHECKING:
    import datasets
    import pyarrow

__all__ = ["FeatureExtractor"]


def _is_child_process() -> bool:
    if multiprocessing.parent_process() is not None:
        return True
    try:  # datasets starts its processes with this fork of multiprocessing
        import multiprocess
    except ImportError:
        return False
    return multiprocess.parent_process() is not None


@dataclass(eq=False)
class FeatureExtractor:
    """Computes the features of a column of images, for `datasets.map(batched=True)`.

    ```python
    extractor = FeatureExtractor("my-encoder", mode="base", outputs=("pooled",))
    features = dataset.map(extractor, batched=True, batch_size=8, remove_columns=dataset.column_names,
                           features=extractor.features)
    ```

    With `with_rank=True` and `num_proc` (and `multiprocess` set to `"spawn"`), each process takes a GPU of its own. A
    second run of the same map is read from datasets' cache. Pass `features=extractor.extend(dataset.features)` to keep
    the other columns.

    Args:
        model (`str`): a folder or a Hub id of a [`DeepEncoder`].
        mode (`str`, *optional*): a mode that overrides the image processor's own fields.
        outputs: names of the [`OUTPUTS`] to compute, which become columns.
        dtype (`str`, defaults to `"float16"`): one of [`DTYPES`], in which features are kept.
        column (`str`, defaults to `"image"`): the column of images: decoded or encoded as by `datasets.Image`, bytes,
            or, with the two arguments below, paths and URLs.
        image_folder (`str`, *optional*): folder of the files that rows may name; paths are relative to it, or lead
            into it. Default: rows may name no file, as their author may have written anything there.
        allow_urls (`bool`, defaults to `False`): whether URLs in rows are fetched.
        device (`str`, *optional*): device of the model. Default: the accelerator of the process' rank, or the CPU.
        model_dtype (`str`, defaults to `"auto"`): dtype in which the model computes.
        batch_size: number of pages per batch of the model, or `"auto"`; see [`BatchBudget`].
        on_error (`str`, defaults to `"raise"`): what an image that cannot be used does: `"raise"` raises, `"none"`
            gives a row of None, with the reason in a column `error`.
        revision (`str`, *optional*), trust_remote_code (`bool`): as for `from_pretrained`.
        vector_pool (`int`, defaults to 2), vector_width (`int`, defaults to 128): for `multi_vector`, the side of a
            cell in tokens and the length of a vector; see [`VectorOptions`].
        runtime (`str`, *optional*): `"openvino"` or `"onnxruntime"` to run the exported graphs of the model on the
            CPU, as an [`ExportedDeepEncoder`] does. Default: torch.

    Raises:
        `ValueError`: an argument has none of the values above, or the model is not a [`DeepEncoder`]; when called, an
            image that cannot be used.
    """

    model: str | os.PathLike[str]
    _: KW_ONLY
    mode: str | None = None
    outputs: Sequence[str] = ("pooled",)
    dtype: str = "float16"
    column: str = "image"
    image_folder: str | os.PathLike[str] | None = None
    allow_urls: bool = False
    device: str | None = None
    model_dtype: str = "auto"
    batch_size: int | str = "auto"
    on_error: str = "raise"
    revision: str | None = None
    trust_remote_code: bool = False
    vector_pool: int = VectorOptions.pool
    vector_width: int = VectorOptions.width
    runtime: str | None = None

    def __post_init__(self) -> None:
        check_outputs(self.outputs, self.dtype)
        vectors = self._vectors = VectorOptions(self.vector_pool, self.vector_width)
        BatchBudget(self.batch_size, torch.device("cpu"))  # checks the batch size
        if self.on_error not in ("raise", "none"):
            raise ValueError(f"on_error must be 'raise' or 'none', got {self.on_error!r}.")
        if self.image_folder is not None and not os.path.isdir(self.image_folder):
            raise ValueError(f"image_folder must be a folder, got {os.fspath(self.image_folder)!r}.")
        self.image_folder = None if self.image_folder is None else os.path.abspath(self.image_folder)
        self.model, self.outputs = os.fspath(self.model), tuple(self.outputs)
        self._identified = IdentifiedModel.find(self.model, self.revision, self.trust_remote_code, self.runtime)
        config, image_processor = self._identified.load_config(), self._identified.load_image_processor()
        self._fields = feature_fields(config, image_processor, self.outputs, self.dtype, self.mode, vectors)
        self._encoder: PageEncoder | None = None

    def __getstate__(self) -> dict[str, Any]:
        # The model is loaded again where it is needed, and the fingerprint must not change once it is loaded.
        return self.__dict__ | {"_encoder": None}

    @property
    def schema(self) -> "pyarrow.Schema":
        """The columns that the extractor makes, as an Arrow schema."""
        import pyarrow

        error = [pyarrow.field("error", pyarrow.string())] if self.on_error == "none" else []
        return pyarrow.schema([*self._fields, *error])

    @property
    def features(self) -> "datasets.Features":
        """The columns that the extractor makes, for a `map(..., features=...)` that removes all others."""
        import datasets

        return datasets.Features.from_arrow_schema(self.schema)

    def extend(self, features: "Mapping[str, Any]") -> "datasets.Features":
        """Return the features of a dataset together with those that the extractor makes."""
        import datasets

        return datasets.Features({**features, **self.features})

    def __call__(self, batch: Mapping[str, Sequence[Any]], rank: int | None = None) -> dict[str, list[Any]]:
        """Compute the features of a batch of rows.

        Args:
            batch: the columns, one of which holds the images.
            rank (`int`, *optional*): rank of the process, given by `with_rank=True`.

        Returns:
            for each output a list of arrays, one for each row; see [`PageFeatures`].
        """
        if self.column not in batch:
            raise ValueError(f"column must be one of {', '.join(batch)}, got {self.column!r}.")
        encoder = self._load(rank)

        def prepare(value: Any) -> PreparedImage | PageError:
            try:
                image = to_page_image(value, image_folder=self.image_folder, allow_urls=self.allow_urls)
                return prepare_image(image, encoder.image_processor, self.mode)
            except PageError as error:
                return error

        entries = enumerate(map(prepare, batch[self.column]))
        return self._to_columns([result for _, _, result in encoder.encode_entries(entries)])

    def _to_columns(self, results: Sequence[dict[str, np.ndarray] | PageError]) -> dict[str, list[Any]]:
        errors = [str(result) if isinstance(result, PageError) else None for result in results]
        if self.on_error == "raise":
            for index, error in enumerate(errors):
                if error is not None:
                    raise ValueError(f"{self.column}[{index}] of this batch: {error}")
        columns: dict[str, list[Any]] = {
            name: [None if isinstance(result, PageError) else result[name] for result in results]
            for name in self.outputs
        }
        return columns | ({"error": errors} if self.on_error == "none" else {})

    def _load(self, rank: int | None) -> PageEncoder:
        if self._encoder is None:
            device = self._pick_device(rank)
            if device.type == "cpu" and _is_child_process():
                # The processes share the cores, and OpenMP's threads do not survive a fork.
                torch.set_num_threads(1)
            self._encoder = PageEncoder(
                self._identified.load(self.model_dtype).to(device),
                self._identified.load_image_processor(),
                BatchBudget(self.batch_size, device),
                mode=self.mode,
                outputs=self.outputs,
                dtype=self.dtype,
                vectors=self._vectors,
            )
        return self._encoder

    def _pick_device(self, rank: int | None) -> torch.device:
        if self.runtime is not None:
            return torch.device("cpu")
        if self.device is not None:
            return torch.device(self.device)
        if not torch.accelerator.is_available():
            return torch.device("cpu")
        found = torch.accelerator.current_accelerator()
        assert found is not None
        return torch.device(found.type, (rank or 0) % torch.accelerator.device_count())
