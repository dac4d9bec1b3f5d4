"""Pages and their features as Arrow columns.

Unusual: types are declared and never guessed from the first batch. In modes without tiles every array has a fixed
shape, as nested fixed-size lists, which pyarrow and datasets both read as they are; with tiles the first dimension
varies. Arrow has no bfloat16, so such values are stored as float32, which holds them exactly. pyarrow is an optional
dependency and is imported where it is used.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..processing.token_pooling import VectorOptions
from .outputs import DTYPES, OUTPUTS, check_outputs

if TYPE_CHECKING:
    import pyarrow

    from .encoding import PageFeatures

__all__ = ["feature_fields", "list_sizes", "page_schema", "to_arrow", "to_table"]


def feature_fields(
    config: Any,
    image_processor: Any,
    outputs: Sequence[str],
    dtype: str,
    mode: str | None = None,
    vectors: VectorOptions | None = None,
) -> "list[pyarrow.Field]":
    """Declare the columns of features.

    Args:
        config ([`DeepEncoderConfig`]): the model's configuration.
        image_processor ([`DeepEncoderImageProcessor`]): the model's image processor, which decides how many tokens a
            page has.
        outputs: names of the [`OUTPUTS`] to declare.
        dtype (`str`): one of [`DTYPES`].
        mode (`str`, *optional*): a mode that overrides the processor's own fields.
        vectors ([`VectorOptions`], *optional*): pool and width of `multi_vector`.

    Returns:
        `list[pyarrow.Field]`, one for each output, in their order.

    Raises:
        `ValueError`: an unknown output, dtype or mode.
    """
    import pyarrow

    check_outputs(outputs, dtype, config)
    vectors = vectors or VectorOptions()
    fields = image_processor._fields(mode, {"token_scheme": config.token_scheme})
    stride = config.sam_config.total_stride
    columns = []
    for kind in map(OUTPUTS.__getitem__, outputs):
        column = pyarrow.list_(getattr(pyarrow, DTYPES[dtype])(), kind.width(config, vectors))
        if kind.count is not None:
            count = kind.count(fields, stride, vectors)
            column = pyarrow.list_(column, -1 if count is None else count)  # -1 declares a list of any length.
        columns.append(pyarrow.field(kind.name, column))
    return columns


def list_sizes(kind: "pyarrow.DataType") -> "tuple[list[int | None], pyarrow.DataType]":
    """Return the sizes of nested lists, the outermost first and None for any size, and the type of their values."""
    import pyarrow

    sizes: list[int | None] = []
    while pyarrow.types.is_list(kind) or pyarrow.types.is_fixed_size_list(kind):
        sizes.append(kind.list_size if pyarrow.types.is_fixed_size_list(kind) else None)
        kind = kind.value_type
    return sizes, kind


def to_arrow(arrays: Sequence[np.ndarray], kind: "pyarrow.DataType") -> "pyarrow.Array":
    """Lay the arrays of one column out as Arrow holds them, without converting single values.

    Args:
        arrays: of shape `(width,)` or `(n_i, width)`, as in [`PageFeatures`].
        kind (`pyarrow.DataType`): the type that [`feature_fields`] declares.

    Raises:
        `ValueError`: an array has another shape than declared.
    """
    import pyarrow

    sizes, inner = list_sizes(kind)
    for array in arrays:
        if array.ndim != len(sizes) or any(
            size is not None and size != found for size, found in zip(sizes, array.shape, strict=True)
        ):
            raise ValueError(f"arrays must have shape {tuple(sizes)}, got {array.shape}.")
    values = np.concatenate([array.reshape(-1) for array in arrays]) if arrays else np.zeros(0, np.float32)
    column = pyarrow.array(values, inner)
    for size in reversed(sizes):
        if size is not None:
            column = pyarrow.FixedSizeListArray.from_arrays(column, size)
        else:
            offsets = np.cumsum([0, *(len(array) for array in arrays)], dtype=np.int32)
            column = pyarrow.ListArray.from_arrays(pyarrow.array(offsets), column)
    return column


def page_schema(features: "Sequence[pyarrow.Field]" = ()) -> "pyarrow.Schema":
    """Declare the columns of a shard: those that describe a page, and its features."""
    import pyarrow

    text, number = pyarrow.string(), pyarrow.int32()
    columns = {
        "source": text,
        "page": number,
        "width": number,
        "height": number,
        "grid": pyarrow.list_(number, 2),
        "num_tokens": number,
        "model": text,
        "commit": text,
        "mode": text,
        "sha256": text,
    }
    return pyarrow.schema([*(pyarrow.field(name, kind) for name, kind in columns.items()), *features])


def to_table(
    rows: "Sequence[PageFeatures]", schema: "pyarrow.Schema", constants: Mapping[str, str]
) -> "pyarrow.Table":
    """Lay pages out as the columns of [`page_schema`].

    Args:
        rows: pages without errors.
        schema (`pyarrow.Schema`): the columns.
        constants: the columns that are the same in every row; see [`ExtractionSettings`].
    """
    import pyarrow

    facts: dict[str, list[Any]] = {
        "source": [row.page.source for row in rows],
        "page": [row.page.page for row in rows],
        **{name: [getattr(row, name) for row in rows] for name in ("width", "height", "num_tokens", "sha256")},
        "grid": [list(row.grid) for row in rows],
        **{name: [value] * len(rows) for name, value in constants.items()},
    }
    columns = [
        pyarrow.array(facts[field.name], field.type)
        if field.name in facts
        else to_arrow([row.outputs[field.name] for row in rows], field.type)
        for field in schema
    ]
    return pyarrow.Table.from_arrays(columns, schema=schema)
