"""Are the names of features right, by another source than the one that gave them?

A source never judges its own names here: what CLAP named the tagger scores, and the other way round. On the half of
the tracks from which no name was chosen, the name must tell the clips in which the feature fires from those in which it
does not, and from those that sound most like them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from musae_jax.features.firing import Firing, blocks
from musae_jax.labels.detection import aurocs, detect, fires_as, most_alike
from musae_jax.labels.evidence import clip_weights, corrected, interval
from musae_jax.labels.hearing import Hearing
from musae_jax.labels.naming import LEVEL
from musae_jax.labels.scores import shuffles
from musae_jax.labels.vocabulary import heard_of
from musae_jax.validation.spans import span_tests

# Who judges whose names, best first: the first that knows the name. Truth judges apart (`known_truth`).
SCORERS = {
    "descriptors": ("tagger", "clap"),
    "tagger": ("clap", "descriptors"),
    "clap": ("tagger", "descriptors"),
    "truth": ("tagger", "clap", "descriptors"),
    "llm": ("clap", "tagger", "descriptors"),
}
STRONG = 0.85
BINS = 5  # of firing rate, in which names are exchanged for the null of labels


@dataclass(frozen=True)
class Exam:
    """The clips of the held-out half, put before every scorer alike.

    Attributes:
      firing: where F features fire in them.
      tracks: of each clip.
      hearings: what each source hears in them, by its name.
      orders: int [R, n], exchanges of clips.
      weights: float32 [B, n], draws of clips; None for no intervals.
      near: bool [n, F], the near misses of each feature.
      strong: the AUROC that both the source and its judge must reach for a name to pass.
    """

    firing: Firing
    tracks: tuple[str, ...]
    hearings: Mapping[str, Hearing]
    orders: np.ndarray
    weights: np.ndarray | None
    near: np.ndarray
    strong: float


def set_exam(
    firing: Firing,
    hearings: Mapping[str, Hearing],
    tracks: Mapping[str, str] | None = None,
    permutations: int = 999,
    draws: int = 200,
    seed: int = 0,
    strong: float = STRONG,
) -> Exam:
    """The exam on the clips of `firing`. Near misses are the silent clips nearest to the firing ones by what is
    measured in them (`descriptors`), as many as fire; any source with an embedding stands in where it is missing."""
    clips = firing.clip_ids
    heard = {name: hearing.subset(clips) for name, hearing in hearings.items()}
    ear = heard.get("descriptors") or next((h for h in heard.values() if h.embedding is not None), None)
    near = np.zeros_like(firing.clips)
    if ear is not None and ear.embedding is not None:
        near = most_alike(ear.embedding, firing.clips, firing.clips.sum(0))
    of_clip = tuple(tracks[clip] if tracks else clip for clip in clips)
    orders = shuffles(of_clip, permutations, seed)
    weights = clip_weights(len(clips), draws, seed) if draws else None
    return Exam(firing, of_clip, heard, orders, weights, near, strong)


def scorer_of(source: str, name: str, hearings: Mapping[str, Hearing]) -> tuple[str, np.ndarray] | None:
    """Who judges a name of `source`, and what it hears of it [n, W]; None if nobody else knows the name."""
    for scorer in SCORERS.get(source, SCORERS["llm"]):
        if scorer in hearings and scorer != source:
            heard = heard_of(name, hearings[scorer])
            if heard is not None:
                return scorer, heard
    return None


def examine(
    exam: Exam, rows: Sequence[Mapping[str, Any]], progress: Callable[[int, int, str], None] | None = None
) -> list[dict[str, Any]]:
    """A row for each name of labels.jsonl that another source can judge, in order.

    hook, sae, feature, source, name, scorer
    detection, interval              AUROC for firing against silent clips; its middle 95 % over drawn clips
    near                             the same against near misses alone
    null                             mean AUROC of other names, of features that fire about as often
    own                              AUROC by the source itself, where it is one that hears
    p, q, passed                     by exchanges of clips; corrected over the source's names; whether q is at most 5 %
                                     and both AUROCs are strong
    firing, n                        clips in which the feature fires, of how many
    span                             see `SpanTest`; null where the scorer hears the name in whole clips only
    others                           AUROC by the other sources that know the name; an audio LLM, where it was asked,
                                     adds "llm" with AUROC, p and n (`musae_jax.llm_stage`)
    """
    place = {feature: n for n, feature in enumerate(exam.firing.features)}
    cache: dict[tuple[str, str], tuple[str, np.ndarray] | None] = {}
    asked: dict[tuple[str, str], list[int]] = {}  # rows by what they claim
    for number, row in enumerate(rows):
        if row["feature"] in place and exam.firing.told[place[row["feature"]]]:
            asked.setdefault((row["source"], row["name"]), []).append(number)
    answered: dict[int, dict[str, Any]] = {}
    done = 0
    for (source, name), numbers in asked.items():
        cache[source, name] = scorer_of(source, name, exam.hearings)
        done += len(numbers)
        if cache[source, name] is not None:
            for block in blocks(len(numbers), cache[source, name][1].size):
                places = {number: place[rows[number]["feature"]] for number in numbers[block]}
                answered |= _judge(exam, *cache[source, name], source, name, places)
        if progress:
            progress(done, sum(map(len, asked.values())), "names examined")
    results = [
        {**{key: rows[n][key] for key in ("hook", "sae", "feature", "source", "name")}, **answered[n]}
        for n in sorted(answered)
    ]
    for source in {row["source"] for row in results}:
        mine = [row for row in results if row["source"] == source]
        for row, q in zip(mine, corrected(np.asarray([row["p"] for row in mine]))):
            strong = min(row["detection"], 1.0 if row["own"] is None else row["own"]) >= exam.strong
            row["q"], row["passed"] = round(float(q), 5), bool(q <= LEVEL and strong)
    for row, null in zip(results, _null_of_labels(exam, results, cache)):
        row["null"] = None if np.isnan(null) else round(float(null), 4)
    return results


def _judge(
    exam: Exam, scorer: str, heard: np.ndarray, source: str, name: str, places: Mapping[int, int]
) -> dict[int, dict[str, Any]]:
    """What `scorer` says of a name of several features: `places` gives the number of each row's feature."""
    framed = heard.shape[1] > 1
    fires = fires_as(exam.firing, list(places.values()), framed)
    usable = fires.any((0, 1)) & ~fires.all((0, 1))
    numbers = [number for number, use in zip(places, usable) if use]
    if not numbers:
        return {}
    chosen, fires = [places[number] for number in numbers], fires[:, :, usable]
    found = detect(heard, fires, exam.orders, exam.weights, exam.near[:, chosen])
    own = _aurocs(exam, source, name, chosen)
    rest = [other for other in SCORERS.get(source, SCORERS["llm"]) if other not in (scorer, source)]
    others = {other: _aurocs(exam, other, name, chosen) for other in rest}
    spans = span_tests(heard, fires) if framed else [None] * len(numbers)
    answers = {}
    for n, (number, one, span) in enumerate(zip(numbers, found, spans)):
        answers[number] = {
            "scorer": scorer,
            "detection": round(one.auroc, 4),
            "interval": [round(bound, 4) for bound in interval(one.draws) or ()] or None,
            "near": None if np.isnan(one.near) else round(one.near, 4),
            "null": None,
            "p": round(one.p, 5),
            "q": None,
            "own": None if own is None else round(float(own[n]), 4),
            "passed": False,
            "firing": one.firing,
            "n": one.clips,
            "span": span
            and {key: round(float(getattr(span, key)), 4) for key in ("auroc", "null_mean", "null_p95", "p", "clips")},
            "others": {other: round(float(scores[n]), 4) for other, scores in others.items() if scores is not None},
        }
    return answers


def _aurocs(exam: Exam, source: str, name: str, features: Sequence[int]) -> np.ndarray | None:
    """AUROC [F'] of a name by one source, ½ where it cannot be told; None if the name means nothing to the source."""
    heard = heard_of(name, exam.hearings[source]) if source in exam.hearings else None
    if heard is None:
        return None
    scores = aurocs(heard[..., None], exam.firing, np.asarray(features, int), heard.shape[1] > 1)
    return np.nan_to_num(scores[:, 0], nan=0.5)


def _null_of_labels(exam: Exam, results: Sequence[Mapping[str, Any]], cache: Mapping) -> np.ndarray:
    """Of each row: the mean AUROC with which the other names that the source gave to features of the same fifth of
    firing rates tell where this feature fires. [rows]"""
    place = {feature: n for n, feature in enumerate(exam.firing.features)}
    null = np.full(len(results), np.nan)
    for source in {row["source"] for row in results}:
        numbers = [n for n, row in enumerate(results) if row["source"] == source]
        for wide in (False, True):
            mine = [n for n in numbers if (cache[source, results[n]["name"]][1].shape[1] > 1) == wide]
            if len(mine) < 2:
                continue
            names = list(dict.fromkeys(results[n]["name"] for n in mine))
            heard = np.stack([cache[source, name][1] for name in names], 2)  # [n, W, names]
            places = np.asarray([place[results[n]["feature"]] for n in mine])
            scores = aurocs(heard, exam.firing, places, wide)  # [rows, names]
            rates = np.asarray([results[n]["firing"] for n in mine], float)
            fifth = np.searchsorted(np.quantile(rates, np.arange(1, BINS) / BINS), rates)
            given = np.asarray([names.index(results[n]["name"]) for n in mine])
            for number in range(BINS):
                inside = np.flatnonzero(fifth == number)
                counts = np.bincount(given[inside], minlength=len(names)).astype(float)
                own = given[inside]
                others = len(inside) - counts[own]
                total = scores[inside] @ counts - scores[inside, own] * counts[own]
                null[np.asarray(mine)[inside]] = np.where(others > 0, total / np.maximum(others, 1), np.nan)
    return null


def summarise_source(rows: Sequence[Mapping[str, Any]], named: int) -> dict[str, Any]:
    """What summary.json says of a source: how many features it named, who scored them, the mean detection with its
    interval over features, beside the mean null, and how many names passed."""
    if not rows:
        return {"named": named, "scored_by": None, "detection": None, "null": None, "ci": None, "passed": 0}
    scores = np.asarray([row["detection"] for row in rows])
    null = np.asarray([np.nan if row["null"] is None else row["null"] for row in rows])
    rng = np.random.default_rng(0)
    draws = scores[rng.integers(len(scores), size=(500, len(scores)))].mean(1)
    scorers: dict[str, int] = {}
    for row in rows:
        scorers[row["scorer"]] = scorers.get(row["scorer"], 0) + 1
    return {
        "named": named,
        "scored_by": max(scorers, key=scorers.get),
        "scored": scorers,
        "detection": round(float(scores.mean()), 4),
        "null": round(float(np.nanmean(null)), 4) if np.isfinite(null).any() else None,
        "ci": [round(bound, 4) for bound in interval(draws)],
        "near": _mean([row["near"] for row in rows]),
        "passed": sum(row["passed"] for row in rows),
        "spans": _spans(rows),
        "ducked": _ducked(rows),
    }


def summarise_llm(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What an audio LLM that judges says of the names of a source: how many it heard, their mean AUROC, that of names
    which passed, and how many it confirms (q of at most 5 %); None where it was asked about none."""
    asked = [row for row in rows if "llm" in row["others"]]
    if not asked:
        return None
    q = corrected(np.asarray([row["others"]["llm"]["p"] for row in asked]))
    return {
        "names": len(asked),
        "auroc": _mean([row["others"]["llm"]["auroc"] for row in asked]),
        "passed_auroc": _mean([row["others"]["llm"]["auroc"] for row in asked if row["passed"]]),
        "confirmed": int((q <= LEVEL).sum()),
    }


def _spans(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    tests = [row["span"] for row in rows if row["span"]]
    if not tests:
        return None
    q = corrected(np.asarray([test["p"] for test in tests]))
    return {
        "tested": len(tests),
        "auroc": _mean([test["auroc"] for test in tests]),
        "null": _mean([test["null_mean"] for test in tests]),
        "passed": int((q <= LEVEL).sum()),
    }


def _ducked(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Of the names that were heard with the rest ducked: how many, the mean difference for true and for shifted spans,
    and the share for which the true one is the greater."""
    tests = [row["ducked"] for row in rows if row.get("ducked")]
    if not tests:
        return None
    return {
        "tested": len(tests),
        **{kind: _mean([test[kind] for test in tests]) for kind in ("true", "shifted")},
        "won": round(float(np.mean([test["true"] > test["shifted"] for test in tests])), 4),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 4) if known else None
