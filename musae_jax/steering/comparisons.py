"""Paired statistics: clips of one prompt and seed under two arms, or under several strengths of one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats

from musae_jax.labels.evidence import ROUNDING, interval, resampled_means

EXACT = 16  # pairs up to which all sign flips are tried
SAMPLED = 65_536  # flips beyond


def sign_flips(pairs: int, seed: int = 0) -> np.ndarray:
    """Signs ±1 [R, n]: all 2^n of them up to 16 pairs, drawn beyond; the first row is all ones."""
    if pairs <= EXACT:
        return 1 - 2 * ((np.arange(2**pairs)[:, None] >> np.arange(pairs)) & 1).astype(np.float32)
    signs = 1 - 2 * np.random.default_rng(seed).integers(0, 2, (SAMPLED, pairs)).astype(np.float32)
    signs[0] = 1
    return signs


def sign_flip_p(differences: Any, seed: int = 0) -> np.ndarray | float:
    """One-sided p that paired differences [n] or [n, M] are above 0 on average: a float or [M].

    The share of sign flips whose mean is at least that observed (Fisher's randomisation test), the observed one among
    them: exact up to 16 pairs, where the least p is 2^-n.
    """
    differences = np.asarray(differences, np.float64)
    columns = differences.reshape(len(differences), -1)
    scale = np.maximum(np.abs(columns).max(0, initial=0), 1e-30)
    sums = sign_flips(len(columns), seed) @ (columns / scale)  # [R, M]
    p = (sums >= (columns / scale).sum(0) - ROUNDING).mean(0)
    return p if differences.ndim > 1 else float(p[0])


def cohens_d(differences: Any) -> float | None:
    """Mean of paired differences in their standard deviations; None where they do not differ from each other."""
    differences = np.asarray(differences, float)
    spread = differences.std(ddof=1) if len(differences) > 1 else 0.0
    return float(differences.mean() / spread) if spread > 1e-12 else None


def bootstrap(values: Any, resamples: int = 2000, seed: int = 0) -> list[float]:
    """The 95 % percentile interval of the mean of values [n]: [low, high]."""
    return interval(resampled_means(values, resamples, seed))


def compare(differences: Any, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """{"mean", "ci", "d", "p", "p_below", "n"} of paired differences [n]: p as in `sign_flip_p`, that they are above 0,
    and that they are below."""
    differences = np.asarray(differences, float)
    d = cohens_d(differences)
    return {
        "mean": round(float(differences.mean()), 6),
        "ci": [round(bound, 6) for bound in bootstrap(differences, resamples, seed)],
        "d": None if d is None else round(d, 4),
        "p": round(float(sign_flip_p(differences, seed)), 7),
        "p_below": round(float(sign_flip_p(-differences, seed)), 7),
        "n": len(differences),
    }


def slopes(strengths: Sequence[float], values: Any) -> np.ndarray:
    """Dose–response: the slope of the least-squares line of values [S, n] over strengths [S], for each pair. -> [n]"""
    x = np.asarray(strengths, float)
    x = x - x.mean()
    return x @ np.asarray(values, float) / max((x**2).sum(), 1e-30)


def rank_correlations(strengths: Sequence[float], values: Any) -> np.ndarray:
    """Spearman's ρ of values [S, n] with strengths [S] for each pair; 0 where the values are all the same. -> [n]"""
    values = np.asarray(values, float)
    x, y = scipy.stats.rankdata(strengths), scipy.stats.rankdata(values, axis=0)
    x, y = x - x.mean(), y - y.mean(0)
    size = np.sqrt((x**2).sum() * (y**2).sum(0))
    return np.where(size > 0, x @ y / np.where(size > 0, size, 1), 0.0)


def is_monotone(strengths: Sequence[float], values: Any, level: float = 0.01, seed: int = 0) -> bool:
    """Whether the mean of values [S, n] rises at each step of strengths [S] from 0 on, and pairs agree: Spearman's ρ
    above 0 by sign flips at `level`."""
    order = np.argsort(strengths)
    order = order[np.asarray(strengths, float)[order] >= 0]
    x, values = np.asarray(strengths, float)[order], np.asarray(values, float)[order]
    if len(x) < 2:
        return False
    rises = (np.diff(values.mean(1)) > 0).all()
    return bool(rises and sign_flip_p(rank_correlations(x, values), seed) <= level)
