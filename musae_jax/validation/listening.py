"""Does a name hold for one who hears a few clips, without knowing in which of them the feature fires?

Every clip that is heard is of another track, so that any of them could have been any other: the null of the answers is
all ways to say which clips fire.
"""

from collections.abc import Sequence
from math import comb

import numpy as np
from scipy.stats import rankdata

CLIPS = 16  # heard for a name: half of them fire, a quarter are near misses


def clips_to_hear(
    fires: np.ndarray, near: np.ndarray, tracks: Sequence[str], order: np.ndarray, count: int = CLIPS
) -> list[int]:
    """Numbers of at most `count` clips, each of another track, of clips in which a feature fires, bool [n]: in turn
    firing and silent ones, and half of the silent ones near misses, bool [n], as far as there are any.

    They are the first in `order` [n]. One random order for all features lets those of one name share clips.
    """
    chosen: list[int] = []
    seen: set[str] = set()
    for turn in range(count):
        wanted = (fires, near, fires, ~fires)[turn % 4]
        for kind in (wanted, fires if wanted is fires else ~fires):
            clip = next((int(c) for c in order if kind[c] and tracks[c] not in seen), None)
            if clip is not None:
                chosen.append(clip)
                seen.add(tracks[clip])
                break
    return chosen


def exact_auroc(heard: np.ndarray, fires: np.ndarray) -> tuple[float, float] | None:
    """AUROC of answers [n] for where a feature fires, bool [n], and p: the share of all ways to choose as many of the n
    clips that do at least as well. None where all or none fire.

    Counts the ways by the sum of their ranks (as Wilcoxon's rank-sum test), ties sharing theirs.
    """
    inside, n = int(fires.sum()), len(fires)
    if inside in (0, n):
        return None
    ranks = np.rint(2 * rankdata(heard)).astype(int)  # doubled, so that shared ones are whole
    total = int(ranks[fires].sum())
    ways = np.zeros((inside + 1, ranks.sum() + 1))  # [clips chosen, sum of their ranks]
    ways[0, 0] = 1
    for rank in ranks:
        ways[1:, rank:] += ways[:-1, :-rank].copy()
    auroc = (total / 2 - inside * (inside + 1) / 2) / (inside * (n - inside))
    return auroc, float(ways[inside, total:].sum() / comb(n, inside))
