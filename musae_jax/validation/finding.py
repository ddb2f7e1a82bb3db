"""Which concepts a dictionary finds: for each the best single feature, chosen on some clips and judged on others.

A dictionary is anything with features (an SAE, raw neurons, principal components); a probe answers for each concept by
itself and is judged alike. All are judged on one `Panel`, with the same shuffles and the same draws of clips, so that
they can be compared concept by concept and draw by draw.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse

from musae_jax.features.activity import Activity, Pooling
from musae_jax.labels.auroc import auroc
from musae_jax.labels.evidence import (
    best_threshold,
    bootstrap_auroc,
    clip_weights,
    f1_score,
    p_value,
    ranks_of,
    shuffled_auroc,
)
from musae_jax.labels.scores import MINIMUM_CLIPS, Scores, Truth, score_concepts, shuffles
from musae_jax.labels.truth import best_features
from musae_jax.sae.matching import match_one_to_one

HALVES = ("label", "score")
CHUNK = 128
FOUND = 0.9  # AUROC on held-out clips from which a concept counts as found


@dataclass(frozen=True)
class Panel:
    """Clips and what is true of them, split in one or more ways.

    Attributes:
      truth: of n clips; every dictionary must have the same clips in the same order.
      splits: each says "label" or "score" for every clip.
      split_of: int [C], the split that each concept is held out by.
      shuffles, draws: R exchanges of truth for the null, B draws of clips for intervals, both from `seed`.
      pooling: what a feature says of a whole clip.
    """

    truth: Truth
    splits: tuple[Mapping[str, str], ...]
    split_of: np.ndarray
    shuffles: int = 999
    draws: int = 500
    seed: int = 0
    pooling: Pooling = "mean"

    @cached_property
    def framed(self) -> np.ndarray:
        """Which concepts come and go within a clip: bool [C]."""
        return np.asarray([concept.level == "frame" for concept in self.truth.concepts], bool)

    @cached_property
    def judged(self) -> np.ndarray:
        """Which concepts occur, and are absent, in enough clips of both halves: bool [C]."""

        def enough(concept: int, half: str) -> bool:
            told = self.told(concept, half)
            return min(told.any(1).sum(), (~told).any(1).sum()) >= MINIMUM_CLIPS

        return np.asarray([all(enough(c, half) for half in HALVES) for c in range(len(self.framed))], bool)

    @cached_property
    def _rows(self) -> list[dict[str, np.ndarray]]:
        halves = [np.asarray([split[clip] for clip in self.truth.clip_ids]) for split in self.splits]
        return [{half: np.flatnonzero(which == half) for half in HALVES} for which in halves]

    @cached_property
    def _orders(self) -> list[np.ndarray]:
        return [shuffles([str(row) for row in rows["score"]], self.shuffles, self.seed) for rows in self._rows]

    @cached_property
    def weights(self) -> np.ndarray:
        """How often each clip is drawn: [B, n]."""
        return clip_weights(len(self.truth.clip_ids), self.draws, self.seed)

    def rows(self, concept: int, half: str) -> np.ndarray:
        """The numbers of the clips of one half, for one concept."""
        return self._rows[self.split_of[concept]][half]

    def orders(self, concept: int) -> np.ndarray:
        """Exchanges of truth among the clips of a concept's score half: [R, n]."""
        return self._orders[self.split_of[concept]]

    def told(self, concept: int, half: str) -> np.ndarray:
        """The truth of a concept on one half: bool [n, T]; T is 1 for what holds for the whole clip."""
        active = self.truth.active[self.rows(concept, half), :, concept]
        return active if self.framed[concept] else active.mean(1, keepdims=True) > 0.5

    def groups(self) -> Iterator[np.ndarray]:
        """The numbers of the concepts that can be judged, those together that share a level and a split."""
        for number in range(len(self.splits)):
            for framed in (False, True):
                columns = np.flatnonzero((self.split_of == number) & (self.framed == framed) & self.judged)
                if len(columns):
                    yield columns


@dataclass(frozen=True)
class Verdict:
    """How well one answer tells of a concept; all on the score half but `label`."""

    label: float
    auroc: float
    f1: float
    null_mean: float
    null_p95: float
    p: float
    draws: np.ndarray  # [B] AUROC on drawn clips


def score_all(panel: Panel, activity: Activity) -> Scores:
    """AUROC of all features for all concepts on both halves of each concept's own split; no shuffles.

    Dense activities are ranked `CHUNK` features at a time, so that no copy of them is made.
    """
    if not scipy.sparse.issparse(activity.values) and activity.features > CHUNK:
        starts = range(0, activity.features, CHUNK)
        parts = [dataclasses.replace(activity, values=activity.values[:, s : s + CHUNK]) for s in starts]
        scores = [score_all(panel, part) for part in parts]
        whole = {
            name: np.concatenate([getattr(s, name) for s in scores], -2) if array.ndim > 1 else array
            for name, array in _arrays(scores[0])
        }
        return Scores(**whole, clips=scores[0].clips)
    whole = None
    for number, split in enumerate(panel.splits):
        columns = panel.split_of == number
        concepts = tuple(c for c, mine in zip(panel.truth.concepts, columns) if mine)
        truth = Truth(panel.truth.clip_ids, concepts, panel.truth.active[:, :, columns])
        part = score_concepts(activity, truth, split, permutations=0, pooling=panel.pooling)
        whole = whole or {name: np.full((*array.shape[:-1], len(columns)), np.nan) for name, array in _arrays(part)}
        for name, array in _arrays(part):
            whole[name][..., columns] = array
    return Scores(**whole, clips=len(panel.truth.clip_ids))


def _arrays(scores: Scores) -> list[tuple[str, np.ndarray]]:
    return [(name, array) for name, array in vars(scores).items() if name != "clips"]


def values_of(panel: Panel, activity: Activity, concept: int, half: str, features: Sequence[int]) -> np.ndarray:
    """What K features say of one half's clips: [n, T, K], T = 1 where the concept holds for whole clips."""
    rows = panel.rows(concept, half)
    if not panel.framed[concept]:
        return activity.pooled(panel.pooling)[np.ix_(rows, features)][:, None]
    taken = activity.values[activity.rows(rows)][:, list(features)]
    dense = np.asarray(taken.todense() if scipy.sparse.issparse(taken) else taken, np.float32)
    return dense.reshape(len(rows), activity.frames, len(features))


def judge(panel: Panel, concept: int, label: np.ndarray, score: np.ndarray) -> Verdict:
    """The verdict on an answer to one concept: its values on the label half and on the score half, [n, T] each."""
    label_truth, score_truth = panel.told(concept, "label"), panel.told(concept, "score")
    threshold = best_threshold(label.reshape(-1), label_truth.reshape(-1))
    ranks = ranks_of(score)
    # the truth in its place, then exchanged
    found, *null = shuffled_auroc(ranks, score_truth, np.vstack([np.arange(len(score)), panel.orders(concept)]))
    null = np.asarray(null)
    return Verdict(
        label=float(auroc(label.reshape(-1, 1), label_truth.reshape(-1, 1))[0, 0]),
        auroc=float(found),
        f1=f1_score(score >= threshold, score_truth),
        null_mean=float(null.mean()),
        null_p95=float(np.quantile(null, 0.95)),
        p=p_value(found, null),
        draws=bootstrap_auroc(ranks, score_truth, panel.weights[:, panel.rows(concept, "score")]),
    )


@dataclass(frozen=True)
class Finding:
    """What one dictionary finds; C concepts, `verdicts` None where a concept cannot be judged."""

    feature: np.ndarray  # int [C], -1 where it cannot be judged
    sign: np.ndarray  # int [C], -1 where the feature tells by being low
    verdicts: tuple[Verdict | None, ...]
    answers: np.ndarray  # bool [F, C]: which features find which concepts on the score half
    mcc: float | None = None  # see `find_concepts`

    @property
    def auroc(self) -> np.ndarray:
        """Held-out AUROC [C], NaN where a concept cannot be judged."""
        return np.asarray([np.nan if one is None else one.auroc for one in self.verdicts])

    @property
    def draws(self) -> np.ndarray:
        """The same on drawn clips, [B, C]."""
        size = next((len(one.draws) for one in self.verdicts if one), 0)
        return np.stack([np.full(size, np.nan) if one is None else one.draws for one in self.verdicts], 1)

    @property
    def concepts_per_feature(self) -> float | None:
        """How many concepts a feature answers to that finds one (or more); None where none is found."""
        chosen = np.unique(self.feature[self.feature >= 0])
        counts = self.answers[chosen].sum(1)
        return float(counts[counts > 0].mean()) if (counts > 0).any() else None


def find_concepts(panel: Panel, activity: Activity, signed: bool = False) -> Finding:
    """Chooses each concept's best feature on the label half and judges it on the other.

    With `signed` a feature may also tell of a concept by being low (neurons have no preferred sign). `mcc` is the mean
    correlation of a one-to-one matching of features and concepts (Hungarian method), matched on the label half and read
    on the other; concepts without a partner count as 0.
    """
    if activity.clip_ids != panel.truth.clip_ids:
        raise ValueError("the activity and the truth of a panel need the same clips in the same order")
    scores = score_all(panel, activity)
    best = best_features(scores, signed)
    verdicts = []
    for concept, (feature, sign) in enumerate(zip(best["feature"], best["sign"])):
        if feature < 0:
            verdicts.append(None)
            continue
        halves = [sign * values_of(panel, activity, concept, half, [feature])[:, :, 0] for half in HALVES]
        verdicts.append(judge(panel, concept, *halves))
    answers = scores.score >= FOUND
    if signed:
        answers |= scores.score <= 1 - FOUND
    related = {half: correlations(panel, activity, half) for half in HALVES}
    features, concepts = match_one_to_one(np.abs(related["label"]) if signed else related["label"])
    toward = np.sign(related["label"][features, concepts]) if signed else 1
    mcc = float((toward * related["score"][features, concepts]).sum() / panel.judged.sum())
    return Finding(best["feature"], best["sign"], tuple(verdicts), answers, mcc)


def correlations(panel: Panel, activity: Activity, half: str) -> np.ndarray:
    """Pearson's r of every feature with every concept's truth on one half: [F, C]; 0 where one of them is constant."""
    result = np.zeros((activity.features, len(panel.truth.concepts)))
    for columns in panel.groups():
        rows = panel.rows(columns[0], half)
        truth = np.stack([panel.told(c, half).reshape(-1) for c in columns], 1)  # bool [N, C']
        framed = panel.framed[columns[0]]
        values = activity.values[activity.rows(rows)] if framed else activity.pooled(panel.pooling)[rows]
        result[:, columns] = _pearson(values, truth)
    return result


def _pearson(values: Any, truth: np.ndarray) -> np.ndarray:
    rows, sparse = len(truth), scipy.sparse.issparse(values)
    mean = np.asarray(values.sum(0, dtype=np.float64)).reshape(-1) / rows  # [F]
    if sparse:
        squares = values.multiply(values).sum(0, dtype=np.float64)
    else:
        squares = np.einsum("nf,nf->f", values, values, dtype=np.float64)
    spread = np.sqrt(np.maximum(np.asarray(squares).reshape(-1) / rows - mean**2, 0))
    shared = np.asarray(values.T @ truth.astype(values.dtype), np.float64) / rows - np.outer(mean, truth.mean(0))
    below = np.outer(spread, truth.std(0))
    return np.divide(shared, below, out=np.zeros_like(shared), where=below > 1e-9)  # [F, C']
