"""What goes to an audio LLM and what comes back, whatever the wire."""

import io
import wave
from dataclasses import dataclass, fields
from functools import cached_property
from hashlib import sha256
from typing import Literal

import numpy as np

from musae_jax.errors import MusaeError


@dataclass(frozen=True)
class Text:
    """Words in a message."""

    text: str


@dataclass(frozen=True)
class Audio:
    """A sound file in a message: its bytes, its format ("wav", "mp3") and how long it lasts."""

    data: bytes
    format: str
    seconds: float

    @cached_property
    def digest(self) -> str:
        return sha256(self.data).hexdigest()


Part = Text | Audio


@dataclass(frozen=True)
class Turn:
    """What one side said."""

    role: Literal["user", "assistant"]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Usage:
    """What was used: `requests` that were answered and paid, with their tokens and the seconds of sound sent in them;
    `cached` replies that were on disk already."""

    requests: int = 0
    cached: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    audio_tokens: int = 0
    audio_seconds: float = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def told(self) -> str:
        """In words."""
        return (
            f"{self.requests} requests paid ({self.input_tokens} tokens in, {self.output_tokens} out, "
            f"{self.audio_seconds:.0f} s of sound), {self.cached} answers from disk"
        )


@dataclass(frozen=True)
class Answer:
    """A reply as read from the wire: its words, or why the model would not speak; tokens as (input, output, audio)."""

    text: str
    refusal: str = ""
    tokens: tuple[int, int, int] = (0, 0, 0)


def wav(audio: np.ndarray, sampling_rate: int) -> Audio:
    """Float samples [S] as a mono 16-bit wav; the same samples give the same bytes. What is beyond ±1 is clipped.

    Raises:
      MusaeError: no samples, or NaN or infinite ones.
    """
    audio = np.asarray(audio, np.float32)
    if audio.ndim != 1:
        raise ValueError(f"audio has shape {audio.shape}, expected [S]")
    if not len(audio) or not np.isfinite(audio).all():
        raise MusaeError("a clip is empty or holds samples that are not numbers; replace it")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sampling_rate)
        file.writeframes(np.rint(np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes())
    return Audio(buffer.getvalue(), "wav", len(audio) / sampling_rate)
