"""The planted truth is what its config says, and is drawn again to the bit."""

import dataclasses
import itertools

import numpy as np
import pytest

from musae_jax.activations.batches import Batches
from musae_jax.errors import MusaeError
from musae_jax.sae.planted import PlantedActivations, PlantedConfig, plant, sample_planted

# Two trees of 1 + 3 + 9 features, and 14 more that stand alone.
CONFIG = PlantedConfig(
    40, 16, roots=2, branching=3, depth=2, rank=4, max_probability=0.5, min_probability=0.03, size_deviation=0.1
)
TREES = CONFIG.level_ends[-1]


@pytest.fixture(scope="module")
def drawn():
    planted = plant(CONFIG)
    return planted, sample_planted(planted, np.random.default_rng(0), 40_000)


def parents() -> dict[int, int]:
    ends = (0, *CONFIG.level_ends)
    return {
        child: ends[level] + (child - ends[level + 1]) // CONFIG.branching
        for level in range(CONFIG.depth)
        for child in range(ends[level + 1], ends[level + 2])
    }


def test_roots_and_loners_fire_as_often_as_they_should(drawn):
    planted, a = drawn
    free = np.r_[0 : CONFIG.roots, TREES : CONFIG.features]
    np.testing.assert_allclose((a > 0).mean(0)[free], planted.probabilities[free], atol=0.01)
    assert planted.probabilities[0] == 0.5 and planted.probabilities[-1] == pytest.approx(0.03)
    assert (np.diff(planted.probabilities) < 0).all()


def test_children_fire_with_their_parent_alone_and_in_proportion(drawn):
    planted, a = drawn
    for child, parent in parents().items():
        assert not (a[:, parent] == 0)[a[:, child] > 0].any()
        assert (a[:, child] > 0).any()
    ends = (0, *CONFIG.level_ends)
    for start, end in itertools.pairwise(ends[1:]):
        siblings = (a[:, start:end] > 0).reshape(len(a), -1, CONFIG.branching).sum(2)
        assert siblings.max() == 1
    still = dataclasses.replace(planted, deviation=np.zeros_like(planted.deviation))
    still.deviation[:2] = 1.0  # the roots alone vary
    a = sample_planted(still, np.random.default_rng(1), 4000)
    child = CONFIG.roots
    fires = a[:, child] > 0
    expected = planted.size[child] * a[fires, 0] / planted.size[0]
    np.testing.assert_allclose(a[fires, child], expected, rtol=1e-5)
    assert a[fires, child].std() > 0.1


def test_features_with_like_factors_fire_together():
    strong = dataclasses.replace(CONFIG, rank=2, correlation=0.7, roots=1, depth=0, max_probability=0.3, exponent=0.01)
    planted = plant(strong)
    fires = sample_planted(planted, np.random.default_rng(0), 20_000) > 0
    latent = planted.factor @ planted.factor.T
    off = ~np.eye(strong.features, dtype=bool)
    assert np.corrcoef(np.corrcoef(fires.T)[off], latent[off])[0, 1] > 0.8


def test_directions_are_unit_and_apart():
    apart = plant(CONFIG).directions
    near = plant(dataclasses.replace(CONFIG, repulsion_steps=0)).directions
    np.testing.assert_allclose(np.linalg.norm(apart, axis=1), 1, rtol=1e-5)

    def crowding(rows):
        return (np.abs(rows @ rows.T) - np.eye(len(rows))).max(1).mean()

    assert crowding(apart) < 0.95 * crowding(near)
    assert np.linalg.norm(plant(CONFIG).bias) == pytest.approx(0.5)


def test_it_is_a_source_that_can_be_trained_on():
    source = PlantedActivations(plant(CONFIG), 3, clips_per_shard=2, tokens_per_clip=5)
    ids, x = source.shard(1)
    assert ids == ("000002", "000003") and x.shape == (2, 5, 16) and len(source.clip_ids) == 6
    np.testing.assert_array_equal(x, source.shard(1)[1])
    assert (x != source.shard(2)[1]).any()
    planted = source.planted
    np.testing.assert_allclose(
        x.reshape(-1, 16), source.truth(1) @ planted.directions + planted.bias, rtol=1e-5, atol=1e-5
    )
    other = PlantedActivations(plant(dataclasses.replace(CONFIG, seed=1)), 3, 2, 5)
    assert other.content_sha256 != source.content_sha256
    stream = Batches(source, 15, 0, None, False, 1)
    dealt = np.concatenate([next(stream), next(stream)])
    stream.close()
    everything = np.concatenate([x.reshape(-1, 16) for _, x in source.shards()])
    np.testing.assert_array_equal(np.sort(dealt[:, 0]), np.sort(everything[:, 0]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_probability": 0.6}, "must be between 0 and 1 and the first the larger"),
        ({"rank": 4, "correlation": 0.5}, "keep correlation below 0.5"),
        ({"roots": 5}, "5 trees of depth 2 hold 65 features, but only 40 are planted"),
    ],
)
def test_what_cannot_be_planted_is_one_sentence(changes, message):
    with pytest.raises(MusaeError, match=message):
        dataclasses.replace(CONFIG, **changes)
