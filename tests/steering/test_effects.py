import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from tokenizers import Tokenizer, models, pre_tokenizers

from musae_jax.errors import MusaeError
from musae_jax.files import read_json, read_json_lines
from musae_jax.models.decoder import DecoderConfig
from musae_jax.models.encodec import EncodecConfig
from musae_jax.models.musicgen import MusicGenConfig, random_musicgen
from musae_jax.models.t5 import T5Config
from musae_jax.sae.sae import SAE, SAEConfig
from musae_jax.steering import effects
from musae_jax.steering.effects import (
    EffectsConfig,
    Target,
    bootstrap,
    choose_targets,
    generate_rows,
    measure_effects,
    plan_rows,
    row_vectors,
    summarise,
)

CONFIG = EffectsConfig(strengths=(0.5, 1.0), seconds=0.6, batch_size=4, resamples=50, top_k=0)
TARGETS = [Target(2, "brightness: bright", descriptor="brightness"), Target(5, "loudness: quiet", None, "loudness", -1)]
PROMPTS = ["slow piano", "fast flute"]


@pytest.fixture(scope="module")
def mg():
    tokenizer = Tokenizer(
        models.WordLevel({"<pad>": 0, "slow": 2, "piano": 3, "fast": 4, "flute": 5}, unk_token="<pad>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = MusicGenConfig(
        text=T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2),
        audio=EncodecConfig(
            sampling_rate=16000, hidden_size=8, num_filters=2, upsampling_ratios=(8, 8, 5), codebook_size=16,
            target_bandwidths=(0.4,), num_lstm_layers=1,
        ),
        decoder=DecoderConfig(
            vocab_size=16, num_hidden_layers=2, ffn_dim=16, num_attention_heads=2, hidden_size=12, num_codebooks=2,
            pad_token_id=16, bos_token_id=16,
        ),
    )  # fmt: skip
    return random_musicgen(config, jax.random.key(0), tokenizer)


@pytest.fixture(scope="module")
def sae():
    rng = np.random.default_rng(1)
    shapes = {"W_enc": (12, 7), "b_enc": (7,), "W_dec": (7, 12), "b_dec": (12,), "threshold": (7,)}
    params = {k: jnp.asarray(rng.normal(size=s) * 3, jnp.float32) for k, s in shapes.items()}
    params["threshold"] = jnp.zeros(7)
    return SAE(SAEConfig(12, 7, metadata={"hook_name": "blocks.0.resid_post"}), params, jnp.full(7, 6.0))


def test_every_condition_is_planned_once():
    rows = plan_rows(TARGETS, 2, (0.5, 1.0))
    assert len(rows) == 2 + 2 * 2 * 2 * 2 and len({r.sound for r in rows}) == len(rows)
    assert [r.condition for r in rows[:2]] == ["unsteered", "unsteered"]


def test_random_rows_have_the_norm_of_their_steered_rows(sae):
    rows = plan_rows(TARGETS, 1, (1.0, -2.0))
    norms = jnp.linalg.norm(row_vectors(sae, rows, jax.random.key(0)), axis=1)
    assert norms[0] == 0
    for i, row in enumerate(rows):
        if row.condition == "random":
            np.testing.assert_allclose(
                norms[i], norms[rows.index(dataclasses.replace(row, condition="steered"))], rtol=1e-5
            )


def test_rows_of_a_prompt_differ_by_their_vector_only(mg, sae, tmp_path):
    """Strength 0 is the unsteered clip, token for token, wherever it stands in whatever batch."""
    rows = plan_rows(TARGETS, 2, (0.0, 1.0))
    codes = generate_rows(mg, sae, rows, PROMPTS, tmp_path, CONFIG)
    for row, made in zip(rows, codes):
        same = (made == codes[row.prompt]).all()
        assert same if row.strength == 0 else not same
    assert (codes[0] != codes[1]).any()


def test_effects_from_generation_to_files(mg, sae, tmp_path):
    seen = []
    summary = measure_effects(
        mg, sae, TARGETS, PROMPTS, tmp_path, CONFIG, name="main", progress=lambda *step: seen.append(step)
    )
    rows = read_json_lines(tmp_path / "effects.jsonl")
    assert len(rows) == 2 * (2 + 2 * 2 * 2) and seen[-1] == (18, 18, "clips")
    for row in rows:
        info = soundfile.info(tmp_path / row["sound"])
        assert info.samplerate == 16000 and info.frames == 9600
        assert row["sae"] == "main" and row["hook"] == "blocks.0.resid_post" and row["text"] in PROMPTS
        assert row["judge"] is None and np.isfinite(row["descriptor"])
    assert not (tmp_path / "codes").exists()
    feature = summary["features"][0]
    assert feature["feature"] == 2 and [s["strength"] for s in feature["strengths"]] == [0.5, 1.0]
    assert feature["strengths"][0]["judge"] is None
    by_hand = [
        next(
            r["activation"]
            for r in rows
            if r["feature"] == 2 and r["condition"] == c and r["prompt"] == p and r["strength"] == s
        )
        for p in (0, 1)
        for c, s in (("steered", 1.0), ("unsteered", 0.0))
    ]
    expected = (by_hand[0] - by_hand[1] + by_hand[2] - by_hand[3]) / 2
    assert feature["strengths"][1]["activation"]["steered_minus_unsteered"]["mean"] == pytest.approx(expected, abs=2e-6)
    assert read_json(tmp_path / "summary.json")["features"] == json.loads(json.dumps(summary["features"]))


def test_a_killed_call_goes_on_and_ends_with_the_same_files(mg, sae, tmp_path, monkeypatch):
    measure_effects(mg, sae, TARGETS, PROMPTS, tmp_path / "whole", CONFIG)

    def killed(done, total, noun):
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_effects(mg, sae, TARGETS, PROMPTS, tmp_path / "killed", CONFIG, progress=killed)
    assert len(list((tmp_path / "killed").glob("codes/*/*.safetensors"))) == 2
    made = []
    monkeypatch.setattr(effects, "generate", lambda *a, real=effects.generate, **k: made.append(1) or real(*a, **k))
    measure_effects(mg, sae, TARGETS, PROMPTS, tmp_path / "killed", CONFIG)
    assert len(made) == 3  # of five batches, two were there
    whole = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file())
    again = sorted(p.relative_to(tmp_path / "killed") for p in (tmp_path / "killed").rglob("*") if p.is_file())
    assert whole == again
    for path in whole:
        if path.suffix in (".json", ".jsonl"):
            assert (tmp_path / "whole" / path).read_bytes() == (tmp_path / "killed" / path).read_bytes()


def test_nothing_to_steer(mg, sae, tmp_path):
    with pytest.raises(MusaeError, match="found 0 features and 2 prompts"):
        measure_effects(mg, sae, [], PROMPTS, tmp_path)


def record(prompt, condition, strength, judge, descriptor=0.0):
    return {
        "hook": "h", "sae": "s", "feature": 1, "name": "n", "condition": condition, "strength": strength,
        "prompt": prompt, "judge": judge, "descriptor": descriptor, "activation": 0.0,
    }  # fmt: skip


def test_differences_are_paired_and_signed():
    rows = [record(p, "unsteered", 0.0, 0.1 * p, -20) for p in range(4)]
    rows += [record(p, "steered", 1.0, 0.1 * p + 0.5, -26 - p) for p in range(4)]
    rows += [record(p, "random", 1.0, 0.1 * p + 0.1, -20) for p in range(4)]
    rows += [record(p, c, -1.0, 0.0, -10) for p in range(4) for c in ("steered", "random")]
    summary = summarise(rows, [Target(1, "n", "c", "loudness", -1)])
    down, up = summary["features"][0]["strengths"]
    assert up["judge"]["steered_minus_unsteered"] == {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 4}
    assert up["judge"]["steered_minus_random"]["mean"] == pytest.approx(0.4)
    # quieter is what the name expects
    assert up["descriptor"]["steered_minus_unsteered"]["mean"] == pytest.approx(7.5)
    # strength -1 lowered the probability, as it should, and raised the level, as it should
    assert down["judge"]["steered_minus_unsteered"]["mean"] == pytest.approx(0.15)
    assert down["descriptor"]["steered_minus_unsteered"]["mean"] == pytest.approx(10)
    overall = summary["overall"][1]
    assert overall["strength"] == 1.0 and overall["judge"]["above_random"] == 1 and overall["judge"]["features"] == 1


def test_bootstrap_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        found = bootstrap(rng.normal(1.0, 2.0, 40), 400, seed)
        hits += found["low"] <= 1.0 <= found["high"]
    assert 0.88 <= hits / 200 <= 0.99


def test_targets_are_the_best_names_the_judge_knows_first():
    def named(feature, name, confidence, source="truth", **evidence):
        return {"feature": feature, "name": name, "confidence": confidence, "source": source, "evidence": evidence}

    rows = [
        named(1, "percussion: snare", 0.9),  # frame-level: the judge does not know it
        named(2, "instrument: flute", 0.8),
        named(3, "instrument: flute", 0.7),  # the same name again
        named(4, "instrument: organ", 0.6),
        named(5, "instrument: piano", 0.5),  # a third of its family
        named(6, "drums: any", 0.4),
        named(7, "key: C", 0.0),  # at its null
        named(2, "brightness: dark", 0.3, "descriptors", descriptor="brightness", direction="low"),
    ]
    judged = {r["name"] for r in rows if r["source"] == "truth"} - {"percussion: snare"}
    targets = choose_targets(rows, judged, count=4)
    assert [t.feature for t in targets] == [2, 4, 6, 1]
    assert (targets[0].concept, targets[0].descriptor, targets[0].sign) == ("instrument: flute", "brightness", -1)
    assert targets[3].concept is None and targets[3].name == "percussion: snare"
    assert [t.name for t in choose_targets(rows[-1:])] == ["brightness: dark"]
