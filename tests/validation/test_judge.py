import jax
import numpy as np
import pytest

from musae_jax.errors import MusaeError
from musae_jax.validation.judge import (
    RATE,
    exclusive_families,
    fit_judge,
    hear,
    hear_clips,
    judge_probabilities,
    judge_rows,
    load_judge,
    save_judge,
)

NAMES = ["timbre: sine", "timbre: square", "timbre: noise", "level: loud", "coin: heads"]
FAMILIES = [n.split(":")[0] for n in NAMES]


def corpus(count, seed):
    """Two seconds each: three timbres, loud or soft, and a coin that cannot be heard."""
    rng = np.random.default_rng(seed)
    time = np.arange(2 * RATE) / RATE
    audio, truth = [], []
    for _ in range(count):
        kind, loud, coin = rng.integers(3), rng.random() < 0.5, rng.random() < 0.5
        phase = 2 * np.pi * 440 * 2 ** (rng.integers(-12, 12) / 12) * time
        clip = (np.sin(phase), np.sign(np.sin(phase)) * 0.7, rng.normal(size=len(time)) * 0.5)[kind]
        audio.append(clip * (0.5 if loud else 0.1) * rng.uniform(0.8, 1.2) + 0.001 * rng.normal(size=len(time)))
        truth.append([kind == 0, kind == 1, kind == 2, loud, coin])
    return np.asarray(audio, np.float32), np.asarray(truth)


@pytest.fixture(scope="module")
def fitted():
    audio, truth = corpus(80, 0)
    return audio, truth, fit_judge(audio, truth, NAMES, FAMILIES)


def test_the_judge_hears_what_can_be_heard_on_new_clips(fitted):
    *_, judge = fitted
    audio, truth = corpus(60, 1)
    probabilities = judge_probabilities(judge, audio)
    assert probabilities.shape == (60, 5) and (probabilities >= 0).all() and (probabilities <= 1).all()
    np.testing.assert_allclose(probabilities[:, :3].sum(1), 1, atol=1e-5)  # one of the timbres always holds
    right = (probabilities > 0.5) == truth
    assert (right[:, :4].mean(0) >= 0.95).all() and right[:, 4].mean() < 0.75


def test_measured_accuracies_are_those_of_unseen_clips(fitted):
    *_, judge = fitted
    rows = {r["concept"]: r for r in judge_rows(judge)}
    assert all(rows[n]["balanced_accuracy"] > 0.9 and rows[n]["auroc"] > 0.95 for n in NAMES[:4])
    assert abs(rows["coin: heads"]["auroc"] - 0.5) < 0.2  # on clips it was fitted to it would be near 1
    assert [rows[n]["softmax"] for n in NAMES] == [True, True, True, False, False]


def test_accuracy_is_held_out_by_track(fitted):
    """With copies of a clip on both sides of a fold, a coin would seem to be heard."""
    audio, truth, _ = fitted
    audio, truth = np.concatenate([audio[:40]] * 2), np.concatenate([truth[:40]] * 2)
    heard = hear_clips(audio)
    options = {"statistics": heard, "penalties": (0.03,)}
    leaking = fit_judge(audio, truth, NAMES, FAMILIES, tracks=[str(n) for n in range(80)], **options)
    honest = fit_judge(audio, truth, NAMES, FAMILIES, tracks=[str(n % 40) for n in range(80)], **options)
    assert float(leaking.auroc[4]) > 0.8 > float(honest.auroc[4])


def test_same_clips_same_judge(fitted):
    audio, truth, judge = fitted
    again = fit_judge(audio, truth, NAMES, FAMILIES)
    for a, b in zip(jax.tree.leaves(judge), jax.tree.leaves(again)):
        np.testing.assert_array_equal(a, b)


def test_judge_is_saved_whole(fitted, tmp_path):
    audio, _, judge = fitted
    save_judge(tmp_path / "judge.safetensors", judge)
    again = load_judge(tmp_path / "judge.safetensors")
    assert again.names == judge.names and again.penalty == judge.penalty
    np.testing.assert_array_equal(judge_probabilities(again, audio[:3]), judge_probabilities(judge, audio[:3]))
    with pytest.raises(MusaeError, match="missing"):
        load_judge(tmp_path / "none.safetensors")


def test_hearing_does_not_depend_on_the_batch_and_is_finite_everywhere():
    audio, _ = corpus(20, 2)
    whole = hear_clips(audio)
    np.testing.assert_allclose(whole[17:18], hear_clips(audio[17:18]), rtol=1e-4, atol=1e-3)
    for clip in (np.zeros((1, RATE)), np.ones((1, 100)), np.random.default_rng(0).normal(size=(1, 999)) * 10):
        assert np.isfinite(np.asarray(hear(clip))).all()


def test_other_sampling_rates_sound_alike(fitted):
    *_, judge = fitted
    time = np.arange(2 * 32000) / 32000
    sine = np.sin(2 * np.pi * 440 * time)[None] * 0.5
    assert judge_probabilities(judge, sine, 32000)[0, 0] > 0.9


def test_exclusive_families():
    truth = np.asarray([[1, 0, 1, 0], [0, 1, 1, 1], [1, 0, 0, 0]], bool)
    assert exclusive_families(truth, ["a", "a", "b", "b"]).tolist() == [0, 0, -1, -1]
    assert exclusive_families(truth, None).tolist() == [-1] * 4


def test_wrong_shapes_and_one_track(fitted):
    audio, truth, _ = fitted
    with pytest.raises(ValueError, match="truth has shape"):
        fit_judge(audio, truth[:, :2], NAMES)
    with pytest.raises(MusaeError, match="at least 2 tracks, found 1"):
        fit_judge(audio, truth, NAMES, tracks=["one"] * len(truth))
