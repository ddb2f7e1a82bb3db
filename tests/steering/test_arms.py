import jax
import numpy as np
import pytest

from musae_jax.steering.arms import (
    Target,
    choose_targets,
    contrast_directions,
    inactive_direction,
    inactive_feature,
    plan_rows,
    row_vectors,
)
from musae_jax.steering.directions import difference_in_means, orthogonal_to, pca_direction, probe_directions

TARGETS = [Target(2, "dynamics: loud", "loud", prompts=("", "slow piano")), Target(5, "brightness: bright", "bright")]
ALL = ("sae", "random", "decoder", "inactive", "other_layer", "diff_in_means", "prompt")


def directions(seed=0):
    rng = np.random.default_rng(seed)
    return {f: {arm: rng.normal(size=12) for arm in ("decoder", "inactive", "diff_in_means")} for f in (2, 5)}


def plan(strengths=(-1.0, 0.5, 1.0), main=1.0):
    return plan_rows(TARGETS, {2: ALL, 5: ("sae", "random")}, strengths, {2: main, 5: main}, clips=4, first=3)


def test_every_arm_is_planned_once_and_in_pairs():
    rows = plan()
    assert len(set(rows)) == len(rows)
    plain = {(row.prompt, row.seed) for row in rows if row.feature is None}
    assert plain == {
        ("", 3),
        ("slow piano", 3),
        ("", 4),
        ("slow piano", 4),
        ("", 5),
        ("", 6),
    }  # shared where they can be
    for row in rows:
        assert (row.prompt, row.seed) in plain
    dosed = {(row.arm, row.strength) for row in rows if row.feature == 2}
    assert dosed == {
        *((arm, a) for arm in ("sae", "random") for a in (-1.0, 0.5, 1.0)),
        *((arm, 1.0) for arm in ("decoder", "inactive", "other_layer", "diff_in_means")),
        ("prompt", 0.0),
    }
    assert len(rows) == 6 + 4 * 11 + 4 * 6
    texts = {row.text for row in rows if row.arm == "prompt"}
    assert texts == {"loud", "slow piano, loud"} and all(r.text == r.prompt for r in rows if r.arm != "prompt")
    assert ("sae", 2.0) in {(row.arm, row.strength) for row in plan(main=2.0)}  # the strength of comparison is made too


@pytest.mark.parametrize("how", ["add", "contrast"])
def test_all_vectors_have_the_norm_of_the_sae_s(stream_sae, how):
    rows = plan()
    vectors = row_vectors(stream_sae, rows, directions(), 1, jax.random.key(0), how)
    assert set(vectors) == {0, 1}
    for place, row in enumerate(rows):
        at = {layer: v[place] for layer, v in vectors.items()}
        if row.arm in ("unsteered", "prompt"):
            assert not at[0].any() and not at[1].any()
            continue
        own = row.strength * 6.0 * np.asarray(stream_sae.params["W_dec"][row.feature])
        if how == "contrast":
            towards = np.asarray(stream_sae.contrast[row.feature])
            own = row.strength * 6.0 * np.linalg.norm(own / row.strength / 6.0) * towards / np.linalg.norm(towards)
        layer = 1 if row.arm == "other_layer" else 0
        np.testing.assert_allclose(np.linalg.norm(at[layer]), np.linalg.norm(own), rtol=1e-5)
        assert not at[1 - layer].any()
        if row.arm in ("sae", "other_layer"):
            np.testing.assert_allclose(at[layer], own, rtol=1e-5)


def test_a_random_direction_is_the_same_at_all_strengths_and_another_for_each_pair(stream_sae):
    rows = plan()
    vectors = row_vectors(stream_sae, rows, directions(), 1, jax.random.key(0), "add")[0]
    units = {}
    for row, vector in zip(rows, vectors):
        if row.arm == "random":
            units.setdefault((row.feature, row.prompt, row.seed), []).append(
                vector / np.linalg.norm(vector) * np.sign(row.strength)
            )
    firsts = []
    for found in units.values():
        assert len(found) == 3
        np.testing.assert_allclose(found, found[:1] * np.ones((3, 1)), atol=1e-5)
        firsts.append(found[0])
    cosines = np.asarray(firsts) @ np.asarray(firsts).T
    assert len(firsts) == 8 and (np.abs(cosines - np.eye(8)) < 0.999).all()


def test_the_inactive_feature_is_silent_here_and_lively_elsewhere(stream_sae):
    fires = np.asarray([True, True, False, False, False])
    clip_mean = np.zeros((5, 7), np.float32)
    clip_mean[fires, 2] = 1.0
    clip_mean[:, 0] = 0.5  # always there
    clip_mean[2, 3] = 0.2  # silent here, and in one clip elsewhere
    clip_mean[2:, 4] = [0.1, 0.09, 0.1]  # silent here, nearly always there elsewhere; 1, 5 and 6 are dead
    assert inactive_feature(clip_mean, fires, 2) == 4
    for how, rows in (("add", stream_sae.params["W_dec"]), ("contrast", stream_sae.contrast)):
        direction = inactive_direction(stream_sae, 2, 4, how)
        assert abs(direction @ np.asarray(rows[2])) < 1e-4 < abs(direction @ np.asarray(rows[4]))


def test_directions_point_at_a_planted_concept():
    rng = np.random.default_rng(0)
    holds = rng.random((120, 1)) < 0.4
    planted = rng.normal(size=10) * 0.7
    noise = rng.normal(size=(120, 1, 10))
    x = noise + holds[..., None] * planted

    def cosine(v):
        return v @ planted / np.linalg.norm(v) / np.linalg.norm(planted)

    np.testing.assert_allclose(difference_in_means(x, holds), x[holds].mean(0) - x[~holds].mean(0), rtol=1e-5)
    assert cosine(difference_in_means(x, holds)) > 0.9
    other = rng.random((120, 1)) < 0.5
    probes = probe_directions(x, np.stack([holds, other], 2))
    assert probes.shape == (2, 10) and cosine(probes[0]) > 0.8 and abs(cosine(probes[1])) < 0.6
    wide = rng.normal(size=(200, 10)) + 9 * rng.normal(size=(200, 1)) * planted
    assert abs(cosine(pca_direction(wide))) > 0.99 and np.linalg.norm(pca_direction(wide)) == pytest.approx(1, abs=1e-6)
    found = contrast_directions(x, {7: holds, 8: np.zeros_like(holds)}, ("diff_in_means", "pca"))
    assert set(found) == {7} and set(found[7]) == {
        "diff_in_means",
        "pca",
    }  # of a concept that is nowhere nothing is read


def test_what_is_projected_out_is_gone():
    rng = np.random.default_rng(0)
    vector, others = rng.normal(size=9), rng.normal(size=(3, 9))
    others[2] = others[0] - others[1]  # a span of two
    rest = orthogonal_to(vector, others)
    np.testing.assert_allclose(others @ rest, 0, atol=1e-5)
    coefficients = np.linalg.lstsq(others.T, vector - rest, rcond=None)[0]
    np.testing.assert_allclose(others.T @ coefficients, vector - rest, atol=1e-5)
    np.testing.assert_allclose(orthogonal_to(vector, np.zeros(9)), vector, rtol=1e-6)


def test_targets_are_the_best_names_the_judge_knows_first():
    def named(feature, name, confidence, source="tagger"):
        return {"feature": feature, "name": name, "confidence": confidence, "source": source, "evidence": {}}

    rows = [
        named(1, "percussion: snare", 0.9),  # frame-level: the judge does not know it
        named(2, "instrument: flute", 0.8),
        named(3, "instrument: flute", 0.7, "clap"),  # the same name again
        named(4, "instrument: organ", 0.6),
        named(5, "instrument: piano", 0.5),  # a third of its family
        named(6, "drums: any", 0.4),
        named(7, "key: C", 0.0),  # at its null
        named(2, "brightness: dark", 0.3, "descriptors"),
    ]
    judged = {r["name"] for r in rows if r["source"] != "descriptors"} - {"percussion: snare"}
    targets = choose_targets(rows, judged, count=4)
    assert [t.feature for t in targets] == [2, 4, 6, 1] and targets[0].sources == ("tagger",)
    assert [t.feature for t in choose_targets(rows, judged, count=9)] == [2, 4, 6, 1, 5, 3]  # more, where asked for
    assert [t.name for t in choose_targets(rows[-1:])] == ["brightness: dark"]
