"""Compiled programs are kept between processes; whatever is wrong with the folder, programs still run."""

import os
import subprocess
import sys

from musae_jax.compilation import trim

CODE = """
import jax
from musae_jax.compilation import compiling_seconds, keep_compiled
print(keep_compiled())
assert jax.jit(lambda x: x @ x.T + 1)(jax.numpy.ones((3, 3)))[0, 0] == 4
assert compiling_seconds() > 0
"""


def run(code: str = CODE, **environment) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("JAX_") and k != "XDG_CACHE_HOME"}
    clean |= {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip(), done.stderr
    return done.stdout.strip()


def test_programs_are_kept_and_a_damaged_one_is_compiled_again(tmp_path):
    folder = run(XDG_CACHE_HOME=str(tmp_path))
    assert folder.startswith(str(tmp_path / "musae_jax" / "xla" / "jax-"))
    entries = list((tmp_path / "musae_jax").rglob("*-cache"))
    assert entries
    before = {entry: entry.stat().st_mtime_ns for entry in entries}
    run(XDG_CACHE_HOME=str(tmp_path))
    assert {entry: entry.stat().st_mtime_ns for entry in (tmp_path / "musae_jax").rglob("*-cache")} == before
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2])
    run(XDG_CACHE_HOME=str(tmp_path))


def entry(folder, name: str, size: int, used: float):
    path = folder / f"{name}-cache"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (used, used - 1000))  # read after it was written
    return path


def test_what_was_used_longest_ago_is_removed(tmp_path):
    """Whatever version of jax wrote it; files that are no programs stay."""
    old, newer = entry(tmp_path / "jax-1", "a", 400, 5e8), entry(tmp_path / "jax-2", "b", 400, 6e8)
    newest, other = entry(tmp_path / "jax-2", "c", 400, 7e8), tmp_path / "jax-2" / "notes"
    other.write_bytes(bytes(5000))
    trim(tmp_path, 1200)
    assert old.exists() and newer.exists() and newest.exists()
    trim(tmp_path, 1199)
    assert not old.exists() and newer.exists() and newest.exists()
    trim(tmp_path, 0)
    assert not newer.exists() and not newest.exists() and other.exists()
    trim(tmp_path / "gone", 0)


def test_the_folder_does_not_grow_without_end(tmp_path):
    """The next command makes room, and keeps its own programs in a folder that another had filled."""
    folder = tmp_path / "musae_jax" / "xla"
    old = entry(folder / "jax-0", "old", 5000, 5e8)
    small = CODE.replace("print(", "import musae_jax.compilation as c; c.LARGEST = 4000; print(")
    run(small, XDG_CACHE_HOME=str(tmp_path))
    assert not old.exists()
    kept = set(folder.rglob("*-cache"))
    assert kept
    run(CODE.replace("(3, 3)", "(4, 3)"), XDG_CACHE_HOME=str(tmp_path))
    assert set(folder.rglob("*-cache")) > kept  # there is room by default


def test_the_users_choice_is_kept_and_a_folder_that_cannot_be_made_does_no_harm(tmp_path):
    assert run(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"), XDG_CACHE_HOME=str(tmp_path / "no")) == "None"
    assert list((tmp_path / "mine").iterdir()) and not (tmp_path / "no").exists()
    assert run(XDG_CACHE_HOME="/dev/null/here") == "None"
    assert run(JAX_ENABLE_COMPILATION_CACHE="false", XDG_CACHE_HOME=str(tmp_path / "no")) == "None"
