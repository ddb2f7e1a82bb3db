"""Scores against planted truth: a perfect dictionary has all, and any other what the definitions say."""

import dataclasses

import numpy as np
import pytest

from musae_jax.sae.planted import PlantedActivations, PlantedConfig, plant
from musae_jax.sae.recovery import recovery
from musae_jax.sae.sae import SAE, SAEConfig, sae_encode

SIZE = 14


@pytest.fixture(scope="module")
def source():
    """As many orthogonal directions as dimensions, so that an SAE can be perfect."""
    planted = plant(PlantedConfig(SIZE, SIZE, roots=1, branching=3, depth=2, rank=3, min_probability=0.05))
    planted = dataclasses.replace(planted, directions=np.eye(SIZE, dtype=np.float32))
    return PlantedActivations(planted, 3, clips_per_shard=4, tokens_per_clip=64)


def tied(rows: np.ndarray, bias: np.ndarray, threshold: float = 1e-3) -> SAE:
    params = {"W_enc": rows.T, "b_enc": np.full(len(rows), -threshold), "W_dec": rows, "b_dec": bias}
    params = {name: np.asarray(value, np.float32) for name, value in params.items()}
    return SAE(SAEConfig(rows.shape[1], len(rows), "standard"), params)


def test_a_perfect_dictionary_scores_one(source):
    found = recovery(tied(np.eye(SIZE)[::-1], source.planted.bias), source, range(3))
    for measure in ("f1", "precision", "recall", "f1_matched", "mcc", "uniqueness"):
        assert found[measure] == pytest.approx(1), measure
    truth = np.concatenate([source.truth(shard) for shard in range(3)])
    assert found["true_l0"] == pytest.approx((truth > 0).sum(1).mean())
    assert found["tokens"] == len(truth)


def test_copies_and_dead_latents_cost_what_they_should(source):
    twice = recovery(tied(np.concatenate([np.eye(SIZE)] * 2), source.planted.bias), source, [0, 2])
    assert twice["uniqueness"] == 0.5 and twice["f1"] == pytest.approx(1) and twice["mcc"] == pytest.approx(1)
    assert twice["f1_matched"] == pytest.approx(0.5)
    dead = tied(np.eye(SIZE), source.planted.bias)
    dead.params["b_enc"][:7] = -1e6
    found = recovery(dead, source, [0, 2])
    assert found["f1"] == pytest.approx(0.5) and found["mcc"] == pytest.approx(1)


def test_scores_are_those_of_the_definitions(source):
    rng = np.random.default_rng(0)
    sae = tied(rng.normal(size=(6, SIZE)), source.planted.bias, threshold=1.0)
    x, truth = source.shard(1)[1].reshape(-1, SIZE), source.truth(1) > 0
    fires = np.asarray(sae_encode(sae.config, sae.params, x)) > 0
    unit = sae.params["W_dec"] / np.linalg.norm(sae.params["W_dec"], axis=1, keepdims=True)
    nearest = np.abs(unit).argmax(1)  # the planted directions are the axes
    hits = [(fires[:, i] & truth[:, nearest[i]]).sum() for i in range(6)]
    precision = [hits[i] / max(fires[:, i].sum(), 1) for i in range(6)]
    recall = [hits[i] / max(truth[:, nearest[i]].sum(), 1) for i in range(6)]
    found = recovery(sae, source, [1])
    assert found["precision"] == pytest.approx(np.mean(precision))
    assert found["recall"] == pytest.approx(np.mean(recall))
    assert found["f1"] == pytest.approx(np.mean([2 * p * r / max(p + r, 1e-9) for p, r in zip(precision, recall)]))
    assert found["uniqueness"] == len(set(nearest.tolist())) / 6
