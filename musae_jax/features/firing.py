"""Where a feature fires: the clips, and the equal shares of clips, in which it is strong.

A name is judged by whether it holds there and not elsewhere. Dense dictionaries (neurons, components) are never silent,
so that "active at all" would say nothing of them: whatever the dictionary, a feature fires at most in a quarter.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse

from musae_jax.features.activity import Activity

PARTS = 100  # equal shares of a clip, in which what comes and goes is told: 0.1 s of 10 s
MOST = 0.25  # of all clips or shares; the paper's θ_max
LEAST = 4  # clips; fewer tell nothing of a name
ROOM = 2**24  # numbers that are in memory at a time where there is one for each share and feature


@dataclass(frozen=True)
class Firing:
    """Where F features fire in n clips of W shares: `clips` bool [n, F]; `packed` uint8 [n, ceil(W/8), F], eight shares
    in a byte (`np.packbits`), as large corpora would fill the memory otherwise."""

    clip_ids: tuple[str, ...]
    features: tuple[int, ...]
    clips: np.ndarray
    packed: np.ndarray
    shares: int = PARTS

    def parts(self, features: Sequence[int] | np.ndarray | slice) -> np.ndarray:
        """Where features, by their numbers here, fire: bool [n, W, F']."""
        return np.unpackbits(self.packed[:, :, features], axis=1, count=self.shares).view(bool)

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
    features = np.asarray(features, int)
    pooled = pool_shares(chosen, parts)
    packed = np.zeros((len(clips), -(-parts // 8), len(features)), np.uint8)
    for block in blocks(len(features), len(clips) * parts):
        values = pooled[:, features[block]]
        dense = values.toarray() if scipy.sparse.issparse(values) else values
        strong = strongest(dense, active_above, most)
        packed[:, :, block] = np.packbits(strong.reshape(len(clips), parts, -1), axis=1)
    strong = strongest(chosen.clip_mean[:, features], active_above, most)
    return Firing(chosen.clip_ids, tuple(features.tolist()), strong, packed, parts)


def blocks(features: int, rows: int) -> Iterator[slice]:
    """Features, so many at a time that `rows` numbers for each are at most `ROOM`."""
    size = max(1, ROOM // max(rows, 1))
    return (slice(start, min(start + size, features)) for start in range(0, features, size))


def strongest(values: np.ndarray, above: float, most: float) -> np.ndarray:
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


def pool_shares(activity: Activity, parts: int = PARTS) -> scipy.sparse.csc_array | np.ndarray:
    """Mean activations over equal shares of clips: float32 [n·W, F], sparse if the activations are."""
    place, clips = shares(activity.frames, parts), len(activity.clip_ids)
    rows = (np.arange(clips)[:, None] * parts + place).reshape(-1)  # [n·T]
    weights = np.tile(1.0 / np.bincount(place, minlength=parts).clip(1)[place], clips).astype(np.float32)
    pool = scipy.sparse.csr_array((weights, (rows, np.arange(len(rows)))), shape=(clips * parts, len(rows)))
    pooled = pool @ activity.values
    return scipy.sparse.csc_array(pooled, dtype=np.float32) if scipy.sparse.issparse(pooled) else pooled
