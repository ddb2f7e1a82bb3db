"""The direction from ordinary music to the music in which a feature is strongest: what it has in common, in the stream.

A decoder row says what a feature adds where it is active. The contrast says how the stream of whole clips differs where
the feature is strong, with all that comes with it. It is contrastive activation addition (Panickssery et al., arXiv
2312.06681) with the feature itself, which nobody labelled, telling the two sides apart; adding it steers better than
the decoder row (docs/steer.md).
"""

from collections.abc import Sequence

import numpy as np

from musae_jax.features.activity import Activity
from musae_jax.features.firing import LEAST, blocks, strongest

STRONGEST = 0.1  # share of clips, at most


def feature_contrasts(activity: Activity, clips: Sequence[int], active_above: float = 0.0) -> np.ndarray:
    """Mean of the stream in the strongest clips of each feature, less that in the others: float32 [F, D].

    Of `activity` only the clips numbered `clips` are read, and of each the mean over its frames. At most a tenth count
    as strongest (`firing.strongest`). A feature with fewer than `LEAST` of them, or of the others, has none: zeros.
    """
    clips = np.asarray(clips, int)
    stream = np.asarray(activity.stream_mean[clips], np.float32)  # [n, D]
    found = np.zeros((activity.features, stream.shape[1]), np.float32)
    for block in blocks(activity.features, len(clips)):
        strong = strongest(activity.clip_mean[clips, block], active_above, STRONGEST).astype(np.float32)  # [n, F']
        count = strong.sum(0)[:, None]
        within = strong.T @ stream  # [F', D]
        told = (count >= LEAST) & (len(clips) - count >= LEAST)
        beyond = (stream.sum(0) - within) / np.maximum(len(clips) - count, 1)
        found[block] = np.where(told, within / np.maximum(count, 1) - beyond, 0.0)
    return found
