"""What a source of names hears in music: for each clip and concept a number that grows with how much of it there is.

Truth, descriptors, tagger and CLAP all say what they hear in this one form, so each can name features, and each can
judge names that another gave. Scores of different concepts are never compared with each other, only ranked among clips.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from musae_jax.errors import MusaeError
from musae_jax.features.firing import PARTS, mean_of_shares
from musae_jax.labels.naming import Concept, Truth


@dataclass(frozen=True)
class Hearing:
    """What `source` hears of C concepts in n clips.

    Attributes:
      clips: float32 [n, C], of the whole clip.
      parts: float32 [n, W, C], of each of W equal shares of it; the columns of concepts that hold for whole clips are
        never read.
      hears: how strongly a name outside the vocabulary is heard, [n, W'] (W' = 1: of whole clips only); a source that
        understands any text (CLAP) has it.
    """

    source: str
    clip_ids: tuple[str, ...]
    concepts: tuple[Concept, ...]
    clips: np.ndarray
    parts: np.ndarray
    hears: Callable[[str], np.ndarray] | None = None

    def __post_init__(self):
        n, c = len(self.clip_ids), len(self.concepts)
        if self.clips.shape != (n, c) or (self.parts.shape[0], self.parts.shape[2]) != (n, c):
            raise ValueError(
                f"{self.source}: {self.clips.shape} and {self.parts.shape} are not {n} clips, {c} concepts"
            )

    @cached_property
    def column(self) -> dict[str, int]:
        """Where each name is."""
        return {concept.name: c for c, concept in enumerate(self.concepts)}

    @cached_property
    def framed(self) -> np.ndarray:
        """Which concepts come and go within a clip: bool [C]."""
        return np.asarray([concept.level == "frame" for concept in self.concepts], bool)

    def of(self, concept: int) -> np.ndarray:
        """What is heard of one concept: [n, 1] of whole clips, or [n, W] if it comes and goes."""
        return self.parts[:, :, concept] if self.framed[concept] else self.clips[:, [concept]]

    def subset(self, clip_ids: Sequence[str]) -> "Hearing":
        """The same of some of the clips, in the order given; `hears` is not carried over.

        Raises `MusaeError` if a clip is unknown.
        """
        place = {clip: n for n, clip in enumerate(self.clip_ids)}
        missing = [clip for clip in clip_ids if clip not in place]
        if missing:
            raise MusaeError(f"{self.source} has not heard the clip {missing[0]}; run `musae label` again")
        rows = [place[clip] for clip in clip_ids]
        return Hearing(self.source, tuple(clip_ids), self.concepts, self.clips[rows], self.parts[rows])


def hear_truth(truth: Truth, parts: int = PARTS) -> Hearing:
    """The composer's truth in the form of a source: how much of the clip, or of a share of it, has the concept."""
    pooled = mean_of_shares(truth.active, parts)
    return Hearing("truth", truth.clip_ids, truth.concepts, truth.active.mean(1, dtype=np.float32), pooled)
