import numpy as np
import pytest

from musae_jax.steering.arms import Target
from musae_jax.steering.summary import Readings, summarise

ARMS = ("random", "inactive", "prompt")
DOSES = (-1.0, 0.5, 1.0)


def reading(feature, gain, measure="judge", sources=("tagger", "clap"), n=10, seed=0, main=1.0, lost=0.02, over=None):
    """A feature whose concept rises by `gain` per unit of strength above clips of deviation 1, random and inactive ones
    by nothing, the prompt by 1; the adherence falls by `lost` per unit."""
    rng = np.random.default_rng([seed, feature])
    base = rng.normal(size=n)
    base = (base - base.mean()) / base.std(ddof=1)
    doses = [("unsteered", 0.0), *(("sae", a) for a in DOSES), *(("random", a) for a in DOSES)]
    doses += [("inactive", main), ("prompt", 0.0)]
    rise = {"sae": gain, "prompt": 1.0}
    values = {
        (arm, a): base
        + rise.get(arm, 0.0) * (1.0 if arm == "prompt" else a)
        + 0.05 * rng.normal(size=n) * (arm != "unsteered")
        for arm, a in doses
    }
    if over is not None:
        values["sae", 1.0] = base + over
    adherence = {(arm, a): np.where(np.arange(n) % 2, 0.6 - lost * abs(a), np.nan) for arm, a in doses}
    others = {dose: np.zeros((n, 4)) for dose in doses if dose[1] in (0.0, main)}
    others["sae", main] = np.stack([np.zeros(n), np.zeros(n), rng.random(n) + 1, -rng.random(n) - 1], 1)
    return Readings(
        Target(feature, f"name {feature}", sources=sources),
        main,
        {measure: values, "activation": values, "adherence": adherence},
        {dose: np.full((4, 2), abs(dose[1])) for dose in doses if dose[0] != "unsteered"},
        others,
        {
            "silent": {dose: np.arange(n) < 2 * (dose == ("sae", main)) for dose in doses},
            "loop": dict.fromkeys(doses, np.zeros(n, bool)),
        },
        {dose: rng.normal(size=(n, 3)) for dose in doses},
    )  # fmt: skip


def test_features_that_steer_are_told_from_those_that_do_not():
    known = [reading(1, 1.5), reading(2, 0.8), reading(3, 0.0), reading(4, -1.0)]
    s = summarise(known, np.random.default_rng(0).normal(size=(30, 3)))
    assert s["tested"] == 4 and s["steered"] == 0.5 and s["steered_by_slope"] == 0.5 and s["monotone"] == 0.5
    assert [row["steered"] for row in s["features"]] == [True, True, False, False]
    first = s["features"][0]
    assert first["slope"]["mean"] == pytest.approx(1.5, abs=0.1) and first["slope_over_random"]["p"] == pytest.approx(
        2**-10, abs=1e-6
    )
    assert first["against"]["unsteered"]["mean"] == pytest.approx(1.5, abs=0.1)
    assert first["against"]["prompt"]["mean"] == pytest.approx(0.5, abs=0.1)
    assert first["side_effects"] == 0.5 and first["collapsed"] == {
        "sae": 0.2,
        **dict.fromkeys(["unsteered", *ARMS], 0.0),
    }
    assert first["kl"]["sae"] == [1.0, 1.0]
    random, prompt = s["against"]["random"], s["against"]["prompt"]
    assert (random["share_won"], random["share_lost"]) == (0.5, 0.25)
    assert (prompt["share_won"], prompt["share_lost"]) == (0.25, 0.75)
    assert random["effect"] == pytest.approx(np.mean([1.5, 0.8, 0.0, -1.0]), abs=0.1)
    assert random["ci"][0] < random["effect"] < random["ci"][1] and random["features"] == 4
    assert s["arms"]["sae"]["gain"] == pytest.approx(np.mean([1.5, 0.8, 0.0, -1.0]), abs=0.1)
    assert s["arms"]["sae"]["adherence"] == pytest.approx(-0.02) and s["arms"]["unsteered"]["kl"] is None
    assert s["arms"]["sae"]["frechet"] > 0 and s["collapsed"] == 0.2 and s["side_effects"] == 0.5


def test_an_effect_that_every_direction_has_is_none():
    one = reading(1, 1.5)
    for a in DOSES:
        one.values["judge"]["random", a] = one.values["judge"]["sae", a] + 0.1
    s = summarise([one])
    assert s["features"][0]["against"]["unsteered"]["p"] < 0.01 and s["steered"] == 0.0
    assert s["against"]["random"]["share_lost"] == 1.0


def test_below_nought_the_concept_should_go():
    s = summarise([reading(1, 1.5, main=-1.0)])
    assert s["features"][0]["against"]["unsteered"]["mean"] == pytest.approx(1.5, abs=0.1) and s["steered"] == 1.0


def test_the_most_independent_measure_judges_and_circles_are_told():
    known = [
        reading(1, 1.5),
        reading(2, 1.5, "tagger", ("clap", "tagger")),
        reading(3, 0.0, "tagger", ("descriptors", "clap")),
        reading(4, 0.0, "exemplars", ("clap", "tagger")),
    ]
    s = summarise(known)
    assert s["measures"] == {"judge": 1, "tagger": 2, "exemplars": 1}
    assert [row["circular"] for row in s["features"]] == [False, True, False, True]
    assert s["without_circular"]["tested"] == 2 and s["without_circular"]["steered"] == 0.5
    nobody = reading(5, 1.5)
    del nobody.values["judge"]
    assert summarise([*known, nobody])["unmeasured"] == 1
    assert summarise([nobody])["tested"] == 0 and summarise([nobody])["steered"] is None


def test_gain_at_fixed_adherence_stops_where_too_much_is_lost():
    gains = [summarise([reading(1, 1.5, lost=lost)])["gain_at_fixed_adherence"] for lost in (0.04, 0.07, 0.2)]
    assert gains == pytest.approx([1.5, 0.75, 0.0], abs=0.1)
    one = reading(1, 1.5)
    del one.values["adherence"]  # without prompts the drift counts: a nat at strength 1
    one.drift["sae", 1.0] += 0.1
    at = summarise([one])["features"][0]["at_fixed_adherence"]
    assert at["sae"]["strength"] == 0.5 and at["prompt"]["gain"] == pytest.approx(1.0, abs=0.1)


def test_an_overdose_is_outside_the_slope():
    one = reading(1, 1.5, main=0.5, over=-9.0)
    row = summarise([one])["features"][0]
    assert row["slope"]["mean"] == pytest.approx(1.5, abs=0.2)
    assert row["monotone_to_strength"] and not row["monotone"]
