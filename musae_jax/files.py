"""Writing files so that a killed process leaves either the old file or the new one, never half of one."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from musae_jax.errors import MusaeError


@contextlib.contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Turns an `OSError` raised while `path` is being written (a full disk, a read-only folder, a quota) into a
    `MusaeError`."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise MusaeError(
            f"{path} could not be written ({reason}); free some space or choose another folder, then run it again"
        ) from error


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it to `path` when the block ends well, removes it otherwise.

    The temporary name keeps the suffix, because writers choose the format by it.

    Raises:
      MusaeError: the disk refuses the file.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp makes files private
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """As `atomic_path`, for a whole folder; an older folder of that name is replaced."""
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            os.chmod(temporary, 0o755)
            yield temporary
            if path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically; NaN and infinity are refused because they are not JSON."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """The value in a JSON file; a missing or malformed file is a `MusaeError`."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MusaeError(f"{path} is missing; run the stage that writes it first") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MusaeError(
            f"{path} is not valid JSON ({error}); delete it and run the stage that writes it again"
        ) from None


def write_json_lines(path: str | Path, rows: Iterable[Any]) -> None:
    """Writes one compact JSON value a line, atomically."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, allow_nan=False) + "\n")


def read_json_lines(path: str | Path) -> list[Any]:
    """The values of a JSON-lines file, in order; a malformed line is a `MusaeError` that names it."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MusaeError(f"{path} is missing; run the stage that writes it first") from None
    except UnicodeDecodeError:
        raise MusaeError(f"{path} is not UTF-8 text; it must hold one JSON value a line") from None
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise MusaeError(
                f"line {number} of {path} is not valid JSON ({error.msg}); mend or remove that line"
            ) from None
    return rows
