"""How many names are right, by what the composer wrote? Precision and recall, by family of concepts.

A name is **right** for a feature when, in the clips that mark it, the concept goes with the feature's firing: of what
could be gained over the rate elsewhere, at least half is gained where it fires (`lift`), beyond luck. A concept is
**found** when it is right for the feature that tells most of it in the half that names, **named right** when a feature
for which it is right bears it as a name that another source has confirmed, and **misnamed** when it is found without
that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import hypergeom

from musae_jax.features.firing import Firing
from musae_jax.labels.detection import detections, fires_as, luck
from musae_jax.labels.evidence import corrected, interval, p_value, ranks_of, shuffled_auroc
from musae_jax.labels.hearing import Hearing
from musae_jax.labels.naming import LEVEL
from musae_jax.labels.scores import MINIMUM_CLIPS
from musae_jax.labels.vocabulary import counterparts

LIFT = 0.5


@dataclass(frozen=True)
class Named:
    """One dictionary: where its features fire in the clips that name and in those that mark, and names of theirs."""

    label: Firing
    score: Firing
    names: Sequence[Mapping[str, Any]]  # rows with "feature" and "name"


@dataclass(frozen=True)
class Mark:
    """What truth says of a name that means `concepts`: by how much it is commoner where the feature fires, and whether
    that is right."""

    concepts: tuple[int, ...]
    lift: float
    right: bool


def holds(truth: Hearing, concepts: Sequence[int]) -> np.ndarray:
    """Where any of the concepts, of one level, is true: bool [n, 1] of whole clips, [n, W] of what comes and goes."""
    return np.maximum.reduce([truth.of(c) for c in concepts]) > 0.5


def lift(true: np.ndarray, fires: np.ndarray) -> float:
    """By how much of what could be gained a concept is commoner where a feature fires: (a − b) / (1 − b).

    a and b are the rates of the concept, bool [n, W], where the feature fires, bool [n, W], and where it does not. 1
    where it always holds there, 0 where it is no commoner than elsewhere.
    """
    a, b = true[fires].mean(), true[~fires].mean()
    return float((a - b) / max(1 - b, 1e-9))


def chance(true: np.ndarray, fires: np.ndarray, orders: np.ndarray) -> float:
    """How likely so many hits are by luck: exact (hypergeometric) for whole clips, by `orders` [R, n], exchanges of
    clips, for what comes and goes."""
    if true.shape[1] == 1:
        return float(hypergeom.sf((true & fires).sum() - 1, len(true), true.sum(), fires.sum()))
    score, *null = shuffled_auroc(ranks_of(true.astype(np.float32)), fires, np.vstack([np.arange(len(true)), orders]))
    return p_value(score, np.asarray(null))


def judged_concepts(truth: Hearing) -> np.ndarray:
    """The concepts that occur, and are absent, in enough clips to be judged: bool [C]."""
    told = np.zeros((len(truth.clip_ids), len(truth.concepts)), bool)
    told[:, ~truth.framed] = truth.clips[:, ~truth.framed] > 0.5
    told[:, truth.framed] = truth.parts.max(1, initial=0) > 0.5
    silent = told.copy()
    silent[:, truth.framed] = truth.parts.min(1, initial=1) > 0.5
    return (told.sum(0) >= MINIMUM_CLIPS) & ((~silent).sum(0) >= MINIMUM_CLIPS)


def mark_names(
    truth: Hearing, dictionaries: Sequence[Named], orders: np.ndarray, least: float = LIFT
) -> list[list[Mark | None]]:
    """A mark for every name of every dictionary, None where no judged concept is meant; of all names that are called
    right, 5 % are so by luck. `orders` [R, n] exchange the clips that mark."""
    marking = truth.subset(dictionaries[0].score.clip_ids)
    judged = judged_concepts(marking)
    tests: list[list[tuple | None]] = []  # concepts meant, lift, p
    for one in dictionaries:
        place = {feature: n for n, feature in enumerate(one.score.features)}
        tests.append([])
        for row in one.names:
            meant = [marking.column[name] for name in counterparts(row["name"]) if name in marking.column]
            meant = [c for c in meant if judged[c]]
            if not meant:
                tests[-1].append(None)
                continue
            true = holds(marking, meant)
            fires = fires_as(one.score, [place[row["feature"]]], bool(marking.framed[meant[0]]))[:, :, 0]
            tests[-1].append((tuple(meant), *_lift_and_chance(true, fires, orders)))
    q = iter(corrected(np.asarray([test[2] for mine in tests for test in mine if test])))
    return [
        [test and Mark(test[0], test[1], bool(next(q) <= LEVEL and test[1] >= least)) for test in mine]
        for mine in tests
    ]


def _lift_and_chance(true: np.ndarray, fires: np.ndarray, orders: np.ndarray) -> tuple[float, float]:
    """0 and 1 of a feature that never or always fires there: nothing is shown."""
    return (lift(true, fires), chance(true, fires, orders)) if fires.any() and not fires.all() else (0.0, 1.0)


def name_table(
    truth: Hearing,
    dictionaries: Sequence[Named],
    orders: np.ndarray,
    marks: Sequence[Sequence[Mark | None]] | None = None,
    least: float = LIFT,
    draws: int = 500,
) -> dict[str, Any]:
    """`families` and `overall` of summary.json, and `concepts`, the fate of each.

    `dictionaries` are the SAEs of each layer, with names that passed, of any source but the truth itself, and `marks`
    what `mark_names` says of them. `precision` is the share of right ones among the names whose meaning the composer
    knows (`unjudged` counts the others), `recall` the share of judged concepts that are named right; `ci` is the
    interval of the precision over features, drawn with all their names.
    """
    marks = mark_names(truth, dictionaries, orders, least) if marks is None else marks
    marking = truth.subset(dictionaries[0].score.clip_ids)
    judged = judged_concepts(marking)
    hit = np.zeros_like(judged)
    verdicts: list[tuple[str, bool, tuple[int, int]]] = []  # family, right, which dictionary's which feature
    for number, (one, mine) in enumerate(zip(dictionaries, marks)):
        for row, mark in zip(one.names, mine):
            if mark is None:
                continue
            if len(mark.concepts) == 1:  # "fast" may be right of either fast tempo, and then names neither
                hit[mark.concepts[0]] |= mark.right
            family = marking.concepts[mark.concepts[0]].family
            verdicts.append((family, mark.right, (number, row["feature"])))
    found = _found(truth, marking, dictionaries, judged, orders, least) | hit
    families = {}
    for family in dict.fromkeys(concept.family for concept in marking.concepts):
        members = np.asarray([concept.family == family for concept in marking.concepts]) & judged
        if members.any():
            mine = [verdict for verdict in verdicts if verdict[0] == family]
            families[family] = {
                "named_right": int((members & hit).sum()),
                "misnamed": int((members & found & ~hit).sum()),
                "not_found": int((members & ~found & ~hit).sum()),
                "names": len(mine),
                **_shares(mine, hit[members].mean(), draws),
            }
    return {
        "families": families,
        "overall": {
            **_shares(verdicts, hit[judged].mean() if judged.any() else 0.0, draws),
            "names": len(verdicts),
            "unjudged": sum(mark is None for mine in marks for mark in mine),
            "found": round(float(found[judged].mean()), 4) if judged.any() else 0.0,
            "concepts": int(judged.sum()),
        },
        "concepts": {
            concept.name: "named right" if hit[c] else "misnamed" if found[c] else "not found"
            for c, concept in enumerate(marking.concepts)
            if judged[c]
        },
    }


def _found(
    truth: Hearing,
    marking: Hearing,
    dictionaries: Sequence[Named],
    judged: np.ndarray,
    orders: np.ndarray,
    least: float,
) -> np.ndarray:
    """The concepts for which the feature that tells most of them in the half that names is right where it is marked:
    bool [C]."""
    known = truth.subset(dictionaries[0].label.clip_ids)
    merits = []
    for one in dictionaries:
        usable = one.label.told & one.score.told
        merits.append(np.where(usable[:, None], detections(known, one.label) - luck(known, one.label), -np.inf))
    p, gained = np.full(len(judged), np.nan), np.zeros(len(judged))
    for c in np.flatnonzero(judged):
        best = max(range(len(merits)), key=lambda d: np.nan_to_num(merits[d][:, c], nan=-np.inf).max(initial=-np.inf))
        column = np.nan_to_num(merits[best][:, c], nan=-np.inf)
        if len(column) and np.isfinite(column.max()):
            true = holds(marking, [c])
            fires = fires_as(dictionaries[best].score, [column.argmax()], bool(marking.framed[c]))[:, :, 0]
            gained[c], p[c] = _lift_and_chance(true, fires, orders)
    return (np.nan_to_num(corrected(p), nan=1.0) <= LEVEL) & (gained >= least)


def _shares(verdicts: Sequence[tuple[str, bool, tuple]], recall: float, draws: int) -> dict[str, Any]:
    if not verdicts:
        return {"precision": None, "recall": round(float(recall), 4), "ci": None}
    marks = np.asarray([right for _, right, _ in verdicts], float)
    owners = {feature: n for n, feature in enumerate(dict.fromkeys(feature for _, _, feature in verdicts))}
    place = np.asarray([owners[feature] for _, _, feature in verdicts])
    right, count = np.bincount(place, marks), np.bincount(place)
    drawn = np.random.default_rng(0).integers(len(owners), size=(draws, len(owners)))
    return {
        "precision": round(float(marks.mean()), 4),
        "recall": round(float(recall), 4),
        "ci": [round(bound, 4) for bound in interval(right[drawn].sum(1) / count[drawn].sum(1))],
    }
