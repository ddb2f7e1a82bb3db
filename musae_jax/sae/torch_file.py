"""The tensors of a file that `torch.save` wrote (a zip with data.pkl), read without torch and without unpickling.

A pickle is a program for a small stack machine that may call anything. This one is walked opcode by opcode, and only
what a dict of tensors consists of is understood: numbers, strings, containers, and a handful of names that are compared
as strings and never looked up. All else is refused, so a file cannot run code here.
"""

import math
import pickletools
import zipfile
from pathlib import Path
from typing import Any

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
_VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE")
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_MARK = object()


def read_torch_file(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a saved state dict by name, in the dtypes they were saved in (bfloat16 as ml_dtypes).

    Raises:
      MusaeError: the file is missing or damaged, was written by torch before 1.6, or holds more than a dict of tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(path, archive)
    except FileNotFoundError:
        raise MusaeError(f"{path} is missing; get the SAE's folder again") from None
    except (zipfile.BadZipFile, EOFError, KeyError, RuntimeError) as error:
        raise MusaeError(
            f"{path} is not a whole file of torch 1.6 or later ({str(error).strip()}); load it with torch and save its"
            " state dict again, best as safetensors"
        ) from None


def _read(path: Path, archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    def refuse(what: str) -> MusaeError:
        return MusaeError(
            f"{path} holds more than a dict of tensors ({what}) and is not read, because a pickle can run code; load it"
            " with torch where you trust it and save its state dict"
        )

    entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    if "data.pkl" not in entries:
        raise zipfile.BadZipFile("no data.pkl in it")
    if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
        raise refuse("compressed entries")
    if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
        raise refuse("big-endian numbers")

    def tensor(storage: Any, offset: Any, shape: Any, stride: Any) -> np.ndarray:
        numbers = (offset, *shape, *stride) if isinstance(shape, tuple) and isinstance(stride, tuple) else (-1,)
        if len(storage) != 5 or storage[0] != "storage" or storage[1] not in _STORAGES or len(shape) != len(stride):
            raise refuse("a tensor of an unknown kind")
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise refuse("a tensor with an odd shape")
        flat = np.frombuffer(archive.read(entries[f"data/{storage[2]}"]), _STORAGES[storage[1]])
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride))
        if math.prod(shape) > flat.size or (math.prod(shape) and last >= flat.size):
            raise refuse("a tensor that is larger than its data")
        steps = [step * flat.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(flat[offset:], shape, steps).copy()

    def call(name: Any, arguments: Any) -> Any:
        if name == _DICT and arguments == ():
            return {}
        if name == _TENSOR and len(arguments) >= 4:
            return tensor(*arguments[:4])
        if name == _PARAMETER and len(arguments) == 3 and isinstance(arguments[0], np.ndarray):
            return arguments[0]
        raise refuse(f"a call of {name}")

    try:
        value = _walk(archive.read(entries["data.pkl"]), call, refuse)
    except (IndexError, TypeError, ValueError, AttributeError) as error:
        raise refuse(f"a pickle that does not add up: {error}") from None
    if not isinstance(value, dict) or not all(
        isinstance(name, str) and isinstance(leaf, np.ndarray) for name, leaf in value.items()
    ):
        raise refuse("its top is something else")
    return value


def _walk(program: bytes, call: Any, refuse: Any) -> Any:
    """The value a pickle stands for, with `call(name, arguments)` in the place of every call."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        at = max(i for i, value in enumerate(stack) if value is _MARK)
        values = stack[at + 1 :]
        del stack[at:]
        return values

    for opcode, argument, _ in pickletools.genops(program):
        name = opcode.name
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "GLOBAL":
            stack.append(argument)  # "module name", a string that is never looked up; `call` knows three of them
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"D": {}, "L": [], "T": ()}[name[6]])
        elif name == "MARK":
            stack.append(_MARK)
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
            stack[-1][key] = value
        elif name == "SETITEMS":
            values = since_mark()
            stack[-1].update(zip(values[::2], values[1::2], strict=True))
        elif name == "BUILD":  # the _metadata of a module's state dict: versions, of no use here
            if not isinstance(stack.pop(), dict) or not isinstance(stack[-1], dict):
                raise refuse("an object's state")
        elif name not in ("PROTO", "STOP"):
            raise refuse(f"the opcode {name}")
    return stack.pop()
