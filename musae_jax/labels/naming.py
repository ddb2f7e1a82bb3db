"""Names for features: the concept that a source hears where a feature fires, and not elsewhere.

Every source names in the same way, so that their names can be compared: chosen on one half of the tracks, scored on the
other beside a null. That score is the source's own opinion of its own names; `validation` lets another source judge.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from musae_jax.features.firing import Firing, blocks
from musae_jax.labels.detection import Detection, best_names, detect, fires_as
from musae_jax.labels.evidence import corrected
from musae_jax.labels.hearing import Hearing
from musae_jax.labels.scores import shuffles

LEVEL = 0.05  # the share of false names among those that pass
CANDIDATES = 3


def name_features(
    hearing: Hearing,
    label: Firing,
    score: Firing,
    hook: str,
    sae: str,
    tracks: Mapping[str, str] | None = None,
    permutations: int = 999,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[dict[str, Any]]:
    """Rows of RUN/labels/labels.jsonl, one per feature that the source can name.

    `label` and `score` say where the same features fire in the clips of either half. `evidence` holds the AUROC on the
    held-out half (`score`) and on the half that chose (`label_score`), the mean and 95th percentile of `permutations`
    exchanges of the feature's firing between tracks, the share of them that did as well (`p`), its correction over all
    rows (`q`), the clips in which the feature fires (`positives`) of how many (`n`), and the `candidates` that did best
    on the half that chose. `confidence` is 0 where q exceeds 5 %.
    """
    best, chosen = best_names(hearing.subset(label.clip_ids), label)
    held_out = hearing.subset(score.clip_ids)
    tracks = tracks or {clip: clip for clip in score.clip_ids}
    orders = shuffles([tracks[clip] for clip in score.clip_ids], permutations, seed)
    named = np.flatnonzero((best >= 0) & score.told)
    rows = {}
    for concept in np.unique(best[named]).tolist():
        places = named[best[named] == concept]
        heard = held_out.of(concept)
        for block in blocks(len(places), heard.size):
            fires = fires_as(score, places[block], bool(hearing.framed[concept]))
            for place, found in zip(places[block].tolist(), detect(heard, fires, orders)):
                rows[place] = {
                    "hook": hook,
                    "sae": sae,
                    "feature": label.features[place],
                    "source": hearing.source,
                    "name": hearing.concepts[concept].name,
                    "confidence": 0.0,
                    "evidence": _evidence(hearing, concept, chosen[place], found),
                }
        if progress:
            progress(len(rows), len(named), "names")
    return with_confidence([rows[place] for place in named.tolist()])


def _evidence(hearing: Hearing, concept: int, chosen: np.ndarray, found: Detection) -> dict[str, Any]:
    ranked = np.argsort(-np.nan_to_num(chosen, nan=-1.0), kind="stable")[:CANDIDATES].tolist()
    return {
        "metric": "AUROC",
        "level": hearing.concepts[concept].level,
        "score": round(found.auroc, 4),
        "label_score": round(float(chosen[concept]), 4),
        "null_mean": round(found.null_mean, 4),
        "null_p95": round(found.null_p95, 4),
        "p": round(found.p, 5),
        "n": found.clips,
        "positives": found.firing,
        "candidates": [
            {"name": hearing.concepts[c].name, "label_score": round(float(chosen[c]), 4)}
            for c in ranked
            if np.isfinite(chosen[c])
        ],
    }


def with_confidence(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of one source with `q` and `confidence` filled in from all their p-values."""
    q = corrected(np.asarray([row["evidence"]["p"] for row in rows]))
    for row, one in zip(rows, q):
        evidence = row["evidence"]
        evidence["q"] = round(float(one), 5)
        row["confidence"] = round(confidence(evidence["score"], evidence["null_p95"]), 4) if one <= LEVEL else 0.0
    return list(rows)


def confidence(score: float, null_p95: float) -> float:
    """0 at or below the null's 95th percentile, 1 for a perfect score; linear between."""
    if not (np.isfinite(score) and np.isfinite(null_p95)) or null_p95 >= 1:
        return 0.0
    return float(np.clip((score - null_p95) / (1 - null_p95), 0, 1))
