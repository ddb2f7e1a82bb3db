"""A linear probe for every concept: what supervision finds in the same activations, the ceiling of any dictionary.

It is the judge's logistic regression, fitted on residuals instead of sound: on a clip's mean for what holds for the
whole clip, on frames for what comes and goes. The penalty for whole clips is chosen by cross-validation over clips;
for frames, of which there are many more, it is small.
"""

from collections.abc import Sequence

import numpy as np

from musae_jax.validation.finding import FOUND, HALVES, Finding, Panel, judge
from musae_jax.validation.judge import Judge, fit_judge, judge_statistics

CLIP_PENALTIES = (0.01, 0.03, 0.1, 0.3)
FRAME_PENALTIES = (0.001,)
FRAMES = 12_000  # that a probe of frames is fitted on, up to twice as many; at random, as even spacing keeps the beat
_ROWS = 8192  # told at a time


def fit_probe(
    x: np.ndarray, truth: np.ndarray, families: Sequence[str], penalties: Sequence[float] | None = None
) -> Judge:
    """The probe of C concepts from x [n, T, D] and truth bool [n, T, C] of n clips; T = 1 where whole clips are told.

    Concepts of one family that exclude each other share a softmax. `penalties` are those tried, see above.
    """
    frames, count = x.shape[1], x.shape[0] * x.shape[1]
    kept = count // max(1, count // FRAMES)
    rows = np.sort(np.random.default_rng(0).choice(count, kept, replace=False))
    return fit_judge(
        None,
        truth.reshape(count, -1)[rows],
        [str(number) for number in range(truth.shape[2])],
        families,
        tracks=[str(clip) for clip in rows // frames],
        penalties=penalties or (CLIP_PENALTIES if frames == 1 else FRAME_PENALTIES),
        statistics=x.reshape(count, -1)[rows],
    )


def told_by_probe(probe: Judge, x: np.ndarray) -> np.ndarray:
    """The probability of each concept: x [n, T, D] -> float32 [n, T, C]."""
    flat = x.reshape(-1, x.shape[2])
    parts = []
    for start in range(0, len(flat), _ROWS):
        part = flat[start : start + _ROWS]
        padded = np.zeros((_ROWS, flat.shape[1]), np.float32)  # one shape, one compilation
        padded[: len(part)] = part
        parts.append(np.asarray(judge_statistics(probe, padded))[: len(part)])
    return np.concatenate(parts).reshape(*x.shape[:2], -1)


def find_by_probe(panel: Panel, residuals: np.ndarray) -> Finding:
    """What a probe finds that is fitted on the label half of residuals [n, T, D]; its feature c is for concept c."""
    verdicts = [None] * len(panel.truth.concepts)
    for columns in panel.groups():
        rows = {half: panel.rows(columns[0], half) for half in HALVES}
        framed = panel.framed[columns[0]]
        x = {half: residuals[at] if framed else residuals[at].mean(1, keepdims=True) for half, at in rows.items()}
        truth = np.stack([panel.told(c, "label") for c in columns], 2)  # [n, T, C']
        probe = fit_probe(x["label"], truth, [panel.truth.concepts[c].family for c in columns])
        told = {half: told_by_probe(probe, values) for half, values in x.items()}
        for place, c in enumerate(columns):
            verdicts[c] = judge(panel, int(c), told["label"][..., place], told["score"][..., place])
    found = [one is not None and one.auroc >= FOUND for one in verdicts]
    feature = np.where(panel.judged, np.arange(len(verdicts)), -1)
    return Finding(feature, np.ones(len(verdicts), int), tuple(verdicts), np.diag(found))
