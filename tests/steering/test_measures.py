import numpy as np
import pytest

from musae_jax.labels.hearing import Hearing
from musae_jax.labels.scores import Concept
from musae_jax.models.musicgen import encode_audio, forward
from musae_jax.pocket import JUDGE
from musae_jax.sae.sae import sae_encode
from musae_jax.steering.measures import collapses, concept_measures, judge_ear, near, remeasure, told
from musae_jax.validation.judge import judge_probabilities, load_judge


def hearing(source, names, values, embedding=None):
    concepts = tuple(Concept(*row) for row in names)
    framed = np.asarray([concept.level == "frame" for concept in concepts])
    parts = np.repeat(values[:, None, framed], 4, 1) if framed.any() else np.zeros((len(values), 4, 0))
    parts = parts * np.asarray([0.0, 1.0, 2.0, 1.0])[:, None]
    ids = tuple(str(n) for n in range(len(values)))
    return Hearing(source, ids, concepts, values, parts, embedding)


def test_a_name_is_heard_in_its_own_unit_by_whoever_knows_it():
    values = np.asarray([[1.0, 5.0, 3.0], [2.0, 4.0, 6.0]])
    heard = hearing(
        "tagger",
        [("dynamics: loud", "dynamics"), ("drums: any", "drums"), ("melody: onset", "melody", "frame")],
        values,
    )
    np.testing.assert_array_equal(told("dynamics: loud", heard), [1.0, 2.0])
    np.testing.assert_array_equal(told("loudness: loud", heard), [1.0, 2.0])  # its counterpart
    np.testing.assert_array_equal(told("melody: onset", heard), [3.0, 6.0])  # the mean of what comes and goes
    assert told("key: C major", heard) is None
    sources = {"tagger": heard, "clap": hearing("clap", [("drums: any", "drums")], values[:, :1], values)}
    found = concept_measures("dynamics: loud", sources, np.asarray([1.0, 5.0, 3.0]))
    assert list(found) == ["tagger", "exemplars"] and found["exemplars"][0] == pytest.approx(1.0)
    assert list(concept_measures("drums: any", sources, None)) == ["tagger", "clap"]


def test_cosines():
    assert near(np.asarray([[2.0, 0.0], [0.0, 3.0]]), np.asarray([1.0, 1.0])) == pytest.approx([2**-0.5] * 2)
    assert np.isnan(near(np.ones((1, 2)), np.full((1, 2), np.nan)))


def test_the_judge_is_a_source_that_tells_log_odds():
    judge, rng = load_judge(JUDGE), np.random.default_rng(0)
    sounds = {str(n): (rng.normal(size=16000) * 0.1 * n).astype(np.float32) for n in range(3)}
    heard = judge_ear(judge, 16000)(list(sounds), sounds.__getitem__)
    p = judge_probabilities(judge, list(sounds.values()), 16000)
    column = judge.names.index("drums: any")
    np.testing.assert_allclose(
        1 / (1 + np.exp(-told("drums: any", heard))), p[:, column].clip(1e-6, 1 - 1e-6), rtol=1e-3
    )


def test_activation_is_that_of_the_sound_encoded_anew(mg, stream_sae):
    audio = np.random.default_rng(0).normal(size=(5, 3200)).astype(np.float32) * 0.2
    found = remeasure(mg, stream_sae, audio, [1, 4], batch_size=2)
    codes = encode_audio(mg.config, mg.params, audio)
    residuals = forward(mg.config, mg.params, codes, taps=(0,)).residuals[0]
    expected = np.asarray(sae_encode(stream_sae.config, stream_sae.params, residuals))[:, 1:, [1, 4]].mean(1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_what_is_no_music_any_more_is_told():
    rng = np.random.default_rng(0)
    audio = rng.normal(size=(5, 4000)).clip(-0.9, 0.9) * 0.3
    codes = rng.integers(0, 50, (5, 3, 80))
    audio[1] *= 1e-4
    audio[2, :50] = 1.0  # 1.25 % at full scale
    codes[3, :, 30:] = np.tile(codes[3, :, 20:30], 5)  # from then on the same ten frames
    codes[4, 0] = 7  # one codebook alone repeats
    found = collapses(audio, codes)
    assert found["silent"].tolist() == [False, True, False, False, False]
    assert found["clipping"].tolist() == [False, False, True, False, False]
    assert found["loop"].tolist() == [False, False, False, True, False]
