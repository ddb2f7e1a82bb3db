"""A folder on disk or behind a URL (gs://, s3://, memory://, …): the few operations that an activation store needs.

URLs go through fsspec, which `huggingface_hub` brings and for which every object store has a driver (gcsfs, s3fs,
adlfs). universal-pathlib would add a package for the same drivers; etils.epath knows only a fixed set of schemes.
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np

from musae_jax.errors import MusaeError
from musae_jax.files import atomic_path

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*(::|://)")


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder: `location` as it was given, and the fsspec file system behind it (None: this machine's disk)."""

    location: str
    root: str
    system: Any = None

    def __str__(self) -> str:
        return self.location


def open_place(location: str | Path | Place) -> Place:
    """The folder at a path or URL; nothing is read or made.

    Raises:
      MusaeError: the URL's scheme is unknown, or its driver is not installed.
    """
    if isinstance(location, Place):
        return location
    text = str(location)
    if not _URL.match(text):
        return Place(text, text)
    text = text.rstrip("/")
    try:
        system, root = fsspec.core.url_to_fs(text)
    except ImportError as error:
        raise MusaeError(f"{text} cannot be opened ({error}); `pip install` that package and run it again") from None
    except ValueError as error:
        raise MusaeError(f"{text} cannot be opened ({error}); use a folder, or a URL that fsspec knows") from None
    if isinstance(system, fsspec.get_filesystem_class("file")):
        return Place(text, root)
    return Place(text, root, system)


def inside(place: Place, name: str) -> Place:
    """The folder `name` inside `place`."""
    return Place(f"{place.location}/{name}", f"{place.root}/{name}", place.system)


def list_sizes(place: Place) -> dict[str, int]:
    """Name -> bytes of every file in the folder, by one listing; empty where there is no folder."""
    with _reading(place.location):
        if place.system is None:
            if not os.path.isdir(place.root):
                return {}
            sizes = {}
            with os.scandir(place.root) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):  # another writer's temporary file, renamed meanwhile
                        if entry.is_file():
                            sizes[entry.name] = entry.stat().st_size
            return sizes
        place.system.invalidate_cache()
        try:
            rows = place.system.ls(place.root, detail=True)
        except FileNotFoundError:
            return {}
        return {row["name"].rsplit("/", 1)[-1]: row["size"] for row in rows if row["type"] == "file"}


def file_size(place: Place, name: str) -> int | None:
    """The bytes of one file, None where there is none."""
    path = f"{place.root}/{name}"
    with _reading(f"{place.location}/{name}"):
        try:
            if place.system is None:
                return os.path.getsize(path)
            place.system.invalidate_cache()
            return place.system.size(path)
        except FileNotFoundError:
            return None


def read_bytes(place: Place, name: str, start: int = 0, end: int | None = None) -> np.ndarray:
    """Bytes `start` to `end` of a file, uint8 and read-only: mapped from disk, or fetched into memory.

    Raises:
      MusaeError: there is no such file, or the place cannot be reached.
    """
    path = f"{place.root}/{name}"
    with _reading(f"{place.location}/{name}"):
        if place.system is None:
            if os.path.getsize(path) == 0:  # cannot be mapped
                return np.zeros(0, np.uint8)
            return np.memmap(path, np.uint8, mode="r")[start:end]
        return np.frombuffer(place.system.cat_file(path, start=start, end=end), np.uint8)


def write_bytes(place: Place, name: str, data: bytes) -> None:
    """Writes a file so that it is there whole or not at all.

    On disk: a temporary name, then a rename. Elsewhere in one put, which object stores make visible only when it is
    complete; over sftp and the like it is not atomic, and the sizes and hashes that a store records tell.

    Raises:
      MusaeError: no room, no permission, no connection.
    """
    path = f"{place.root}/{name}"
    if place.system is None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
        return
    try:
        place.system.pipe_file(path, data)
    except Exception as error:  # every driver has exceptions of its own
        raise MusaeError(
            f"{place.location}/{name} could not be written ({_reason(error)}); check the credentials and the"
            " connection, then run it again"
        ) from error


@contextlib.contextmanager
def _reading(location: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise MusaeError(f"{location} is missing; run the stage that writes it first") from None
    except Exception as error:  # every driver has exceptions of its own
        raise MusaeError(
            f"{location} could not be read ({_reason(error)}); check the permissions and the connection, then run it"
            " again"
        ) from error


def _reason(error: Exception) -> str:
    text = str(getattr(error, "strerror", None) or error).strip() or "no reason given"
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}"
