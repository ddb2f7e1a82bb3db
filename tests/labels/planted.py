"""A corpus whose answers are known: features that tell of concepts, and features that tell of nothing."""

import numpy as np
import scipy.sparse

from musae_jax.features.activity import Activity
from musae_jax.labels.scores import Concept, Truth

CONCEPTS = (
    Concept("instrument: flute", "instrument", "clip"),
    Concept("instrument: organ", "instrument", "clip"),
    Concept("percussion: snare", "percussion", "frame"),
    Concept("percussion: never", "percussion", "frame"),
    Concept("key: C", "key", "clip"),
)
FLUTE, ORGAN_SOMETIMES, SNARE, DEAD, QUIET_IN_C = range(5)  # columns with a meaning; the rest are noise


def planted(clips=60, frames=40, features=24, seed=0, per_track=1):
    rng = np.random.default_rng(seed)
    active = np.zeros((clips, frames, len(CONCEPTS)), bool)
    active[:, :, 0] = (np.arange(clips) % 3 == 0)[:, None]
    active[:, :, 1] = (rng.random(clips) < 0.4)[:, None]
    active[:, :, 2] = rng.random((clips, frames)) < 0.1
    active[:, :, 4] = (rng.random(clips) < 0.5)[:, None]
    values = np.abs(rng.normal(size=(clips, frames, features))) * (rng.random((clips, frames, features)) < 0.05)
    values[:, :, FLUTE] = active[:, :, 0] * rng.random((clips, frames)) + 0.01 * values[:, :, FLUTE]
    half_of_organ = active[:, :, 1] & (rng.random(clips) < 0.6)[:, None]
    values[:, :, ORGAN_SOMETIMES] = half_of_organ * rng.random((clips, frames))
    values[:, :, SNARE] = active[:, :, 2] * (0.5 + rng.random((clips, frames)))
    values[:, :, DEAD] = 0
    values[:, :, QUIET_IN_C] = (~active[:, :, 4]) * rng.random((clips, frames))
    ids = tuple(f"clip{n}" for n in range(clips))
    halves = {c: "label" if (n // per_track) % 2 else "score" for n, c in enumerate(ids)}
    tracks = {c: f"track{n // per_track}" for n, c in enumerate(ids)}
    matrix = scipy.sparse.csr_array(values.reshape(clips * frames, features).astype(np.float32))
    return Activity(ids, frames, matrix), Truth(ids, CONCEPTS, active), halves, tracks
