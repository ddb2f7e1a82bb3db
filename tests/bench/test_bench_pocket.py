"""`musae bench pocket`: measures by known cases, judges that are not fooled, and the table of the card."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from musae_jax import cli, load_musicgen
from musae_jax.bench.obedience import QUESTIONS, asked_style, key_signature, measure_obedience
from musae_jax.bench.pocket import PocketBench, measure_pocket
from musae_jax.bench.pocket_report import HEADS, pocket_markdown, pocket_rows
from musae_jax.bench.samples import chroma_entropy, diatonic_mass, onset_rate, sampled
from musae_jax.compose.composer import compose
from musae_jax.compose.render import render
from musae_jax.errors import MusaeError
from musae_jax.validation.judge import PARTS, columns, hear

SMALL = PocketBench(
    held_out_clips=8, training_clips=8, recurrent_steps=3, prompts=32, judge_clips=48, judge_held_out_clips=8,
)  # fmt: skip


def tones(pitches, seconds=4.0):
    """Each for its share of `seconds`, one after another, [1, S] at 16 kHz."""
    length = int(16_000 * seconds / len(pitches))
    fade = np.minimum(1, np.arange(length) / 100)
    time = np.arange(length) / 16_000
    parts = [0.3 * fade * np.exp(-3 * time) * np.sin(2 * np.pi * 440 * 2 ** ((p - 69) / 12) * time) for p in pitches]
    return np.concatenate(parts)[None].astype(np.float32)


def test_samples_are_measured_as_they_sound():
    scale, chromatic, one = [60, 62, 64, 65, 67, 69, 71, 72], range(60, 72), [69] * 8
    # the chroma filter spreads a pure tone over its neighbours, so a scale does not reach 1
    assert diatonic_mass(tones(scale))[0] > 0.8
    assert diatonic_mass(tones(chromatic))[0] == pytest.approx(7 / 12, abs=0.03)
    assert chroma_entropy(tones(one))[0] < 1.2 < 3 < chroma_entropy(tones(scale))[0] < 3.45
    assert chroma_entropy(tones(chromatic))[0] == pytest.approx(np.log2(12), abs=0.05)
    slow, fast = (onset_rate(tones([60, 64] * n))[0] for n in (2, 6))
    assert fast > 2 * slow > 0


def test_samples_are_as_many_as_are_asked_for_and_all_different(tiny_musicgen, monkeypatch):
    monkeypatch.setattr("musae_jax.bench.samples.SAMPLES_AT_A_TIME", 3)
    codes = sampled(tiny_musicgen, 8, 20, jax.random.key(0))
    assert codes.shape == (8, 2, 20) and len(np.unique(codes.reshape(8, -1), axis=0)) == 8


def test_a_model_of_another_kind_is_refused(tiny_musicgen):
    audio = dataclasses.replace(tiny_musicgen.config.audio, sampling_rate=32_000)
    other = tiny_musicgen.replace(config=dataclasses.replace(tiny_musicgen.config, audio=audio))
    with pytest.raises(MusaeError, match="this one has 1, 32000 and 100"):
        measure_pocket(other)


def test_prompts_ask_for_everything_equally_often():
    styles = [asked_style(1, number)[0] for number in range(640)]
    for name, question in QUESTIONS.items():
        answers = [question.answer(style) for style in styles]
        told = [answer for answer in answers if answer is not None]
        assert len(told) == (320 if "instrument" in name else 640)
        most = max(map(told.count, set(told))) / len(told)
        assert most == pytest.approx(question.chance, abs=0.04)
    solo = [style for style in styles if style.texture == "solo melody"]
    assert np.mean([style.drums is None for style in solo if style.lead.name == "flute"]) == 0.5


def test_a_key_and_its_relative_are_one_answer():
    style = asked_style(1, 0)[0]
    major = dataclasses.replace(style, tonic=0, mode="major")
    assert key_signature(major) == key_signature(dataclasses.replace(style, tonic=9, mode="minor")) == "C"
    assert key_signature(dataclasses.replace(style, tonic=4, mode="minor")) == "G"


@pytest.fixture(scope="module")
def figures(tiny_musicgen):
    return measure_pocket(tiny_musicgen, SMALL)


def test_the_figures_are_json_and_fill_the_card(figures):
    assert json.loads(json.dumps(figures)) == figures
    rows = pocket_rows(figures)
    assert all(set(row) == {*HEADS, "met"} for row in rows)
    assert [row["met"] for row in rows if "cross-entropy of codebook 0" in row["measure"]] == [False]  # random weights
    lines = pocket_markdown(figures).splitlines()
    assert len(lines) == len(rows) + 2 and all(line.count("|") == len(HEADS) + 1 for line in lines)
    worse = {**figures, "obedience": {n: {**one, "generated": 0.01} for n, one in figures["obedience"].items()}}
    missed = [row["measure"] for row in pocket_rows(worse) if row["met"] is False]
    assert len([name for name in missed if "as asked" in name]) == len(QUESTIONS)
    assert all(one["ci"][0] < one["ratio"] < one["ci"][1] for one in figures["samples"].values())


@pytest.mark.slow
def test_the_pocket_foretells_music_better_than_counts_do(figures):
    measured = measure_pocket(load_musicgen("pocket"), SMALL)
    assert measured.keys() == figures.keys()
    told = measured["prediction"]
    assert told["with_text"][0] < told["trigram"][0] < told["unigram"][0]
    assert measured["codec"]["log_mel_db_quantised"] < 3 < figures["codec"]["log_mel_db_quantised"]
    assert all(0.5 < one["ratio"] < 1.5 for one in measured["samples"].values())


@pytest.mark.slow
def test_music_that_obeys_is_judged_to_obey_and_other_music_is_not(monkeypatch):
    """What would be heard if the model played exactly, or never, what its prompts ask for."""

    def play(answer_for):
        def played(mg, prompts, seed):
            styles = [asked_style(905, number) for number in range(prompts)]
            music = [asked_style(905, answer_for(number, prompts)) for number in range(prompts)]
            audio = np.stack([render(compose(seed, 10.0, style).score) for style, seed in music])
            codes = np.random.default_rng(0).integers(256, size=(prompts, 4, 500))
            return [style for style, _ in styles], audio, codes

        return played

    pocket, share = load_musicgen("pocket"), {}
    for name, rule in (("obeys", lambda n, total: n), ("does not", lambda n, total: (n + 37) % total)):
        monkeypatch.setattr("musae_jax.bench.obedience._play", play(rule))
        share[name] = measure_obedience(pocket, 96, 480, 32, 0, lambda step: None)
    for question in ("tempo", "key", "drums", "level", "instrument"):
        obeys, does_not = (share[name][question]["generated"] for name in ("obeys", "does not"))
        assert obeys > 0.75 and obeys > does_not + 0.2, question
        assert abs(obeys - share["obeys"][question]["rendered"]) < 0.2


def test_the_command_prints_the_table_and_writes_the_figures(monkeypatch, figures, tmp_path, capsys):
    monkeypatch.setattr("musae_jax.bench.pocket.measure_pocket", lambda mg, bench, progress: figures)
    assert cli.main(["bench", "pocket", "--json", str(tmp_path / "pocket.json")]) in (0, None)
    assert "| tempo as asked, 32 prompts |" in capsys.readouterr().out
    assert json.loads((tmp_path / "pocket.json").read_text()) == figures


def test_too_few_prompts_are_refused(capsys):
    assert cli.main(["bench", "pocket", "--prompts", "0"]) == 2
    assert "--prompts is 0; it must be 32 or more" in capsys.readouterr().err


def test_parts_are_where_they_are_heard():
    """A quieter copy moves the mean loudness, and leaves the chroma where it is."""
    audio = tones([60, 64, 67, 72])
    loud, soft = (np.asarray(hear(gain * audio))[0] for gain in (1.0, 0.5))
    assert len(loud) == sum(PARTS.values())
    assert np.abs(loud - soft)[columns("chroma")].max() < 1e-3
    assert np.abs(loud - soft)[columns("loudness")][0] > 0.2  # dB, damped by the floor
