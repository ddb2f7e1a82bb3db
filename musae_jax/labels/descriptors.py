"""Names from the sound itself: a feature that is high in the brightest clips is named "brightness: bright".

Each descriptor is a number per clip with a unit. Its two ends become concepts (the clips in the top or bottom third,
thirds cut on the "label" half), pitch class and mode of the estimated key become concepts too, and from there on naming
is the same as for the composer's truth: chosen on one half of the tracks, scored on the other, beside a null.

Key: Krumhansl and Schmuckler's profiles correlated with the mean chroma. Slow methods (harmonic-percussive separation,
constant-Q chroma) are left out: a ten-second clip takes some tens of milliseconds.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import librosa
import numpy as np
from scipy.stats import rankdata

from musae_jax.features.activity import Activity
from musae_jax.labels.scores import MINIMUM_CLIPS, Concept, Truth, choose_names, name_rows, score_concepts

SOURCE = "descriptors"
RATE = 16000  # Hz; audio at other rates is resampled first
HOP = 320  # samples: 50 frames a second
WINDOW = 1024  # samples
CHROMA_WINDOW = 4096  # samples; long enough to tell semitones apart from 130 Hz up
SILENCE_DB = -80.0  # level given to digital silence
KEYS = ("C", "C sharp", "D", "E flat", "E", "F", "F sharp", "G", "A flat", "A", "B flat", "B")
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
COLUMNS = (*(d.name for d in DESCRIPTORS), "key")


@lru_cache
def mel_filter() -> np.ndarray:
    """64 mel bands over the bins of a window of `WINDOW` samples at 16 kHz. [64, bins]"""
    return librosa.filters.mel(sr=RATE, n_fft=WINDOW, n_mels=64)


@lru_cache
def chroma_filter() -> np.ndarray:
    """12 pitch classes over the bins of a window of `CHROMA_WINDOW` samples at 16 kHz. [12, bins]"""
    chroma = librosa.filters.chroma(sr=RATE, n_fft=CHROMA_WINDOW, tuning=0.0)
    chroma[:, : int(65 * CHROMA_WINDOW / RATE)] = 0  # below C2 semitones share a bin
    return chroma


@lru_cache
def key_profiles() -> np.ndarray:
    """Standardised key profiles, 12 major keys then 12 minor ones. [24, 12]"""
    rows = np.stack([np.roll(p, k) for p in (MAJOR, MINOR) for k in range(12)])
    return (rows - rows.mean(1, keepdims=True)) / rows.std(1, keepdims=True)


def describe(audio: np.ndarray, sampling_rate: int = RATE) -> np.ndarray:
    """The descriptors of one clip, in the order of `COLUMNS`. [S] -> float64 [D]

    Units are those of `DESCRIPTORS`; "key" is a pitch class, C = 0. Silence gives finite numbers too.
    """
    audio = np.asarray(audio, np.float32)
    if sampling_rate != RATE:
        import soxr

        audio = soxr.resample(audio, sampling_rate, RATE).astype(np.float32)
    if np.abs(audio).max(initial=0.0) < 1e-5:
        return np.where(np.asarray(COLUMNS) == "loudness", SILENCE_DB, 0.0)
    if len(audio) < CHROMA_WINDOW:
        audio = np.pad(audio, (0, CHROMA_WINDOW - len(audio)))
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
            float(match.argmax() % 12),
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


def describe_clips(
    clips: Sequence[str],
    load: Callable[[str], np.ndarray],
    sampling_rate: int,
    progress: Callable[[int, int, str], None] | None = None,
) -> np.ndarray:
    """Descriptors of many clips; `load(clip id)` gives audio [S]. -> [n, D]"""
    rows = []
    for clip in clips:
        rows.append(describe(load(clip), sampling_rate))
        if progress:
            progress(len(rows), len(clips), "clips")
    return np.stack(rows)


def descriptor_truth(
    clip_ids: Sequence[str], values: np.ndarray, halves: Mapping[str, str]
) -> tuple[Truth, list[dict]]:
    """Yes-or-no concepts from descriptors [n, D]: the top and bottom third of each, and the key.

    Returns the truth (all clip-level) and, per concept, {"descriptor", "unit", "direction", "threshold"}. Descriptors
    that do not vary give no concept.
    """
    label = np.asarray([halves[c] == "label" for c in clip_ids])
    concepts, columns, notes = [], [], []
    for column, descriptor in enumerate(DESCRIPTORS):
        series = values[:, column]
        low, high = np.quantile(series[label], [1 / 3, 2 / 3])
        if descriptor.name == "mode":
            low = high = 0.0  # the sign decides
        elif not high > low:
            continue
        for word, direction, threshold, active in (
            (descriptor.high, "high", high, series > high),
            (descriptor.low, "low", low, series < low),
        ):
            concepts.append(Concept(f"{descriptor.name}: {word}", descriptor.name))
            columns.append(active)
            unit = descriptor.unit
            notes.append(
                {
                    "descriptor": descriptor.name,
                    "unit": unit,
                    "direction": direction,
                    "threshold": round(float(threshold), 4),
                }
            )
    for pitch, name in enumerate(KEYS):
        concepts.append(Concept(f"tonal centre: {name}", "key"))
        columns.append(values[:, -1] == pitch)
        notes.append({"descriptor": "key", "unit": "pitch class", "direction": "equal", "threshold": pitch})
    return Truth(tuple(clip_ids), tuple(concepts), np.stack(columns, 1)[:, None, :]), notes


def name_by_descriptors(
    activity: Activity,
    values: np.ndarray,
    halves: Mapping[str, str],
    hook: str,
    sae: str,
    tracks: Mapping[str, str] | None = None,
    features: Sequence[int] | None = None,
    permutations: int = 20,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Rows for RUN/labels/labels.jsonl; `values` [n, D] are the descriptors of the clips of `activity`, in their order.

    The evidence also holds the descriptor, its threshold with unit, and Spearman's rank correlation between the
    descriptor and the clip-mean activation on the held-out half. Too few clips to hold any out give no names.
    """
    if min(Counter(halves[c] for c in activity.clip_ids)[half] for half in ("label", "score")) < MINIMUM_CLIPS:
        return []
    truth, notes = descriptor_truth(activity.clip_ids, values, halves)
    scores = score_concepts(activity, truth, halves, tracks, permutations, seed)
    names = choose_names(scores)
    rows = name_rows(scores, names, truth, hook, sae, SOURCE, features)
    held_out = np.asarray([halves[c] == "score" for c in activity.clip_ids])
    for row in rows:
        note = notes[int(names.concept[row["feature"]])]
        row["evidence"].update(note)
        if note["direction"] != "equal":
            series = values[held_out, COLUMNS.index(note["descriptor"])]
            row["evidence"]["spearman"] = round(_spearman(activity.clip_mean[held_out, row["feature"]], series), 4)
    return rows


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    a, b = rankdata(a), rankdata(b)
    spread = a.std() * b.std()
    return float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread > 0 else 0.0
