import json

import numpy as np
import pytest
from planted import CONCEPTS, DEAD, FLUTE, ORGAN_SOMETIMES, QUIET_IN_C, SNARE, planted

from musae_jax.errors import MusaeError
from musae_jax.features.activity import Activity
from musae_jax.features.firing import LEAST, find_firing, mean_of_shares, pool_shares, shares
from musae_jax.labels.auroc import auroc
from musae_jax.labels.detection import best_names, detect, detections, luck, most_alike
from musae_jax.labels.hearing import Hearing, hear_truth, load_hearing, save_hearing
from musae_jax.labels.naming import confidence, name_features
from musae_jax.labels.scores import Concept, shuffles

PARTS = 40  # as many as the planted clips have frames


def halves_of(activity, halves):
    return {
        half: find_firing(
            activity,
            [n for n, clip in enumerate(activity.clip_ids) if halves[clip] == half],
            range(activity.features),
            active_above=0.2,
            parts=PARTS,
        )
        for half in ("label", "score")
    }


@pytest.fixture(scope="module")
def corpus():
    activity, truth, halves, tracks = planted(clips=120)
    return activity, hear_truth(truth, PARTS), halves_of(activity, halves), tracks


def test_a_feature_fires_where_it_is_strong(corpus):
    activity, _, firing, _ = corpus
    score = firing["score"]
    means = activity.clip_mean[[activity.clip_ids.index(clip) for clip in score.clip_ids]]
    for feature in range(activity.features):
        fires = score.clips[:, feature]
        if fires.any():
            assert means[fires, feature].min() > means[~fires, feature].max(initial=0)
    assert score.clips.mean(0).max() <= 0.25 and score.parts(slice(None)).mean((0, 1)).max() <= 0.25
    assert not score.clips[:, DEAD].any() and not score.parts([DEAD]).any() and not score.told[DEAD]
    assert score.clips[:, FLUTE].sum() >= LEAST and score.told[FLUTE]


def test_a_rare_feature_fires_in_its_strongest_clips():
    activity, *_ = planted(clips=100)
    values = np.zeros((100, 40, 1), np.float32)
    values[:6, :, 0] = np.asarray([10, 1, 0.9, 0.8, 0.7, 0.6])[:, None]  # one clip exceeds the share of the greatest
    rare = type(activity)(activity.clip_ids, 40, values.reshape(-1, 1))
    firing = find_firing(rare, range(100), [0], active_above=0.5, parts=PARTS)
    assert np.flatnonzero(firing.clips[:, 0]).tolist() == [0, 1, 2, 3]


def test_shares_of_a_clip():
    assert shares(10, 4).tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
    values = np.arange(20.0).reshape(1, 10, 2)
    np.testing.assert_allclose(mean_of_shares(values, 4)[0, :, 0], [2, 7, 12, 17])
    activity, *_ = planted(clips=5)
    dense = np.asarray(activity.values.todense()).reshape(5, 40, -1)
    np.testing.assert_allclose(
        pool_shares(activity, 8).todense().reshape(5, 8, -1), mean_of_shares(dense, 8), atol=1e-6
    )


def test_detections_are_aurocs_by_clip_and_by_share(corpus):
    _, hearing, firing, _ = corpus
    score = firing["score"]
    heard = hearing.subset(score.clip_ids)
    found = detections(heard, score)
    for feature in (FLUTE, ORGAN_SOMETIMES, 9):
        by_clip = auroc(heard.clips[:, [0]], score.clips[:, [feature]])
        assert found[feature, 0] == pytest.approx(by_clip[0, 0], abs=1e-6)
    by_share = auroc(heard.of(2).reshape(-1, 1), score.parts([SNARE]).reshape(-1, 1))
    assert found[SNARE, 2] == pytest.approx(by_share[0, 0], abs=1e-6) and found[SNARE, 2] > 0.95
    one = detect(heard.of(2), score.parts([SNARE]), shuffles(score.clip_ids, 99, 0))[0]
    assert one.auroc == pytest.approx(found[SNARE, 2], abs=1e-6) and one.p == pytest.approx(0.01)
    assert abs(one.null_mean - 0.5) < 0.05 and one.null_p95 < 0.6


def test_luck_is_the_spread_of_what_knows_nothing():
    rng = np.random.default_rng(0)
    clips, features = 200, 2000
    for share in (0.5, 0.05):  # a common concept, a rare one
        concept = (Concept("x: y", "x"),)
        heard = (rng.random((clips, 1)) < share).astype(np.float32)
        hearing = Hearing("s", tuple(map(str, range(clips))), concept, heard, np.zeros((clips, 1, 0), np.float32))
        fires = np.zeros((clips, features), bool)
        for feature in range(features):
            fires[rng.permutation(clips)[:30], feature] = True
        firing = type(halves_of(*planted(clips=40)[::2])["label"])(
            hearing.clip_ids, tuple(range(features)), fires, np.zeros((clips, 1, features), np.uint8), 1
        )
        spread = detections(hearing, firing)[:, 0].std()
        assert luck(hearing, firing)[0, 0] == pytest.approx(spread, rel=0.1)


def test_planted_concepts_are_named_and_noise_is_not(corpus):
    _, hearing, firing, tracks = corpus
    rows = {row["feature"]: row for row in name_features(hearing, *firing.values(), "h", "s", tracks, 199)}
    assert DEAD not in rows
    named = {FLUTE: "instrument: flute", ORGAN_SOMETIMES: "instrument: organ", SNARE: "percussion: snare"}
    for feature, name in named.items():
        assert rows[feature]["name"] == name and rows[feature]["confidence"] > 0.3, rows[feature]
    noise = [row for feature, row in rows.items() if feature > QUIET_IN_C]
    assert len(noise) > 3 and np.mean([row["confidence"] > 0 for row in noise]) < 0.1
    row = json.loads(json.dumps(rows[FLUTE], allow_nan=False))
    assert set(row) == {"hook", "sae", "feature", "source", "name", "confidence", "evidence"}
    evidence = row["evidence"]
    assert evidence["n"] == 60 and 4 <= evidence["positives"] <= 15 and evidence["p"] == pytest.approx(1 / 200)
    assert evidence["q"] < 0.05 and evidence["score"] > evidence["null_p95"] > evidence["null_mean"]
    assert evidence["candidates"][0]["name"] == "instrument: flute" and len(evidence["candidates"]) <= 3


def test_names_do_not_see_the_half_that_scores(corpus):
    _, hearing, firing, tracks = corpus
    label, score = firing["label"], firing["score"]
    other = hearing.clips.copy()
    rows = [n for n, clip in enumerate(hearing.clip_ids) if clip in set(score.clip_ids)]
    other[rows] = np.random.default_rng(1).permutation(other[rows])
    changed = Hearing(hearing.source, hearing.clip_ids, hearing.concepts, other, hearing.parts)
    before, after = (
        {r["feature"]: r["name"] for r in name_features(h, label, score, "h", "s", tracks, 9)}
        for h in (hearing, changed)
    )
    assert before == after


def test_nothing_is_named_where_nothing_is_told():
    rng = np.random.default_rng(3)
    activity, truth, halves, tracks = planted(clips=120, features=200, seed=5)
    lost = type(truth)(truth.clip_ids, truth.concepts, truth.active[rng.permutation(120)])
    firing = halves_of(activity, halves)
    rows = name_features(hear_truth(lost, PARTS), *firing.values(), "h", "s", tracks, 199)
    p = np.asarray([row["evidence"]["p"] for row in rows])
    assert len(p) > 50 and 0.02 <= (p <= 0.1).mean() <= 0.2 and np.mean([row["confidence"] > 0 for row in rows]) < 0.03


@pytest.mark.parametrize("parts", [1, 10])
def test_with_few_tracks_nothing_is_sure(parts):
    """Three tracks can be exchanged in six ways, so one exchange in six is the truth itself and p is at least that."""
    rng = np.random.default_rng(0)
    tracks = [f"track{n // 20}" for n in range(60)]
    heard = rng.normal(size=(60, parts)).astype(np.float32)
    fires = rng.random((60, parts, 40)) < 0.2
    found = detect(heard, fires, shuffles(tracks, 499, 0))
    assert min(one.p for one in found) > 0.1


def test_a_dictionary_that_never_fires_has_no_names(corpus):
    activity, hearing, *_ = corpus
    firing = [find_firing(activity, range(start, 120, 2), [], 0.2, PARTS) for start in (1, 0)]
    assert name_features(hearing, *firing, "h", "s") == []


def test_dense_features_fire_as_often_as_they_are_let():
    values = np.random.default_rng(0).random((100, 8, 3)).astype(np.float32)
    activity = Activity(tuple(map(str, range(100))), 8, values.reshape(-1, 3))
    for most in (0.05, 0.1, 0.25):
        firing = find_firing(activity, range(100), range(3), 0.2, parts=8, most=most)
        assert firing.clips.sum(0).tolist() == [int(100 * most)] * 3 and firing.parts(slice(None)).mean() <= most


def test_near_misses_are_silent_and_alike():
    embedding = np.asarray([[1, 0], [1, 0.1], [1, 0.2], [0, 1], [-1, 0], [0.9, 0.05]], float)
    fires = np.asarray([[1, 0], [1, 0], [0, 0], [0, 1], [0, 0], [0, 0]], bool)
    near = most_alike(embedding, fires, [2, 1])
    assert np.flatnonzero(near[:, 0]).tolist() == [2, 5] and np.flatnonzero(near[:, 1]).tolist() == [2]
    heard = np.asarray([0.9, 0.8, 0.85, 0, 0, 0.1])[:, None]
    found = detect(heard, fires[:, None, :1], np.arange(6)[None], near=near[:, :1])[0]
    assert found.auroc == pytest.approx(7 / 8) and found.near == pytest.approx(3 / 4)


def test_hearings_on_disk(corpus, tmp_path):
    _, hearing, *_ = corpus
    save_hearing(tmp_path / "heard.safetensors", hearing)
    again = load_hearing(tmp_path / "heard.safetensors")
    save_hearing(tmp_path / "again.safetensors", again)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "heard.safetensors").read_bytes()
    assert again.concepts == hearing.concepts and again.clip_ids == hearing.clip_ids and again.source == "truth"
    np.testing.assert_array_equal(again.clips, hearing.clips)
    np.testing.assert_array_equal(again.parts, hearing.parts)
    few = hearing.subset(hearing.clip_ids[5:2:-1])
    np.testing.assert_array_equal(few.clips, hearing.clips[[5, 4, 3]])
    with pytest.raises(MusaeError, match="has not heard the clip elsewhere"):
        hearing.subset(["elsewhere"])
    with pytest.raises(MusaeError, match="run `musae label` first"):
        load_hearing(tmp_path / "nothing")
    (tmp_path / "cut").write_bytes((tmp_path / "heard.safetensors").read_bytes()[:-100])
    with pytest.raises(MusaeError, match="is damaged"):
        load_hearing(tmp_path / "cut")
    with pytest.raises(ValueError, match="its scores are"):
        Hearing("x", ("a",), CONCEPTS, np.zeros((1, 5)), np.zeros((1, 3, 1)))


def test_confidence():
    assert confidence(0.6, 0.7) == 0 and confidence(1.0, 0.7) == 1 and confidence(0.85, 0.7) == pytest.approx(0.5)
    assert confidence(float("nan"), 0.7) == 0 and confidence(1.0, 1.0) == 0


def test_the_best_name_of_a_feature_is_the_surest(corpus):
    _, hearing, firing, _ = corpus
    best, scores = best_names(hearing.subset(firing["label"].clip_ids), firing["label"])
    assert best[FLUTE] == 0 and best[SNARE] == 2 and best[DEAD] == -1
    assert scores.shape == (24, 5) and np.isnan(scores[DEAD]).all()
