"""Where a feature fires: the clips, and the equal shares of clips, in which it is strong.

A name is judged by whether it holds there and not elsewhere. Dense dictionaries (neurons, components) are never silent,
so that "active at all" would say nothing of them: whatever the dictionary, a feature fires at most in a quarter.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse

from musae_jax.features.activity import Activity

PARTS = 100  # equal shares of a clip, in which what comes and goes is told: 0.1 s of 10 s
MOST = 0.25  # of all clips or shares; the paper's θ_max
LEAST = 4  # clips; fewer tell nothing of a name


@dataclass(frozen=True)
class Firing:
    """Where F features fire in n clips of W shares: `clips` bool [n, F], `parts` bool [n, W, F]."""

    clip_ids: tuple[str, ...]
    features: tuple[int, ...]
    clips: np.ndarray
    parts: np.ndarray

    @property
    def told(self) -> np.ndarray:
        """Which features fire in enough clips, and are silent in enough, to be told of: bool [F]."""
        count = self.clips.sum(0)
        return (count >= LEAST) & (len(self.clips) - count >= LEAST)


def find_firing(
    activity: Activity,
    clips: Sequence[int],
    features: Sequence[int],
    active_above: float,
    parts: int = PARTS,
    most: float = MOST,
) -> Firing:
    """Where `features` fire in the clips numbered `clips`, by their mean activation there.

    A clip counts when it exceeds `active_above` times the feature's greatest, and is among the share `most` of the
    strongest; a share of a clip likewise. The `LEAST` strongest in which it is active at all always count.
    """
    chosen = activity.subset(clips)
    means = chosen.clip_mean[:, list(features)]  # [n, F]
    shares = activity_of_shares(chosen, features, parts)  # [n, W, F]
    flat = shares.reshape(len(means) * parts, means.shape[1])
    return Firing(
        chosen.clip_ids,
        tuple(int(f) for f in features),
        _strong(means, active_above, most),
        _strong(flat, active_above, most).reshape(shares.shape),
    )


def _strong(values: np.ndarray, above: float, most: float) -> np.ndarray:
    """bool [N, F] of values [N, F]: see `find_firing`."""
    count = len(values)
    if not values.shape[1]:
        return np.zeros(values.shape, bool)
    few, many = min(LEAST, count), max(LEAST, int(count * most))
    ordered = -np.partition(-values, (few - 1, many), axis=0) if many < count else np.sort(values, 0)[::-1]
    floor = np.minimum(above * values.max(0), np.nextafter(ordered[few - 1], -np.inf))
    return (values > np.maximum(floor, 0)) & (values > ordered[min(many, count - 1)])


def shares(frames: int, parts: int = PARTS) -> np.ndarray:
    """Which of `parts` equal shares each of a clip's frames belongs to: int [T]."""
    return np.arange(frames) * parts // frames


def mean_of_shares(values: np.ndarray, parts: int = PARTS) -> np.ndarray:
    """Means over equal shares of clips: [n, T, C] -> float32 [n, W, C]; a share without a frame is 0."""
    pool = (shares(values.shape[1], parts) == np.arange(parts)[:, None]).astype(np.float32)  # [W, T]
    return np.einsum("wt,ntc->nwc", pool / np.maximum(pool.sum(1, keepdims=True), 1), values.astype(np.float32))


def activity_of_shares(activity: Activity, features: Sequence[int], parts: int = PARTS) -> np.ndarray:
    """Mean activations of features over equal shares of clips: float32 [n, W, F']."""
    place, clips = shares(activity.frames, parts), len(activity.clip_ids)
    rows = (np.arange(clips)[:, None] * parts + place).reshape(-1)  # [n·T]
    weights = np.tile(1.0 / np.bincount(place, minlength=parts).clip(1)[place], clips).astype(np.float32)
    pool = scipy.sparse.csr_array((weights, (rows, np.arange(len(rows)))), shape=(clips * parts, len(rows)))
    pooled = (pool @ activity.values)[:, list(features)]
    dense = pooled.todense() if scipy.sparse.issparse(pooled) else pooled
    return np.asarray(dense, np.float32).reshape(clips, parts, len(features))
