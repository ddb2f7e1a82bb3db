"""Calling a compiled function on more rows than it takes at a time."""

from collections.abc import Callable
from typing import Any

import numpy as np


def in_batches(function: Callable[[np.ndarray], Any], rows: np.ndarray, size: int = 8) -> np.ndarray:
    """`function` over the first axis of `rows`, `size` at a time, the last batch padded with its last row.

    All batches have one shape, so a jitted function is compiled once.
    """
    parts = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), 0)])
        parts.append(np.asarray(function(padded))[: len(part)])
    return np.concatenate(parts)
