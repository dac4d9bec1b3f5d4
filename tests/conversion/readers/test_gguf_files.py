"""GGUF files: what the gguf package writes is read, and damaged headers are refused before memory is taken."""

import random
import struct
from pathlib import Path

import numpy as np
import pytest

from deepencoder.conversion.readers.formats import choose_gguf
from deepencoder.conversion.readers.gguf_files import FIRST_READ, open_gguf, read_gguf_header

gguf = pytest.importorskip("gguf")


def write(path: Path, tensors: dict[str, tuple[np.ndarray, str]], strings: int = 3) -> Path:
    """Write tensors in types of GGUF, after metadata of all kinds."""
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_uint32("a.number", 7)
    writer.add_bool("a.switch", True)
    writer.add_array("some.numbers", [1.0, 2.0])
    writer.add_array("some.words", [f"word {number}" for number in range(strings)])
    for name, (values, kind) in tensors.items():
        stored = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
def test_tensors_are_those_that_the_library_reads(values: np.ndarray, kind: str, tmp_path: Path) -> None:
    path = write(
        tmp_path / "file.gguf", {"one": (values[0], "F32"), "matrix": (values, kind), "cube": (values[None], "F32")}
    )
    tensors = open_gguf(path)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "one": (64,),
        "matrix": (4, 64),
        "cube": (1, 4, 64),
    }
    read = tensors["matrix"].read
    assert read is not None and tensors["matrix"].dtype == read().dtype
    (expected,) = (tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == "matrix")
    np.testing.assert_array_equal(
        read().float().numpy(), gguf.quants.dequantize(expected.data, expected.tensor_type).reshape(4, 64)
    )


def test_long_headers_are_read_in_pieces(values: np.ndarray, tmp_path: Path) -> None:
    path = write(tmp_path / "file.gguf", {"matrix": (values, "F32")}, strings=200_000)
    content, requests = path.read_bytes(), []

    def read(start: int, end: int) -> tuple[bytes, int]:
        requests.append((start, end))
        return content[start:end], len(content)

    tensors = read_gguf_header(read, "file")
    assert tensors["matrix"].shape == (4, 64) and tensors["matrix"].end <= len(content)
    assert len(requests) > 2 and requests[1][1] == FIRST_READ
    assert all(stop == start for (_, stop), (start, _) in zip(requests[:-1], requests[1:], strict=True))


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"", "ends within"),
        (b"nonsense" * 4, "not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**40, 0), "tensors"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62), "more than"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 4, 2**61), "more than"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 9, 1), "array of type 9"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"a", 99), "type 99"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 1, 0, 1, b"a", 9), "9 axes"),
        (b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"a", 1, 2**60, 0, 0), "outside"),
        (b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"a", 1, 33, 8, 0), "blocks of 32"),
        (b"GGUF" + struct.pack("<IQQQ17sII", 3, 0, 1, 17, b"general.alignment", 4, 0), "alignment"),
    ],
)
def test_damaged_headers_are_refused(start: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "file.gguf"
    path.write_bytes(start)
    with pytest.raises(ValueError, match=words) as raised:
        open_gguf(path)
    assert str(path) in str(raised.value)


def test_damaged_files_raise_value_errors_only(values: np.ndarray, tmp_path: Path) -> None:
    content = write(tmp_path / "file.gguf", {"one": (values[0], "F32"), "matrix": (values, "Q8_0")}).read_bytes()
    generator, refused = random.Random(0), 0
    for _ in range(300):
        damaged = bytearray(content[: generator.choice((len(content), generator.randrange(len(content))))])
        for _ in range(generator.randint(1, 4)):
            damaged[generator.randrange(min(len(damaged), 400))] = generator.randrange(256) if damaged else 0
        path = tmp_path / "damaged.gguf"
        path.write_bytes(damaged)
        try:
            tensors = open_gguf(path)
        except ValueError:
            refused += 1
        else:
            for tensor in tensors.values():
                if tensor.dtype is not None and tensor.read is not None:
                    assert tuple(tensor.read().shape) == tensor.shape
    assert refused > 100


def test_a_type_that_is_unknown_has_no_dtype(tmp_path: Path) -> None:
    path = tmp_path / "file.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"a", 1, 32, 77, 0) + bytes(256))
    assert open_gguf(path)["a"].dtype is None


def test_the_vision_encoder_is_chosen_in_the_best_precision() -> None:
    names = ["model-Q8_0.gguf", "mmproj-model-Q8_0.gguf", "mmproj-model-F16.gguf", "mmproj-model-BF16.gguf"]
    assert choose_gguf(names) == ["mmproj-model-BF16.gguf"]
    assert choose_gguf(names[:2]) == ["mmproj-model-Q8_0.gguf"] and choose_gguf(names[:1]) == names[:1]
