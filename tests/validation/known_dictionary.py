"""Music, residuals and dictionaries in which it is known which feature tells of what.

Concepts: "whole" and "split" and "holes" come and go, "clip" holds for a whole clip, "hidden" is nowhere, "rare" cannot
be judged. The residual is the sum of the directions of what is true, and noise.
"""

import numpy as np
import scipy.sparse

from musae_jax.features.activity import Activity
from musae_jax.labels.scores import Concept, Truth
from musae_jax.validation.finding import Panel

CONCEPTS = (
    Concept("a: whole", "a", "frame"),
    Concept("a: split", "a", "frame"),
    Concept("b: holes", "b", "frame"),
    Concept("b: clip", "b", "clip"),
    Concept("c: hidden", "c", "frame"),
    Concept("c: rare", "c", "frame"),
)
WHOLE, SPLIT, HOLES, CLIP, HIDDEN, RARE = range(6)
CHILDREN = 8  # narrow features, each of which silences the feature of "holes" on a fiftieth of it
D = 32


def known_world(clips=48, frames=60, seed=0):
    """(panel, activity of the dictionary, decoder [F, D], residuals [n, T, D], what each feature is for).

    Features 0 to 6: the whole concept, three parts of the split one, the one with holes, the clip's, one that always
    fires; then the children; the rest is noise.
    """
    rng = np.random.default_rng(seed)
    active = np.zeros((clips, frames, len(CONCEPTS)), bool)
    active[:, :, WHOLE] = rng.random((clips, frames)) < 0.2
    active[:, :, SPLIT] = rng.random((clips, frames)) < 0.3
    active[:, :, HOLES] = rng.random((clips, frames)) < 0.4
    active[:, :, CLIP] = (np.arange(clips) // 2 % 2 == 0)[:, None]
    active[:, :, HIDDEN] = rng.random((clips, frames)) < 0.3
    active[0, :5, RARE] = True
    directions = np.eye(D)[:16]
    part = rng.integers(0, 3, (clips, frames))
    child = rng.integers(0, 50, (clips, frames))  # those below CHILDREN replace the feature of "holes"
    strength = 1 + 0.2 * rng.random((clips, frames))
    features, decoder = [], []

    def add(fires, direction):
        features.append(fires * strength)
        decoder.append(direction / np.linalg.norm(direction))

    add(active[:, :, WHOLE], directions[0])
    for number in range(3):
        add(active[:, :, SPLIT] & (part == number), directions[1] + 0.5 * directions[2 + number])
    add(active[:, :, HOLES] & (child >= CHILDREN), directions[5])
    add(active[:, :, CLIP] & (rng.random((clips, frames)) < 0.5), directions[6])
    add(np.ones((clips, frames)), directions[7])
    for number in range(CHILDREN):
        add(active[:, :, HOLES] & (child == number), directions[5] + 0.5 * directions[8 + number % 8])
    for _ in range(20):
        add(rng.random((clips, frames)) < 0.1, rng.normal(size=D))
    values = np.stack(features, 2)  # [n, T, F]
    decoder = np.stack(decoder)
    residuals = (values @ decoder + 0.01 * rng.normal(size=(clips, frames, D))).astype(np.float32)
    ids = tuple(f"clip{n}" for n in range(clips))
    truth = Truth(ids, CONCEPTS, active)
    splits = ({id: "label" if n % 2 else "score" for n, id in enumerate(ids)},)
    panel = Panel(truth, splits, np.zeros(len(CONCEPTS), int), shuffles=199, draws=200)
    matrix = scipy.sparse.csr_array(values.reshape(clips * frames, -1).astype(np.float32))
    return panel, Activity(ids, frames, matrix), decoder, residuals


def as_activity(panel, values):
    """A dictionary from values [n, T, F]."""
    flat = np.asarray(values, np.float32).reshape(-1, values.shape[2])
    return Activity(panel.truth.clip_ids, panel.truth.active.shape[1], flat)
