import json

import numpy as np
import pytest
from planted import CONCEPTS, FLUTE, QUIET_IN_C, planted

from musae_jax.errors import MusaeError
from musae_jax.features.activity import Activity
from musae_jax.labels.auroc import auroc
from musae_jax.labels.scores import score_concepts, shuffles
from musae_jax.labels.truth import (
    best_features,
    gather_truth,
    measure_truth,
    summarise_table,
    truth_table,
)


@pytest.fixture(scope="module")
def corpus():
    activity, truth, halves, tracks = planted()
    return activity, truth, halves, tracks, score_concepts(activity, truth, halves, tracks)


def test_scores_are_the_aurocs_of_the_two_halves(corpus):
    activity, truth, halves, _, scores = corpus
    for half, got in (("label", scores.label), ("score", scores.score)):
        clips = [n for n, c in enumerate(activity.clip_ids) if halves[c] == half]
        dense = activity.subset(clips)
        np.testing.assert_allclose(got[:, 0], auroc(dense.clip_mean, truth.active[clips, 0])[:, 0], atol=1e-6)
        frames = truth.active[clips].reshape(-1, len(CONCEPTS))
        np.testing.assert_allclose(got[:, 2], auroc(dense.values, frames)[:, 2], atol=1e-6)


def test_order_of_clips_in_truth_does_not_matter(corpus):
    activity, truth, halves, tracks, scores = corpus
    order = np.random.default_rng(1).permutation(len(truth.clip_ids))
    shuffled = type(truth)(tuple(truth.clip_ids[n] for n in order), truth.concepts, truth.active[order])
    again = score_concepts(activity, shuffled, halves, tracks, permutations=2)
    np.testing.assert_array_equal(again.score, scores.score)


def test_concepts_that_cannot_be_judged_are_nan_everywhere(corpus):
    *_, scores = corpus
    for array in (scores.label, scores.score, scores.label_null, scores.score_null):
        assert np.isnan(array[..., 3]).all() and np.isfinite(array[..., [0, 1, 2, 4]]).all()


def test_truth_table_beside_neurons_and_noise(corpus):
    activity, truth, halves, tracks, _ = corpus
    rng = np.random.default_rng(5)
    neurons = rng.normal(size=(len(truth.clip_ids), activity.frames, 6)).astype(np.float32)
    neurons[:, :, 3] -= 2 * truth.active[:, :, 4]  # a neuron that is low in C
    neurons = Activity(activity.clip_ids, activity.frames, neurons.reshape(-1, 6))
    noise, *_ = planted(seed=9)  # other clips' activations: tells nothing of this truth but the planted periodicity
    noise = Activity(activity.clip_ids, noise.frames, noise.values[:, 6:])
    scores = measure_truth({"sae": activity, "neuron": neurons, "random_weights": noise}, truth, halves, tracks, 20)
    rows = {r["concept"]: r for r in truth_table(scores, truth)}
    assert list(rows) == [c.name for c in CONCEPTS]
    flute = rows["instrument: flute"]
    assert flute["sae_auroc"] == 1.0 and flute["sae_feature"] == FLUTE
    assert flute["base_rate"] == pytest.approx(1 / 3, abs=1e-3)
    assert flute["random_weights_auroc"] < 0.8 and flute["sae_null"] == pytest.approx(0.5, abs=0.12)
    key = rows["key: C"]
    assert key["neuron_feature"] == 3 and key["neuron_sign"] == -1 and key["neuron_auroc"] > 0.95
    # a feature is directional: QUIET_IN_C knows the key and still does not count for it
    assert best_features(scores["sae"])["feature"][4] != QUIET_IN_C and key["sae_auroc"] < 0.8
    never = rows["percussion: never"]
    assert never["sae_auroc"] is None and never["sae_feature"] is None and never["base_rate"] == 0
    summary = summarise_table(list(rows.values()), ["sae", "neuron", "random_weights"])
    assert summary["judged"] == 4 and summary["sae"]["mean_auroc"] > summary["random_weights"]["mean_auroc"]
    assert summary["random_weights"]["beaten_by_first"] >= 3
    json.dumps([list(rows.values()), summary], allow_nan=False)


def test_the_null_of_the_table_is_centred_though_thousands_are_tried():
    """Choosing and scoring on the same half would give far more than one half with so many features to choose from."""
    rng = np.random.default_rng(0)
    _, truth, halves, tracks = planted()
    noise = Activity(truth.clip_ids, 40, rng.normal(size=(60 * 40, 300)).astype(np.float32))
    best = best_features(score_concepts(noise, truth, halves, tracks, permutations=20), signed=True)
    assert abs(np.nanmean(best["null_mean"]) - 0.5) < 0.05 and np.nanmean(best["label"]) > 0.7


def test_shuffles_move_whole_tracks():
    tracks = ["a", "a", "b", "b", "c"]
    orders = shuffles(tracks, 50, 0)
    assert orders.shape == (50, 5)
    for order in orders:
        assert len({tracks[order[0]], tracks[order[1]]}) == 1 and len({tracks[order[2]], tracks[order[3]]}) == 1
    assert len({tuple(o) for o in orders}) > 3
    np.testing.assert_array_equal(orders, shuffles(tracks, 50, 0))
    assert sorted(shuffles(list("abcdef"), 1, 3)[0]) == list(range(6))


def test_user_errors(corpus):
    activity, truth, halves, *_ = corpus
    with pytest.raises(MusaeError, match='"score" half of the corpus has 0 clips'):
        score_concepts(activity, truth, dict.fromkeys(halves, "label"))
    short = type(truth)(truth.clip_ids, truth.concepts, truth.active[:, :30])
    with pytest.raises(MusaeError, match="30 frames a clip and the activations have 40"):
        score_concepts(activity, short, halves)
    with pytest.raises(MusaeError, match="shape"):
        gather_truth(["a"], [{"name": "x", "family": "x", "level": "clip"}], lambda c: np.zeros((4, 2), bool), 4)
    with pytest.raises(MusaeError, match="no clip has truth"):
        gather_truth(["a"], [], lambda c: None, 4)


def test_gather_truth_cuts_pads_and_skips():
    arrays = {"a": np.ones((6, 1), bool), "b": None, "c": np.ones((2, 1), bool)}
    truth = gather_truth(arrays, [{"name": "f: x", "family": "f", "level": "frame"}], arrays.get, 4)
    assert truth.clip_ids == ("a", "c") and truth.active[:, :, 0].sum(1).tolist() == [4, 2]
