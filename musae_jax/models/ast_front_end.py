"""What an audio classifier hears of a sound: the front end that its preprocessor_config.json describes."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import soxr

from musae_jax.audio.fbank import fbank
from musae_jax.audio.musicnn_mel import HOP, LENGTH, SAMPLING_RATE, musicnn_mel
from musae_jax.models.hf_config import read_fields

AST, MAEST = "ASTFeatureExtractor", "MAESTFeatureExtractor"
# Mean and deviation over Discogs as MAEST's authors publish them in their code; taken where a
# preprocessor_config.json does not state its own, and not checked against any published file.
MAEST_DEFAULTS = {"num_mel_bins": 96, "mean": 2.06755686098554, "std": 1.268292820667291}
# Keys that change nothing: both extractors pad with zeros on the right, to the length that the model's config states;
# window and filters follow from the rest.
_IGNORED = ("auto_map", "feature_size", "max_length", "padding_side", "padding_value", "processor_class")
_IGNORED += ("return_attention_mask", "window", "mel_filters", "mel_fb")


@dataclasses.dataclass(frozen=True)
class FrontEnd:
    """Sound to mel spectrogram. Names and defaults are those of transformers' `ASTFeatureExtractor`.

    Attributes:
      feature_extractor_type: "ASTFeatureExtractor" for Kaldi's `fbank`, "MAESTFeatureExtractor" for `musicnn_mel`.
      sampling_rate: Hz.
      num_mel_bins: M, the bands.
      do_normalize: whether (x − mean) / (2·std) is taken, with the two numbers that follow.
    """

    feature_extractor_type: str = AST
    sampling_rate: int = 16_000
    num_mel_bins: int = 128
    do_normalize: bool = True
    mean: float = -4.2677393
    std: float = 4.5689974

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> tuple["FrontEnd", list[str]]:
        """The front end in the dictionary of a preprocessor_config.json, and the list of problems found.

        Without a feature_extractor_type it is MAEST's if the sound is compressed in MAEST's way, else AST's.
        """
        kind = values.get("feature_extractor_type", MAEST if "log_compression" in values else AST)
        if kind not in (AST, MAEST):
            return cls(), [f"preprocessor.feature_extractor_type is {kind!r}, but only {AST} and {MAEST} are supported"]
        if kind == AST:
            known, problems = read_fields(cls, values, "preprocessor", _IGNORED)
        else:
            fixed = {"sampling_rate": (SAMPLING_RATE,), "n_fft": (LENGTH,), "hop_length": (HOP,)}
            fixed["log_compression"] = ("logC",)
            known, problems = read_fields(cls, MAEST_DEFAULTS | dict(values), "preprocessor", _IGNORED, fixed)
        front_end = cls(**known | {"feature_extractor_type": kind})
        if front_end.std <= 0:
            problems.append(f"preprocessor.std is {front_end.std}, but it must be above zero")
        if front_end.sampling_rate < 1000:
            problems.append(f"preprocessor.sampling_rate is {front_end.sampling_rate} Hz, but at least 1000 are needed")
        return front_end, problems

    def to_hf(self, max_length: int) -> dict[str, Any]:
        """The dictionary that transformers reads back; MAEST's extractor is code on the hub, which it then asks for."""
        maest = {"n_fft": LENGTH, "hop_length": HOP, "log_compression": "logC"}
        return {
            **dataclasses.asdict(self),
            **(maest if self.feature_extractor_type == MAEST else {}),
            "max_length": max_length,
            "feature_size": 1,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": False,
        }

    def mel(self, audio: np.ndarray) -> np.ndarray:
        """Sound [S] at `sampling_rate` -> float32 [T, M], not yet normalised."""
        if self.feature_extractor_type == MAEST:
            return musicnn_mel(audio, self.num_mel_bins)
        return fbank(audio, self.sampling_rate, self.num_mel_bins)

    def windows(self, audio: np.ndarray, length: int) -> np.ndarray:
        """Sound [S] at `sampling_rate` -> float32 [W, length, M], normalised windows of `length` frames.

        A sound of up to `length` frames is one window, filled up with zeros before it is normalised. A longer one is
        W = ceil(T / length) windows, evenly spaced from its first frame to its last, which overlap where they must.
        """
        mel = self.mel(audio)
        mel = np.pad(mel, ((0, max(0, length - len(mel))), (0, 0)))
        starts = np.linspace(0, len(mel) - length, math.ceil(len(mel) / length)).round().astype(int)
        cut = np.stack([mel[start : start + length] for start in starts])
        return self.normalised(cut)

    def cut(self, audio: np.ndarray, rate: int, length: int, overlap: int) -> tuple[np.ndarray, np.ndarray]:
        """Sound [S] at `rate` Hz -> windows float32 [W, length, M] that begin every `length` / `overlap` frames, and
        the last that fits; and where their middles are, as shares of the sound, [W]."""
        audio = np.asarray(audio, np.float32)
        mel = self.mel(audio if rate == self.sampling_rate else soxr.resample(audio, rate, self.sampling_rate))
        frames = len(mel)
        mel = np.pad(mel, ((0, max(0, length - frames)), (0, 0)))
        last = len(mel) - length
        starts = np.unique([*range(0, last + 1, max(1, length // overlap)), last])
        windows = np.stack([mel[start : start + length] for start in starts])
        return self.normalised(windows), (starts + length / 2) / max(frames, 1)

    def normalised(self, mel: np.ndarray) -> np.ndarray:
        """Spectrograms as the model expects them."""
        return (mel - np.float32(self.mean)) / np.float32(2 * self.std) if self.do_normalize else mel
