"""Is a name heard in the spans in which a feature is active, and less in the rest? Any ear can tell by listening, if
all else is made softer: the spans with the rest ducked by 20 dB, and the rest with the spans ducked.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from musae_jax.features.spans import active_spans
from musae_jax.labels.hearing import Hearing
from musae_jax.labels.vocabulary import heard_of


def duck(
    audio: np.ndarray,
    sampling_rate: int,
    spans: Sequence[tuple[float, float]],
    decibels: float = -20.0,
    fade: float = 0.02,
    rest: bool = False,
) -> np.ndarray:
    """A clip [S] in which all but `spans` (seconds) is softer by `decibels`, or with `rest` the spans themselves;
    `fade` seconds lead from one to the other."""
    seconds = np.arange(len(audio)) / sampling_rate
    inside = np.zeros(len(audio), np.float32)
    for start, end in spans:
        edge = np.minimum(seconds - start, end - seconds) / fade
        inside = np.maximum(inside, np.clip(edge + 0.5, 0, 1).astype(np.float32))
    kept = 1 - inside if rest else inside
    return (audio * 10 ** (decibels / 20 * (1 - kept))).astype(np.float32)


def ducked_sounds(name: str, audio: np.ndarray, sampling_rate: int, curve: np.ndarray) -> dict[str, np.ndarray]:
    """Four versions of a clip [S]: the spans in which an activation curve [T] is active, and the rest; and both for the
    curve shifted by half of the clip, which is the null. Nothing for a curve that is active throughout, or nowhere."""
    sounds = {}
    for kind, shifted in (("true", curve), ("shifted", np.roll(curve, len(curve) // 2))):
        spans = active_spans(shifted, len(curve) * sampling_rate / len(audio))
        if not spans or sum(end - start for start, end in spans) * sampling_rate > 0.9 * len(audio):
            return {}
        sounds[f"{name}/{kind}/spans"] = duck(audio, sampling_rate, spans)
        sounds[f"{name}/{kind}/rest"] = duck(audio, sampling_rate, spans, rest=True)
    return sounds


def ducked_difference(heard: Hearing, prefix: str, name: str) -> dict[str, Any] | None:
    """How much more of a name a source hears in the spans than in the rest, over the clips whose sounds begin with
    `prefix`: `true` and, of shifted spans, `shifted`, means over `clips`; None where there are none."""
    values = heard_of(name, heard)
    if values is None:
        return None
    level = values.mean(1)  # [sounds]
    of = {sound: float(level[n]) for n, sound in enumerate(heard.clip_ids) if sound.startswith(prefix)}
    differences: dict[str, list[float]] = {"true": [], "shifted": []}
    for sound in of:
        clip, kind, part = sound.rsplit("/", 2)
        if part == "spans":
            differences[kind].append(of[sound] - of[f"{clip}/{kind}/rest"])
    if not differences["true"]:
        return None
    means = {kind: round(float(np.mean(values)), 4) for kind, values in differences.items()}
    return {"clips": len(differences["true"]), **means}
