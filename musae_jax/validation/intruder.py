"""Is a feature about one thing, whatever its name? Of four clips in which it fires and one in which it does not, the
intruder should be the one that is least like the others, for an ear that knows nothing of the feature.

As in Paulo and Belrose (arXiv 2410.13928 and delphi's intruder scorer), with an embedding of sound as the judge.
"""

from collections.abc import Sequence

import numpy as np

from musae_jax.labels.evidence import corrected
from musae_jax.labels.scores import shuffles

HEARD = 4  # clips beside the intruder; chance is 1 in 5
TRIALS = 25


def intruder_scores(
    embedding: np.ndarray, fires: np.ndarray, tracks: Sequence[str], draws: int = 999, seed: int = 0
) -> dict[str, np.ndarray]:
    """How often the intruder is found: embedding [n, E] of clips in which features fire, bool [n, F].

    Returns arrays [F]: `score`; `null_mean` and `null_p95` with the firing exchanged between clips, whole `tracks` at a
    time, `draws` times (so that they are matched on how often it fires, and on how many clips of a track it fires in);
    `p`, the share of those exchanges that do as well; and `q`. NaN where a feature fires in fewer than five clips or is
    silent in none.
    """
    unit = embedding / np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), 1e-9)
    alike = unit @ unit.T  # [n, n]
    rng = np.random.default_rng(seed)
    orders = shuffles(tracks, draws, seed)
    groups = [np.flatnonzero(np.asarray(tracks) == track) for track in dict.fromkeys(tracks)]
    result = {name: np.full(fires.shape[1], np.nan) for name in ("score", "null_mean", "null_p95", "p", "q")}
    nulls: dict[tuple[bytes, ...], np.ndarray] = {}
    for feature in np.flatnonzero(_askable(fires.sum(0), len(fires))):
        mine = fires[:, feature]
        # what fires in the same way in so many tracks has the same null, whichever tracks these are
        way = tuple(sorted(mine[group].tobytes() for group in groups))
        if way not in nulls:
            exchanged = mine[orders]
            nulls[way] = _found(alike, exchanged[_askable(exchanged.sum(1), len(fires))], rng)
        null, score = nulls[way], _found(alike, mine[None], rng)[0]
        result["score"][feature] = score
        if len(null):
            result["null_mean"][feature], result["null_p95"][feature] = null.mean(), np.quantile(null, 0.95)
        result["p"][feature] = (1 + (null >= score - 1e-9).sum()) / (1 + len(null))
    result["q"] = corrected(result["p"])
    return result


def _askable(count: np.ndarray, clips: int) -> np.ndarray:
    return (count > HEARD) & (count < clips)


def _found(alike: np.ndarray, fires: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Share of trials in which the intruder is the least like the others: [R], for firing bool [R, n]."""
    order = np.argsort(~fires, 1, kind="stable")  # those that fire first
    count, clips = fires.sum(1)[:, None, None], fires.shape[1]  # [R, 1, 1]
    shape = (len(fires), TRIALS, 1)
    places = count + rng.integers(np.broadcast_to(clips - count, shape))  # the intruder
    inside = np.zeros((len(fires), TRIALS, 0), int)
    for drawn in range(HEARD):  # without replacement: the place among those that are left
        place = rng.integers(np.broadcast_to(count - drawn, shape))
        for taken in np.moveaxis(inside, 2, 0):  # ascending
            place += place >= taken[..., None]
        inside = np.sort(np.concatenate([inside, place], 2), 2)
    five = np.concatenate([places, inside], 2)  # [R, T, 5], the intruder first
    five = np.take_along_axis(order, five.reshape(len(fires), -1), 1).reshape(five.shape)
    likeness = sum(alike[five, five[..., [other]]] for other in range(HEARD + 1))  # [R, T, 5], with itself too
    return (likeness.argmin(2) == 0).mean(1)
