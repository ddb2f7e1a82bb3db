"""A full disk, a read-only folder, a quota: said in one sentence that names the file."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from musae_jax.errors import MusaeError


@contextlib.contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Turns any `OSError` raised while `path` is being written into a `MusaeError`."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise MusaeError(
            f"{path} could not be written ({reason}); free some space or choose another folder, then run it again"
        ) from error
