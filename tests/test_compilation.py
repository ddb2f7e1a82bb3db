"""Compiled programs are kept between processes; whatever is wrong with the folder, programs still run."""

import os
import subprocess
import sys

from musae_jax.compilation import LARGEST

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


def test_the_folder_does_not_grow_without_end(tmp_path):
    run(XDG_CACHE_HOME=str(tmp_path))
    one = sum(entry.stat().st_size for entry in (tmp_path / "musae_jax").rglob("*-cache"))
    largest = one + 1000  # room for one run's programs; another shape's replace them
    other = CODE.replace("(3, 3)", "(4, 3)")
    run(
        other + f"assert jax.config.jax_compilation_cache_max_size == {largest}",
        XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_MAX_SIZE=str(largest),
    )  # fmt: skip
    assert 0 < sum(entry.stat().st_size for entry in (tmp_path / "musae_jax").rglob("*-cache")) <= largest
    run(CODE + f"assert jax.config.jax_compilation_cache_max_size == {LARGEST}", XDG_CACHE_HOME=str(tmp_path))


def test_the_users_choice_is_kept_and_a_folder_that_cannot_be_made_does_no_harm(tmp_path):
    assert run(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"), XDG_CACHE_HOME=str(tmp_path / "no")) == "None"
    assert list((tmp_path / "mine").iterdir()) and not (tmp_path / "no").exists()
    assert run(XDG_CACHE_HOME="/dev/null/here") == "None"
    assert run(JAX_ENABLE_COMPILATION_CACHE="false", XDG_CACHE_HOME=str(tmp_path / "no")) == "None"
