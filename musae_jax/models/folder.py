"""A model's folder: its JSON, its tensors whole or by shape alone, and how it comes from the hub.

Nothing is ever unpickled: `.bin` files are read by `torch_file`, which runs no code.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from musae_jax.errors import MusaeError
from musae_jax.files import atomic_path
from musae_jax.torch_file import read_torch_file

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "spiece.model")
# What safetensors calls the types that weights come in.
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file, read anew whenever `np.asarray` is given it: a large model is never twice in memory."""

    path: Path
    offset: int  # bytes
    shape: tuple[int, ...]
    dtype: np.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        try:
            array = np.fromfile(self.path, self.dtype, math.prod(self.shape), offset=self.offset).reshape(self.shape)
        except (OSError, ValueError) as error:
            raise MusaeError(f"{self.path} has changed while it was read ({error}); load it again") from None
        return array if dtype is None else array.astype(dtype)


def fetch(hub_id: str, patterns: Iterable[str], revision: str | None = None) -> Path:
    """The local folder of a hub repository, with the files that match `patterns` downloaded once.

    Raises:
      MusaeError: the hub cannot be reached or has no such repository.
    """
    import huggingface_hub  # slow to import, needed only here

    try:
        return Path(huggingface_hub.snapshot_download(hub_id, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # no network, no such model, no permission: many types, one meaning
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MusaeError(
            f"{hub_id} is no local folder and could not be fetched from the Hugging Face hub ({reason}); check the "
            "name and the network, or download it and give the folder"
        ) from None


def local_folder(source: str | Path, examples: str) -> Path | None:
    """The folder that is meant, or None where `source` has the form of a hub id; `examples` are told to who errs.

    Raises:
      MusaeError: it is neither.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise MusaeError(f"{folder} is a file; give the folder that holds its {CONFIG} and {WEIGHTS}")
    if not isinstance(source, str) or not HUB_ID.fullmatch(source):
        raise MusaeError(f"there is no folder {folder}; give a folder with {CONFIG} and {WEIGHTS}, {examples}")
    return None


def fetch_model(hub_id: str, revision: str | None = None, extra: Iterable[str] = ()) -> Path:
    """As `fetch`, for a model in the Hugging Face layout: safetensors where the repository has them, else `.bin`."""
    folder = fetch(hub_id, (CONFIG, "model*.safetensors", INDEX, *TOKENIZER_FILES, *extra), revision)
    if (folder / CONFIG).is_file() and not any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        folder = fetch(hub_id, ("pytorch_model*.bin", PICKLED_INDEX), revision)
    return folder


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model; a missing or malformed file is a `MusaeError`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MusaeError(
            f"{path} is missing; give a folder in the Hugging Face layout, with {CONFIG} and {WEIGHTS}"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise MusaeError(f"{path} is not readable JSON ({error}); fetch the checkpoint again") from None
    if not isinstance(values, dict):
        raise MusaeError(
            f"{path} holds a {type(values).__name__}, but an object is expected; fetch the checkpoint again"
        )
    return values


def refuse(folder: Path, problems: list[str], what: str = "a MusicGen", most: int = 12) -> None:
    """Raises one `MusaeError` with the problems of a checkpoint, if there are any; of a long list, the first `most`."""
    if not problems:
        return
    listed = [*problems[:most], *([f"and {len(problems) - most} more"] if len(problems) > most else [])]
    # Names out of somebody else's file: they may hold newlines or a terminal's control characters.
    text = "".join(letter if letter.isprintable() else "?" for letter in "; ".join(listed))
    raise MusaeError(f"{folder} is not {what} that musae_jax can read ({len(problems)} found): {text}")


def take_tensors(
    tensors: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Those of `tensors` that have the wanted shapes and hold floating-point numbers, and every problem found: what is
    missing, misshapen, of another kind, not finite, or not wanted."""
    found, problems = {}, []
    for key, shape in wanted.items():
        if key not in tensors:
            problems.append(f"tensor {key} is missing (expected shape {shape})")
            continue
        value = np.asarray(tensors[key])
        if value.shape != shape:
            problems.append(f"tensor {key} has shape {value.shape}, expected {shape}")
            continue
        if not jnp.issubdtype(value.dtype, jnp.floating):
            problems.append(f"tensor {key} holds {value.dtype}, expected floating point")
            continue
        if not np.isfinite(value).all():
            problems.append(f"tensor {key} has values that are not finite")
        found[key] = value
    return found, problems + [f"tensor {key} has no place in this model" for key in sorted(set(tensors) - set(wanted))]


def weight_files(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The files with a folder's tensors, and what the index promises (tensor to file name) where there are shards.

    Raises:
      MusaeError: there are no weights, or the index is malformed or leads out of the folder.
    """
    for whole, index in ((WEIGHTS, INDEX), (PICKLED, PICKLED_INDEX)):
        if (folder / whole).is_file():
            return [folder / whole], None
        if (folder / index).is_file():
            promised = read_object(folder / index).get("weight_map")
            if not isinstance(promised, dict) or not all(isinstance(name, str) for name in promised.values()):
                raise MusaeError(f"{folder / index} has no weight_map of tensor to file; fetch the checkpoint again")
            names = sorted(set(promised.values()))
            # A file name in an index is somebody else's text: it must not lead out of the folder.
            if any(Path(name).name != name or "\\" in name for name in names):
                raise MusaeError(f"{folder / index} names files outside its folder; fetch the checkpoint again")
            strange = [name for name in names if Path(name).suffix != Path(whole).suffix]
            if strange:
                raise MusaeError(f"{folder / index} names {strange[0]!r}, which is no {Path(whole).suffix} file")
            return [folder / name for name in names], promised
    raise MusaeError(
        f"{folder} has neither {WEIGHTS} nor {INDEX}, {PICKLED} or {PICKLED_INDEX}; fetch the checkpoint again"
    )


def read_tensors(folder: Path, shapes_only: bool = False) -> tuple[dict[str, Any], list[str]]:
    """Every tensor in a folder's files, and the problems found. Those of safetensors are `Stored`, those of `.bin` are
    arrays, or with `shapes_only` `jax.ShapeDtypeStruct`s.

    Raises:
      MusaeError: a file is missing or damaged.
    """
    files, promised = weight_files(folder)
    tensors: dict[str, Any] = {}
    problems = []
    for path in files:
        if not path.is_file():
            raise MusaeError(f"{path} is missing, though the index names it; fetch the checkpoint again")
        stored = path.suffix == ".safetensors"
        for key, value in (_read_safetensors(path) if stored else read_torch_file(path, shapes_only)).items():
            if key in tensors:
                problems.append(f"tensor {key} is in two files")
            tensors[key] = value
    if promised is not None:
        problems += [
            f"tensor {key} is not in {name}, where the index puts it"
            for key, name in promised.items()
            if key not in tensors
        ]
    return tensors, problems


def save_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file, atomically."""
    # save_file writes the bytes in memory order: arrays must be contiguous. "pt" is what transformers asks for.
    with atomic_path(path) as temporary:
        save_file({key: np.asarray(value, order="C") for key, value in tensors.items()}, temporary, {"format": "pt"})


def _read_safetensors(path: Path) -> dict[str, Stored]:
    try:
        with safe_open(path, framework="np"):
            pass  # it has checked the header: what lies where, without gaps, to the end of the file
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return {
            key: Stored(path, 8 + length + row["data_offsets"][0], tuple(row["shape"]), np.dtype(_DTYPES[row["dtype"]]))
            for key, row in header.items()
        }
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, MemoryError) as error:
        raise MusaeError(f"{path} is not a complete safetensors file ({error}); fetch the checkpoint again") from None
