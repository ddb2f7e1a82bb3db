"""The mel spectrograms that audio classifiers hear: Kaldi's filter bank, and MusiCNN's against librosa."""

import librosa
import numpy as np
import pytest

from musae_jax.audio.fbank import fbank, mel_filters
from musae_jax.audio.musicnn_mel import musicnn_mel
from musae_jax.models.ast_front_end import MAEST, FrontEnd


def noise(samples):
    return np.random.default_rng(0).normal(size=samples).astype(np.float32) * 0.1


@pytest.mark.parametrize("samples", [100, 5001, 160000])
@pytest.mark.parametrize("bands", [96, 40])
def test_musicnn_mel_is_librosas_compressed(samples, bands):
    audio = noise(samples)
    stft = librosa.stft(np.pad(audio, 256), n_fft=512, hop_length=256, window=np.hanning(512), center=False)
    power = np.abs(stft) ** 2  # [257, T]
    mel = librosa.feature.melspectrogram(S=power, sr=16000, n_fft=512, n_mels=bands, htk=False, norm="slaney")
    found = musicnn_mel(audio, bands)
    assert found.shape == (1 + samples // 256, bands) and found.dtype == np.float32
    assert found.max() > 0.5
    np.testing.assert_allclose(found, np.log10(1 + 10000 * mel).T, atol=1e-4)


def test_maest_hears_ten_and_thirty_seconds_in_one_window():
    front_end = FrontEnd(MAEST, num_mel_bins=96, mean=2.0, std=1.25)
    audio = noise(160000)
    windows = front_end.windows(audio, 626)
    assert windows.shape == (1, 626, 96)
    np.testing.assert_allclose(windows[0], (musicnn_mel(audio) - 2.0) / 2.5, atol=1e-6)
    assert front_end.windows(np.zeros(480000), 1876).shape == (1, 1876, 96)


def test_silence_is_finite():
    assert not musicnn_mel(np.zeros(1000)).any()
    np.testing.assert_allclose(fbank(np.zeros(1000)), np.log(np.finfo(np.float32).eps), rtol=1e-6)
    assert fbank(np.zeros(399)).shape == (0, 128) and fbank(np.zeros(400)).shape == (1, 128)


def test_fbank_counts_frames_and_finds_a_tone_at_any_rate():
    for rate in (8000, 16000, 44100):
        mel = fbank(np.sin(2 * np.pi * 1000 * np.arange(rate) / rate), rate, 40)
        assert mel.shape == (98, 40)
        length = 1 << (rate * 25 // 1000 - 1).bit_length()
        heard = mel_filters(rate, length, 40)[round(1000 * length / rate)]
        assert heard[mel.mean(0).argmax()] > 0.3


def test_fbank_does_not_hear_an_offset():
    np.testing.assert_allclose(fbank(noise(8000) + 0.5), fbank(noise(8000)), atol=1e-3)
