"""Where in a clip a feature is active, as a person or a model is told it."""

import numpy as np

ACTIVE = 0.3  # of the clip's maximum, as delphi highlights tokens
GAP = 0.1  # seconds; shorter silences do not end a span

Spans = tuple[tuple[float, float], ...]


def active_spans(curve: np.ndarray, frame_rate: float = 50.0) -> Spans:
    """(start, end) in seconds of the spans in which an activation curve [T] is at least 0.3 of its maximum; those no
    more than 100 ms apart are one. A curve that is never above 0 has none."""
    curve = np.asarray(curve)
    if not len(curve) or curve.max() <= 0:
        return ()
    active = np.flatnonzero(curve >= ACTIVE * curve.max())
    breaks = np.flatnonzero(np.diff(active) - 1 > GAP * frame_rate + 1e-6)
    starts = active[np.append(0, breaks + 1)]
    ends = active[np.append(breaks, len(active) - 1)] + 1
    return tuple((float(a), float(b)) for a, b in zip(starts / frame_rate, ends / frame_rate))


def spans_text(spans: Spans, offset: float = 0.0) -> str:
    """Such as "1.20–1.64 s, 3.00–3.10 s", counted from `offset` seconds."""
    return ", ".join(f"{start + offset:.2f}–{end + offset:.2f} s" for start, end in spans)
