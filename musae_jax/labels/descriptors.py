"""Names from the sound itself: a feature that fires in the brightest clips is named "brightness: bright".

Each descriptor is a number per clip with a unit. Its two ends are concepts, and so are the 24 keys, heard by how well
their profiles fit. What comes and goes within a clip is in `moments`.

Key: Krumhansl and Schmuckler's profiles correlated with the mean chroma. Slow methods (harmonic-percussive separation,
constant-Q chroma) are left out: a ten-second clip takes some tens of milliseconds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import librosa
import numpy as np

from musae_jax.labels.hearing import Hearing
from musae_jax.labels.moments import MOMENTS, describe_moments
from musae_jax.labels.scores import Concept
from musae_jax.labels.spectra import CHROMA_WINDOW, HOP, KEYS, RATE, WINDOW, at_rate, chroma_filter, mel_filter

SOURCE = "descriptors"
SILENCE_DB = -80.0  # level given to digital silence
# Krumhansl and Kessler's probe-tone ratings
MAJOR = np.asarray([6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88])
MINOR = np.asarray([6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17])


@dataclass(frozen=True)
class Descriptor:
    """A measured quality: its unit and the words for its two ends."""

    name: str
    unit: str
    low: str
    high: str


DESCRIPTORS = (
    Descriptor("loudness", "dB", "quiet", "loud"),
    Descriptor("loudness range", "dB", "even", "varied"),
    Descriptor("brightness", "Hz", "dark", "bright"),
    Descriptor("bandwidth", "Hz", "narrow", "wide"),
    Descriptor("bass", "share of energy below 200 Hz", "light", "heavy"),
    Descriptor("treble", "share of energy above 3 kHz", "little", "much"),
    Descriptor("noisiness", "spectral flatness", "tonal", "noisy"),
    Descriptor("onset rate", "onsets a second", "few onsets", "many onsets"),
    Descriptor("attack", "mean rise of the mel spectrum, dB", "smooth", "percussive"),
    Descriptor("tempo", "beats a minute, 0 where no beat is found", "slow or no beat", "fast"),
    Descriptor("pulse", "autocorrelation of the onsets", "free", "steady"),
    Descriptor("pitch height", "octaves above 55 Hz", "low", "high"),
    Descriptor("tonal clarity", "correlation with the key profile", "unclear key", "clear key"),
    Descriptor("harmonic spread", "pitch classes in use", "few pitches", "many pitches"),
    Descriptor("mode", "major less minor correlation", "minor", "major"),
)
KEY_CONCEPTS = tuple(f"key: {tonic} {mode}" for mode in ("major", "minor") for tonic in KEYS)
COLUMNS = (*(d.name for d in DESCRIPTORS), *KEY_CONCEPTS)
CONCEPTS = (  # that are heard: both ends of each descriptor, keys, and what comes and goes
    *(Concept(f"{d.name}: {word}", d.name) for d in DESCRIPTORS for word in (d.high, d.low)),
    *(Concept(name, "key") for name in KEY_CONCEPTS),
    *MOMENTS,
)


@lru_cache
def key_profiles() -> np.ndarray:
    """Standardised key profiles, 12 major keys then 12 minor ones. [24, 12]"""
    rows = np.stack([np.roll(p, k) for p in (MAJOR, MINOR) for k in range(12)])
    return (rows - rows.mean(1, keepdims=True)) / rows.std(1, keepdims=True)


def describe(audio: np.ndarray, sampling_rate: int = RATE) -> np.ndarray:
    """The descriptors of one clip, in the order of `COLUMNS`. [S] -> float64 [D]

    Units are those of `DESCRIPTORS`; of a key it is the correlation with its profile. Silence gives finite numbers too.
    """
    audio = at_rate(audio, sampling_rate)
    if np.abs(audio).max(initial=0.0) < 1e-5:
        return np.where(np.asarray(COLUMNS) == "loudness", SILENCE_DB, 0.0)
    power = np.abs(librosa.stft(audio, n_fft=WINDOW, hop_length=HOP)) ** 2  # [bins, T]
    energy = power.sum(0)  # [T]
    total = power.sum(1) + 1e-12  # [bins]
    hertz = np.fft.rfftfreq(WINDOW, 1 / RATE)
    # level of a frame: mean square of the window; a full-scale sine is -3 dB
    level = np.maximum(10 * np.log10(energy * 2 / (WINDOW * (np.hanning(WINDOW) ** 2).sum()) + 1e-12), SILENCE_DB)
    centroid = (hertz * total).sum() / total.sum()
    bandwidth = np.sqrt(((hertz - centroid) ** 2 * total).sum() / total.sum())
    loud = energy > energy.max() * 1e-4
    bounded = np.maximum(power[:, loud], 1e-10 * max(float(power.max()), 1e-12)) if loud.any() else power + 1e-12
    flatness = float((np.exp(np.log(bounded).mean(0)) / bounded.mean(0)).mean())

    decibels = librosa.power_to_db(mel_filter() @ power, ref=np.max, top_db=60)  # [64, T]
    rise = np.maximum(np.diff(decibels, axis=1, prepend=decibels[:, :1]), 0).mean(0)  # [T]
    rate = RATE / HOP
    onsets = librosa.util.peak_pick(rise, pre_max=2, post_max=2, pre_avg=10, post_avg=10, delta=1.0, wait=3)
    tempo, pulse = _tempo(rise, rate)

    spectrum = np.abs(librosa.stft(audio, n_fft=CHROMA_WINDOW, hop_length=CHROMA_WINDOW // 4))  # [bins, T']
    chroma = chroma_filter() @ spectrum.mean(1)  # [12]
    chroma = chroma - chroma.min()
    share = chroma / (chroma.sum() + 1e-12)
    shape = (chroma - chroma.mean()) / (chroma.std() + 1e-12)
    match = key_profiles() @ shape / 12  # [24]
    tones = np.fft.rfftfreq(CHROMA_WINDOW, 1 / RATE)
    audible = (tones >= 55) & (tones <= 4000)
    weight = (spectrum[audible] ** 2).sum(1) + 1e-12
    height = (np.log2(tones[audible] / 55) * weight).sum() / weight.sum()
    return np.asarray(
        [
            10 * np.log10(float((10 ** (level / 10)).mean())),
            np.percentile(level, 95) - np.percentile(level, 10),
            centroid,
            bandwidth,
            total[hertz < 200].sum() / total.sum(),
            total[hertz > 3000].sum() / total.sum(),
            flatness,
            len(onsets) * rate / len(rise),
            rise.mean(),
            tempo,
            pulse,
            height,
            match.max(),
            1 / ((share**2).sum() + 1e-12) if share.sum() > 0.5 else 0.0,
            match[:12].max() - match[12:].max(),
            *match,
        ]
    )


def _tempo(rise: np.ndarray, rate: float) -> tuple[float, float]:
    """Beats a minute and how regular they are, from the autocorrelation of the onset curve `rise` [T] at `rate` Hz.

    The lag is weighted towards 120 beats a minute over one octave, as librosa's tempo estimate does.
    """
    centred = rise - rise.mean()
    spectrum = np.fft.rfft(centred, 2 * len(centred))
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)[: len(centred)]
    if correlation[0] < 1e-9:
        return 0.0, 0.0  # nothing ever starts
    correlation = correlation / correlation[0]
    lags = np.arange(int(rate * 60 / 240), min(int(rate * 60 / 40) + 1, len(correlation)))
    if not len(lags):
        return 0.0, 0.0
    prior = np.exp(-0.5 * np.log2(lags * 120 / (60 * rate)) ** 2)
    best = int(np.argmax(np.maximum(correlation[lags], 0) * prior))
    pulse = float(correlation[lags[best]])
    return (60 * rate / lags[best] if pulse > 0.1 else 0.0), pulse


def name_ends(name: str) -> dict[str, str] | None:
    """What a name such as "brightness: bright" rests on: {"descriptor", "unit", "direction": "high" or "low"}; None if
    it is no end of a descriptor."""
    for descriptor in DESCRIPTORS:
        for direction, word in (("high", descriptor.high), ("low", descriptor.low)):
            if name == f"{descriptor.name}: {word}":
                return {"descriptor": descriptor.name, "unit": descriptor.unit, "direction": direction}
    return None


def hear_descriptors(
    clip_ids: Sequence[str],
    load: Callable[[str], np.ndarray],
    sampling_rate: int,
    progress: Callable[[int, int, str], None] | None = None,
) -> Hearing:
    """What is measured in clips, as a source of names; `load(clip id)` gives audio [S]. The embedding is the measured
    values, standardised."""
    rows, parts = [], []
    for done, clip in enumerate(clip_ids, start=1):
        audio = load(clip)
        rows.append(describe(audio, sampling_rate))
        parts.append(describe_moments(audio, sampling_rate))
        if progress:
            progress(done, len(clip_ids), "clips measured")
    values = np.stack(rows).astype(np.float32)  # [n, D]
    columns = [sign * values[:, column] for column in range(len(DESCRIPTORS)) for sign in (1, -1)]
    columns += list(values[:, len(DESCRIPTORS) :].T)
    moments = np.stack(parts)  # [n, W, C']
    columns += list(moments.mean(1).T)
    spread = values.std(0)
    embedding = (values - values.mean(0)) / np.where(spread > 1e-6, spread, 1.0)
    return Hearing(SOURCE, tuple(clip_ids), CONCEPTS, np.stack(columns, 1), moments, embedding)
