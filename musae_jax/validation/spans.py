"""Does a name hold when the feature fires, and not a moment before or after? Spans of a clip against the same spans
shifted within it.

What lasts for a whole clip cannot pass: a shifted span hears it as well. The test is for what comes and goes.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from musae_jax.labels.evidence import p_value


@dataclass(frozen=True)
class SpanTest:
    """Mean AUROC within clips for the true spans, for shifted ones (`null_mean`, `null_p95`), the share of shifts that
    do as well (`p`), and the clips in which there are both spans and rest (`clips`)."""

    auroc: float
    null_mean: float
    null_p95: float
    p: float
    clips: int


def span_tests(heard: np.ndarray, fires: np.ndarray, shifts: int = 999, seed: int = 0) -> list[SpanTest | None]:
    """What is heard of a name [n, W] in the shares of clips in which each of F features fires, bool [n, W, F], against
    the others of the same clip. The null shifts the firing of every clip round its own circle by a random number of
    shares.

    None for a feature of which no clip has both.
    """
    clips, parts, features = fires.shape
    ranks = np.fft.rfft(rankdata(heard, axis=1) - (parts + 1) / 2)  # [n, W/2 + 1]
    rng = np.random.default_rng(seed)
    offsets = np.vstack([np.zeros((1, clips), int), rng.integers(1, parts, size=(shifts, clips))])
    return [_span_test(ranks, fires[:, :, f], offsets) for f in range(features)]


def _span_test(ranks: np.ndarray, fires: np.ndarray, offsets: np.ndarray) -> SpanTest | None:
    """Of ranks' spectra [n, W/2 + 1] and one feature's firing, bool [n, W], by `offsets` [1 + R, n], the first true."""
    both = np.flatnonzero(fires.any(1) & ~fires.all(1))
    if not len(both):
        return None
    fires, parts = fires[both].astype(float), fires.shape[1]
    count = fires.sum(1)
    # all shifts of all clips at once: correlate ranks with firing round the circle
    sums = np.fft.irfft(ranks[both] * np.conj(np.fft.rfft(fires)), parts)  # [n', W]: with the firing w shares later
    # the AUROC in a clip is ½ + (sum of its spans' ranks) / (spans · rest)
    gains = sums / (count * (parts - count))[:, None]
    scores = 0.5 + gains[np.arange(len(both)), offsets[:, both]].mean(1)  # [1 + R]
    score, null = float(scores[0]), scores[1:]
    return SpanTest(score, float(null.mean()), float(np.quantile(null, 0.95)), p_value(score, null), len(both))
