"""Which of a classifier's tags go with a feature, beyond how common each tag is in the corpus.

A tag that is probable everywhere says nothing of a feature, so none is judged by its probability where the feature is
active. What counts is whether that is higher than elsewhere: as AUROC with a one-sided test, and as log odds.

The unit is the track. Clips of one track are alike, and a test that takes them as independent finds far too much; so
probabilities and activity are averaged over the clips of each track first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.special
import scipy.stats

from musae_jax.labels.auroc import auroc_from_ranks, rank

SMOOTHING = 0.5  # tracks at the base rate, added to both sides of the log odds
MINIMUM = 5  # tracks: the least activity, and the least of its absence, with which a feature is judged
LIMIT = 1e-6  # probabilities nearer to 0 or 1 count as this near


@dataclass(frozen=True)
class Enrichment:
    """C tags against F features. NaN: the feature is active in too few tracks, or absent from too few."""

    auroc: np.ndarray  # [F, C] chance that the tag is more probable in an active track than in another
    log_odds: np.ndarray  # [F, C] of the mean probability, active tracks against the others; nats
    p: np.ndarray  # [F, C] one-sided: the tag is more probable in active tracks
    q: np.ndarray  # [F, C] Benjamini and Hochberg's, over all features and tags
    base: np.ndarray  # [C] mean probability over all tracks
    positives: np.ndarray  # [F] active tracks; a track that is active in part counts for that part
    tracks: int


def tag_enrichment(
    probabilities: np.ndarray,
    active: np.ndarray,
    tracks: Sequence[str] | None = None,
    minimum: float = MINIMUM,
    smoothing: float = SMOOTHING,
) -> Enrichment:
    """How much more probable each tag is where each feature is active.

    `probabilities` [n, C] of C tags in n clips; `active` [F, n] bool, or weights in 0..1 of how far a clip counts as
    active; `tracks` names the track of each clip, by default one for each clip. AUROC and p are Mann and Whitney's,
    with the normal approximation (corrected for ties and continuity), as `scipy.stats.mannwhitneyu` gives them where
    activity is all or nothing; for parts, the same sum of ranks with its variance under exchange of tracks.

    Raises:
      ValueError: shapes that do not fit, NaN, or weights outside 0..1.
    """
    probabilities, active = np.asarray(probabilities), np.asarray(active, np.float32)
    clips = len(probabilities)
    if active.shape[1:] != (clips,) or (tracks is not None and len(tracks) != clips):
        raise ValueError(f"{clips} clips have probabilities, but the activity is {active.shape} or the tracks differ")
    if not (active.min(initial=0) >= 0 and active.max(initial=0) <= 1):
        raise ValueError("activity is not in 0..1")
    if tracks is not None:
        # Rounded to float32, so that a tag which is equal in all clips is equal in tracks of 2 clips and of 3.
        pool = _pooling(tracks)  # [N, n]
        probabilities, active = (pool @ probabilities).astype(np.float32), (pool @ active.T).T.astype(np.float32)
    units = len(probabilities)
    ranks = rank(probabilities)
    positives = active.sum(1, dtype=np.float64)  # [F]
    negatives = units - positives
    auroc = auroc_from_ranks(ranks, active.T).T  # [F, C]; the formula holds for parts as well

    # U's variance if activity were dealt out anew among the tracks: Hoeffding's, which is Mann and Whitney's with ties
    # where activity is all or nothing.
    spread = np.square(ranks.above, dtype=np.float64).sum(0) * units**2  # [C] of the ranks
    uneven = np.square(active, dtype=np.float64).sum(1) - positives**2 / max(units, 1)  # [F] of the activity
    deviation = np.sqrt(np.outer(np.maximum(uneven, 0), spread) / max(units - 1, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        z = ((auroc - 0.5) * (positives * negatives)[:, None] - 0.5) / deviation
    p = np.where(deviation > 1e-9, scipy.special.ndtr(-z), 1.0)

    base = probabilities.mean(0)  # [C]
    sums = active @ probabilities  # [F, C]
    inside = (sums + smoothing * base) / (positives + smoothing)[:, None]
    outside = (units * base - sums + smoothing * base) / (negatives + smoothing)[:, None]
    log_odds = _logit(inside) - _logit(outside)

    unknown = (positives < minimum) | (negatives < minimum)
    for values in (auroc, log_odds, p):
        values[unknown] = np.nan
    q = np.full(p.shape, np.nan)
    if not unknown.all():
        q[~unknown] = scipy.stats.false_discovery_control(p[~unknown], axis=None).reshape(-1, p.shape[1])
    return Enrichment(auroc, log_odds, p, q, base, positives, units)


def best_tags(enrichment: Enrichment, level: float = 0.05) -> np.ndarray:
    """For each feature the tag with the best AUROC among those with q of at most `level`, or -1: int [F]."""
    merit = np.where(enrichment.q <= level, enrichment.auroc, -np.inf)  # NaN is not at most anything
    return np.where(np.isfinite(merit).any(1), merit.argmax(1), -1)


def _pooling(tracks: Sequence[str]) -> np.ndarray:
    """The mean over the clips of each track, as a matrix [N, n]."""
    place = np.unique(np.asarray(tracks), return_inverse=True)[1]
    member = np.arange(place.max(initial=-1) + 1)[:, None] == place
    return member / member.sum(1, keepdims=True)


def _logit(probability: np.ndarray) -> np.ndarray:
    return scipy.special.logit(np.clip(probability, LIMIT, 1 - LIMIT))
