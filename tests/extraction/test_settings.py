"""Settings and options: which values they refuse, and what they derive."""

from pathlib import Path
from typing import Any

import pytest

from deepencoder.extraction import ProcessGroup, RunOptions

from .corpus import write_pictures
from .helpers import settings


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"outputs": ("nothing",)}, "outputs must be some of"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"format": "csv"}, "format must be one of 'parquet', 'safetensors', got 'csv'"),
    ],
)
def test_settings_are_checked(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        settings(**fields)


def test_only_known_modes_are_passed_to_the_processor() -> None:
    assert settings(mode="tiny").named_mode == "tiny" and settings(mode="custom").named_mode is None
    assert settings(mode="tiny").constants == {"model": "m", "commit": "c", "mode": "tiny"}


def test_pages_of_the_sources_are_listed(tmp_path: Path) -> None:
    wanted = settings(write_pictures(tmp_path / "a", 3), write_pictures(tmp_path / "b", 2))
    assert len(list(wanted.list_pages())) == 5
    assert len(list(wanted.list_pages(sources=[str(tmp_path / "b")]))) == 2
    assert len(list(wanted.list_pages(lambda index, source, page: index > 3))) == 1
    assert len(list(wanted.list_pages(left_out=tmp_path / "a"))) == 2


def test_a_process_alone_hears_itself() -> None:
    assert ProcessGroup().gather("x") == ["x"]
    assert RunOptions() == RunOptions(batch_size="auto", workers=1, resume=True)
