"""The composer's truth, and the table of truth: is there a feature for each concept of the vocabulary?

Every concept's best feature is chosen on the "label" half of the tracks and scored on the "score" half, for the SAE,
for the raw neurons of the same layer, and for an SAE trained on the same architecture with random weights, each beside
what the same choice finds on shuffled clips.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from musae_jax.errors import MusaeError
from musae_jax.features.activity import Activity
from musae_jax.labels.scores import Concept, Scores, Truth, score_concepts


def gather_truth(
    clip_ids: Iterable[str], concepts: Sequence[Any], load: Callable[[str], np.ndarray | None], frames: int
) -> Truth:
    """Truth of clips that have one, cut or padded with False to `frames`; `load(clip id)` gives bool [T, C] or None.

    `concepts` are dicts or objects with name, family and level, one per column.
    """
    concepts = tuple(
        Concept(**{k: (c[k] if isinstance(c, Mapping) else getattr(c, k)) for k in ("name", "family", "level")})
        for c in concepts
    )
    ids, arrays = [], []
    for clip in clip_ids:
        active = load(clip)
        if active is None:
            continue
        active = np.asarray(active, bool)
        if active.ndim != 2 or active.shape[1] != len(concepts):
            raise MusaeError(
                f"the truth of clip {clip} has shape {active.shape}, expected [frames, {len(concepts)}] as in "
                "concepts.json; compose the folder again"
            )
        padded = np.zeros((frames, len(concepts)), bool)
        padded[: len(active)] = active[:frames]
        ids.append(clip)
        arrays.append(padded)
    if not ids:
        raise MusaeError("no clip has truth; the table of truth needs music written by `musae compose`")
    return Truth(tuple(ids), concepts, np.stack(arrays))


def best_features(scores: Scores, signed: bool = False) -> dict[str, np.ndarray]:
    """For each concept the feature with the best AUROC on the label half, and how it does on the other half.

    With `signed` a feature may also tell of a concept by being low (raw neurons have no preferred sign). Returns arrays
    [C]: `feature`, `sign` (1 or -1), `label`, `score`, `null_mean`, `null_p95`; the null is the same choice on
    shuffled clips, scored on shuffled clips. NaN and -1 where a concept cannot be judged.
    """
    feature, sign, label, score = _choose(scores.label, scores.score, signed)
    null = np.stack(
        [_choose(a, b, signed)[3] for a, b in zip(scores.label_null, scores.score_null)] or [score * 0 + 0.5]
    )
    judged = np.isfinite(label)
    return {
        "feature": np.where(judged, feature, -1),
        "sign": sign,
        "label": label,
        "score": score,
        "null_mean": null.mean(0),
        "null_p95": np.quantile(null, 0.95, axis=0) if judged.any() else null.mean(0),
    }


def _choose(label: np.ndarray, score: np.ndarray, signed: bool) -> tuple[np.ndarray, ...]:
    merit = np.where(np.isfinite(label), np.abs(label - 0.5) if signed else label, -np.inf)
    feature = merit.argmax(0)  # [C]
    columns = np.arange(label.shape[1])
    sign = np.where(label[feature, columns] < 0.5, -1, 1) if signed else np.ones(len(columns), int)
    return feature, sign, *(0.5 + sign * (half[feature, columns] - 0.5) for half in (label, score))


def truth_table(
    scores: Mapping[str, Scores], truth: Truth, signed: Iterable[str] = ("neuron",)
) -> list[dict[str, Any]]:
    """One row per concept: {concept, family, level, base_rate, positives, n} and for each dictionary of `scores`, by
    its name D: D_feature, D_auroc (held out), D_label_auroc, D_null, D_null_p95 and, where D is in `signed`, D_sign.

    `base_rate` is the share of frames in which the concept holds. Values are null where fewer than four clips of a
    half have the concept or lack it.
    """
    best = {name: best_features(s, name in set(signed)) for name, s in scores.items()}
    first = next(iter(scores.values()))
    rows = []
    for column, concept in enumerate(truth.concepts):
        row = {
            "concept": concept.name,
            "family": concept.family,
            "level": concept.level,
            "base_rate": round(float(truth.active[:, :, column].mean()), 4),
            "positives": int(first.positives[column]),
            "n": int(first.clips),
        }
        for name, found in best.items():
            judged = found["feature"][column] >= 0
            row[f"{name}_feature"] = int(found["feature"][column]) if judged else None
            for key, array in (
                ("auroc", "score"),
                ("label_auroc", "label"),
                ("null", "null_mean"),
                ("null_p95", "null_p95"),
            ):
                row[f"{name}_{key}"] = round(float(found[array][column]), 4) if judged else None
            if name in set(signed):
                row[f"{name}_sign"] = int(found["sign"][column]) if judged else None
        rows.append(row)
    return rows


def summarise_table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Mean and median held-out AUROC per dictionary over the concepts that all judge, and pairwise wins of the first.

    `above_null` counts the concepts whose AUROC exceeds the 95th percentile of the null.
    """
    judged = [r for r in rows if all(r.get(f"{n}_auroc") is not None for n in names)]
    summary: dict[str, Any] = {"concepts": len(rows), "judged": len(judged)}
    for name in names:
        scores = np.asarray([r[f"{name}_auroc"] for r in judged])
        summary[name] = {
            "mean_auroc": round(float(scores.mean()), 4) if judged else None,
            "median_auroc": round(float(np.median(scores)), 4) if judged else None,
            "above_null": sum(r[f"{name}_auroc"] > r[f"{name}_null_p95"] for r in judged),
            "null": round(float(np.mean([r[f"{name}_null"] for r in judged])), 4) if judged else None,
        }
        if name != names[0]:
            summary[name]["beaten_by_first"] = sum(r[f"{names[0]}_auroc"] > r[f"{name}_auroc"] for r in judged)
    return summary


def measure_truth(
    activities: Mapping[str, Activity],
    truth: Truth,
    halves: Mapping[str, str],
    tracks: Mapping[str, str] | None = None,
    permutations: int = 20,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Scores]:
    """`score_concepts` for each dictionary of `activities`, with the same shuffles; names as in `truth_table`."""
    scores = {}
    for number, (name, activity) in enumerate(activities.items()):

        def step(done: int, of: int, noun: str, before: int = number) -> None:
            progress(before * of + done, len(activities) * of, noun)

        scores[name] = score_concepts(activity, truth, halves, tracks, permutations, seed, step if progress else None)
    return scores
