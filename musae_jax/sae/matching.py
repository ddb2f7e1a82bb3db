"""Which rows of two dictionaries are the same feature: cosines, the best match of each row, one-to-one matching."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

_BLOCK = 1024


def largest_cosines(a: Any, b: Any, signed: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """For each row of a [A, D] the largest cosine with a row of b [B, D], and which row that is: two arrays [A].

    Without `signed`, opposite rows are as good as equal ones. Blocks of rows, so memory stays at a thousand times B.
    """
    a, b = _unit(a), _unit(b)
    found = []
    for start in range(0, len(a), _BLOCK):
        block = np.zeros((min(_BLOCK, len(a)), a.shape[1]), np.float32)
        part = a[start : start + _BLOCK]
        block[: len(part)] = part
        values, places = _largest(block, b, signed)
        found.append((np.asarray(values)[: len(part)], np.asarray(places)[: len(part)]))
    return np.concatenate([values for values, _ in found]), np.concatenate([places for _, places in found])


def match_rows(a: Any, b: Any, signed: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The one-to-one matching of rows of a [A, D] and b [B, D] with the largest sum of cosines (Hungarian method).

    Without `signed` the cosines' absolute values count. Returns (rows of a, rows of b, those cosines), each
    [min(A, B)]. Takes A · B numbers of memory and, at 16,384 rows each, minutes.
    """
    cosines = _unit(a) @ _unit(b).T
    cosines = cosines if signed else np.abs(cosines)
    rows, columns = match_one_to_one(cosines)
    return rows, columns, cosines[rows, columns]


def match_one_to_one(likeness: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The matching of rows and columns of [A, B] with the largest sum (Hungarian method): two arrays [min(A, B)]."""
    return scipy.optimize.linear_sum_assignment(likeness, maximize=True)


@functools.partial(jax.jit, static_argnames=("signed",))
def _largest(block: jax.Array, b: jax.Array, signed: bool) -> tuple[jax.Array, jax.Array]:
    cosines = block @ b.T if signed else jnp.abs(block @ b.T)
    return cosines.max(1), cosines.argmax(1)


def _unit(rows: Any) -> np.ndarray:
    rows = np.asarray(rows, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
