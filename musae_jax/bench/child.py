"""A figure that is measured in a process of its own, such as the most memory it held."""

import subprocess
import sys

from musae_jax.errors import MusaeError


def figure_of(what: str, *command: str) -> float:
    """The number that `python COMMAND` prints last.

    Raises:
      MusaeError: the process failed; with its last line.
    """
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise MusaeError(f"{what} failed in a process of its own ({reason[:300]})")
    return float(done.stdout.split()[-1])
