"""Concepts that no single feature holds: split between several, or absorbed where a narrower feature speaks instead.

Both as in Chanin et al. 2024 (arXiv 2409.14507) and SAEBench: a concept is split into as many features as each still
add 0.03 to F1, and is absorbed on the positives where all of those are silent, though the activation lies on the
concept's side, because one other feature, whose decoder row has part of the concept's direction, carries it. What
differs: parts are joined by "or", not by a probe, and must also add to F1 on held-out clips, beyond what luck in the
clips can do; silent is below the threshold of firing; and the concept's direction is the difference in means. Where
the best feature does best for F1 by firing everywhere, as it may for a common concept, nothing is split or absorbed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse

from musae_jax.features.activity import Activity
from musae_jax.labels.evidence import best_threshold, f1_score
from musae_jax.validation.finding import HALVES, Finding, Panel, correlations, values_of

GAIN = 0.03  # of F1 that a further part must add
CANDIDATES = 16  # features with the largest correlation that may be parts
MOST_PARTS = 8
CARRIES = 0.4  # share of the concept's direction that an absorbing feature must carry
ALIGNED = 0.025  # its decoder row's least cosine with that direction


@dataclass(frozen=True)
class Split:
    """One concept: the features that share it, the best one first, and what their union reaches on held-out clips.

    `absorbed` is the share of held-out positives on the concept's side that are absorbed (None without activations),
    `absorber` the feature that carries most of them, -1 where there is none.
    """

    parts: tuple[int, ...]
    f1: float
    absorbed: float | None = None
    absorber: int = -1


def split_concepts(
    panel: Panel, activity: Activity, finding: Finding, W_dec: Any = None, residuals: np.ndarray | None = None
) -> list[Split | None]:
    """The split of every concept that `finding` judged.

    `W_dec` [F, D] and the `residuals` [n, T, D] that the features were computed from are needed for absorption.
    """
    related = correlations(panel, activity, "label")  # [F, C]
    result: list[Split | None] = [None] * len(finding.feature)
    for columns in panel.groups():
        sides = None if residuals is None else _sides(panel, activity, columns, np.asarray(W_dec), residuals)
        for place, c in enumerate(columns):
            first = int(finding.feature[c])
            order = np.argsort(-related[:, c], kind="stable")[:CANDIDATES]
            candidates = [first, *(int(f) for f in order if f != first and related[f, c] > 0)]
            fires, parts, f1 = _join(panel, activity, int(c), candidates)
            absorbed = (None, -1) if sides is None else _absorbed(sides, place, panel.told(c, "score"), fires, parts)
            result[c] = Split(parts, f1, *absorbed)
    return result


def _join(
    panel: Panel, activity: Activity, concept: int, candidates: Sequence[int]
) -> tuple[np.ndarray, tuple[int, ...], float]:
    """Which held-out rows the parts together fire on [n, T], the parts, and their F1 there."""
    truth = {half: panel.told(concept, half) for half in HALVES}
    values = {half: values_of(panel, activity, concept, half, candidates) for half in HALVES}  # [n, T, K]
    flat = truth["label"].reshape(-1)
    thresholds = [  # the best feature fires for F1, a part of a concept must above all be right when it fires
        best_threshold(values["label"][..., k].reshape(-1), flat, 0.5 if k else 1.0) for k in range(len(candidates))
    ]
    fires = {half: values[half] >= np.asarray(thresholds) for half in truth}  # bool [n, T, K]
    weights = panel.weights[:, panel.rows(concept, "score")]
    parts = [0]
    joined = {half: fires[half][..., 0] for half in truth}
    while len(parts) < min(MOST_PARTS, len(candidates)):
        gains = [f1_score(joined["label"] | fires["label"][..., k], truth["label"]) for k in range(len(candidates))]
        best = int(np.argmax(gains))
        wider = {half: joined[half] | fires[half][..., best] for half in truth}
        if min(f1_score(wider[h], truth[h]) - f1_score(joined[h], truth[h]) for h in truth) < GAIN:
            break
        drawn = f1_score(wider["score"], truth["score"], weights) - f1_score(joined["score"], truth["score"], weights)
        if np.quantile(drawn, 0.025) <= 0:
            break
        parts.append(best)
        joined = wider
    return joined["score"], tuple(candidates[k] for k in parts), f1_score(joined["score"], truth["score"])


@dataclass(frozen=True)
class _Sides:
    """What absorption needs of the concepts of one level and split.

    f [N, F]: features on the score half's rows.  usual [F, C]: their means on the label half where the concept is
    absent.  along [N, C]: the residuals' part along the concept's direction, 0 where the concept is absent on average
    and 1 where it is present.  weight [F, C]: what a unit of a feature adds to that; 0 for those not aligned with it.
    """

    f: Any
    usual: np.ndarray
    along: np.ndarray
    weight: np.ndarray


def _sides(panel: Panel, activity: Activity, columns: np.ndarray, W_dec: np.ndarray, residuals: np.ndarray) -> _Sides:
    framed = panel.framed[columns[0]]

    def half(name: str) -> tuple[Any, np.ndarray]:
        rows = panel.rows(columns[0], name)
        if framed:
            return activity.values[activity.rows(rows)], residuals[rows].reshape(-1, residuals.shape[2])
        return activity.pooled(panel.pooling)[rows], residuals[rows].mean(1)

    f, x = half("label")
    absent = np.stack([~panel.told(c, "label").reshape(-1) for c in columns], 1).astype(np.float32)  # [N, C]
    count = absent.sum(0)
    usual = np.asarray(f.T @ absent) / count
    below = x.T @ absent / count  # [D, C]
    above = (x.sum(0)[:, None] - below * count) / (len(x) - count)
    apart = above - below
    scale = np.maximum(np.square(apart).sum(0), 1e-12)
    weight = W_dec @ apart  # [F, C]
    cosine = weight / np.maximum(np.linalg.norm(W_dec, axis=1, keepdims=True) * np.sqrt(scale), 1e-12)
    f, x = half("score")
    along = (x @ apart - (below * apart).sum(0)) / scale
    return _Sides(f, usual, along, np.where(cosine >= ALIGNED, weight / scale, 0))


def _absorbed(
    sides: _Sides, place: int, truth: np.ndarray, fires: np.ndarray, parts: Sequence[int]
) -> tuple[float, int]:
    """The share of held-out positives on the concept's side that another feature has absorbed, and which has most."""
    along, weight = sides.along[:, place], sides.weight[:, place].copy()
    weight[list(parts)] = 0
    seen = truth.reshape(-1) & (along > 0.5)
    missed = np.flatnonzero(seen & ~fires.reshape(-1))
    if not len(missed):
        return 0.0, -1
    carried = scipy.sparse.csr_array(sides.f[missed])
    carried.data = (carried.data - sides.usual[carried.indices, place]) * weight[carried.indices]
    absorbed = carried.max(1).toarray().reshape(-1) >= CARRIES * along[missed]
    if not absorbed.any():
        return 0.0, -1
    features = np.asarray(carried.argmax(1)).reshape(-1)[absorbed]
    return float(absorbed.sum() / seen.sum()), int(np.bincount(features).argmax())
