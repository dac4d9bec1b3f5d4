"""Pickles as data: what `torch.save` and `torch.jit.save` write beside the bytes of the tensors.

Unusual: `torch.load(weights_only=True)` runs no code of a file either, but a file of a few bytes can make it hang,
crash or take gigabytes. This unpickler knows the few instructions that checkpoints need, calls only functions of this
module, and describes tensors without taking memory for them. It is the pure-Python one, whose memo is a dict; that of
the C unpickler is an array as long as the largest index in the pickle.
"""

import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch

from .stored_tensors import MOST_AXES

__all__ = ["DataUnpickler", "PickledTensor", "Placeholder", "Storage"]

LARGEST_NUMBER = 2**63 - 1  # of an offset, a side or a stride
MOST_ARGUMENTS = 16  # of a function call
MOST_PAIRS = 1_000_000  # in all lists that ordered dicts are made of
LONGEST_CLASS_NAME = 100  # characters of a class in an error message
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "QInt32Storage": torch.int32,
    "QInt8Storage": torch.int8,
    "QUInt8Storage": torch.uint8,
    "QUInt4x2Storage": torch.uint8,
    "QUInt2x4Storage": torch.uint8,
    "UntypedStorage": torch.uint8,
}


class Placeholder:
    """Stands for an object of any class. It keeps the attributes of the object and does nothing else."""

    __slots__ = ("attributes",)

    def __init__(self, *_: Any) -> None:
        self.attributes: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Storage:
    """What a pickle says about a storage. Whether the file holds so many bytes has not been checked.

    Args:
        key: its name in the file.
        dtype: dtype of its elements.
        count: number of its elements.
    """

    key: str
    dtype: torch.dtype
    count: int

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return self.count * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """What a pickle says about a tensor. All its elements lie within its storage.

    Args:
        storage ([`Storage`]): where its elements are; None for a tensor that is not dense, such as a sparse one.
        dtype: its dtype; None for a tensor that is not dense.
        offset: index of its first element in the storage.
        shape: its shape.
        stride: its strides in elements.
    """

    storage: Storage | None = None
    dtype: torch.dtype | None = None
    offset: int = 0
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()


def _describe(
    storage: Storage, dtype: torch.dtype, offset: int, shape: Sequence[int], stride: Sequence[int], metadata: Any
) -> PickledTensor:
    if len(shape) != len(stride) or len(shape) > MOST_AXES:
        raise pickle.UnpicklingError(f"a tensor has {len(shape)} axes and {len(stride)} strides")
    numbers = (offset, *shape, *stride)
    if not all(type(n) is int and 0 <= n <= LARGEST_NUMBER for n in numbers):
        raise pickle.UnpicklingError(f"a tensor in storage {storage.key!r} has an impossible shape or stride")
    available = storage.size // dtype.itemsize
    last = offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
    if 0 not in shape and last >= available:
        raise pickle.UnpicklingError(f"a tensor reaches beyond the end of its storage {storage.key!r}")
    # A stride of 0 makes any number of elements of one, and metadata says that they are not what is stored.
    if metadata or prod(shape) > available:
        return PickledTensor()
    return PickledTensor(storage, dtype, offset, tuple(shape), tuple(stride))


def _tensor(
    storage: Storage, offset: int, shape: Any, stride: Any, grad: Any = None, hooks: Any = None, metadata: Any = None
) -> PickledTensor:
    return _describe(storage, storage.dtype, offset, shape, stride, metadata)


def _tensor_of_dtype(
    storage: Storage, offset: int, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> PickledTensor:
    return _describe(storage, dtype, offset, shape, stride, metadata)


def _not_dense(*_: Any) -> PickledTensor:
    return PickledTensor()


def _first_argument(value: Any, *_: Any) -> Any:
    return value


def _of_subclass(function: Callable[..., Any], _: Any, arguments: Sequence[Any], *__: Any) -> Any:
    return function(*arguments) if function in (_tensor, _tensor_of_dtype) else PickledTensor()


def _set_items(target: Any, pairs: Iterable[Sequence[Any]]) -> dict[Any, Any]:
    """Set items of a dict, except for those whose keys are no text: hashing a nested tuple can take for ever."""
    if type(target) is not dict:
        raise pickle.UnpicklingError("items are set in an object that is not a dict")
    for key, value in pairs:
        if isinstance(key, str):
            target[key] = value
    return target


def _ordered_dict(pairs: Iterable[Sequence[Any]] = ()) -> dict[Any, Any]:
    return _set_items({}, pairs)


# All functions and classes that a pickle may refer to, besides storages, dtypes and the classes of TorchScript.
ALLOWED: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _first_argument,
    "torch._tensor._rebuild_from_type_v2": _of_subclass,
    "torch._utils._rebuild_parameter": _first_argument,
    "torch._utils._rebuild_parameter_with_state": _first_argument,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    **dict.fromkeys(
        (
            "torch._utils._rebuild_device_tensor_from_cpu_tensor",
            "torch._utils._rebuild_device_tensor_from_numpy",
            "torch._utils._rebuild_meta_tensor_no_storage",
            "torch._utils._rebuild_nested_tensor",
            "torch._utils._rebuild_qtensor",
            "torch._utils._rebuild_sparse_tensor",
            "torch._utils._rebuild_wrapper_subclass",
        ),
        _not_dense,
    ),
    **dict.fromkeys(
        (
            "_codecs.encode",
            "builtins.bytearray",
            "builtins.complex",
            "builtins.set",
            "collections.Counter",
            "torch.Tensor",
            "torch.device",
            "torch.nn.parameter.Parameter",
            "torch.serialization._get_layout",
        ),
        Placeholder,
    ),
}
INSTRUCTIONS = (
    *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1),
    *(pickle.BINFLOAT, pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.BINBYTES, pickle.SHORT_BINBYTES),
    *(pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2),
    *(pickle.TUPLE3, pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT, pickle.EMPTY_SET),
    *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.BINPERSID),
)


class DataUnpickler(pickle._Unpickler):
    """Unpickles dicts, lists, numbers and texts; tensors become a [`PickledTensor`], objects a [`Placeholder`].

    Raises:
        `pickle.UnpicklingError`: the pickle needs code, or describes a tensor outside its storage. Damaged pickles
            raise other exceptions, too.
    """

    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, Storage] = {}
        self.pairs = 0

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)  # as Python 2 wrote them
        if module == "__torch__" or module.startswith("__torch__."):
            return Placeholder
        if module == "torch.jit._pickle":
            return _first_argument  # Its functions only restore the types of lists and dicts.
        if module in ("torch", "torch.cuda", "torch.storage") and name in STORAGES:
            return STORAGES[name]
        if module == "torch" and isinstance(vars(torch).get(name), (torch.dtype, torch.qscheme)):
            return vars(torch)[name]
        if f"{module}.{name}" in self._added_by_the_user():
            return Placeholder
        if f"{module}.{name}" not in ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {f'{module}.{name}'[:LONGEST_CLASS_NAME]}")
        return ALLOWED[f"{module}.{name}"]

    def _added_by_the_user(self) -> set[str]:
        added = torch.serialization.get_safe_globals()
        return {item[1] if isinstance(item, tuple) else f"{item.__module__}.{item.__qualname__}" for item in added}

    def persistent_load(self, identifier: Any) -> Storage:
        """Return what a tensor's reference says about its storage."""
        if not isinstance(identifier, tuple) or len(identifier) > MOST_ARGUMENTS:
            raise pickle.UnpicklingError("a tensor has an unknown reference to its storage")
        kind, dtype, key, _, count, *view = identifier
        if kind != "storage" or not isinstance(key, str) or not isinstance(dtype, torch.dtype) or any(view):
            raise pickle.UnpicklingError("a tensor has a storage of an unknown kind")
        if type(count) is not int or not 0 <= count <= LARGEST_NUMBER:
            raise pickle.UnpicklingError(f"storage {key!r} has an impossible size")
        storage = Storage(key, dtype, count)
        self.storages.setdefault(key, storage)
        return storage

    def _load_call(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not isinstance(arguments, tuple) or len(arguments) > MOST_ARGUMENTS:
            raise pickle.UnpicklingError("it calls a function with unknown arguments")
        if function is _ordered_dict:
            self.pairs += sum(map(len, arguments))
            if self.pairs > MOST_PAIRS:
                raise pickle.UnpicklingError("its ordered dicts are too large")
        self.stack[-1] = function(*arguments)

    def _load_object(self) -> None:
        arguments = self.stack.pop()
        kind = self.stack.pop()
        if kind is not Placeholder or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("it makes an object of a class that is not allowed")
        self.append(Placeholder())

    def _load_state(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Placeholder) and type(state) is dict:
            self.stack[-1].attributes = state

    def _load_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _set_items(self.stack[-1], [(key, value)])

    def _load_items(self) -> None:
        items = self.pop_mark()
        _set_items(self.stack[-1], zip(items[::2], items[1::2], strict=True))

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("the pickle has an instruction that checkpoints do not need")

    dispatch: ClassVar[dict[int, Callable[..., None]]] = (
        dict.fromkeys(range(256), _refuse)
        | {code[0]: pickle._Unpickler.dispatch[code[0]] for code in INSTRUCTIONS}
        | {
            pickle.REDUCE[0]: _load_call,
            pickle.NEWOBJ[0]: _load_object,
            pickle.BUILD[0]: _load_state,
            pickle.SETITEM[0]: _load_item,
            pickle.SETITEMS[0]: _load_items,
        }
    )
