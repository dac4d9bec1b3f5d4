"""The column of a table that holds its images, and the split of a dataset."""

from typing import Any

__all__ = ["NoImagesError", "choose_column", "choose_split", "import_datasets", "select_images"]


class NoImagesError(ValueError):
    """A table has no column of images, or lacks the column that was chosen."""


def choose_column(wanted: str | None, images: list[str], names: list[str], source: str) -> str:
    """Return the column to read: the one that is wanted, or the only column of images.

    Args:
        wanted (`str`, *optional*): name of the column.
        images: names of the columns that hold images.
        names: names of all columns.
        source: name of the table, for errors.

    Raises:
        `NoImagesError`: the table has no image column, or no column of the wanted name.
        `ValueError`: the table has several image columns and none is chosen.
    """
    if wanted is not None:
        if wanted not in names:
            raise NoImagesError(f"column must be one of {', '.join(names)} in {source!r}, got {wanted!r}.")
        return wanted
    if len(images) == 1:
        return images[0]
    if not images:
        raise NoImagesError(f"column must be given, because {source!r} has no image column.")
    raise ValueError(f"column must be given, because {source!r} has several image columns: {', '.join(images)}.")


def choose_split(wanted: str | None, splits: list[str], source: str) -> str:
    """Return the split to read: the one that is wanted, or the only one.

    Raises:
        `ValueError`: there is no split of this name, or there are several and none is chosen.
    """
    if wanted is None and len(splits) == 1:
        return splits[0]
    if wanted not in splits:
        raise ValueError(f"split must be one of {', '.join(splits)} of {source!r}, got {wanted!r}.")
    return wanted


def import_datasets() -> Any:
    """Import the datasets library, or raise an `ImportError` that names the extra that installs it."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError('Datasets need the datasets library: pip install "deepencoder[datasets]".') from error
    return datasets


def select_images(data: Any, features: Any, column: str | None, source: str) -> tuple[Any, str]:
    """Reduce a dataset to its image column, with the images left encoded. Returns the dataset and the column's name.

    Args:
        data (`datasets.Dataset` or `datasets.IterableDataset`)
        features (`datasets.Features`): the features of the dataset.
        column, source: as for [`choose_column`].
    """
    datasets = import_datasets()
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    name = choose_column(column, images, list(features), source)
    data = data.select_columns([name])
    if name in images:
        data = data.cast_column(name, datasets.Image(decode=False))
    return data, name
