"""The front end of CLAP: windows of a clip and their log-mel spectrograms, as transformers' `ClapFeatureExtractor`
computes them with `rand_trunc` and `repeatpad`. Windows of long clips are not drawn at random: the same sound always
gives the same numbers."""

import dataclasses
import functools

import numpy as np

QUIETEST = 1e-10  # power below which a band counts as silent


@dataclasses.dataclass(frozen=True)
class ClapMelConfig:
    """Names are those of `ClapFeatureExtractor`, values those of LAION's checkpoints (its own default for
    `frequency_min` is 0, which they do not use)."""

    sampling_rate: int = 48_000  # Hz
    feature_size: int = 64  # mel bands M
    fft_window_size: int = 1024  # samples
    hop_length: int = 480  # samples a frame
    frequency_min: float = 50.0  # Hz
    frequency_max: float = 14_000.0  # Hz
    max_length_s: int = 10

    @property
    def samples(self) -> int:
        """Samples of a window."""
        return self.max_length_s * self.sampling_rate

    @property
    def frames(self) -> int:
        """Frames T of a window."""
        return 1 + self.samples // self.hop_length


def repeat_pad(config: ClapMelConfig, audio: np.ndarray) -> np.ndarray:
    """A clip [S] no longer than a window, repeated while it fits whole and then padded with zeros, to [samples]."""
    repeated = np.tile(audio, config.samples // len(audio))
    return np.pad(repeated, (0, config.samples - len(repeated)))


def window_starts(config: ClapMelConfig, samples: int) -> np.ndarray:
    """Where the windows of a clip of so many samples begin: the fewest that reach from its first sample to its last,
    evenly spread and at most half a window apart."""
    beyond = max(0, samples - config.samples)
    return np.linspace(0, beyond, 1 + -(-2 * beyond // config.samples)).round().astype(int)


@functools.cache
def mel_filters(config: ClapMelConfig) -> np.ndarray:
    """How much each frequency of the transform counts for each band, float64 [1 + fft_window_size / 2, M]."""
    import librosa  # slow to import, needed only here

    c = config
    return librosa.filters.mel(
        sr=c.sampling_rate, n_fft=c.fft_window_size, n_mels=c.feature_size, fmin=c.frequency_min, fmax=c.frequency_max,
        htk=False, norm="slaney", dtype=np.float64,
    ).T  # fmt: skip


def clap_mel(config: ClapMelConfig, audio: np.ndarray) -> np.ndarray:
    """Windows [N, samples] to spectrograms in dB (of power; −100 for silence), float32 [N, T, M].

    In float64: single precision would drown the quiet bands of a loud sound in its rounding.
    """
    width, hann = config.fft_window_size, np.hanning(config.fft_window_size + 1)[:-1]
    spectrograms = []
    for window in audio:
        padded = np.pad(np.asarray(window, np.float64), width // 2, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, width)[:: config.hop_length]  # [T, width]
        spectrum = np.fft.rfft(frames * hann)
        power = (np.square(spectrum.real) + np.square(spectrum.imag)) @ mel_filters(config)  # [T, M]
        spectrograms.append((10 * np.log10(np.maximum(power, QUIETEST))).astype(np.float32))
    return np.stack(spectrograms)
