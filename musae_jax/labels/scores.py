"""How well every feature tells of every concept that is true or not: AUROCs on two halves of the tracks, beside a null.

The same function serves every dictionary (SAE features, raw neurons, the features of an SAE on a model with random
weights), so that their scores can be compared.

The null: the clips' truth is exchanged between tracks, whole clips at a time, so that what happens inside a clip keeps
its shape.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import flax.struct
import numpy as np
import scipy.sparse

from musae_jax.errors import MusaeError
from musae_jax.features.activity import Activity, Pooling
from musae_jax.labels.auroc import Ranks, auroc_from_ranks, rank

MINIMUM_CLIPS = 4  # a concept is judged when at least this many clips of each half have it, and as many lack it


@dataclass(frozen=True)
class Concept:
    """`name` is "family: value"; `level` is "clip" (constant over a clip) or "frame" (at 50 Hz)."""

    name: str
    family: str
    level: str = "clip"


@dataclass(frozen=True)
class Truth:
    """What is true of n clips: `active` bool [n, T, C]; T is 1 when every concept is clip-level."""

    clip_ids: tuple[str, ...]
    concepts: tuple[Concept, ...]
    active: np.ndarray


@flax.struct.dataclass
class Scores:
    """AUROC of F features for C concepts on both halves, and under R shuffles of the clips. NaN: cannot be judged."""

    label: np.ndarray  # [F, C] on the half on which names are chosen
    score: np.ndarray  # [F, C] on the held-out half
    label_null: np.ndarray  # [R, F, C]
    score_null: np.ndarray  # [R, F, C]
    label_error: np.ndarray  # [C] standard error of the AUROC of a feature that knows nothing, n counted in clips
    score_error: np.ndarray  # [C]
    positives: np.ndarray  # [C] clips of the held-out half in which the concept occurs
    clips: int = flax.struct.field(pytree_node=False)  # clips in the held-out half


def shuffles(tracks: Sequence[str], count: int, seed: int) -> np.ndarray:
    """`count` ways to give each clip the truth of another, whole tracks exchanged. [R, n] clip numbers

    Clips of one track are alike: shuffling them one by one would make the null too narrow. A track that receives from a
    shorter one uses its clips in turn again.
    """
    members: dict[str, list[int]] = {}
    for number, track in enumerate(tracks):
        members.setdefault(track, []).append(number)
    groups = list(members.values())
    rng = np.random.default_rng(seed)
    result = np.empty((count, len(tracks)), int)
    for row in result:
        for to, source in zip(groups, rng.permutation(len(groups))):
            giver = groups[source]
            row[to] = [giver[i % len(giver)] for i in range(len(to))]
    return result


@dataclass(frozen=True)
class _Half:
    """One half of the clips, ranked once for every question that follows."""

    clip_ranks: Ranks
    frame_ranks: Ranks | None
    active: np.ndarray  # bool [m, T, C]
    framed: np.ndarray  # bool [C]

    def scores(self, order: np.ndarray | None = None) -> np.ndarray:
        """AUROC [F, C], of the truth as it is or with clip i given the truth of clip order[i]."""
        active = self.active if order is None else self.active[order]
        features = len(self.clip_ranks.zero)
        result = np.empty((features, active.shape[2]), np.float32)
        result[:, ~self.framed] = auroc_from_ranks(self.clip_ranks, active[:, :, ~self.framed].mean(1) > 0.5)
        if self.frame_ranks is not None:
            frames = active[:, :, self.framed]  # [m, T, C']
            result[:, self.framed] = auroc_from_ranks(self.frame_ranks, frames.reshape(-1, frames.shape[2]))
        return result

    def usable(self) -> np.ndarray:
        present, absent = self.active.any(1).sum(0), (~self.active).any(1).sum(0)
        return (present >= MINIMUM_CLIPS) & (absent >= MINIMUM_CLIPS)

    def error(self) -> np.ndarray:
        clips = len(self.active)
        positives = np.clip(self.active.mean(1).sum(0), 1.0, max(clips - 1, 1))  # [C] clips' worth
        return np.sqrt((clips + 1) / (12 * positives * np.maximum(clips - positives, 1)))


def _half(activity: Activity, truth: Truth, clips: np.ndarray, rows: np.ndarray, pooling: Pooling) -> _Half:
    framed = np.asarray([c.level == "frame" for c in truth.concepts], bool)
    pooled = activity.pooled(pooling)[clips]
    if scipy.sparse.issparse(activity.values):
        pooled = scipy.sparse.csc_array(pooled)
    frames = rank(activity.subset(clips).values) if framed.any() else None
    length = min(truth.active.shape[1], activity.frames)
    return _Half(rank(pooled), frames, truth.active[rows][:, :length], framed)


def score_concepts(
    activity: Activity,
    truth: Truth,
    halves: Mapping[str, str],
    tracks: Mapping[str, str] | None = None,
    permutations: int = 20,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
    pooling: Pooling = "mean",
) -> Scores:
    """AUROC of every feature for every concept on the "label" and the "score" half, with `permutations` shuffles.

    Clip-level concepts are scored with the activation pooled over the clip, frame-level ones with it at 50 Hz. Clips
    that `truth` does not know are left out. `halves` gives "label" or "score" for each clip id; `tracks` its track.
    Raises `MusaeError` when a half is empty or when truth and activations do not have the same length.
    """
    known = {clip: row for row, clip in enumerate(truth.clip_ids)}
    framed = any(c.level == "frame" for c in truth.concepts)
    if framed and truth.active.shape[1] != activity.frames:
        raise MusaeError(
            f"the truth has {truth.active.shape[1]} frames a clip and the activations have {activity.frames}; "
            "harvest and compose with the same number of seconds"
        )
    sides = []
    for half in ("label", "score"):
        clips = np.asarray([n for n, c in enumerate(activity.clip_ids) if c in known and halves[c] == half], int)
        if len(clips) < 2:
            raise MusaeError(
                f'the "{half}" half of the corpus has {len(clips)} clips with truth, but 2 are needed; use more tracks'
            )
        rows = np.asarray([known[activity.clip_ids[c]] for c in clips])
        names = [activity.clip_ids[c] for c in clips]
        orders = shuffles([tracks[c] if tracks else c for c in names], permutations, seed + (half == "score"))
        sides.append((_half(activity, truth, clips, rows, pooling), orders))
    (label, label_orders), (score, score_orders) = sides
    shape = (permutations, activity.features, len(truth.concepts))
    nulls = np.empty((2, *shape), np.float32)
    for number in range(permutations):
        nulls[0, number] = label.scores(label_orders[number])
        nulls[1, number] = score.scores(score_orders[number])
        if progress:
            progress(number + 1, permutations, "shuffles")
    result = Scores(
        label=label.scores(),
        score=score.scores(),
        label_null=nulls[0],
        score_null=nulls[1],
        label_error=label.error(),
        score_error=score.error(),
        positives=score.active.any(1).sum(0),
        clips=len(score.active),
    )
    unusable = ~(label.usable() & score.usable())
    for array in (result.label, result.score, result.label_null, result.score_null):
        array[..., unusable] = np.nan
    return result
