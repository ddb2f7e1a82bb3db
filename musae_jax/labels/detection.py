"""Does a name tell where a feature fires? Detection: the AUROC of what a source hears of the name, for the clips in
which the feature fires against those in which it does not.

What holds for whole clips is judged by clip, what comes and goes by the equal shares of clips. A clip is never taken
apart: the null gives each clip's firing to another clip, whole tracks at a time, and intervals draw whole clips.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from musae_jax.features.firing import Firing, blocks
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
    result, every = np.empty((len(firing.features), len(hearing.concepts))), np.arange(len(firing.features))
    for columns, heard, framed in (
        (~hearing.framed, hearing.clips[:, None, ~hearing.framed], False),
        (hearing.framed, hearing.parts, True),
    ):
        if columns.any():
            result[:, columns] = aurocs(heard, firing, every, framed)
    return result


def aurocs(heard: np.ndarray, firing: Firing, features: np.ndarray, framed: bool) -> np.ndarray:
    """AUROC [F', C] of what is heard in clips, [n, 1, C], or in their shares, [n, W, C], for features by their numbers
    in `firing`; NaN where one is silent or never so."""
    rows = heard.shape[0] * heard.shape[1]
    ranks, result = rank(heard.reshape(rows, heard.shape[2])), np.empty((len(features), heard.shape[2]))
    for block in blocks(len(features), rows):
        fires = fires_as(firing, features[block], framed)
        result[block] = auroc_from_ranks(ranks, fires.reshape(rows, fires.shape[2])).T
    return result


def luck(hearing: Hearing, firing: Firing) -> np.ndarray:
    """Standard error [F, C] of the AUROC of a concept that has nothing to do with a feature, counted in clips.

    Ties narrow it: of a rare concept that is there or not nearly all clips are alike.
    """
    clips = len(firing.clips)
    count = np.stack([firing.clips.sum(0), firing.packed.any(1).sum(0)])[hearing.framed.astype(int)].T  # [F, C]
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
    if not scores.size:
        return np.full(len(scores), -1), scores
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
) -> list[Detection]:
    """What is heard of a name, [n, W], against where each of F features fires, bool [n, W, F]; W is 1 for what holds
    for whole clips.

    `orders` [R, n] exchange clips (`scores.shuffles`), `weights` [B, n] draw them (without: no draws), `near` bool
    [n, F] are the clips that count as near misses.
    """
    clips, parts, features = fires.shape
    ranks = ranks_of(heard)
    flat = fires.reshape(clips * parts, features).astype(np.float32)
    null = _exchanged(ranks, fires, flat, orders)
    found = _from_sums(ranks.reshape(1, -1) @ flat, flat)[0]
    beats = (heard > heard.T) + 0.5 * (heard == heard.T) if parts == 1 else None  # [n, n]
    draws = np.zeros((features, 0))
    if weights is not None and beats is not None:
        draws = np.stack([_drawn(beats, fires[:, 0, f], weights) for f in range(features)])
    elif weights is not None:
        draws = np.stack([bootstrap_auroc(ranks, fires[:, :, f], weights) for f in range(features)])
    return [
        Detection(
            auroc=float(found[f]),
            near=np.nan if near is None else _against(heard, fires[:, :, f], near[:, f], beats),
            null_mean=float(np.nanmean(null[:, f])),
            null_p95=float(np.nanquantile(null[:, f], 0.95)),
            p=p_value(found[f], null[:, f]),
            draws=draws[f],
            firing=int(fires[:, :, f].any(1).sum()),
            clips=clips,
        )
        for f in range(features)
    ]


def _from_sums(sums: np.ndarray, flat: np.ndarray) -> np.ndarray:
    """AUROCs [R, F] from sums of ranks where features fire, [R, F]; `flat` [N, F] is where they do."""
    positives, rows = flat.sum(0, dtype=np.float64), len(flat)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 0.5 + sums * (rows / (positives * (rows - positives)))


def _exchanged(ranks: np.ndarray, fires: np.ndarray, flat: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """AUROCs [R, F] when clip i fires as clip orders[r, i] does."""
    if not (np.sort(orders, 1) == np.arange(len(ranks))).all():  # tracks of different lengths: a clip may give twice
        return np.stack([shuffled_auroc(ranks, fires[:, :, f], orders) for f in range(flat.shape[1])], 1)
    back = np.argsort(orders, 1)  # moving the ranks the other way is the same, and is done once for all features
    sums = [ranks[back[start : start + 64]].reshape(-1, len(flat)) @ flat for start in range(0, len(back), 64)]
    return _from_sums(np.concatenate(sums).astype(np.float64), flat)


def _drawn(beats: np.ndarray, fires: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC [B] with clips counted by `weights` [B, n]; `beats` [n, n] says which clip is heard more."""
    inside, outside = weights * fires, weights * ~fires
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((inside @ beats) * outside).sum(1) / (inside.sum(1) * outside.sum(1))


def _against(heard: np.ndarray, fires: np.ndarray, near: np.ndarray, beats: np.ndarray | None) -> float:
    """AUROC of where a feature fires against the clips `near` alone; NaN where there are none."""
    inside, near = fires.any(1), near & ~fires.any(1)
    if not near.any() or not inside.any():
        return float("nan")
    if beats is not None:
        return float(beats[np.ix_(inside, near)].mean())
    among = inside | near
    rows = heard[among], fires[among]
    return float(shuffled_auroc(ranks_of(rows[0]), rows[1], np.arange(len(rows[0]))[None])[0])


def fires_as(firing: Firing, features: Sequence[int] | np.ndarray, framed: bool) -> np.ndarray:
    """Where features, by their numbers in `firing`, fire: bool [n, W, F'], or [n, 1, F'] by whole clips."""
    return firing.parts(features) if framed else firing.clips[:, None, features]


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
