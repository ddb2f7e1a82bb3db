"""Is a feature about one thing, whatever its name? Of four clips in which it fires and one in which it does not, the
intruder should be the one that is least like the others, for an ear that knows nothing of the feature.

As in Paulo and Belrose (arXiv 2410.13928 and delphi's intruder scorer), with an embedding of sound as the judge.
"""

import numpy as np

from musae_jax.labels.evidence import corrected

HEARD = 4  # clips beside the intruder; chance is 1 in 5
TRIALS = 25


def intruder_scores(embedding: np.ndarray, fires: np.ndarray, draws: int = 200, seed: int = 0) -> dict[str, np.ndarray]:
    """How often the intruder is found: embedding [n, E] of clips in which features fire, bool [n, F].

    Returns arrays [F]: `score`; `null_mean` and `null_p95` of sets of clips drawn at random, as many as the feature has
    (so that they are matched on how often it fires); `p`, the share of those sets that do as well; and `q`. NaN where a
    feature fires in fewer than five clips or is silent in none.
    """
    unit = embedding / np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), 1e-9)
    alike = unit @ unit.T  # [n, n]
    clips, features = fires.shape
    rng = np.random.default_rng(seed)
    result = {name: np.full(features, np.nan) for name in ("score", "null_mean", "null_p95", "p", "q")}
    counts = fires.sum(0)
    for count in np.unique(counts[(counts > HEARD) & (counts < clips)]):
        null = np.asarray([_found(alike, rng.permutation(clips), int(count), rng) for _ in range(draws)])
        for feature in np.flatnonzero(counts == count):
            order = np.concatenate([np.flatnonzero(fires[:, feature]), np.flatnonzero(~fires[:, feature])])
            score = _found(alike, order, int(count), rng)
            result["score"][feature] = score
            result["null_mean"][feature], result["null_p95"][feature] = null.mean(), np.quantile(null, 0.95)
            result["p"][feature] = (1 + (null >= score - 1e-9).sum()) / (1 + draws)
    result["q"] = corrected(result["p"])
    return result


def _found(alike: np.ndarray, order: np.ndarray, count: int, rng: np.random.Generator) -> float:
    """Share of trials in which the intruder is the least like the others; the first `count` of `order` fire."""
    inside = order[:count][np.argsort(rng.random((TRIALS, count)), 1)[:, :HEARD]]  # [T, 4]
    outside = order[count:][rng.integers(len(order) - count, size=(TRIALS, 1))]
    five = np.concatenate([outside, inside], 1)  # [T, 5], the intruder first
    pairs = alike[five[:, :, None], five[:, None, :]]  # [T, 5, 5]
    return float((pairs.sum(2).argmin(1) == 0).mean())
