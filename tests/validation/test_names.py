"""Names judged by other sources and by truth, features judged without names: planted answers come out, noise not."""

import json

import numpy as np
import pytest

from musae_jax.features.activity import Activity
from musae_jax.features.families import cofiring, families
from musae_jax.features.firing import Firing
from musae_jax.labels.auroc import auroc
from musae_jax.labels.hearing import Hearing
from musae_jax.labels.scores import Concept, shuffles
from musae_jax.validation.agreement import agreement
from musae_jax.validation.detections import examine, set_exam, summarise_source
from musae_jax.validation.ducking import duck, ducked_difference, ducked_sounds
from musae_jax.validation.filters import sweep_filters
from musae_jax.validation.intruder import intruder_scores
from musae_jax.validation.known_truth import Named, chance, judged_concepts, lift, name_table
from musae_jax.validation.spans import span_tests

CLIPS, PARTS = 200, 20
CONCEPTS = (
    Concept("instrument: flute", "instrument"),
    Concept("instrument: organ", "instrument"),
    Concept("dynamics: loud", "dynamics"),
    Concept("percussion: snare", "percussion", "frame"),
)
FLUTE, ORGAN, SNARE, NOISE = 0, 1, 2, 3


@pytest.fixture(scope="module")
def music():
    """400 clips in two halves; ears that hear the truth through noise; features that fire on flute, organ and snare."""
    rng = np.random.default_rng(0)
    halves = {}
    for half in ("label", "score"):
        ids = tuple(f"{half}{n}" for n in range(CLIPS))
        true = rng.random((CLIPS, 3)) < [0.3, 0.2, 0.4]
        snare = (rng.random((CLIPS, PARTS)) < 0.15) & (rng.random((CLIPS, 1)) < 0.5)
        fires = np.stack([true[:, 0] & (rng.random(CLIPS) < 0.5), true[:, 1] & (rng.random(CLIPS) < 0.6)], 1)
        fires = np.concatenate([fires, snare.any(1)[:, None] & (rng.random((CLIPS, 1)) < 0.5)], 1)
        fires = np.concatenate([fires, rng.random((CLIPS, 20)) < 0.15], 1)  # noise
        parts = fires[:, None] & (rng.random((CLIPS, PARTS, 23)) < 0.5)
        parts[:, :, SNARE] = snare & fires[:, None, SNARE]
        halves[half] = (ids, true, snare, Firing(ids, tuple(range(100, 123)), fires, np.packbits(parts, 1), PARTS))
    ids = halves["label"][0] + halves["score"][0]
    true, snare = (np.concatenate([halves[h][n] for h in halves]) for n in (1, 2))

    def ear(source, noise):
        clips = np.concatenate([true, snare.mean(1, keepdims=True) > 0], 1) + noise * rng.normal(size=(2 * CLIPS, 4))
        parts = snare[..., None] + noise * rng.normal(size=(2 * CLIPS, PARTS, 1))
        return Hearing(source, ids, CONCEPTS, clips.astype(np.float32), parts.astype(np.float32), clips)

    truth = ear("truth", 0)
    heard = {source: ear(source, 0.4) for source in ("tagger", "clap", "descriptors")}
    return halves["label"][3], halves["score"][3], truth, heard


def row(feature, name, source="clap", confidence=1.0):
    return {"hook": "h", "sae": "s", "feature": feature, "source": source, "name": name, "confidence": confidence}


RIGHT = [row(100, "instrument: flute"), row(101, "instrument: organ"), row(102, "percussion: snare")]
WRONG = [row(feature, "instrument: flute") for feature in range(103, 123)]


def test_another_source_confirms_right_names_and_no_others(music):
    _, score, _, heard = music
    judged = examine(set_exam(score, heard, permutations=199), [*RIGHT, *WRONG])
    assert {one["scorer"] for one in judged} == {"tagger"} and len(judged) == 23
    assert all(one["passed"] and one["detection"] > 0.8 for one in judged[:3])
    assert sum(one["passed"] for one in judged[3:]) <= 1
    for one in judged[:3]:
        low, high = one["interval"]
        assert low < one["detection"] < high and one["near"] > 0.7 and one["firing"] < one["n"] == CLIPS
    assert set(judged[0]["others"]) == {"descriptors"} and judged[0]["others"]["descriptors"] > 0.8
    assert judged[2]["null"] is None and all(one["null"] < 0.65 for one in judged if one["null"] is not None)
    assert judged[0]["span"] is None and judged[2]["span"]["auroc"] > 0.8 and judged[2]["span"]["p"] <= 0.01
    json.dumps(judged, allow_nan=False)
    summary = summarise_source(judged, 30)
    assert summary["named"] == 30 and summary["scored_by"] == "tagger" and summary["spans"]["tested"] == 1
    assert summary["ci"][0] < summary["detection"] < summary["ci"][1] and abs(summary["null"] - 0.5) < 0.12
    json.dumps(summarise_source([], 3), allow_nan=False)


def test_no_source_judges_its_own_names(music):
    _, score, _, heard = music
    rows = [row(100, "instrument: flute", source) for source in ("tagger", "clap", "descriptors", "truth", "llm")]
    judged = examine(set_exam(score, heard, permutations=19), rows)
    assert [one["scorer"] for one in judged] == ["clap", "tagger", "tagger", "tagger", "clap"]
    alone = examine(set_exam(score, {"clap": heard["clap"]}, permutations=19), rows)
    assert [(one["source"], one["scorer"]) for one in alone] == [
        (source, "clap") for source in ("tagger", "descriptors", "truth", "llm")
    ]
    assert examine(set_exam(score, heard, permutations=19), [row(100, "kazoo"), row(999, "instrument: flute")]) == []


def test_names_are_right_or_wrong_by_truth(music):
    label, score, truth, _ = music
    orders = shuffles(score.clip_ids, 199, 0)
    table = name_table(truth, [Named(label, score, [*RIGHT, *WRONG[:7], row(110, "brightness: bright")])], orders)
    overall = table["overall"]
    assert overall["precision"] == pytest.approx(0.3) and overall["recall"] == 0.75 and overall["unjudged"] == 1
    assert overall["found"] == 0.75 and overall["names"] == 10 and overall["concepts"] == 4
    assert overall["ci"][0] < 0.3 < overall["ci"][1]
    families = table["families"]
    assert families["instrument"] == {
        "named_right": 2, "misnamed": 0, "not_found": 0, "names": 9, "precision": 0.2222, "recall": 1.0,
        "ci": families["instrument"]["ci"],
    }  # fmt: skip
    assert families["dynamics"]["not_found"] == 1 and families["dynamics"]["precision"] is None
    assert families["percussion"]["named_right"] == 1
    unnamed = name_table(truth, [Named(label, score, [])], orders)
    assert unnamed["families"]["instrument"]["misnamed"] == 2 and unnamed["overall"]["precision"] is None
    assert unnamed["concepts"] == {
        "instrument: flute": "misnamed", "instrument: organ": "misnamed", "dynamics: loud": "not found",
        "percussion: snare": "misnamed",
    }  # fmt: skip
    # what one dictionary lacks another may have
    split = name_table(truth, [Named(label, score, RIGHT[:1]), Named(label, score, RIGHT[1:])], orders)
    assert split["overall"]["recall"] == 0.75 and split["overall"]["precision"] == 1.0


def test_lift_and_chance_by_hand():
    true = np.asarray([1, 1, 1, 0, 0, 0, 0, 0, 0, 1], bool)[:, None]
    fires = np.asarray([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], bool)[:, None]
    assert lift(true, fires) == pytest.approx((3 / 4 - 1 / 6) / (1 - 1 / 6))
    assert chance(true, fires, np.zeros((0, 10), int)) == pytest.approx((24 + 1) / 210)  # 3 or 4 of 4 by luck
    rng = np.random.default_rng(0)
    parts = rng.random((40, 8)) < 0.3
    p = [chance(parts, rng.random((40, 8)) < 0.2, shuffles(list(map(str, range(40))), 99, n)) for n in range(60)]
    assert 0.35 < np.mean(p) < 0.65  # uniform where nothing is to be found
    assert chance(parts, parts, shuffles(list(map(str, range(40))), 99, 0)) == 0.01


def test_judged_concepts_occur_and_are_absent():
    clips = np.zeros((20, 4), np.float32)
    clips[:10, 0], clips[:3, 1], clips[:, 2] = 1, 1, 1
    parts = np.zeros((20, 5, 1), np.float32)
    parts[:6, 0] = 1
    truth = Hearing("truth", tuple(map(str, range(20))), CONCEPTS, clips, parts)
    assert judged_concepts(truth).tolist() == [True, False, False, True]


def test_spans_are_told_from_shifted_ones():
    rng = np.random.default_rng(0)
    heard, fires = rng.normal(size=(50, 30)), rng.random((50, 30)) < 0.2
    [told] = span_tests(heard + 2 * fires, fires[..., None])
    assert told.auroc > 0.85 and told.p == pytest.approx(1 / 1000) and told.null_p95 < 0.6
    p = [span_tests(rng.normal(size=(20, 30)), rng.random((20, 30, 1)) < 0.2, 99, n)[0].p for n in range(60)]
    assert 0.35 < np.mean(p) < 0.65
    lasting = np.repeat(rng.normal(size=(50, 1)), 30, 1)  # a quality of the whole clip
    [lasts] = span_tests(lasting, fires[..., None])
    assert lasts.auroc == pytest.approx(0.5) and lasts.p > 0.5
    never, one = span_tests(np.asarray([[1.0, 2, 2, 0]]), np.asarray([[[1, 0], [1, 1], [1, 0], [1, 0]]], bool), 9)
    assert never is None and one.auroc == pytest.approx(2.5 / 3)  # above two, tied with one


def test_spans_are_judged_clip_by_clip_as_by_hand():
    rng = np.random.default_rng(1)
    heard, fires = rng.integers(0, 4, (12, 15)).astype(float), rng.random((12, 15, 2)) < 0.2
    fires[0], fires[1] = False, True
    for found, one in zip(span_tests(heard, fires, 9), np.moveaxis(fires, 2, 0)):
        both = [n for n in range(12) if one[n].any() and not one[n].all()]
        scores = [auroc(heard[n][:, None], one[n][:, None])[0, 0] for n in both]
        assert found.clips == len(both) and found.auroc == pytest.approx(np.mean(scores), abs=1e-6)


def test_the_rest_is_ducked_by_20_decibels():
    audio = np.ones(1000, np.float32)
    spans = [(0.2, 0.4)]
    kept, rest = duck(audio, 1000, spans), duck(audio, 1000, spans, rest=True)
    assert kept[300] == pytest.approx(1) and kept[700] == pytest.approx(0.1, rel=1e-3)
    assert rest[300] == pytest.approx(0.1, rel=1e-3) and rest[700] == pytest.approx(1)
    assert np.abs(np.diff(kept)).max() < 0.2 and 0.1 < kept[200] < 1  # it fades
    np.testing.assert_allclose(duck(audio, 1000, []), 0.1, rtol=1e-3)


def test_a_name_that_is_heard_in_the_spans_is_heard_when_the_rest_is_ducked():
    time = np.arange(2000) / 1000
    audio = np.where((time > 0.5) & (time < 0.8), 1.0, 0.1).astype(np.float32)  # loud where the feature is active
    curve = ((np.arange(100) >= 25) & (np.arange(100) < 40)).astype(float)
    sounds = ducked_sounds("7/a", audio, 1000, curve) | ducked_sounds("8/a", audio, 1000, np.ones(100))
    assert len(sounds) == 4 and all(name.startswith("7/a/") for name in sounds)
    level = np.asarray([[np.abs(sound).max()] for sound in sounds.values()])
    heard = Hearing("tagger", tuple(sounds), (Concept("dynamics: loud", "dynamics"),), level, np.zeros((4, 1, 0)))
    found = ducked_difference(heard, "7/", "loudness: loud")
    assert found["clips"] == 1 and found["true"] > 1 > 0 > found["shifted"]
    assert ducked_difference(heard, "8/", "loudness: loud") is None and ducked_difference(heard, "7/", "kazoo") is None


def test_the_intruder_is_found_among_what_is_alike():
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(120, 16))
    embedding[:20] += 3  # one thing
    fires = np.zeros((120, 60), bool)
    fires[:20, 0] = True
    fires[:4, 1] = True  # too few
    for feature in range(2, 60):
        fires[rng.permutation(120)[:20], feature] = True
    found = intruder_scores(embedding, fires, list(map(str, range(120))))
    assert found["score"][0] > 0.9 and found["p"][0] == pytest.approx(1 / 1000) and np.isnan(found["score"][1])
    assert np.nanmean(found["score"][2:]) == pytest.approx(found["null_mean"][2], abs=0.05)
    assert 0.35 < np.nanmean(found["p"][2:]) < 0.7 and (found["q"][2:] <= 0.05).sum() <= 2


def test_clips_of_one_track_sound_alike_and_are_exchanged_together():
    """20 tracks of 6 clips; features that fire in all clips of 4 tracks drawn at random are about nothing."""
    rng = np.random.default_rng(0)
    tracks = np.repeat(np.arange(20), 6)
    embedding = rng.normal(size=(20, 16))[tracks] + 0.1 * rng.normal(size=(120, 16))
    fires = np.stack([np.isin(tracks, rng.permutation(20)[:4]) for _ in range(40)], 1)
    of_clips, of_tracks = (
        intruder_scores(embedding, fires, list(map(str, names)), draws=199) for names in (range(120), tracks)
    )
    assert np.mean(of_clips["p"] <= 0.05) > 0.3  # clips drawn singly make almost everything coherent
    assert np.mean(of_tracks["p"] <= 0.05) <= 0.15 and 0.35 < of_tracks["p"].mean() < 0.7
    uneven = np.repeat(np.arange(12), [3, 17] * 6)
    found = intruder_scores(embedding, fires, list(map(str, uneven)), draws=99)
    assert np.isfinite(found["p"]).all() and found["p"].min() >= 0.01


def test_families_fire_together():
    rng = np.random.default_rng(0)
    base = rng.random((300, 2)) < 0.2
    noise = rng.random((300, 6)) < 0.2
    near = [b ^ (rng.random(300) < 0.02) for b in (base[:, 0], base[:, 0], base[:, 0], base[:, 1], base[:, 1])]
    found = families(np.stack([*near, *noise.T], 1))
    assert found[0] == found[1] == found[2] == 0 and found[3] == found[4] == 1 and (found[5:] == -1).all()
    phi = cofiring(base)
    assert phi[0, 0] == pytest.approx(1) and phi[0, 1] == pytest.approx(np.corrcoef(base.T)[0, 1], abs=1e-5)


def test_agreement_beside_chance():
    rows = [row(n, "dynamics: loud" if n % 2 else "register: low", "tagger") for n in range(40)]
    rows += [row(n, "loudness: loud" if n % 2 else "register: high", "descriptors") for n in range(40)]
    rows += [row(n, "nothing sure", "clap", confidence=0.0) for n in range(40)]
    found = agreement(rows)
    assert list(found) == ["tagger and descriptors"]
    pair = found["tagger and descriptors"]
    assert pair["features"] == 40 and pair["same"] == 0.5 and pair["same_family"] == 1.0
    assert pair["same_by_chance"] == 0.25 and pair["same_family_by_chance"] == 0.5


def test_the_filter_is_swept():
    values = np.zeros((10, 4, 3), np.float32)
    values[:1, :, 0], values[:5, :, 1], values[:, :, 2] = 1, 1, np.linspace(0.1, 1, 10)[:, None]
    activity = Activity(tuple(map(str, range(10))), 4, values.reshape(-1, 3))
    rows = {
        (r["pooling"], r["active_above"], r["minimum_share"], r["maximum_share"]): r
        for r in sweep_filters(activity, [{"feature": 0}, {"feature": 2}])
    }
    assert rows["mean", 0.0, 0.0, 1.0]["kept"] == 3 and rows["mean", 0.0, 0.0, 1.0]["share_of_named"] == 1.0
    assert rows["mean", 0.0, 0.01, 0.25]["kept"] == rows["mean", 0.0, 0.01, 0.25]["named"] == 1
    assert rows["mean", 0.0, 0.01, 0.5]["kept"] == 2 and rows["mean", 0.4, 0.0, 1.0]["kept"] == 3
