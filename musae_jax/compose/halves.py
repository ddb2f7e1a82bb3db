"""Music to choose features on and music to judge them on, that differ in more than their seeds.

A feature for "staccato" that was chosen on music in C, E and G and still tells staccato in D, F and A tells of more
than notes that happened to be staccato. So every family of concepts is held out across something that is independent of
it: keys across chord progressions, everything else across keys.
"""

from typing import Literal

import numpy as np

from musae_jax.compose.composer import Style, sample_style
from musae_jax.compose.dataset import SEEDS_PER_CORPUS
from musae_jax.errors import MusaeError

Half = Literal["label", "score"]

LABEL_TONICS = (0, 4, 7)  # C, E and G; all twelve chord roots occur in them, and in D, F and A
LABEL_PROGRESSIONS = ("I V vi IV", "I IV V I", "i VI III VII", "i iv v i")


def half_of(style: Style, family: str) -> Half:
    """The half that a clip in `style` belongs to for the concepts of one family."""
    labels = style.progression in LABEL_PROGRESSIONS if family == "key" else style.tonic in LABEL_TONICS
    return "label" if labels else "score"


def balanced_clips(clips: int, seed: int) -> list[int]:
    """The first clips of corpus `seed` that fill all four pairs of halves equally: their numbers, ascending [clips].

    Raises:
      MusaeError: `clips` is not a positive multiple of four.
    """
    if clips < 4 or clips % 4:
        raise MusaeError(f"{clips} clips cannot fill four quarters equally; ask for a multiple of four")
    room = dict.fromkeys([(a, b) for a in ("label", "score") for b in ("label", "score")], clips // 4)
    chosen, number = [], 0
    while len(chosen) < clips:
        style = style_of(seed, number)
        quarter = half_of(style, "key"), half_of(style, "tempo")
        if room[quarter]:
            room[quarter] -= 1
            chosen.append(number)
        number += 1
    return chosen


def style_of(seed: int, number: int) -> Style:
    """The style in which clip `number` of corpus `seed` is composed."""
    return sample_style(np.random.default_rng(seed * SEEDS_PER_CORPUS + number))
