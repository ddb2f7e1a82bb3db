"""Residuals on disk: immutable shards and the metadata that says what they are.

The protocol, version "musae-activations/1". A store is one folder for one hook:

    metadata.json             {"format": "musae-activations/1", "complete": bool, "description": {…}, "shards": […]}
    shard-00000.safetensors   {"residuals": [n, P, D]}, n clips in the order of the metadata
    shard-00001.safetensors   …

`description` says what was harvested: model, revision (a hash of the weights), hook, layer, d (= D), positions (= P:
the start step, then the frames), frame_rate (Hz), delayed, text, dtype, seconds, clips (how many), clips_sha256 (of
their ids), clips_per_shard. Two stores with equal descriptions hold the same numbers. A row of `shards` is {"file",
"clips": [ids], "sha256", "bytes"}.

A shard is written under a temporary name and renamed; only then does its row enter metadata.json. A shard is never
changed. A killed writer therefore leaves whole shards, and the next one goes on after them. Readers check sizes when
they open a store and the hash of each shard the first time they read it.
"""

import dataclasses
import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from musae_jax.disk import disk_errors
from musae_jax.errors import MusaeError
from musae_jax.files import atomic_path, read_json, write_json

FORMAT = "musae-activations/1"
METADATA = "metadata.json"
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # in safetensors
_MEND = "delete its folder and harvest again"


def names_sha256(ids: Sequence[str]) -> str:
    """A short name for a list of strings, in order."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


class StoreWriter:
    """Writes a store shard by shard; a folder that already holds some of the same store is gone on with.

    Args:
      folder: the store.
      description: what is stored; must hold "d", "positions" and "dtype". The clips' keys are added here.
      clip_ids: all clips, in the order in which they will be written.
      clips_per_shard: how many go into each shard (fewer into the last).

    Raises:
      MusaeError: the folder holds another store, or the disk refuses a file.
    """

    def __init__(self, folder: str | Path, description: dict[str, Any], clip_ids: Sequence[str], clips_per_shard: int):
        self.folder = Path(folder)
        self.clip_ids = tuple(clip_ids)
        self.clips_per_shard = clips_per_shard
        self.description = json.loads(
            json.dumps(
                {
                    **description,
                    "clips": len(self.clip_ids),
                    "clips_sha256": names_sha256(self.clip_ids),
                    "clips_per_shard": clips_per_shard,
                }
            )
        )
        if self.description["dtype"] not in DTYPES:
            raise MusaeError(f"activations cannot be stored as {self.description['dtype']!r}; use {', '.join(DTYPES)}")
        self._shards: list[dict[str, Any]] = []
        if (self.folder / METADATA).exists():
            self._take_over(_read_metadata(self.folder))
        else:
            self._write_metadata()

    @property
    def shards(self) -> int:
        """How many shards the finished store has."""
        return -(-len(self.clip_ids) // self.clips_per_shard)

    @property
    def done(self) -> int:
        """How many of them are written."""
        return len(self._shards)

    @property
    def complete(self) -> bool:
        return self.done == self.shards

    def shard_clips(self, index: int) -> tuple[str, ...]:
        """The clip ids of shard `index`."""
        return self.clip_ids[index * self.clips_per_shard : (index + 1) * self.clips_per_shard]

    def write_shard(self, residuals: np.ndarray) -> None:
        """Writes the next shard: residuals [n, P, D] of `shard_clips(done)`."""
        index, ids = self.done, self.shard_clips(self.done)
        expected = (len(ids), self.description["positions"], self.description["d"])
        if residuals.shape != expected:
            raise ValueError(f"shard {index} needs shape {expected}, got {residuals.shape}")
        path = self.folder / f"shard-{index:05d}.safetensors"
        header = _header(expected, self.description["dtype"])
        data = np.ascontiguousarray(residuals, DTYPES[self.description["dtype"]]).view(np.uint8).reshape(-1)
        digest = hashlib.sha256(header)
        digest.update(data)
        with disk_errors(path), atomic_path(path) as temporary, open(temporary, "wb") as file:
            file.write(header)
            file.write(data)
        row = {"file": path.name, "clips": list(ids), "sha256": digest.hexdigest(), "bytes": len(header) + data.size}
        self._shards.append(row)
        self._write_metadata()

    def _take_over(self, metadata: dict[str, Any]) -> None:
        found = metadata["description"]
        for key in sorted({*found, *self.description}):
            if found.get(key) != self.description.get(key):
                raise MusaeError(
                    f"{self.folder} already holds other activations ({key} is {found.get(key)!r} there and"
                    f" {self.description.get(key)!r} here); choose another folder or delete that one"
                )
        for row in metadata["shards"]:  # whole shards are kept up to the first that is not as it was written
            path = self.folder / row["file"]
            if not path.exists() or path.stat().st_size != row["bytes"]:
                break
            self._shards.append(row)

    def _write_metadata(self) -> None:
        value = {"format": FORMAT, "complete": self.complete, "description": self.description, "shards": self._shards}
        with disk_errors(self.folder / METADATA):
            write_json(self.folder / METADATA, value)


@dataclasses.dataclass
class Store:
    """A finished store, open for reading."""

    folder: Path
    description: dict[str, Any]
    rows: list[dict[str, Any]]
    _verified: set[int] = dataclasses.field(default_factory=set)

    @property
    def d_in(self) -> int:
        """D, the width of the residual stream."""
        return self.description["d"]

    @property
    def positions(self) -> int:
        """P, the positions per clip: the start step, then the frames."""
        return self.description["positions"]

    @property
    def hook(self) -> str:
        return self.description.get("hook", "")

    @property
    def clip_ids(self) -> tuple[str, ...]:
        return tuple(id for row in self.rows for id in row["clips"])

    def __len__(self) -> int:
        """The number of shards."""
        return len(self.rows)

    def shard(self, index: int) -> tuple[tuple[str, ...], np.ndarray]:
        """(clip ids, residuals [n, P, D]) of one shard, in the stored dtype, read-only and mapped from disk.

        Raises:
          MusaeError: the shard is missing, truncated, or not what was written.
        """
        row = self.rows[index]
        path = self.folder / row["file"]
        _check_size(path, row["bytes"])
        data = np.memmap(path, np.uint8, mode="r")
        if index not in self._verified:
            if hashlib.sha256(data).hexdigest() != row["sha256"]:
                raise MusaeError(f"{path} is damaged: its contents do not match the hash in {METADATA}; {_MEND}")
            self._verified.add(index)
        shape = (len(row["clips"]), self.positions, self.d_in)
        dtype = DTYPES[self.description["dtype"]]
        start = 8 + struct.unpack("<Q", data[:8].tobytes())[0]
        return tuple(row["clips"]), data[start:].view(dtype).reshape(shape)

    def shards(self) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
        """All shards in order, each as (clip ids, residuals [n, P, D])."""
        for index in range(len(self.rows)):
            yield self.shard(index)


def open_store(folder: str | Path) -> Store:
    """Opens a finished store.

    Raises:
      MusaeError: not a store, an unfinished one, or a shard is missing or has the wrong size.
    """
    folder = Path(folder)
    metadata = _read_metadata(folder)
    if not metadata["complete"]:
        done = sum(len(row["clips"]) for row in metadata["shards"])
        raise MusaeError(
            f"{folder} is unfinished ({done} of {metadata['description']['clips']} clips); run the harvest again,"
            " it goes on"
        )
    for row in metadata["shards"]:
        _check_size(folder / row["file"], row["bytes"])
    return Store(folder, metadata["description"], metadata["shards"])


def _read_metadata(folder: Path) -> dict[str, Any]:
    path = folder / METADATA
    if not path.exists():
        raise MusaeError(f"{folder} is not an activation store (no {METADATA}); harvest some music into it first")
    value = read_json(path)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        found = value.get("format") if isinstance(value, dict) else type(value).__name__
        raise MusaeError(f"{path} has format {found!r}, but {FORMAT!r} is expected; {_MEND}")
    missing = {"complete", "description", "shards"} - set(value)
    missing |= {"d", "positions", "dtype", "clips"} - set(value.get("description", {}))
    if missing or value["description"]["dtype"] not in DTYPES:
        raise MusaeError(f"{path} is damaged (wrong or missing: {', '.join(sorted(missing)) or 'dtype'}); {_MEND}")
    return value


def _check_size(path: Path, expected: int) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise MusaeError(f"{path} is missing; {_MEND}") from None
    if size != expected:
        raise MusaeError(f"{path} is truncated ({size} bytes, {expected} were written); {_MEND}")


def _header(shape: tuple[int, ...], dtype: str) -> bytes:
    """The safetensors header of one tensor; the data starts 8-byte aligned."""
    size = int(np.prod(shape)) * DTYPES[dtype].itemsize
    entry = {"residuals": {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [0, size]}}
    text = json.dumps(entry, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 64)
    return struct.pack("<Q", len(text)) + text
