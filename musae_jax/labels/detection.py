"""Does a name tell where a feature fires? Detection: the AUROC of what a source hears of the name, for the clips in
which the feature fires against those in which it does not.

What holds for whole clips is judged by clip, what comes and goes by the equal shares of clips. A clip is never taken
apart: the null gives each clip's firing to another clip, whole tracks at a time, and intervals draw whole clips.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from musae_jax.features.firing import Firing
from musae_jax.labels.auroc import auroc_from_ranks, rank
from musae_jax.labels.evidence import bootstrap_auroc, p_value, ranks_of, shuffled_auroc
from musae_jax.labels.hearing import Hearing


@dataclass(frozen=True)
class Detection:
    """How well what is heard of a name tells where a feature fires.

    Attributes:
      auroc: for firing against silent clips (or shares of clips).
      near: the same against the silent clips that sound most like firing ones; NaN where these are not given.
      null_mean, null_p95, p: with the firing exchanged between clips, and the share of exchanges that do as well.
      draws: [B] on drawn clips.
      firing, clips: how many clips the feature fires in, of how many.
    """

    auroc: float
    near: float
    null_mean: float
    null_p95: float
    p: float
    draws: np.ndarray
    firing: int
    clips: int


def detections(hearing: Hearing, firing: Firing) -> np.ndarray:
    """AUROC [F, C] of every concept for every feature, NaN where a feature is silent or never so."""
    _same_clips(hearing, firing)
    result = np.empty((len(firing.features), len(hearing.concepts)))
    sides = ((~hearing.framed, hearing.clips[:, None], firing.clips[:, None]),
             (hearing.framed, hearing.parts, firing.parts))  # fmt: skip
    for columns, heard, fires in sides:
        heard = heard[..., columns] if heard.shape[2] > columns.sum() else heard
        if columns.any():
            ranks = rank(heard.reshape(-1, heard.shape[2]))
            result[:, columns] = auroc_from_ranks(ranks, fires.reshape(-1, fires.shape[2])).T
    return result


def luck(hearing: Hearing, firing: Firing) -> np.ndarray:
    """Standard error [F, C] of the AUROC of a concept that has nothing to do with a feature, counted in clips.

    Ties narrow it: of a rare concept that is there or not nearly all clips are alike.
    """
    clips = len(firing.clips)
    count = np.stack([firing.clips.sum(0), firing.parts.any(1).sum(0)])[hearing.framed.astype(int)].T  # [F, C]
    count = np.clip(count, 1, clips - 1)
    ties = np.empty(len(hearing.concepts))
    for c in range(len(ties)):
        values = hearing.of(c).reshape(-1)
        sizes = np.unique(values, return_counts=True)[1] / len(values)
        ties[c] = 1 - (sizes**3).sum()
    return np.sqrt(np.maximum(ties, 0) * (clips + 1) / (12 * count * (clips - count)))


def best_names(hearing: Hearing, firing: Firing) -> tuple[np.ndarray, np.ndarray]:
    """The concept that best tells where each feature fires, by AUROC less one standard error of luck, int [F], and all
    AUROCs [F, C]. -1: the feature fires too seldom, or nothing tells better than chance."""
    scores = detections(hearing, firing)
    merit = np.where(np.isfinite(scores), scores - luck(hearing, firing), -np.inf)
    best = merit.argmax(1)
    told = firing.told & (merit[np.arange(len(best)), best] > 0.5)
    return np.where(told, best, -1), scores


def detect(
    heard: np.ndarray,
    fires: np.ndarray,
    orders: np.ndarray,
    weights: np.ndarray | None = None,
    near: np.ndarray | None = None,
) -> Detection:
    """What is heard [n, W] against where a feature fires, bool [n, W]; W is 1 for what holds for whole clips.

    `orders` [R, n] exchange clips (`scores.shuffles`), `weights` [B, n] draw them (without: no draws), `near` bool [n]
    are the clips that count as near misses.
    """
    ranks = ranks_of(heard)
    found, *null = shuffled_auroc(ranks, fires, np.vstack([np.arange(len(fires)), orders]))
    null = np.asarray(null)
    among = None if near is None else fires.any(1) | near
    with_near = np.nan
    if among is not None and (near & ~fires.any(1)).any():
        rows = heard[among], fires[among]
        with_near = float(shuffled_auroc(ranks_of(rows[0]), rows[1], np.arange(len(rows[0]))[None])[0])
    return Detection(
        auroc=float(found),
        near=with_near,
        null_mean=float(np.nanmean(null)),
        null_p95=float(np.nanquantile(null, 0.95)),
        p=p_value(found, null),
        draws=np.zeros(0) if weights is None else bootstrap_auroc(ranks, fires, weights),
        firing=int(fires.any(1).sum()),
        clips=len(fires),
    )


def fires_as(firing: Firing, feature: int, framed: bool) -> np.ndarray:
    """Where feature number `feature` of `firing` fires: bool [n, W], or [n, 1] by whole clips."""
    return firing.parts[:, :, feature] if framed else firing.clips[:, [feature]]


def _same_clips(hearing: Hearing, firing: Firing) -> None:
    if hearing.clip_ids != firing.clip_ids:
        raise ValueError("what is heard and what fires need the same clips in the same order")


def most_alike(embedding: np.ndarray, fires: np.ndarray, count: Sequence[int] | np.ndarray) -> np.ndarray:
    """The silent clips most like the firing ones: bool [n, F], `count` [F] of each, by the cosine of an embedding
    [n, E] with the mean of those that fire, bool [n, F]."""
    unit = embedding / np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), 1e-9)
    centre = unit.T @ fires / np.maximum(fires.sum(0), 1)  # [E, F]
    alike = np.where(fires, -np.inf, unit @ centre)  # [n, F]
    order = np.argsort(-alike, 0, kind="stable")
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.broadcast_to(np.arange(len(order))[:, None], order.shape), 0)
    return (place < np.asarray(count)[None]) & ~fires
