"""What a source of names hears in music: for each clip and concept a number that grows with how much of it there is.

Truth, descriptors, tagger and CLAP all say what they hear in this one form, so each can name features, and each can
judge names that another gave. Scores of different concepts are never compared with each other, only ranked among clips.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from musae_jax.errors import MusaeError
from musae_jax.features.firing import PARTS, mean_of_shares
from musae_jax.files import atomic_path
from musae_jax.labels.scores import Concept, Truth


@dataclass(frozen=True)
class Hearing:
    """What `source` hears of C concepts in n clips.

    Attributes:
      clips: float32 [n, C], of the whole clip.
      parts: float32 [n, W, C'], of each of W equal shares of it, for the C' concepts of level "frame" in their order.
      embedding: float32 [n, E], where the source has one of the sound as a whole: what sounds alike is near.
      ear: which model heard, where several can.
      hears: of a name that is no concept of the source, how strongly it is heard, [n], or None if it means nothing to
        the source. One that understands any text (CLAP) has it.
    """

    source: str
    clip_ids: tuple[str, ...]
    concepts: tuple[Concept, ...]
    clips: np.ndarray
    parts: np.ndarray
    embedding: np.ndarray | None = None
    ear: str = ""
    hears: Callable[[str], np.ndarray | None] | None = None

    def __post_init__(self):
        n, framed = len(self.clip_ids), int(self.framed.sum())
        if self.clips.shape != (n, len(self.concepts)) or (self.parts.shape[0], self.parts.shape[2]) != (n, framed):
            raise ValueError(
                f"{self.source} hears {len(self.concepts)} concepts, {framed} of them in parts, in {n} clips, but its "
                f"scores are {self.clips.shape} and {self.parts.shape}"
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
        if self.framed[concept]:
            return self.parts[:, :, self.framed[:concept].sum()]
        return self.clips[:, [concept]]

    def subset(self, clip_ids: Sequence[str]) -> "Hearing":
        """The same of some of the clips, in the order given. Raises `MusaeError` if a clip is unknown."""
        place = {clip: n for n, clip in enumerate(self.clip_ids)}
        missing = [clip for clip in clip_ids if clip not in place]
        if missing:
            raise MusaeError(f"the source {self.source} has not heard the clip {missing[0]}; run `musae label` again")
        rows = np.asarray([place[clip] for clip in clip_ids], int)

        def hears(name: str) -> np.ndarray | None:
            heard = self.hears(name)
            return None if heard is None else heard[rows]

        return replace(
            self,
            clip_ids=tuple(clip_ids),
            clips=self.clips[rows],
            parts=self.parts[rows],
            embedding=None if self.embedding is None else self.embedding[rows],
            hears=hears if self.hears else None,
        )


def join_hearings(hearings: Sequence[Hearing]) -> Hearing:
    """What several ears of one source hear of the same clips; a concept that two of them know is the first's."""
    first = hearings[0]
    concepts, clips, parts, known = [], [], [], set()
    for one in hearings:
        mine = np.asarray([concept.name not in known for concept in one.concepts], bool)
        known |= {concept.name for concept in one.concepts}
        concepts += [concept for concept, use in zip(one.concepts, mine) if use]
        clips.append(one.clips[:, mine])
        parts.append(one.parts[:, :, mine[one.framed]])
    embeddings = [one.embedding for one in hearings if one.embedding is not None]
    return replace(
        first,
        concepts=tuple(concepts),
        clips=np.concatenate(clips, 1),
        parts=np.concatenate(parts, 2),
        embedding=np.concatenate(embeddings, 1) if embeddings else None,
    )


def more_clips(first: Hearing, second: Hearing) -> Hearing:
    """What one ear hears of two corpora, as of one; embeddings are left out, as each is standardised by itself."""
    if (first.source, first.concepts) != (second.source, second.concepts):
        raise ValueError(f"{first.source} and {second.source} do not hear the same concepts")
    return replace(
        first,
        clip_ids=first.clip_ids + second.clip_ids,
        clips=np.concatenate([first.clips, second.clips]),
        parts=np.concatenate([first.parts, second.parts]),
        embedding=None,
        hears=None,
    )


def hear_truth(truth: Truth, parts: int = PARTS) -> Hearing:
    """The composer's truth in the form of a source: how much of the clip, or of a share of it, has the concept."""
    framed = [c for c, concept in enumerate(truth.concepts) if concept.level == "frame"]
    return Hearing(
        "truth",
        truth.clip_ids,
        truth.concepts,
        truth.active.mean(1, dtype=np.float32),
        mean_of_shares(truth.active[:, :, framed], parts),
    )


def save_hearing(path: str | Path, hearing: Hearing) -> None:
    """Writes one safetensors file; `hears` is not kept."""
    arrays = {"clips": hearing.clips, "parts": hearing.parts}
    if hearing.embedding is not None:
        arrays["embedding"] = hearing.embedding
    note = {
        "source": hearing.source,
        "ear": hearing.ear,
        "clip_ids": hearing.clip_ids,
        "concepts": [(c.name, c.family, c.level) for c in hearing.concepts],
    }
    with atomic_path(path) as temporary:  # one entry: safetensors writes several in no fixed order
        plain = {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}
        save_file(plain, temporary, {"hearing": json.dumps(note)})


def load_hearing(path: str | Path) -> Hearing:
    """Reads what `save_hearing` wrote."""
    if not Path(path).exists():
        raise MusaeError(f"{path} is missing; run `musae label` first")
    try:
        with safe_open(path, "np") as file:
            note = json.loads((file.metadata() or {})["hearing"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
        concepts = tuple(Concept(*row) for row in note["concepts"])
        return Hearing(note["source"], tuple(note["clip_ids"]), concepts, **arrays, ear=note["ear"])
    except (KeyError, ValueError, TypeError, SafetensorError) as error:
        raise MusaeError(f"{path} is damaged ({error}); delete it and run `musae label` again") from None
