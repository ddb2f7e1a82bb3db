"""Judging a name by a few clips: which are heard, and an exact test of what is said of them."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musae_jax.labels.auroc import auroc
from musae_jax.validation.listening import CLIPS, clips_to_hear, exact_auroc


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.1, 0.3, 0.5, 0.9]), st.booleans()), min_size=1, max_size=9))
def test_the_null_is_every_way_to_choose_the_clips_that_fire(answers):
    heard, fires = (np.asarray(column) for column in zip(*answers))
    found = exact_auroc(heard, fires)
    if fires.all() or not fires.any():
        assert found is None
        return
    score = auroc(heard[:, None], fires[:, None])[0, 0]
    null = []
    for chosen in combinations(range(len(fires)), fires.sum()):
        other = np.isin(np.arange(len(fires)), chosen)
        null.append(auroc(heard[:, None], other[:, None])[0, 0])
    assert found == pytest.approx((score, np.mean(np.asarray(null) >= score - 1e-5)), abs=1e-6)


def test_certain_answers_of_sixteen_clips_and_of_nobody():
    fires = np.arange(16) < 8
    assert exact_auroc(np.where(fires, 0.9, 0.1), fires) == (1.0, pytest.approx(1 / 12870))
    assert exact_auroc(np.full(16, 0.5), fires) == (0.5, 1.0)
    assert exact_auroc(np.zeros(0), np.zeros(0, bool)) is None


def test_clips_are_of_tracks_of_their_own_half_firing_and_some_near_misses():
    rng = np.random.default_rng(0)
    fires = np.arange(100) < 30
    near = (np.arange(100) >= 30) & (np.arange(100) < 40)
    order = rng.permutation(100)
    chosen = clips_to_hear(fires, near, list(map(str, range(100))), order)
    assert len(set(chosen)) == CLIPS and fires[chosen].sum() == 8 and near[chosen].sum() >= 4
    place = np.argsort(order)
    assert place[[c for c in chosen if fires[c]]].max() < place[[c for c in range(30) if c not in chosen]].min()
    tracks = [str(n // 10) for n in range(100)]
    few = clips_to_hear(fires, near, tracks, order)
    assert len({tracks[clip] for clip in few}) == len(few) == 10 and fires[few].sum() == 3
    without = clips_to_hear(fires, np.zeros(100, bool), list(map(str, range(100))), order)
    assert fires[without].sum() == 8 and len(without) == CLIPS
    assert len(clips_to_hear(np.zeros(100, bool), near, tracks, order)) == CLIPS // 2
