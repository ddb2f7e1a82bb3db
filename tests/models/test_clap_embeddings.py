"""From sound and words to CLAP's embeddings, against transformers: front end, windows, tokens."""

import numpy as np
import pytest
from clap_models import CONFIGS, LAION, MEL, extractor, noise, torch

from musae_jax.audio.clap_mel import clap_mel, repeat_pad, window_starts
from musae_jax.errors import MusaeError
from musae_jax.models.clap import embed_audio, embed_text, text_embeddings


@pytest.mark.parametrize(
    ("mel", "seconds"),
    # Whole; longer than half; odd and repeated with a rest; a few samples; LAION's own.
    [(MEL, 2.0), (MEL, 1.3), (MEL, 0.456125), (MEL, 0.000875), (CONFIGS["odd"].mel, 0.7), (LAION, 10.0), (LAION, 3.3)],
)
def test_front_end_matches_the_feature_extractor(mel, seconds):
    audio = noise(round(seconds * mel.sampling_rate))
    theirs = extractor(mel)(audio, sampling_rate=mel.sampling_rate, return_tensors="np")["input_features"][0]
    ours = clap_mel(mel, repeat_pad(mel, audio)[None])
    assert ours.shape == theirs.shape == (1, mel.frames, mel.feature_size)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_front_end_of_a_pure_tone_and_of_silence():
    """Quiet bands beside loud ones, and the floor."""
    time = np.arange(MEL.samples) / MEL.sampling_rate
    tone = np.sin(2 * np.pi * 440 * time).astype(np.float32)
    theirs = extractor(MEL)(tone, sampling_rate=MEL.sampling_rate, return_tensors="np")["input_features"]
    ours = clap_mel(MEL, np.stack([tone, 0 * tone]))
    assert np.ptp(ours[0]) > 80
    np.testing.assert_allclose(ours[:1], theirs[0], atol=1e-4)
    np.testing.assert_array_equal(ours[1], -100)


@pytest.mark.parametrize("samples", [1, 16_000, 16_001, 23_999, 24_000, 24_001, 100_003])
def test_windows_reach_from_the_first_sample_to_the_last(samples):
    starts = window_starts(MEL, samples)
    assert starts[0] == 0 and starts[-1] == max(0, samples - MEL.samples)
    assert (np.diff(starts) > 0).all() and (np.diff(starts) <= MEL.samples // 2).all()
    assert len(starts) == 1 + -(-max(0, samples - MEL.samples) // (MEL.samples // 2))


def test_embed_audio(clap_pair, monkeypatch):
    """Short and long clips as transformers hears them, window by window; twice the same; at another rate nearly so."""
    monkeypatch.setattr("musae_jax.models.clap.BATCH", 4)
    model, clap, _ = clap_pair("even")
    mel = clap.config.mel

    def theirs(rows):
        inputs = extractor(mel)(list(rows), sampling_rate=mel.sampling_rate, return_tensors="pt")
        with torch.no_grad():
            made = model.audio_projection(model.audio_model(inputs["input_features"].float()).pooler_output)
        return torch.nn.functional.normalize(made, dim=-1).numpy()

    short = noise(3, 5001)
    np.testing.assert_allclose(embed_audio(clap, short, 8000), theirs(short), atol=1e-5)
    long = noise(4, 30_000, seed=1) * np.linspace(0, 2, 30_000, dtype=np.float32)
    found = embed_audio(clap, long, 8000)
    windows = [theirs(long[:, start : start + mel.samples]) for start in (0, 7000, 14_000)]
    assert np.abs(windows[0] - windows[1]).max() > 0.01
    mean = np.mean(windows, axis=0)
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean, axis=-1, keepdims=True), atol=1e-5)
    np.testing.assert_array_equal(found, embed_audio(clap, long, 8000))

    import soxr

    low = np.stack([soxr.resample(clip, 8000, 6000) for clip in long[:1]])
    back = np.stack([soxr.resample(clip, 6000, 8000) for clip in low])
    np.testing.assert_allclose(embed_audio(clap, low, 6000), embed_audio(clap, back, 8000), atol=1e-6)


@pytest.mark.parametrize(
    ("audio", "words"),
    [(noise(100), "give mono clips"), (noise(2, 0), "give mono clips"), (np.full((1, 9), np.nan), "not numbers")],
)
def test_sound_that_cannot_be_embedded(clap_pair, audio, words):
    with pytest.raises(MusaeError, match=words):
        embed_audio(clap_pair("even")[1], audio, 8000)


def test_embed_text(clap_pair):
    model, clap, _ = clap_pair("even")
    lines = ["slow piano", "drums", "slow slow drums piano piano"]
    found = embed_text(clap, lines)
    ids = np.array([[0, 4, 5, 2, 1, 1, 1], [0, 6, 2, 1, 1, 1, 1], [0, 4, 4, 6, 5, 5, 2]])
    with torch.no_grad():
        tower = model.text_model(torch.tensor(ids), torch.tensor(ids != 1)).pooler_output
        theirs = torch.nn.functional.normalize(model.text_projection(tower), dim=-1)
    np.testing.assert_allclose(found, theirs, atol=1e-5)
    # 22 tokens are all that there are positions for, though texts are padded to multiples of 16.
    assert embed_text(clap, "drums " * 20).shape == (1, 20)
    with pytest.raises(MusaeError, match="a text has 23 tokens, but this model reads 22"):
        embed_text(clap, "drums " * 21)
    with pytest.raises(MusaeError, match="no text"):
        embed_text(clap, [])
    with pytest.raises(MusaeError, match="no tokenizer"):
        embed_text(clap.replace(tokenizer=None), "drums")
    with pytest.raises(MusaeError, match="at most 22 tokens"):
        text_embeddings(clap.config, clap.params, np.zeros((1, 23), int), np.ones((1, 23), int))
