"""What a score is worth: an exact null from clips whose truth is exchanged, intervals over clips, F1 on new clips.

Values and truth are [n, T], n clips of T frames; T is 1 for what holds for a whole clip. A clip is never taken apart:
frames of one clip are alike, and a null or an interval that treats them as independent is far too narrow.
"""

import numpy as np
import scipy.stats

from musae_jax.labels.auroc import rank

ROUNDING = 1e-5  # of an AUROC summed in single precision in another order: what differs by less is the same
BINS = 512  # levels that ranks are sorted into for the bootstrap


def ranks_of(values: np.ndarray) -> np.ndarray:
    """Mid-ranks of values [n, T] among all of them, in −½…½ (`labels.auroc`), float32."""
    return np.asarray(rank(values.reshape(-1, 1)).above).reshape(values.shape)


def shuffled_auroc(ranks: np.ndarray, truth: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """AUROC of what is ranked [n, T] when clip i has the truth of clip orders[r, i]: [R], from orders [R, n].

    One product of all clips' ranks with all clips' truth [n, n]; each order then only picks n of its entries.
    """
    told = truth.astype(np.float32)
    sums = (ranks @ told.T)[np.arange(len(told)), orders].sum(1, dtype=np.float64)  # [R]
    positives = told.sum(1, dtype=np.float64)[orders].sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 0.5 + sums * truth.size / (positives * (truth.size - positives))


def p_value(score: float, null: np.ndarray) -> float:
    """The share of a null [R] that is at least `score`, the score itself counted as one of them."""
    return float((1 + (null >= score - ROUNDING).sum()) / (1 + len(null)))


def corrected(p: np.ndarray) -> np.ndarray:
    """Benjamini and Hochberg's q of p-values [C]; NaN stays NaN and counts for nothing."""
    q = np.full(len(p), np.nan)
    known = np.isfinite(p)
    if known.any():
        q[known] = scipy.stats.false_discovery_control(p[known])
    return q


def clip_weights(clips: int, draws: int, seed: int) -> np.ndarray:
    """How often each clip occurs in each draw of as many clips with replacement: float32 [B, n]."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(clips, np.full(clips, 1 / clips), draws).astype(np.float32)


def bootstrap_auroc(ranks: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC of what is ranked [n, T] with clip i counted weights[b, i] times: [B]; NaN where a draw lacks one side.

    Ranks in one of `BINS` levels count as ties.
    """
    clips = len(ranks)
    place = ((ranks + 0.5) * BINS).astype(int).clip(0, BINS - 1) + BINS * np.arange(clips)[:, None]  # [n, T]

    def drawn(which: np.ndarray) -> np.ndarray:
        counts = np.bincount(place[which], minlength=clips * BINS).reshape(clips, BINS)
        return weights @ counts.astype(np.float32)  # [B, BINS]

    with_it, without = drawn(truth), drawn(~truth)
    below = np.cumsum(without, 1, dtype=np.float64) - without / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return (with_it * below).sum(1) / (with_it.sum(1, dtype=np.float64) * without.sum(1, dtype=np.float64))


def interval(draws: np.ndarray) -> list[float] | None:
    """The middle 95 % of bootstrap draws; None where there are none."""
    draws = draws[np.isfinite(draws)]
    return [float(bound) for bound in np.quantile(draws, (0.025, 0.975))] if len(draws) else None


def resampled_means(values: np.ndarray, resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """The means of values [n] drawn again with replacement, [resamples]."""
    values = np.asarray(values, float)
    draws = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    return values[draws].mean(1)


def best_threshold(values: np.ndarray, truth: np.ndarray, beta: float = 1.0) -> float:
    """The least value that counts as firing so that F-beta is largest on these rows [N]; infinite without positives."""
    order = np.argsort(-values)
    ordered = values[order]
    hits = np.cumsum(truth[order])
    last = np.append(ordered[1:] != ordered[:-1], True)  # ties fire together
    if not len(hits) or not hits[-1]:
        return float("inf")
    fired = np.arange(1, len(ordered) + 1)
    score = np.where(last, (1 + beta**2) * hits / (beta**2 * hits[-1] + fired), -1)
    return float(ordered[score.argmax()])


def f1_score(fires: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray | float:
    """F1 of bool [n, T] against bool [n, T]; with weights [B, n] one for each draw of clips [B]."""
    both, either = (fires & truth).sum(1), fires.sum(1) + truth.sum(1)  # [n]
    if weights is None:
        return float(2 * both.sum() / max(either.sum(), 1))
    return 2 * (weights @ both) / np.maximum(weights @ either, 1e-9)
