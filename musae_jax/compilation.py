"""Compiled programs kept between runs of the `musae` command, and how long compiling takes.

The command keeps them in the user's cache folder (`$XDG_CACHE_HOME` or `~/.cache`, then `musae_jax/xla/…`), unless
`JAX_COMPILATION_CACHE_DIR` names another place or `JAX_ENABLE_COMPILATION_CACHE=false` turns that off. The folder may
be removed at any time: entries that are missing, or damaged, are compiled again. It is trimmed when a command starts.
"""

import contextlib
import hashlib
import os
import platform
import warnings
from pathlib import Path

import jax

SHORTEST = 0.2  # seconds; what compiles faster is not worth a file
LARGEST = 2 * 2**30  # bytes; what was used longest ago is removed beyond them

_spent = 0.0


def keep_compiled() -> Path | None:
    """Turns the cache on for this process; the folder, or None where it is off or cannot be written."""
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return None  # the user has chosen
    folder = default_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST)
    if "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ:
        trim(folder.parent, LARGEST)
    # A full disk, or an entry that a killed process left half-written, costs a compilation and no more.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    return folder


def trim(folder: Path, largest: int) -> None:
    """Removes the programs below `folder`, of whatever version of jax, that were used longest ago until the rest takes
    at most `largest` bytes.

    When a command starts, and not by jax's own limit at each program: that one waits ten seconds for a lock which a
    stopped process holds, and writes nothing ever again once an entry lacks the file with its time, as those of a
    killed process and of a folder from before the limit do.
    """
    entries = []
    for path in folder.glob("*/*-cache"):
        with contextlib.suppress(OSError):  # removed by another process
            about = path.stat()
            entries.append((max(about.st_atime, about.st_mtime), about.st_size, path))
    size = sum(entry[1] for entry in entries)
    for _, bytes_, path in sorted(entries):
        if size <= largest:
            break
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            size -= bytes_


def default_folder() -> Path:
    """Where compiled programs are kept: a folder for each version of jax and kind of processor, because homes are
    shared between machines and a program for one processor may crash another."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kind = hashlib.sha256(f"{platform.machine()} {_processor_features()}".encode()).hexdigest()[:12]
    return home / "musae_jax" / "xla" / f"jax-{jax.__version__}-{kind}"


def compiling_seconds() -> float:
    """Seconds that this process has spent compiling since this module was imported."""
    return _spent


def _processor_features() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _count(event: str, seconds: float, **_: object) -> None:
    global _spent
    # The two parts that do not nest: lowering, and XLA (or reading what it made from the cache).
    if event in ("/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration"):
        _spent += seconds


jax.monitoring.register_event_duration_secs_listener(_count)
