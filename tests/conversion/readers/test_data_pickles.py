"""Pickles as data: what honest ones give, and what small, hostile ones cannot do."""

import io
import pickle
import struct
import tracemalloc
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from deepencoder.conversion.readers.data_pickles import DataUnpickler, PickledTensor, Placeholder, Storage

FLOATS = b"ctorch\nFloatStorage\n"


def load(content: bytes) -> Any:
    return DataUnpickler(io.BytesIO(content)).load()


def text(value: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    content = value.to_bytes(9, "little", signed=True)
    return pickle.LONG1 + bytes([len(content)]) + content


def storage(count: int = 4, kind: bytes = FLOATS) -> bytes:
    return pickle.MARK + text("storage") + kind + text("0") + text("cpu") + number(count) + b"tQ"


def tensor(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, count: int = 4) -> bytes:
    """Return a pickle of a tensor in a storage of `count` numbers."""
    sides, steps = (b"(" + b"".join(map(number, values)) + b"t" for values in (shape, stride))
    arguments = storage(count) + number(offset) + sides + steps + b"\x89N"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR."


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values(protocol: int) -> None:
    content: Any = {
        "a": [1, -5, 2**40, 1.5, None, True],
        "b": ("text", b"bytes"),
        "c": OrderedDict(d=1),
        7: "left out",
    }
    if protocol == 2:  # Bytes are a call of a codec there.
        content["b"] = ("text", "ä")
    assert load(pickle.dumps(content, protocol)) == {name: value for name, value in content.items() if name != 7}
    found = load(pickle.dumps({"args": Counter("aab"), "dtype": torch.float16, "shape": torch.Size([2])}, protocol))
    assert isinstance(found["args"], Placeholder)
    assert found["dtype"] is torch.float16 and found["shape"] == (2,)


def test_ordered_dicts_have_no_attributes() -> None:
    """The state dict of a module has `_metadata`; another might have an attribute `get`."""
    content = OrderedDict(a=1)
    content.get = 5  # type: ignore[method-assign, assignment]
    assert load(pickle.dumps(content, 2)).get("a") == 1


def test_classes_that_the_user_has_allowed_are_placeholders() -> None:
    with pytest.raises(pickle.UnpicklingError, match=r"refers to pathlib\."):
        load(pickle.dumps(Path("x"), 2))
    with torch.serialization.safe_globals([type(Path("x"))]):
        assert isinstance(load(pickle.dumps(Path("x"), 2)), Placeholder)


def test_tensors_are_described() -> None:
    expected = PickledTensor(Storage("0", torch.float32, 4), torch.float32, 1, (3, 1), (1, 3))
    assert load(tensor((3, 1), (1, 3), offset=1)) == expected
    assert load(tensor((0, 10**12), (1, 1))).shape == (0, 10**12)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tensor((5,), (1,)), "beyond the end of its storage '0'"),
        (tensor((2, 2), (10**12, 1)), "beyond the end"),
        (tensor((2,), (1,), offset=10**12), "beyond the end"),
        (tensor((2,), (1,), offset=-1), "impossible shape or stride"),
        (tensor((-1,), (1,)), "impossible shape or stride"),
        (tensor((2,), (-1,)), "impossible shape or stride"),
        (tensor((2,), (1, 1)), "1 axes and 2 strides"),
        (tensor((1,) * 65, (1,) * 65), "65 axes"),
        (tensor((2,), (1,), count=-4), "impossible size"),
        (b"\x80\x02" + storage(kind=b"ctorch\nSize\n") + b".", "unknown kind"),
        (b"\x80\x02}(" + b"N" * 20 + b"tQ.", "unknown reference"),
    ],
)
def test_impossible_tensors_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(pickle.UnpicklingError, match=message):
        load(content)


def test_tensors_with_more_elements_than_their_storage_are_not_dense() -> None:
    assert load(tensor((10**6, 10**6), (0, 0))) == PickledTensor()


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02cbuiltins\nbytearray\n" + number(10**9) + b"\x85R.",
        b"\x80\x02c_codecs\nencode\n(" + text("a") * 17 + b"tR.",
        b"\x80\x05\x96" + struct.pack("<Q", 10**9) + b".",
        b"\x80\x02" + b"r".join([b"}", struct.pack("<I", 2**24)]) + b".",
    ],
    ids=["bytearray", "many arguments", "instruction for a bytearray", "memo index"],
)
def test_small_pickles_take_little_memory(content: bytes) -> None:
    tracemalloc.start()
    try:
        load(content)
    except pickle.UnpicklingError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 2**20


def test_keys_that_take_for_ever_to_hash_are_left_out() -> None:
    deep = b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s."
    doubled = b"\x80\x02})" + b"q\x00h\x00\x86" * 80 + b"K\x01s."
    assert load(deep) == {} and load(doubled) == {}


def test_ordered_dicts_of_one_long_list_are_not_made_again_and_again() -> None:
    pair = text("a") + b"N\x86q\x01"
    pairs = b"\x80\x02]q\x00(" + pair + b"h\x01" * 1000 + b"e"
    with pytest.raises(pickle.UnpicklingError, match="too large"):
        load(pairs + b"ccollections\nOrderedDict\nh\x00\x85R" * 2000 + b".")


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(print),
        b"\x80\x02cos\nsystem\n" + text("true") + b"\x85R.",
        b"\x80\x02(i__torch__\nModule\n.",
        b"\x80\x02ctorch\nFloatStorage\n)\x81.",
        b"\x80\x02]" + text("a") + b"Ns.",
        b"\x80\x02\x82\x01.",
    ],
    ids=["builtin", "function", "old objects", "object of no class", "items of a list", "extension"],
)
def test_what_needs_code_is_refused(content: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError):
        load(content)
