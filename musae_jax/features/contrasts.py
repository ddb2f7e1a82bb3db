"""The direction from ordinary music to the music in which a feature is strongest: what it has in common, in the stream.

A decoder row says what a feature adds where it is active. The contrast says how the stream of whole clips differs where
the feature is strong, with all that comes with it. It is contrastive activation addition (Panickssery et al., arXiv
2312.06681) with the feature itself, which nobody labelled, telling the two sides apart; adding it steers better than
the decoder row (docs/steer.md).
"""

from collections.abc import Sequence

import numpy as np

from musae_jax.features.activity import Activity
from musae_jax.features.firing import strongest

STRONGEST = 0.1  # share of clips


def feature_contrasts(activity: Activity, clips: Sequence[int], active_above: float = 0.0) -> np.ndarray:
    """Mean of the stream in the strongest tenth of the clips of each feature, less that in the others: float32 [F, D].

    Of `activity` only the clips numbered `clips` are read, and of those that count as strongest (`firing.strongest`)
    the means over frames. A feature that is never active, or strongest everywhere, has none: zeros.
    """
    clips = np.asarray(clips, int)
    stream = np.asarray(activity.stream_mean[clips], np.float32)  # [n, D]
    strong = strongest(activity.clip_mean[clips], active_above, STRONGEST).astype(np.float32)  # [n, F]
    count = strong.sum(0)[:, None]
    within = strong.T @ stream  # [F, D]
    told = (count > 0) & (count < len(clips))
    beyond = (stream.sum(0) - within) / np.maximum(len(clips) - count, 1)
    return np.where(told, within / np.maximum(count, 1) - beyond, 0.0).astype(np.float32)
