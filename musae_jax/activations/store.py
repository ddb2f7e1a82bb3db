"""Residuals on disk, or behind a URL: immutable shards and the metadata that says what they are.

The protocol, version "musae-activations/2". A store is one folder for one hook:

    metadata.json             what is stored, and the list of shards
    shard-00000.safetensors   {"residuals": [n, P, D]}, n whole clips
    shard-00001.safetensors   …

Metadata. A JSON object in UTF-8:

    format          "musae-activations/2"; a reader refuses any other
    complete        false while the store is being written (`shards` is then empty), true when it is whole
    description     what was harvested, below
    shards          one row a shard, in order: {"file", "clips": [ids], "tracks": [names], "split": ["label" or
                    "score"], "sha256", "bytes"}; `tracks` and `split`, one a clip, are optional
    content_sha256  once complete: SHA-256 of description and shards, written as the compact JSON {"description": …,
                    "shards": …} with sorted keys and ASCII escapes. Equal hashes are equal stores.

Description. Always: d (= D, the width), positions (= P a clip), dtype ("float32", "bfloat16" or "float16", little-
endian), clips (how many), clips_sha256 (of their ids, joined by newlines, in the order of the store) and
clips_per_shard (n; the last shard may hold fewer). A harvest adds: model, revision (a hash of the weights), hook
("blocks.{i}.resid_post", the output of block i counted from 0), layer (i), codec (of the codes that the model read:
revision, sampling_rate in Hz, codebooks), frame_rate (Hz), seconds (a clip), delayed (true: position 0 is the start
step, and at position p codebook k holds frame p − 1 − k, MusicGen's delay), text ("none": no prompt, one branch), order
and split (below). Two stores with equal descriptions hold the same numbers.

Order. Shuffled at write by whole clips, because a clip must stay whole and in time for whoever reads features off it,
while neighbours in a folder of music are alike. A harvest with "order": {"seed": s} ranks clips by SHA-256 of the UTF-8
text "{s}:{id}", cuts each half of the split (below) into whole shards in that order, and writes a shard of "label", one
of "score", and so on until one half and then the other has no whole shard left; last come the clips that remain, those
of "label" first. Every shard is so a random sample of one half of the music, and reading one half leaves the other
alone. The reader shuffles tokens, within a shard and across several, in memory it bounds (`batches`). Clips are found
by id, never by place.

Split. "split": {"seed": s}: tracks ranked by SHA-256 of "{s}:{track}", the first half (rounded up) "label", the others
"score"; no track is on both sides.

Shard. A safetensors file of one tensor; its `__metadata__` has "store" (SHA-256 of the description as compact JSON
with sorted keys) and "sha256", of the tensor's bytes, the same as in the row.

Writing. metadata.json first, with complete false; then shards, each whole under its final name or not there at all,
never changed afterwards; then metadata.json again, with complete true. A killed writer leaves whole shards. The next
one keeps those whose size and header are as they should be (it reads no more of them), and writes the others. Several
writers of the same store share the work in any way: each leaves alone what another has written, and whoever knows that
all shards are there writes metadata.json again; it is the same, whoever does.

Reading. content_sha256 and the sizes of all shards are checked when a store is opened; a shard's header at every read,
its sha256 when it is first read through an open store, unless the reader is told not to.
"""

import dataclasses
import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from musae_jax.errors import MusaeError
from musae_jax.places import Place, file_size, list_sizes, open_place, read_bytes, write_bytes

FORMAT = "musae-activations/2"
METADATA = "metadata.json"
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # in safetensors
_MEND = "delete that file and harvest again, the other shards are kept"
_AGAIN = "delete the folder and harvest again"
_SAME = ("model", "revision", "hook", "layer", "codec", "d", "positions", "frame_rate", "delayed", "text")


def names_sha256(ids: Sequence[str]) -> str:
    """A short name for a list of strings, in order."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def json_sha256(value: Any) -> str:
    """SHA-256 of a JSON value: compact, keys sorted, ASCII."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class StoreWriter:
    """Writes a store shard by shard; a folder that already holds some of the same store is gone on with.

    Others may write the same store at the same time, see the protocol.

    Args:
      folder: the store, a path or a URL.
      description: what is stored; must hold "d", "positions" and "dtype". The clips' keys are added here.
      clip_ids: all clips, in the order in which they will be written.
      clips_per_shard: how many go into each shard (fewer into the last).
      tracks, split: clip id -> its track, and "label" or "score".

    Raises:
      MusaeError: the folder holds another store, or the disk refuses a file.
    """

    def __init__(
        self,
        folder: str | Path | Place,
        description: dict[str, Any],
        clip_ids: Sequence[str],
        clips_per_shard: int,
        tracks: Mapping[str, str] | None = None,
        split: Mapping[str, str] | None = None,
    ):
        self.folder = open_place(folder)
        self.clip_ids = tuple(clip_ids)
        self.clips_per_shard = clips_per_shard
        self._columns = {name: of for name, of in (("tracks", tracks), ("split", split)) if of is not None}
        described = {
            **description,
            "clips": len(self.clip_ids),
            "clips_sha256": names_sha256(self.clip_ids),
            "clips_per_shard": clips_per_shard,
        }
        self.description = json.loads(json.dumps(described))
        if self.description["dtype"] not in DTYPES:
            raise MusaeError(f"activations cannot be stored as {self.description['dtype']!r}; use {', '.join(DTYPES)}")
        self._hash = json_sha256(self.description)
        self._rows: dict[int, dict[str, Any]] = {}
        sizes = list_sizes(self.folder)
        said = self._take_over(sizes) if METADATA in sizes else None
        if said != self.complete:
            self._write_metadata()

    @property
    def shards(self) -> int:
        """How many shards the finished store has."""
        return -(-len(self.clip_ids) // self.clips_per_shard)

    @property
    def missing(self) -> tuple[int, ...]:
        """The numbers of the shards still to be written, as far as is known here."""
        return tuple(index for index in range(self.shards) if index not in self._rows)

    @property
    def done(self) -> int:
        """How many shards are written."""
        return len(self._rows)

    @property
    def complete(self) -> bool:
        return self.done == self.shards

    def shard_clips(self, index: int) -> tuple[str, ...]:
        """The clip ids of shard `index`."""
        return self.clip_ids[index * self.clips_per_shard : (index + 1) * self.clips_per_shard]

    def has_shard(self, index: int) -> bool:
        """Whether a shard is written, by whomever; one that is not known yet is looked for."""
        if index not in self._rows and (size := file_size(self.folder, _file(index))) is not None:
            self._adopt(index, size)
            self._finish()
        return index in self._rows

    def write_shard(self, residuals: np.ndarray, index: int | None = None) -> None:
        """Writes residuals [n, P, D] of `shard_clips(index)`, by default of the first missing shard, unless somebody
        else has written it meanwhile."""
        index = self.missing[0] if index is None else index
        shape = self._shape(index)
        if residuals.shape != shape:
            raise ValueError(f"shard {index} needs shape {shape}, got {residuals.shape}")
        if self.has_shard(index):
            return
        data = np.ascontiguousarray(residuals, DTYPES[self.description["dtype"]]).tobytes()
        digest = hashlib.sha256(data).hexdigest()
        header = _header(shape, self.description["dtype"], {"store": self._hash, "sha256": digest})
        write_bytes(self.folder, _file(index), header + data)
        self._rows[index] = self._row(index, digest, len(header) + len(data))
        self._finish()

    def _shape(self, index: int) -> tuple[int, int, int]:
        return len(self.shard_clips(index)), self.description["positions"], self.description["d"]

    def _row(self, index: int, digest: str, size: int) -> dict[str, Any]:
        ids = self.shard_clips(index)
        columns = {name: [of[id] for id in ids] for name, of in self._columns.items()}
        return {"file": _file(index), "clips": list(ids), **columns, "sha256": digest, "bytes": size}

    def _take_over(self, sizes: dict[str, int]) -> bool:
        """Keeps the shards that are as a writer of this very store leaves them; whether the metadata promises all."""
        metadata = _read_metadata(self.folder)
        found = metadata["description"]
        for key in dict.fromkeys([*self.description, *found]):
            if found.get(key) != self.description.get(key):
                raise MusaeError(
                    f"{self.folder} already holds other activations ({key} is {found.get(key)!r} there and"
                    f" {self.description.get(key)!r} here); choose another folder or delete that one"
                )
        written = {row["file"]: row for row in metadata["shards"]}
        for index in range(self.shards):
            name = _file(index)
            if name in written:
                if sizes.get(name) == written[name]["bytes"]:
                    self._rows[index] = written[name]
            elif name in sizes:
                self._adopt(index, sizes[name])
        return metadata["complete"]

    def _adopt(self, index: int, size: int) -> None:
        """Keeps a shard that is there, if it is as a writer of this very store leaves it."""
        entry, length = _read_header(read_bytes(self.folder, _file(index), 0, 4096))
        about, tensor = entry.get("__metadata__", {}), _tensor(self._shape(index), self.description["dtype"])
        whole = entry.get("residuals") == tensor and size == length + tensor["data_offsets"][1]
        if whole and about.get("store") == self._hash:
            self._rows[index] = self._row(index, about["sha256"], size)

    def _finish(self) -> None:
        if self.complete:
            self._write_metadata()

    def _write_metadata(self) -> None:
        rows = [self._rows[index] for index in range(self.shards)] if self.complete else []
        value = {"format": FORMAT, "complete": self.complete, "description": self.description, "shards": rows}
        if self.complete:
            value["content_sha256"] = json_sha256({"description": self.description, "shards": rows})
        write_bytes(self.folder, METADATA, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


@dataclasses.dataclass
class Store:
    """A finished store, open for reading; an `Activations`.

    Attributes:
      name: where it lies.
      description: what is stored; see the protocol.
      content_sha256: of the description and all shards.
      places: of each shard, its folder.
      rows: of each shard, its row of the metadata.
      verify: check each shard's hash the first time it is read.
    """

    name: str
    description: dict[str, Any]
    content_sha256: str
    places: list[Place]
    rows: list[dict[str, Any]]
    verify: bool = True
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

    @property
    def tracks(self) -> dict[str, str]:
        """Clip id -> the track it was cut from; empty where the store does not say."""
        return {id: track for row in self.rows for id, track in zip(row["clips"], row.get("tracks", ()))}

    @property
    def split(self) -> dict[str, str]:
        """Clip id -> "label" or "score"; empty where the store does not say."""
        return {id: half for row in self.rows for id, half in zip(row["clips"], row.get("split", ()))}

    def __len__(self) -> int:
        """The number of shards."""
        return len(self.rows)

    def shard_clips(self, index: int) -> tuple[str, ...]:
        """The clip ids of one shard."""
        return tuple(self.rows[index]["clips"])

    def shard(self, index: int) -> tuple[tuple[str, ...], np.ndarray]:
        """(clip ids, residuals [n, P, D]) of one shard, in the stored dtype, read-only: mapped from disk or fetched.

        Raises:
          MusaeError: the shard is missing, truncated, not what was written, or cannot be reached.
        """
        row, place = self.rows[index], self.places[index]
        path = f"{place}/{row['file']}"
        data = read_bytes(place, row["file"])
        _check_size(path, len(data), row["bytes"])
        shape, dtype = (len(row["clips"]), self.positions, self.d_in), self.description["dtype"]
        entry, length = _read_header(data)
        if entry.get("residuals") != _tensor(shape, dtype):
            raise MusaeError(f"{path} is damaged: its header is not that of {shape} numbers in {dtype}; {_MEND}")
        data = data[length:]  # n·P·D numbers
        if self.verify and index not in self._verified:
            found = hashlib.sha256(data).hexdigest()
            if found != row["sha256"]:
                raise MusaeError(
                    f"{path} is damaged: the SHA-256 of its numbers is {found[:12]}…, but {METADATA} says"
                    f" {row['sha256'][:12]}…; {_MEND}"
                )
            self._verified.add(index)
        return tuple(row["clips"]), data.view(DTYPES[dtype]).reshape(shape)

    def shards(self) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
        """All shards in order, each as (clip ids, residuals [n, P, D])."""
        for index in range(len(self.rows)):
            yield self.shard(index)


def open_store(folder: str | Path | Place, verify: bool = True) -> Store:
    """Opens a finished store, at a path or a URL.

    With `verify` the hash of each shard is checked the first time it is read through the open store (about as fast as
    a disk reads); without it only sizes and the metadata's own hash are.

    Raises:
      MusaeError: not a store, an unfinished one, or a shard is missing or has the wrong size.
    """
    place = open_place(folder)
    metadata = _read_metadata(place)
    sizes = list_sizes(place)
    if not metadata["complete"]:
        description = metadata["description"]
        shards = -(-description["clips"] // description["clips_per_shard"])
        done = sum(_file(index) in sizes for index in range(shards))
        raise MusaeError(f"{place} is unfinished ({done} of {shards} shards); run the harvest again, it goes on")
    for row in metadata["shards"]:
        _check_size(f"{place}/{row['file']}", sizes.get(row["file"]), row["bytes"])
    rows = metadata["shards"]
    return Store(str(place), metadata["description"], metadata["content_sha256"], [place] * len(rows), rows, verify)


def join_stores(stores: Sequence[Store]) -> Store:
    """Several stores of one hook of one model, from different music, as one.

    Raises:
      MusaeError: no stores, stores that differ in what they hold (model, hook, width, …), or a clip in two of them.
    """
    if not stores:
        raise MusaeError("there are no activation stores to join; harvest some music first")
    first = stores[0]
    for store in stores[1:]:
        for key in (*_SAME, "dtype"):
            here, there = first.description.get(key), store.description.get(key)
            if here != there:
                raise MusaeError(
                    f"{first.name} and {store.name} cannot be joined: {key} is {here!r} in the first and {there!r} in"
                    " the second; give stores of one hook of one model"
                )
    ids = [id for store in stores for id in store.clip_ids]
    if len(set(ids)) < len(ids):
        twice = next(id for n, id in enumerate(ids) if id in ids[:n])
        raise MusaeError(f"the clip {twice!r} is in two of the stores to join; leave one of them out")
    description = {key: first.description[key] for key in (*_SAME, "dtype") if key in first.description}
    return Store(
        name=" + ".join(store.name for store in stores),
        description={**description, "clips": len(ids), "clips_sha256": names_sha256(ids)},
        content_sha256=names_sha256([store.content_sha256 for store in stores]),
        places=[place for store in stores for place in store.places],
        rows=[row for store in stores for row in store.rows],
        verify=all(store.verify for store in stores),
    )


def is_store(folder: str | Path) -> bool:
    """Whether there is a store, finished or not, at a path or URL."""
    return METADATA in list_sizes(open_place(folder))


def _file(index: int) -> str:
    return f"shard-{index:05d}.safetensors"


def _read_metadata(place: Place) -> dict[str, Any]:
    path = f"{place}/{METADATA}"
    if METADATA not in list_sizes(place):
        raise MusaeError(f"{place} is not an activation store (no {METADATA}); harvest some music into it first")
    try:
        value = json.loads(read_bytes(place, METADATA).tobytes().decode())
    except ValueError as error:
        raise MusaeError(f"{path} is not valid JSON ({error}); {_AGAIN}") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        found = value.get("format") if isinstance(value, dict) else type(value).__name__
        raise MusaeError(f"{path} has format {found!r}, but {FORMAT!r} is expected; {_AGAIN}")
    description = value.get("description") if isinstance(value.get("description"), dict) else {}
    missing = {"complete", "description", "shards"} - set(value)
    missing |= {"d", "positions", "dtype", "clips", "clips_per_shard"} - set(description)
    if missing or description["dtype"] not in DTYPES:
        raise MusaeError(f"{path} is damaged (wrong or missing: {', '.join(sorted(missing)) or 'dtype'}); {_AGAIN}")
    if value["complete"]:
        found = json_sha256({"description": description, "shards": value["shards"]})
        if value.get("content_sha256") != found:
            raise MusaeError(f"{path} is damaged: its contents do not match its content_sha256; {_AGAIN}")
    return value


def _check_size(path: str, size: int | None, expected: int) -> None:
    if size is None:
        raise MusaeError(f"{path} is missing; harvest again, the other shards are kept")
    if size != expected:
        raise MusaeError(f"{path} is truncated ({size} bytes, {expected} were written); {_MEND}")


def _tensor(shape: tuple[int, ...], dtype: str) -> dict[str, Any]:
    """What a safetensors header says of a tensor that comes first."""
    size = int(np.prod(shape)) * DTYPES[dtype].itemsize
    return {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [0, size]}


def _header(shape: tuple[int, ...], dtype: str, about: dict[str, str]) -> bytes:
    """The header of a shard; the numbers start 8-byte aligned."""
    entry = {"__metadata__": about, "residuals": _tensor(shape, dtype)}
    text = json.dumps(entry, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 64)
    return struct.pack("<Q", len(text)) + text


def _read_header(data: np.ndarray) -> tuple[dict[str, Any], int]:
    """A shard's header and where its numbers start; ({}, 0) if it is no such file."""
    length = 8 + struct.unpack("<Q", data[:8].tobytes())[0] if len(data) >= 8 else 0
    if not 8 < length <= len(data):
        return {}, 0
    try:
        entry = json.loads(data[8:length].tobytes().decode())
    except ValueError:
        return {}, 0
    return (entry, length) if isinstance(entry, dict) else ({}, 0)
