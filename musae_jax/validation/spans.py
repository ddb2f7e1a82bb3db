"""Does a name hold when the feature fires, and not a moment before or after? Spans of a clip against the same spans
shifted within it.

What lasts for a whole clip cannot pass: a shifted span hears it as well. The test is for what comes and goes.
"""

from dataclasses import dataclass

import numpy as np

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


def span_test(heard: np.ndarray, fires: np.ndarray, shifts: int = 199, seed: int = 0) -> SpanTest | None:
    """What is heard of a name [n, W] in the shares of clips in which a feature fires, bool [n, W], against the others
    of the same clip. The null shifts the firing of every clip round its own circle by a random number of shares.

    None where no clip has both.
    """
    both = fires.any(1) & ~fires.all(1)
    if not both.any():
        return None
    heard, fires = heard[both], fires[both]
    clips, parts = heard.shape
    order = np.argsort(heard, 1, kind="stable")
    ranks = np.empty((clips, parts))
    np.put_along_axis(ranks, order, np.broadcast_to(np.arange(parts) - (parts - 1) / 2, (clips, parts)), 1)
    ranks = _share_ties(heard, ranks)
    count = fires.sum(1)
    # the AUROC in a clip is ½ + (sum of its spans' ranks) / (spans · rest)
    scale = 1 / (count * (parts - count))
    rng = np.random.default_rng(seed)
    offsets = np.vstack([np.zeros((1, clips), int), rng.integers(1, parts, size=(shifts, clips))])
    # all shifts of all clips at once: correlate ranks with firing round the circle
    spectrum = np.fft.rfft(ranks) * np.conj(np.fft.rfft(fires.astype(float)))
    sums = np.fft.irfft(spectrum, parts)  # [n, W]: with the firing shifted by w shares
    scores = 0.5 + (np.take_along_axis(sums, offsets.T, 1) * scale[:, None]).mean(0)  # [1 + R]
    null = scores[1:]
    return SpanTest(
        float(scores[0]), float(null.mean()), float(np.quantile(null, 0.95)), p_value(scores[0], null), clips
    )


def _share_ties(values: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Ranks [n, W] with equal values of a row sharing their mean."""
    result = ranks.copy()
    for row, (value, rank) in enumerate(zip(values, ranks)):
        _, place = np.unique(value, return_inverse=True)
        result[row] = (np.bincount(place, rank) / np.bincount(place))[place]
    return result
