"""What the thresholds of the filter do: how many features each keeps, and how many of those bear a confirmed name."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from musae_jax.features.activity import Activity

LEAST = (0.0, 0.01, 0.05)  # θ_min, share of clips
MOST = (0.1, 0.25, 0.5, 1.0)  # θ_max
ABOVE = (0.0, 0.1, 0.2, 0.4)  # τ, share of the feature's largest pooled activation
POOLING = ("mean", "max")


def sweep_filters(activity: Activity, passed: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each setting: pooling, active_above, minimum_share, maximum_share, `kept` features, how many of them
    have a confirmed name (`named`), and of all features with one how many are kept (`share_of_named`)."""
    has_name = np.zeros(activity.features, bool)
    has_name[[row["feature"] for row in passed]] = True
    rows = []
    for pooling, above in product(POOLING, ABOVE):
        pooled = activity.pooled(pooling)
        share = (pooled > above * pooled.max(0)).mean(0)
        for least, most in product(LEAST, MOST):
            kept = (share > 0) & (share >= least) & (share <= most)
            rows.append(
                {
                    "pooling": pooling,
                    "active_above": above,
                    "minimum_share": least,
                    "maximum_share": most,
                    "kept": int(kept.sum()),
                    "named": int((kept & has_name).sum()),
                    "share_of_named": round(float((kept & has_name).sum() / max(has_name.sum(), 1)), 4),
                }
            )
    return rows
