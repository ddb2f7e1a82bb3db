"""The composer: what it says is true must be what the score holds."""

import dataclasses

import numpy as np
import pytest

from musae_jax.audio.clips import load_truth, open_clips
from musae_jax.compose import concepts as c
from musae_jax.compose.captions import write_caption
from musae_jax.compose.composer import compose, sample_style
from musae_jax.compose.dataset import write_dataset
from musae_jax.errors import MusaeError
from musae_jax.files import read_json_lines

SEEDS = range(60)


def column(composition, name):
    return composition.truth[:, c.CONCEPT_INDEX[name]]


def test_the_same_seed_writes_the_same_music():
    first, second = compose(5), compose(5)
    assert first.score == second.score
    assert np.array_equal(first.truth, second.truth)
    assert compose(6).score != first.score


@pytest.mark.parametrize("seed", SEEDS)
def test_onsets_lie_on_the_sixteenth_grid_and_notes_in_the_key(seed):
    composition = compose(seed)
    style = composition.style
    scale = {(style.tonic + step) % 12 for step in c.MODES[style.mode]}
    for note in composition.score.notes:
        assert note.start % style.sixteenth == 0
        assert note.start + note.frames <= composition.score.frames
        if note.voice != "drums":
            assert note.pitch % 12 in scale


@pytest.mark.parametrize("seed", SEEDS)
def test_truth_is_what_the_score_holds(seed):
    composition = compose(seed)
    programs = {note.program for note in composition.score.notes if note.voice != "drums"}
    for instrument in (*c.LEADS, c.BASS):
        assert column(composition, f"instrument: {instrument.name}").all() == (instrument.program in programs)
    has_drums = any(note.voice == "drums" for note in composition.score.notes)
    assert column(composition, "drums: any").all() == has_drums
    sounding = np.zeros(composition.score.frames, bool)
    for note in composition.score.notes:
        if note.voice == "melody":
            sounding[note.start : note.start + note.frames] = True
    assert np.array_equal(column(composition, "melody: sounding"), sounding)


def test_chord_truth_holds_the_notes_of_the_chords():
    for seed in SEEDS:
        composition = compose(seed)
        for note in composition.score.notes:
            if note.voice == "bass":  # the bass plays the root
                assert composition.truth[note.start, c.CONCEPT_INDEX[f"chord root: {c.PITCH_CLASSES[note.pitch % 12]}"]]


def test_every_concept_occurs_and_none_always():
    means = np.mean([compose(seed, 4.0).truth.any(0) for seed in range(600)], 0)
    used = [name for name, mean in zip(c.CONCEPT_INDEX, means) if mean > 0]
    never = {"chord root: " + c.PITCH_CLASSES[p] for p in range(12)} - set(used)
    assert len(never) <= 2, never
    assert set(c.CONCEPT_INDEX) - set(used) <= never


def test_captions_say_only_what_is_true():
    for seed in range(300):
        rng = np.random.default_rng(seed)
        style = sample_style(rng)
        caption = write_caption(style, rng)
        names = {style.lead.name} if "melody" in style.voices else set()
        names |= {style.backing.name} if "chords" in style.voices else set()
        for instrument in c.LEADS:
            assert instrument.name not in caption.split() or instrument.name in names
        if style.drums:
            assert "no drums" not in caption and "without drums" not in caption
        if "minor" in caption.replace("minor,", "minor"):
            assert style.mode == "minor"


def test_style_is_obeyed():
    style = dataclasses.replace(compose(0).style, texture="solo melody", drums=None)
    assert {note.voice for note in compose(1, 5.0, style).score.notes} == {"melody"}


def test_a_dataset_reads_like_a_users_folder(tmp_path):
    write_dataset(tmp_path, clips=3, seed=7, seconds=2.0)
    source = open_clips(tmp_path, 2.0)
    assert [clip.id for clip in source.clips] == ["007-00000", "007-00001", "007-00002"]
    assert len(source.concepts) == len(c.VOCABULARY)
    truth = load_truth(source.clips[1])
    assert np.array_equal(truth, compose(7 * 1_000_000 + 1, 2.0).truth)
    assert all(row["caption"] for row in read_json_lines(tmp_path / "manifest.jsonl"))


def test_a_killed_dataset_goes_on_and_another_is_refused(tmp_path):
    write_dataset(tmp_path / "a", clips=2, seed=1, seconds=1.0)
    whole = {p.name: p.read_bytes() for p in (tmp_path / "a" / "audio").iterdir()}
    (tmp_path / "a" / "manifest.jsonl").unlink()
    (tmp_path / "a" / "audio" / "001-00001.flac").unlink()
    write_dataset(tmp_path / "a", clips=2, seed=1, seconds=1.0)
    assert {p.name: p.read_bytes() for p in (tmp_path / "a" / "audio").iterdir()} == whole
    with pytest.raises(MusaeError, match="already holds"):
        write_dataset(tmp_path / "a", clips=2, seed=2, seconds=1.0)
    with pytest.raises(MusaeError, match="clips"):
        write_dataset(tmp_path / "b", clips=0)
