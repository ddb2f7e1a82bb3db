"""From the tiny model to the files of RUN/steering."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import soundfile
from plain_ears import hear_level

from musae_jax.errors import MusaeError
from musae_jax.files import read_json, read_json_lines
from musae_jax.models.generate import generate
from musae_jax.models.musicgen import encode_prompts
from musae_jax.steering import effects, experiment
from musae_jax.steering.arms import Target, plan_rows
from musae_jax.steering.directions import steer, steer_contrast
from musae_jax.steering.effects import calibrate, measure_effects
from musae_jax.steering.experiment import EffectsConfig, Experiment, make_codes
from musae_jax.steering.listening import Listeners

CONFIG = EffectsConfig(
    strengths=(-1.0, 0.5, 1.0), clips=4, calibration=2, drift_clips=2, sounds=1, seconds=0.6, batch_size=8,
    resamples=50,
)  # fmt: skip
TARGETS = [
    Target(2, "dynamics: loud", "fast", ("clap", "tagger"), ("", "slow piano")),
    Target(5, "brightness: bright", "slow", ("tagger",), ("", "fast flute")),
]
EXEMPLARS = {2: np.asarray([1.0, 0.0]), 5: np.asarray([0.0, 1.0])}


def say(texts):
    return np.asarray([[len(text), 1.0] for text in texts], np.float32)


LISTENERS = Listeners(
    {"tagger": hear_level("tagger"), "clap": hear_level("clap")},
    say,
    EXEMPLARS,
    np.random.default_rng(0).normal(size=(20, 2)),
)


@pytest.fixture(scope="module")
def one(mg, stream_sae):
    rng = np.random.default_rng(0)
    directions = {f: {arm: rng.normal(size=12) for arm in ("inactive", "diff_in_means", "probe")} for f in (2, 5)}
    return Experiment(mg, stream_sae, directions, 1, np.asarray(stream_sae.maximum), CONFIG)


@pytest.fixture(scope="module")
def made(one, tmp_path_factory):
    out, seen = tmp_path_factory.mktemp("whole"), []
    others = {0: ["other"], 2: ["dynamics: loud"], 5: ["brightness: bright"]}
    summary = measure_effects(one, TARGETS, LISTENERS, out, others, "main", lambda *step: seen.append(step))
    return out, summary, seen


def test_rows_of_a_pair_differ_by_their_arm_only(one, tmp_path):
    """A vector of no length leaves the unsteered clip, token for token, wherever it stands in whatever batch."""
    rows = plan_rows(TARGETS, {2: ("sae",), 5: ("sae", "random")}, (1.0,), {2: 1.0, 5: 1.0}, 4)
    weak = dataclasses.replace(one, maximum=np.where(np.arange(7) == 2, 1e-9, one.maximum))
    codes = make_codes(weak, rows, tmp_path)
    plain = {(row.prompt, row.seed): made for row, made in zip(rows, codes) if row.feature is None}
    assert len({made.tobytes() for made in plain.values()}) == len(plain)
    for row, made in zip(rows, codes):
        same = (made == plain[row.prompt, row.seed]).all()
        assert same == (row.feature != 5), row


@pytest.mark.parametrize("how", ["contrast", "add"])
@pytest.mark.parametrize("branches", ["conditional", "both"])
def test_a_row_is_what_generate_makes_of_its_vector(one, tmp_path, branches, how):
    one = dataclasses.replace(one, config=dataclasses.replace(CONFIG, branches=branches, how=how))
    rows = plan_rows(TARGETS[:1], {2: ("sae",)}, (1.0,), {2: 1.0}, 2)
    codes = make_codes(one, rows, tmp_path)
    at = next(n for n, row in enumerate(rows) if row.arm == "sae" and row.prompt == "slow piano")
    number = experiment.pair_number("slow piano", rows[at].seed)
    edits = {"contrast": steer_contrast, "add": steer}[how](one.sae, {2: 1.0})
    vector = np.asarray(edits.vectors[0])
    made = generate(
        one.mg.config, one.mg.params, encode_prompts(one.mg, ["slow piano"]),
        jax.random.fold_in(jax.random.key(0), np.uint32(number))[None], seconds=0.6, audio=False,
        edits=experiment.Edits(vectors={0: np.stack([vector, vector * (branches == "both")])[:, None, None]}),
    )  # fmt: skip
    np.testing.assert_array_equal(made.codes[0], codes[at])


def test_an_empty_prompt_attends_to_nothing(mg):
    states = encode_prompts(mg, ["", "slow piano"])
    assert not np.asarray(states.mask[0]).any() and not np.asarray(states.states[0]).any()
    assert np.asarray(states.mask[1]).any()


def test_a_row_a_feature_strength_prompt_seed_and_measure(made):
    out, _, seen = made
    rows = read_json_lines(out / "effects.jsonl")
    keys = [tuple(row[k] for k in ("feature", "arm", "strength", "prompt", "seed", "measure")) for row in rows]
    assert len(set(keys)) == len(keys)
    pairs = {(row["prompt"], row["seed"]) for row in rows if row["feature"] == 2}
    assert pairs == {("", 2), ("slow piano", 2), ("", 3), ("slow piano", 3)}  # seeds 0 and 1 chose the strength
    measures = {row["measure"] for row in rows}
    assert measures == {"tagger", "clap", "exemplars", "activation", "adherence", "kl"}
    assert all(np.isfinite(row["value"]) and row["sae"] == "main" for row in rows)
    assert {row["prompt"] for row in rows if row["measure"] == "adherence"} == {"slow piano", "fast flute"}
    assert all(row["value"] > 0 for row in rows if row["measure"] == "kl" and row["arm"] != "prompt")
    assert seen[-1] == (2, 2, "features heard") and not (out / "codes").exists()


def test_the_summary_follows_from_the_rows(made):
    out, summary, _ = made
    assert read_json(out / "summary.json") == json.loads(json.dumps(summary))
    assert set(summary["against"]) == {
        "unsteered", "random", "inactive", "other_layer", "diff_in_means", "probe", "prompt",
    }  # fmt: skip
    feature = summary["features"][0]
    assert feature["feature"] == 2 and feature["measure"] == "tagger" and feature["circular"]
    assert feature["strength"] in (0.5, 1.0) and summary["tested"] == 2
    value = {}
    for row in read_json_lines(out / "effects.jsonl"):
        if row["feature"] == 2 and row["measure"] == "tagger":
            value[row["arm"], row["strength"], row["prompt"], row["seed"]] = row["value"]
    pairs = [key[2:] for key in value if key[0] == "unsteered"]
    plain = np.asarray([value["unsteered", 0.0, *pair] for pair in pairs])
    for arm in ("random", "inactive", "probe", "other_layer"):
        gain = [value["sae", feature["strength"], *pair] - value[arm, feature["strength"], *pair] for pair in pairs]
        assert feature["against"][arm]["mean"] == pytest.approx(np.mean(gain) / plain.std(ddof=1), abs=1e-3)
    assert summary["config"]["clips"] == 4 and summary["arms"]["prompt"]["features"] == 2


def test_sounds_are_kept_with_what_was_heard_in_them(made):
    out, _, _ = made
    rows = read_json_lines(out / "sounds.jsonl")
    for row in rows:
        info = soundfile.info(out / row["sound"])
        assert info.samplerate == 16000 and info.frames == 9600
    mine = [row for row in rows if row["feature"] == 2]
    assert {row["arm"] for row in mine} == {
        "unsteered", "sae", "random", "inactive", "other_layer", "diff_in_means", "probe", "prompt",
    }  # fmt: skip
    assert {row["strength"] for row in mine if row["arm"] == "sae"} == {-1.0, 0.5, 1.0}
    assert all("tagger" in row and row["text"] in ("", "fast") for row in mine)


def test_the_strength_is_chosen_on_clips_apart(one, tmp_path, monkeypatch):
    def hear(clip_ids, load):  # the more of it, the stronger the clip: told by the number of the row
        heard = hear_level("tagger")(clip_ids, load)
        heard.clips[:, 0] = [wanted[int(clip)] for clip in clip_ids]
        return heard

    rows = plan_rows(TARGETS[:1], {2: ("sae", "random")}, (0.5, 1.0), {2: 1.0}, 2)
    listeners = dataclasses.replace(LISTENERS, ears={"tagger": hear})
    for best in (0.5, 1.0):
        wanted = [float(row.arm == "sae" and row.strength == best) for row in rows]
        assert calibrate(one, TARGETS[:1], listeners, tmp_path) == {2: best}
    for over, least in ((1.05, 0.5), (1.2, 1.0)):  # a little more is not worth a stronger dose
        wanted = [{0.5: 1.0, 1.0: over}.get(row.strength, 0.0) * (row.arm == "sae") for row in rows]
        assert calibrate(one, TARGETS[:1], listeners, tmp_path) == {2: least}
    wanted = [2.0 * (row.arm != "unsteered" and row.strength == 1.0) + (row.arm == "sae") for row in rows]
    assert calibrate(one, TARGETS[:1], listeners, tmp_path) == {2: 0.5}  # what chance does as well is no gain
    broken = lambda audio, codes: {"silent": np.asarray([row.strength == 1.0 for row in rows])}  # noqa: E731
    monkeypatch.setattr(effects, "collapses", broken)
    wanted = [row.strength * (row.arm == "sae") for row in rows]
    assert calibrate(one, TARGETS[:1], listeners, tmp_path) == {2: 0.5}
    given = dataclasses.replace(one, config=dataclasses.replace(CONFIG, strength=0.7))
    assert calibrate(given, TARGETS, listeners, tmp_path) == {2: 0.7, 5: 0.7}


def test_a_killed_call_goes_on_and_ends_with_the_same_files(one, made, tmp_path, monkeypatch):
    calls = []

    def killed(done, total, noun):
        calls.append(noun)
        if calls.count("clips") == 5:
            raise KeyboardInterrupt

    others = {0: ["other"], 2: ["dynamics: loud"], 5: ["brightness: bright"]}
    with pytest.raises(KeyboardInterrupt):
        measure_effects(one, TARGETS, LISTENERS, tmp_path, others, "main", killed)
    kept = len(list(tmp_path.glob("codes/*/*.safetensors")))
    assert kept == 5
    again = []
    monkeypatch.setattr(experiment, "generate", lambda *a, real=generate, **k: again.append(1) or real(*a, **k))
    measure_effects(one, TARGETS, LISTENERS, tmp_path, others, "main")
    whole, _, seen = made
    assert len(again) == sum(noun == "clips" for *_, noun in seen) - kept
    expected = {p.relative_to(whole): p.read_bytes() for p in whole.rglob("*.json*")}
    assert {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*.json*")} == expected
    assert {p.name for p in (tmp_path / "sounds").iterdir()} == {p.name for p in (whole / "sounds").iterdir()}


def test_what_cannot_be_measured_is_refused(one, tmp_path):
    with pytest.raises(MusaeError, match="no feature to steer"):
        measure_effects(one, [], LISTENERS, tmp_path)
    for wrong, words in (
        ({"strengths": ()}, "are none; give finite ones"),
        ({"strengths": (0.0, 1.0)}, "are 0, 1; give finite ones, none of them 0"),
        ({"strength": float("nan")}, "nan; give finite"),
        ({"strengths": (-1.0,)}, "all strengths are below 0"),
        ({"clips": 1}, "make 2 at least"),
        ({"calibration": 0}, "make 2 at least, and 1"),
    ):
        with pytest.raises(MusaeError, match=words):
            dataclasses.replace(CONFIG, **wrong)
