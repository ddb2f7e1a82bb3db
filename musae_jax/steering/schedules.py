"""Schedules: how much of an edit at which time, as factors [P] at the model's frame rate, for `combining.during`.

Factor p is that of position p, at p / frame_rate seconds. That position reads column p of the delayed layout (the start
step first) and decides the first codebook of frame p, which carries most of the sound; codebook k of a frame is decided
k positions later, so the finest of MusicGen's four follows a schedule 60 ms late. Positions beyond the last use the
last.

All take the clip's `seconds` and `frame_rate` (`config.frame_rate` of the model) first, and raise a `MusaeError` for
times that are negative, reversed, not finite or past the end of the clip.
"""

import functools
import math
import re
from collections.abc import Callable, Sequence

import numpy as np

from musae_jax.errors import MusaeError

FORMS = (
    "constant, ramp:0-4, decay:2, sections:0-2,6-8[:fade=0.5], onsets:0.5,1.2[:half-life=0.1] or "
    "beats:120[:half-life=0.1][:first=0.3]"
)
ONSET_HALF_LIFE = 0.1  # seconds
FASTEST = 1000.0  # beats a minute


def constant(seconds: float, frame_rate: float) -> np.ndarray:
    """1 throughout."""
    return np.ones_like(_times(seconds, frame_rate), np.float32)


def ramp(seconds: float, frame_rate: float, start: float, end: float) -> np.ndarray:
    """0 up to `start`, rising evenly to 1 at `end` (in seconds), and 1 from then on."""
    times = _times(seconds, frame_rate)
    _check_span(start, end, seconds)
    return np.clip((times - start) / (end - start), 0, 1).astype(np.float32)


def decay(seconds: float, frame_rate: float, half_life: float) -> np.ndarray:
    """1 at the beginning, half of it after each `half_life` seconds."""
    _check_above_0("half-life", half_life)
    return np.exp2(-_times(seconds, frame_rate) / half_life).astype(np.float32)


def sections(seconds: float, frame_rate: float, spans: Sequence[tuple[float, float]], fade: float = 0.0) -> np.ndarray:
    """1 in the spans [start, end) of seconds, 0 elsewhere; a span begins and ends with an even `fade` of seconds."""
    times = _times(seconds, frame_rate)
    if not (math.isfinite(fade) and fade >= 0):
        raise MusaeError(f"the fade of a schedule is {fade:g} s; give a number of seconds, not below 0")
    factors = np.zeros_like(times)
    for start, end in spans:
        _check_span(start, end, seconds)
        if 2 * fade > end - start:
            raise MusaeError(
                f"the schedule's span {start:g}-{end:g} is too short to rise and fall for {fade:g} s each; give a "
                "shorter fade"
            )
        inside = (times >= start - 1e-9) & (times < end - 1e-9)
        edges = np.minimum(times - start, end - times) / fade if fade else np.inf
        factors = np.maximum(factors, np.where(inside, np.clip(edges, 0, 1), 0))
    return factors.astype(np.float32)


def onsets(
    seconds: float, frame_rate: float, starts: Sequence[float], half_life: float = ONSET_HALF_LIFE
) -> np.ndarray:
    """A pulse at each of the `starts` (seconds): 1 there, half of it after each `half_life` s; 0 before the first."""
    _check_above_0("half-life", half_life)
    for start in starts:
        _check_within(start, seconds)
    times = _times(seconds, frame_rate)
    struck = np.concatenate([[-np.inf], np.sort(np.asarray(starts, float))])
    last = struck[np.searchsorted(struck, times + 1e-9, side="right") - 1]  # [P]
    return np.exp2(-np.maximum(times - last, 0) / half_life).astype(np.float32)


def beats(
    seconds: float, frame_rate: float, bpm: float, half_life: float | None = None, first: float = 0.0
) -> np.ndarray:
    """A pulse on every beat from `first` (seconds) on, at `bpm` beats a minute; half of it is left after a quarter of a
    beat, or `half_life` seconds."""
    if not 1 <= bpm <= FASTEST:
        raise MusaeError(f"the schedule's tempo is {bpm:g} beats a minute; give one between 1 and {FASTEST:g}")
    _check_within(first, seconds)
    beat = 60 / bpm
    starts = first + beat * np.arange(math.ceil((seconds - first) / beat))
    return onsets(seconds, frame_rate, starts[starts < seconds], beat / 4 if half_life is None else half_life)


def read_schedule(text: str) -> Callable[[float, float], np.ndarray]:
    """The schedule of a text such as "ramp:0-4" (all forms: `FORMS`), to be called with seconds and frame_rate.

    Raises:
      MusaeError: the text has no such form.
    """
    name, *parts = (part.strip() for part in text.split(":"))
    if name not in _READERS:
        raise MusaeError(f"{text!r} is not a schedule; write {FORMS}")
    schedule, reader, options = _READERS[name]
    given = dict(part.partition("=")[::2] for part in parts if "=" in part)
    plain = [part for part in parts if "=" not in part]
    if len(plain) != (reader is not None) or len(given) + len(plain) < len(parts) or not set(given) <= set(options):
        raise MusaeError(f"{text!r} is not a schedule of this form; write {FORMS}")
    try:
        values = {} if reader is None else reader(plain[0])
        values |= {key.replace("-", "_"): float(value) for key, value in given.items()}
    except ValueError:
        raise MusaeError(f"the schedule {text!r} has a time that is not a number; write {FORMS}") from None
    return functools.partial(schedule, **values)


def _read_span(text: str) -> tuple[float, float]:
    found = re.fullmatch(r"(-?[^-]+)-(-?[^-]+)", text.strip())
    if not found:
        raise ValueError(text)
    return float(found[1]), float(found[2])


_READERS = {  # name: (the schedule, what reads the part after its name, its options)
    "constant": (constant, None, ()),
    "ramp": (ramp, lambda text: dict(zip(("start", "end"), _read_span(text))), ()),
    "decay": (decay, lambda text: {"half_life": float(text)}, ()),
    "sections": (sections, lambda text: {"spans": [_read_span(span) for span in text.split(",")]}, ("fade",)),
    "onsets": (onsets, lambda text: {"starts": [float(start) for start in text.split(",")]}, ("half-life",)),
    "beats": (beats, lambda text: {"bpm": float(text)}, ("half-life", "first")),
}


def _times(seconds: float, frame_rate: float) -> np.ndarray:
    """When each frame begins, float64 [P]."""
    _check_above_0("clip", seconds)
    return np.arange(max(1, round(seconds * frame_rate))) / frame_rate


def _check_above_0(what: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise MusaeError(f"the {what} of a schedule is {value:g} s; give a number of seconds above 0")


def _check_within(time: float, seconds: float) -> None:
    if math.isnan(time) or time < 0:
        raise MusaeError(f"the schedule has a time of {time:g} s; times are counted from 0, the beginning of the music")
    if not time < seconds:
        raise MusaeError(
            f"the schedule goes on at {time:g} s, but the music lasts {seconds:g} s; give earlier times or longer music"
        )


def _check_span(start: float, end: float, seconds: float) -> None:
    _check_within(start, seconds)
    if not end > start:
        raise MusaeError(f"the schedule's span {start:g}-{end:g} does not end after it begins; write EARLIER-LATER")
    if not end <= seconds:
        raise MusaeError(
            f"the schedule's span {start:g}-{end:g} ends after the music, which lasts {seconds:g} s; give an earlier "
            "end or longer music"
        )
