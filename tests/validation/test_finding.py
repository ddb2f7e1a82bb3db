"""Dictionaries whose findings are known: the truth itself, noise, and one with split and absorbed concepts."""

import dataclasses

import numpy as np
import pytest
from known_dictionary import CHILDREN, CLIP, HIDDEN, HOLES, RARE, SPLIT, WHOLE, as_activity, known_world

from musae_jax.labels.evidence import corrected
from musae_jax.validation import finding
from musae_jax.validation.finding import FOUND, find_concepts, score_all
from musae_jax.validation.probe import FRAMES, find_by_probe, fit_probe, told_by_probe
from musae_jax.validation.splitting import split_concepts


@pytest.fixture(scope="module")
def world():
    return known_world()


def judged(panel, array):
    return np.asarray(array)[panel.judged]


def test_a_dictionary_that_is_the_truth_finds_everything(world):
    panel = world[0]
    assert panel.judged.tolist() == [True] * 5 + [False]
    found = find_concepts(panel, as_activity(panel, panel.truth.active))
    np.testing.assert_allclose(judged(panel, found.auroc), 1, atol=1e-6)
    assert found.feature.tolist() == [WHOLE, SPLIT, HOLES, CLIP, HIDDEN, -1]
    assert found.mcc == pytest.approx(1, abs=1e-6) and found.concepts_per_feature == 1
    assert all(v.f1 == 1 and v.p == 1 / 200 and np.isclose(v.draws, 1).all() for v in found.verdicts if v)
    assert found.verdicts[RARE] is None and np.isnan(found.auroc[RARE])


def test_a_random_dictionary_finds_nothing(world):
    panel = world[0]
    noise = np.abs(np.random.default_rng(3).normal(size=(*panel.truth.active.shape[:2], 300)))
    for signed in (False, True):
        found = find_concepts(panel, as_activity(panel, noise), signed)
        frames = panel.judged & panel.framed
        assert np.abs(found.auroc[frames] - 0.5).max() < 0.05 and (judged(panel, found.auroc) < FOUND).all()
        assert (corrected(np.asarray([v.p for v in found.verdicts if v])) > 0.05).all()
        assert abs(found.mcc) < 0.1 and found.concepts_per_feature is None and not found.answers.any()


def test_a_feature_that_tells_by_being_low_counts_for_neurons_only(world):
    panel = world[0]
    low = as_activity(panel, 1.0 - panel.truth.active[:, :, [WHOLE]])
    assert find_concepts(panel, low).auroc[WHOLE] == pytest.approx(0, abs=1e-6)
    signed = find_concepts(panel, low, signed=True)
    assert signed.auroc[WHOLE] == pytest.approx(1) and signed.sign[WHOLE] == -1 and signed.mcc > 0.15


def test_the_known_dictionary(world):
    panel, activity, *_ = world
    found = find_concepts(panel, activity)
    assert found.feature[WHOLE] == 0 and found.feature[SPLIT] in (1, 2, 3)
    assert found.feature[HOLES] == 4 and found.feature[CLIP] == 5
    assert found.auroc[WHOLE] == pytest.approx(1) and found.auroc[CLIP] == pytest.approx(1)
    assert found.auroc[SPLIT] == pytest.approx(1 / 2 + 1 / 6, abs=0.03)
    assert found.auroc[HOLES] == pytest.approx(1 - CHILDREN / 100, abs=0.02)
    assert found.auroc[HIDDEN] == pytest.approx(0.5, abs=0.05)
    assert found.verdicts[SPLIT].f1 == pytest.approx(0.5, abs=0.05)
    assert found.verdicts[HIDDEN].p > 0.02 > found.verdicts[SPLIT].p


def test_many_concepts_of_one_feature_are_counted(world):
    panel = world[0]
    active = panel.truth.active.copy()
    active[:, :, HIDDEN] = active[:, :, WHOLE]  # two names for one thing
    panel = dataclasses.replace(panel, truth=dataclasses.replace(panel.truth, active=active))
    found = find_concepts(panel, as_activity(panel, active))
    assert found.concepts_per_feature == pytest.approx((2 + 1 + 1 + 1) / 4)


def test_a_split_concept_and_an_absorbed_one_are_told_apart(world):
    panel, activity, decoder, residuals = world
    found = find_concepts(panel, activity)
    splits = split_concepts(panel, activity, found, decoder, residuals)
    assert splits[RARE] is None
    assert set(splits[SPLIT].parts) == {1, 2, 3} and splits[SPLIT].f1 > 0.99 and splits[SPLIT].absorbed < 0.05
    assert splits[WHOLE].parts == (0,) and splits[WHOLE].absorbed == 0 and splits[WHOLE].absorber == -1
    assert splits[CLIP].parts == (5,)
    assert len(splits[HIDDEN].parts) == 1
    # each hole is too small to be a part, together they are 8 / 50 of the positives
    assert splits[HOLES].parts == (4,)
    assert splits[HOLES].absorbed == pytest.approx(CHILDREN / 50, abs=0.03)
    assert 7 <= splits[HOLES].absorber < 7 + CHILDREN
    without = split_concepts(panel, activity, found)
    assert [s and s.parts for s in without] == [s and s.parts for s in splits] and without[HOLES].absorbed is None


def test_a_probe_of_many_frames_hears_those_between_the_beats():
    clips, every = 4, 2 * FRAMES // 4  # twice as many frames as are taken; every second one would be on the beat
    on = np.arange(every) % 2 == 0
    x = np.broadcast_to(np.stack([on, ~on], 1).astype(np.float32), (clips, every, 2))
    truth = np.broadcast_to(on[:, None], (clips, every, 1))
    told = told_by_probe(fit_probe(x, truth, ["beat"]), x)
    assert ((told > 0.5) == truth).all()


def test_a_probe_finds_what_is_linear_and_nothing_else(world):
    panel, _, _, residuals = world
    found = find_by_probe(panel, residuals)
    for concept in (WHOLE, SPLIT, HOLES, CLIP):
        assert found.auroc[concept] > 0.95
    assert found.auroc[HIDDEN] == pytest.approx(0.5, abs=0.06) and found.verdicts[RARE] is None
    assert found.feature.tolist() == [0, 1, 2, 3, 4, -1]


def test_each_concept_is_held_out_by_its_own_split(world):
    """A feature that follows a concept in the odd clips alone: chosen there, it is worth nothing in the even ones."""
    panel = world[0]
    odd = np.arange(len(panel.truth.clip_ids)) % 2 == 1
    values = np.stack([panel.truth.active[:, :, c] & odd[:, None] for c in (WHOLE, SPLIT)], 2).astype(float)
    other = {id: "label" if n < 24 else "score" for n, id in enumerate(panel.truth.clip_ids)}
    two = dataclasses.replace(panel, splits=(*panel.splits, other), split_of=np.asarray([0, 1, 0, 0, 0, 0]))
    found = find_concepts(two, as_activity(two, values))
    assert found.verdicts[WHOLE].label == pytest.approx(1) and found.auroc[WHOLE] == pytest.approx(0.5)
    assert found.auroc[SPLIT] == pytest.approx(0.75, abs=0.03)


def test_clips_in_another_order_are_refused(world):
    panel, activity, *_ = world
    with pytest.raises(ValueError, match="same clips in the same order"):
        find_concepts(panel, dataclasses.replace(activity, clip_ids=activity.clip_ids[::-1]))
    assert score_all(panel, activity).label.shape == (activity.features, 6)


def test_wide_dense_dictionaries_are_scored_in_parts(world, monkeypatch):
    panel = world[0]
    noise = np.random.default_rng(3).normal(size=(*panel.truth.active.shape[:2], 25))
    activity = as_activity(panel, noise + panel.truth.active[:, :, [WHOLE]])
    whole = score_all(panel, activity)
    monkeypatch.setattr(finding, "CHUNK", 10)
    parts = score_all(panel, activity)
    for name in ("label", "score", "label_null", "label_error", "positives"):
        np.testing.assert_allclose(
            getattr(parts, name), getattr(whole, name), rtol=0, atol=1e-6
        )  # sums in another order
