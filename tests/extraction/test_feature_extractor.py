"""Features through datasets.map: they equal the model's own, have the declared types and are cached."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets.fingerprint import Hasher

from deepencoder.extraction import OUTPUTS, FeatureExtractor

from ..conftest import ROOT
from .corpus import encoded, picture
from .helpers import own_features

PROGRAM = ROOT / "tests" / "programs" / "map_features.py"


def dataset(count: int = 6) -> datasets.Dataset:
    images = [picture(number, (90 + 40 * (number % 3), 120)) for number in range(count)]
    features = datasets.Features({"name": datasets.Value("string"), "image": datasets.Image()})
    return datasets.Dataset.from_dict(
        {"name": [str(number) for number in range(count)], "image": images}, features=features
    )


@pytest.mark.parametrize("name", ["fixed", "tiled"])
def test_map_gives_the_models_features_as_declared(name: str, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(name)
    data = dataset()
    extractor = FeatureExtractor(source, outputs=tuple(OUTPUTS), dtype="float32")
    mapped = data.map(extractor, batched=True, batch_size=4, features=extractor.extend(data.features))
    assert {name: mapped.features[name] for name in tuple(OUTPUTS)} == dict(extractor.features)
    assert mapped["name"] == data["name"]
    for row, image in zip(mapped.select_columns(list(OUTPUTS)).with_format("numpy"), data["image"], strict=True):
        for output, expected in own_features(source, image).items():
            assert row[output].dtype == np.float32
            np.testing.assert_allclose(row[output], expected, atol=2e-5)


def test_processes_streams_and_pickles_give_the_same(fixed: Path, tmp_path: Path) -> None:
    data = dataset()
    extractor = FeatureExtractor(fixed, outputs=("pooled", "tokens"))
    options: dict[str, Any] = {"batched": True, "batch_size": 2, "remove_columns": data.column_names}
    expected = data.map(extractor, features=extractor.features, **options)
    assert expected.features == extractor.features
    assert np.isfinite(np.array(expected["tokens"], np.float32)).all()

    several = data.map(extractor, features=extractor.features, num_proc=2, with_rank=True, **options)
    streamed = data.to_iterable_dataset().map(extractor, features=extractor.features, **options)
    assert streamed.features == extractor.features
    again = pickle.loads(pickle.dumps(extractor))
    for found in (several, list(streamed), data.map(again, features=extractor.features, **options)):
        for ours, theirs in zip(found, expected, strict=True):
            for name in ("pooled", "tokens"):
                np.testing.assert_allclose(ours[name], theirs[name], atol=2e-3)


def test_a_second_map_is_read_from_the_cache(fixed: Path, tmp_path: Path) -> None:
    """This holds across processes, and different weights give a different fingerprint."""
    first = FeatureExtractor(fixed)
    fingerprint = Hasher.hash(first)
    first({"image": [picture(0)]})  # this loads the model
    assert first._encoder is not None and Hasher.hash(first) == fingerprint
    assert Hasher.hash(FeatureExtractor(fixed)) == fingerprint
    assert Hasher.hash(FeatureExtractor(fixed, outputs=("tokens",))) != fingerprint

    dataset(3).save_to_disk(tmp_path / "data")
    command = [sys.executable, str(PROGRAM), str(tmp_path / "data"), str(fixed)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    prints = [subprocess.run(command, env=environment, capture_output=True, text=True, check=True) for _ in range(2)]
    (one, ran), (two, cached) = (done.stdout.split() for done in prints)
    assert one == two and (ran, cached) == ("False", "True")

    weights = fixed / "model.safetensors"
    before = weights.read_bytes()
    try:
        weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        assert Hasher.hash(FeatureExtractor(fixed)) != fingerprint
    finally:
        weights.write_bytes(before)


def test_any_image_column(fixed: Path) -> None:
    extractor = FeatureExtractor(fixed, column="page", dtype="float32")
    values = [picture(0), encoded(0), {"bytes": encoded(0), "path": None}, np.asarray(picture(0))]
    found = extractor({"page": values})["pooled"]
    for row in found:
        np.testing.assert_allclose(row, own_features(fixed, picture(0))["pooled"], atol=2e-5)
    with pytest.raises(ValueError, match="column must be one of image"):
        extractor({"image": values})


def test_bad_rows_raise_or_are_none(fixed: Path) -> None:
    rows = {"image": [encoded(0), b"nonsense", encoded(1)]}
    with pytest.raises(ValueError, match=r"image\[1\].*not an image"):
        FeatureExtractor(fixed)(rows)
    extractor = FeatureExtractor(fixed, on_error="none", outputs=("tokens",))
    data = datasets.Dataset.from_dict(rows)
    mapped = data.map(extractor, batched=True, features=extractor.extend(data.features))
    assert [row is None for row in mapped["tokens"]] == [False, True, False]
    assert mapped["error"][0] is None and "not an image" in mapped["error"][1]


def test_rows_name_no_files_unless_asked(fixed: Path, tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    rows = {"image": [str(tmp_path / "a.png"), {"bytes": None, "path": "a.png"}]}
    with pytest.raises(ValueError, match=r"image\[0\].*its row names a file, .*image_folder"):
        FeatureExtractor(fixed)(rows)
    with pytest.raises(ValueError, match=r"image\[0\].*its row holds a URL, .*allow_urls"):
        FeatureExtractor(fixed)({"image": ["http://127.0.0.1:9/a.png"]})
    found = FeatureExtractor(fixed, image_folder=tmp_path, dtype="float32")(rows)["pooled"]
    for row in found:
        np.testing.assert_allclose(row, own_features(fixed, picture(0))["pooled"], atol=2e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"outputs": ("nothing",)}, "outputs must be some of"),
        ({"outputs": "pooled"}, "outputs must be some of"),
        ({"outputs": ()}, "outputs must be some of"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"on_error": "skip"}, "on_error must be"),
        ({"image_folder": "nothing"}, "image_folder must be a folder"),
        ({"mode": "huge"}, "mode must be one of"),
    ],
)
def test_arguments_are_checked(fixed: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FeatureExtractor(fixed, **arguments)
