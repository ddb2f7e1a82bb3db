"""Do SAEs that differ in their seed alone find the same features? (Paulo and Belrose 2025, arXiv 2501.16615.)"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from musae_jax.errors import MusaeError
from musae_jax.sae.matching import largest_cosines, match_rows

LEVELS = (0.7, 0.9)
MATCHED_UP_TO = 8192  # features; beyond it the one-to-one matching takes minutes a pair and is left out


def stability(decoders: Sequence[Any], control_seed: int = 0) -> dict[str, Any]:
    """How alike the features of two or more SAEs are, from their decoder rows, each [F, D]; a JSON-able dict.

    Over all pairs of SAEs, and both directions of each pair:
      cosine           mean over features of the largest cosine with a feature of the other SAE
      above            {"0.7", "0.9"}: share of features with one at least that alike
      matched_cosine   mean cosine of the pairs of a one-to-one matching with the largest sum (Hungarian method)
      matched_above    shares of its pairs; both null with more than 8192 features
      per_pair         `cosine` of each pair, for the spread
      control          the same of random unit directions in the same number, what chance alone gives
    Directions count with their sign: the opposite of a feature is another one.

    Raises:
      MusaeError: fewer than two SAEs, or of different widths.
    """
    decoders = [np.asarray(rows, np.float32) for rows in decoders]
    if len(decoders) < 2:
        raise MusaeError(f"stability compares SAEs of different seeds, but {len(decoders)} was given; give 2 or more")
    if len(widths := sorted({rows.shape[1] for rows in decoders})) > 1:
        raise MusaeError(f"the SAEs to compare have d_in {' and '.join(map(str, widths))}; compare those of one hook")
    rng = np.random.default_rng(control_seed)
    random = [rng.standard_normal(rows.shape, np.float32) for rows in decoders]
    return {**_alike(decoders), "control": _alike(random)}


def _alike(decoders: Sequence[np.ndarray]) -> dict[str, Any]:
    pairs = list(itertools.combinations(decoders, 2))
    best = [
        np.concatenate([largest_cosines(a, b, signed=True)[0], largest_cosines(b, a, signed=True)[0]]) for a, b in pairs
    ]
    largest = np.concatenate(best)
    matched = None
    if max(map(len, decoders)) <= MATCHED_UP_TO:
        matched = np.concatenate([match_rows(a, b, signed=True)[2] for a, b in pairs])
    return {
        "cosine": float(largest.mean()),
        "above": _above(largest),
        "matched_cosine": None if matched is None else float(matched.mean()),
        "matched_above": None if matched is None else _above(matched),
        "per_pair": [float(one.mean()) for one in best],
    }


def _above(cosines: np.ndarray) -> dict[str, float]:
    return {str(level): float((cosines >= level).mean()) for level in LEVELS}
