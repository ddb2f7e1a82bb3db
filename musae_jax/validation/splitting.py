"""Concepts that no single feature holds: split between several, or absorbed where a narrower feature speaks instead.

Both as in Chanin et al. 2024 (arXiv 2409.14507) and SAEBench: a concept is split into as many features as each still
add 0.03 to F1, and is absorbed on the positives where all of those are silent, though the activation lies on the
concept's side, because one other feature, whose decoder row has part of the concept's direction, carries it. What
differs: parts are joined by "or", not by a probe, and must also add to F1 on held-out clips, beyond what luck in the
clips can do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse

from musae_jax.features.activity import Activity
from musae_jax.validation.evidence import best_threshold, f1_score
from musae_jax.validation.finding import Finding, Panel, correlations, values_of

GAIN = 0.03  # of F1 that a further part must add
CANDIDATES = 16  # features with the largest correlation that may be parts
MOST_PARTS = 8
CARRIES = 0.4  # share of the concept's direction that an absorbing feature must carry
ALIGNED = 0.025  # its decoder row's least cosine with that direction


@dataclass(frozen=True)
class Split:
    """One concept: the features that share it, the best one first, and what their union reaches on held-out clips.

    `absorbed` is the share of held-out positives that are absorbed (None without activations), `absorber` the feature
    that carries most of them, -1 where there is none.
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
    result: list[Split | None] = []
    for concept, first in enumerate(finding.feature):
        if first < 0:
            result.append(None)
            continue
        order = np.argsort(-related[:, concept], kind="stable")[:CANDIDATES]
        candidates = [int(first), *(int(f) for f in order if f != first and related[f, concept] > 0)]
        fires, parts, f1 = _join(panel, activity, concept, candidates)
        absorbed, absorber = None, -1
        if residuals is not None:
            silent = ~fires
            absorbed, absorber = _absorbed(panel, activity, concept, parts, silent, np.asarray(W_dec), residuals)
        result.append(Split(parts, f1, absorbed, absorber))
    return result


def _join(
    panel: Panel, activity: Activity, concept: int, candidates: Sequence[int]
) -> tuple[np.ndarray, tuple[int, ...], float]:
    """Which held-out rows the parts together fire on [n, T], the parts, and their F1 there."""
    framed = panel.framed[concept]
    truth = {half: panel.told(concept, half) for half in ("label", "score")}
    values = {half: values_of(activity, framed, panel.rows(concept, half), candidates) for half in truth}  # [n, T, K]
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


def _absorbed(
    panel: Panel,
    activity: Activity,
    concept: int,
    parts: Sequence[int],
    silent: np.ndarray,
    W_dec: np.ndarray,
    residuals: np.ndarray,
) -> tuple[float, int]:
    """The share of held-out positives that another feature has absorbed, and which feature has most of them."""
    framed = panel.framed[concept]

    def side(half: str) -> tuple[Any, np.ndarray, np.ndarray]:
        rows, truth = panel.rows(concept, half), panel.told(concept, half).reshape(-1)
        x = residuals[rows] if framed else residuals[rows].mean(1, keepdims=True)
        f = activity.values[activity.rows(rows)] if framed else activity.clip_mean[rows]
        return f, x.reshape(-1, x.shape[2]), truth

    f, x, truth = side("label")
    above, below = x[truth].mean(0), x[~truth].mean(0)
    direction = (above - below) / max(np.linalg.norm(above - below), 1e-12)
    usual = np.asarray(f[~truth].mean(0)).reshape(-1)  # [F] where the concept is absent
    middle, origin = direction @ (above + below) / 2, direction @ below
    f, x, truth = side("score")
    along = x @ direction
    seen = truth & (along > middle)
    missed = np.flatnonzero(seen & silent.reshape(-1))
    if not len(missed):
        return 0.0, -1
    weight = W_dec @ direction  # [F]
    weight[weight / np.maximum(np.linalg.norm(W_dec, axis=1), 1e-12) < ALIGNED] = 0
    weight[list(parts)] = 0
    active = scipy.sparse.csr_array(f[missed])
    active.data = (active.data - usual[active.indices]) * weight[active.indices]
    most = active.max(1).toarray().reshape(-1)
    carried = most >= CARRIES * (along[missed] - origin)
    if not carried.any():
        return 0.0, -1
    carriers = np.asarray(active.argmax(1)).reshape(-1)[carried]
    return float(carried.sum() / seen.sum()), int(np.bincount(carriers).argmax())
