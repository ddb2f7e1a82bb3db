"""Files that `torch.save` wrote (a zip with data.pkl), read without torch and without unpickling.

A pickle is a program for a small stack machine that may call anything. This one is walked opcode by opcode, and only
what dicts of tensors consist of is understood: numbers, strings, containers, and a handful of names that are compared
as strings and never looked up. All else is refused, so a file cannot run code here.
"""

import math
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musae_jax.errors import MusaeError

_STORAGES = {
    "torch DoubleStorage": np.float64,
    "torch FloatStorage": np.float32,
    "torch HalfStorage": np.float16,
    "torch BFloat16Storage": np.dtype(jnp.bfloat16),
    "torch LongStorage": np.int64,
    "torch IntStorage": np.int32,
    "torch BoolStorage": np.bool_,
}
_TENSOR, _PARAMETER, _DICT = (
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "collections OrderedDict",
)
_NAMES = {*_STORAGES, _TENSOR, _PARAMETER, _DICT}
_VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE")
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# Tensors may share their numbers (tied weights, slices of one buffer), but so many are an attack on the memory.
_SHARED = 4


def read_torch_file(path: Path, shapes_only: bool = False) -> dict[str, Any]:
    """The tensors of a saved state dict by name, in the dtypes they were saved in (bfloat16 as ml_dtypes).

    With `shapes_only` each is a `jax.ShapeDtypeStruct`, and the numbers themselves are not read.

    Raises:
      MusaeError: the file is missing or damaged, was written by torch before 1.6, or holds more than a dict of tensors.
    """
    values = read_torch_values(path, shapes_only)
    if not all(isinstance(value, np.ndarray | jax.ShapeDtypeStruct) for value in values.values()):
        raise _refusal(path, "its top is something else")
    return values


def read_torch_values(path: Path, shapes_only: bool = False) -> dict[str, Any]:
    """As `read_torch_file`, for a dict that may also hold text, numbers and further dicts of tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            values = _read(path, archive, shapes_only)
    except FileNotFoundError:
        raise MusaeError(f"{path} is missing; get its folder again") from None
    except (zipfile.BadZipFile, EOFError, KeyError, RuntimeError, OSError) as error:
        raise MusaeError(
            f"{path} is not a whole file of torch 1.6 or later ({str(error).strip()[:200]}); load it with torch and"
            " save its state dict again, best as safetensors"
        ) from None
    if not isinstance(values, dict):
        raise _refusal(path, "its top is something else")
    return values


def _refusal(path: Path, what: str) -> MusaeError:
    return MusaeError(
        f"{path} holds more than a dict of tensors ({what}) and is not read, because a pickle can run code; load it"
        " with torch where you trust it and save its state dict"
    )


def _read(path: Path, archive: zipfile.ZipFile, shapes_only: bool) -> Any:
    def refuse(what: str) -> MusaeError:
        return _refusal(path, what)

    entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    if "data.pkl" not in entries:
        raise zipfile.BadZipFile("no data.pkl in it")
    if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
        raise refuse("compressed entries")
    if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
        raise refuse("big-endian numbers")

    room = _SHARED * path.stat().st_size

    # Values are looked at one level deep only: a few bytes can nest tuples whose text or hash takes for ever.
    def tensor(storage: Any, offset: Any, shape: Any, stride: Any) -> np.ndarray:
        nonlocal room
        numbers = (offset, *shape, *stride) if isinstance(shape, tuple) and isinstance(stride, tuple) else (-1,)
        named = isinstance(storage, tuple) and all(isinstance(part, str) for part in storage[:3])
        if not named or len(storage) != 5 or storage[0] != "storage" or storage[1] not in _STORAGES:
            raise refuse("a tensor of an unknown kind")
        if len(shape) != len(stride):
            raise refuse("a tensor with an odd shape")
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise refuse("a tensor with an odd shape")
        entry, dtype = entries[f"data/{storage[2]}"], np.dtype(_STORAGES[storage[1]])
        held = entry.file_size // dtype.itemsize
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride))
        if math.prod(shape) > held or (math.prod(shape) and last >= held):
            raise refuse("a tensor that is larger than its data")
        if shapes_only:
            return jax.ShapeDtypeStruct(shape, dtype)
        room -= math.prod(shape) * dtype.itemsize
        if room < 0:
            raise refuse("tensors that share their numbers beyond all measure")
        if not math.prod(shape):
            return np.zeros(shape, dtype)
        flat = np.frombuffer(archive.read(entry), dtype)
        if flat.size != held:  # the directory of the zip made its length up
            raise zipfile.BadZipFile("an entry is shorter than its directory says")
        steps = [step * flat.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(flat[offset:], shape, steps).copy()

    def call(name: Any, arguments: Any) -> Any:
        if not isinstance(name, str):
            raise refuse("a call of something without a name")
        if name == _DICT and arguments == ():
            return {}
        if name == _TENSOR and len(arguments) >= 4:
            return tensor(*arguments[:4])
        if name == _PARAMETER and len(arguments) == 3 and isinstance(arguments[0], np.ndarray | jax.ShapeDtypeStruct):
            return arguments[0]
        raise refuse(f"a call of {name[:80]!r}")

    try:
        return _walk(archive.read(entries["data.pkl"]), call, refuse)
    except (IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise refuse(f"a pickle that does not add up: {error}") from None


def _walk(program: bytes, call: Any, refuse: Any) -> Any:
    """The value a pickle stands for, with `call(name, arguments)` in the place of every call."""
    stack: list[Any] = []
    marks: list[int] = []  # how much of the stack lies below each
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        at = marks.pop()
        if at > len(stack):
            raise IndexError("a mark above the stack")
        values = stack[at:]
        del stack[at:]
        return values

    def named(values: list[Any]) -> dict[str, Any]:
        # Strings only: to hash a tuple of tuples of tuples can overflow the interpreter's own stack.
        if not all(isinstance(key, str) for key in values[::2]):
            raise refuse("a dict whose keys are not names")
        return dict(zip(values[::2], values[1::2], strict=True))

    for opcode, argument, _ in pickletools.genops(program):
        name = opcode.name
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "GLOBAL":
            if argument not in _NAMES:
                raise refuse(f"the name {argument[:80]!r}")
            stack.append(argument)  # "module name", a string that is never looked up
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"D": {}, "L": [], "T": ()}[name[6]])
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "BINPERSID":
            stack[-1] = tuple(stack[-1])
        elif name == "REDUCE":
            arguments = stack.pop()
            stack[-1] = call(stack[-1], arguments)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            stack[-1].update(named([key, value]))
        elif name == "SETITEMS":
            values = since_mark()
            stack[-1].update(named(values))
        elif name == "BUILD":  # the _metadata of a module's state dict: versions, of no use here
            if not isinstance(stack.pop(), dict) or not isinstance(stack[-1], dict):
                raise refuse("an object's state")
        elif name not in ("PROTO", "STOP"):
            raise refuse(f"the opcode {name}")
    return stack.pop()
