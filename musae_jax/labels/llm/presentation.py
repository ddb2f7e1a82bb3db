"""How clips are put before a model: all in one message, joined into one sound, or each by itself.

The words are in `prompts/`, with the schema of the answer. A schema's version is part of what a cached reply answers,
as are the words: raise it when replies to the same words should no longer be taken.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from musae_jax.features.spans import Spans, spans_text
from musae_jax.labels.llm.config import LLMConfig
from musae_jax.labels.llm.messages import Part, Text, wav
from musae_jax.labels.llm.schema import Schema

PROMPTS = Path(__file__).parent / "prompts"
SILENCE = 1.0  # seconds between joined clips


@dataclass(frozen=True)
class Clip:
    """A clip to be heard: samples [S] at `sampling_rate` (Hz), and the spans (seconds) in which the feature is active,
    as `active_spans` gives them."""

    id: str
    audio: np.ndarray
    sampling_rate: int
    spans: Spans = ()


class Question(NamedTuple):
    """What `AudioLLM.complete` takes."""

    system: str
    parts: tuple[Part, ...]
    schema: Schema


def presentation_of(config: LLMConfig) -> str:
    """What "auto" stands for."""
    if config.presentation != "auto":
        return config.presentation
    return "captions" if config.base_url else "many"


@functools.cache
def read_prompt(words: str, schema: str) -> tuple[str, Schema]:
    """The words of a prompt and the schema of its answer."""
    text = (PROMPTS / f"{words}.txt").read_text(encoding="utf-8").strip()
    return text, json.loads((PROMPTS / f"{schema}.json").read_text(encoding="utf-8"))


def ask_many(clips: Sequence[Clip]) -> Question:
    """For a name, with every clip as a sound of its own, numbered."""
    system, schema = read_prompt("label", "label")
    parts: list[Part] = []
    for number, clip in enumerate(clips, start=1):
        parts += [Text(f"Clip {number}. {_active(clip)}"), wav(clip.audio, clip.sampling_rate)]
    parts.append(Text(f"Those were all {len(clips)} clips. Name what the unit has learned."))
    return Question(system, tuple(parts), schema)


def ask_joined(clips: Sequence[Clip]) -> Question:
    """For a name, with the clips in one sound, a second of silence between them, and a table of where they are."""
    system, schema = read_prompt("label", "label")
    rates = {clip.sampling_rate for clip in clips}
    if len(rates) != 1:
        raise ValueError(f"clips of {sorted(rates)} Hz cannot be joined; resample them to one rate")
    rate = rates.pop()
    sounds, table, samples = [], [], 0
    silence = np.zeros(round(SILENCE * rate), np.float32)
    for number, clip in enumerate(clips, start=1):
        start, end = samples / rate, (samples + len(clip.audio)) / rate
        table.append(f"Clip {number}: {start:.2f}–{end:.2f} s. {_active(clip, start)}")
        sounds += [clip.audio, silence]
        samples += len(clip.audio) + len(silence)
    words = "The sound holds these clips, one after the other, with silence between them:\n" + "\n".join(table)
    sound = wav(np.concatenate(sounds[:-1]), rate)
    return Question(system, (sound, Text(words), Text("Name what the unit has learned.")), schema)


def ask_caption(clip: Clip) -> Question:
    """For a description of one clip."""
    system, schema = read_prompt("caption", "caption")
    return Question(system, (wav(clip.audio, clip.sampling_rate), Text(_active(clip))), schema)


def ask_merge(captions: Sequence[str]) -> Question:
    """For a name, from the descriptions of the clips."""
    system, schema = read_prompt("merge", "label")
    lines = "\n".join(f"Clip {number}: {' '.join(one.split())}" for number, one in enumerate(captions, start=1))
    return Question(system, (Text(lines),), schema)


def ask_detect(name: str, clip: Clip) -> Question:
    """Whether a name holds in a clip; where a feature is active in it is not told."""
    system, schema = read_prompt("detect", "detect")
    return Question(system, (wav(clip.audio, clip.sampling_rate), Text(f"Description: {name}")), schema)


def _active(clip: Clip, offset: float = 0.0) -> str:
    return f"Active at {spans_text(clip.spans, offset)}." if clip.spans else "Take the whole clip."
