"""Names from CLAP: the words of a vocabulary that fit the sound where a feature fires better than elsewhere."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from musae_jax.compose.concepts import CONCEPT_INDEX, VOCABULARY
from musae_jax.errors import MusaeError
from musae_jax.features.firing import PARTS
from musae_jax.labels.hearing import Hearing
from musae_jax.labels.scores import Concept
from musae_jax.labels.vocabulary import TEMPLATES
from musae_jax.models.clap import Clap, embed_audio, embed_text

SOURCE = "clap"
BATCH = 16


def hear_words(
    clap: Clap,
    vocabulary: Mapping[str, Sequence[str]],
    clip_ids: Sequence[str],
    load: Callable[[str], np.ndarray],
    sampling_rate: int,
    progress: Callable[[int, int, str], None] | None = None,
    parts: int = PARTS,
) -> Hearing:
    """Cosines of clips with the mean of each name's phrases; `load(clip id)` gives audio [S].

    `vocabulary` gives for each name the phrases that say it. The embedding is CLAP's of the sound.
    """
    rows = []
    for start in range(0, len(clip_ids), BATCH):
        audio = np.stack([load(clip) for clip in clip_ids[start : start + BATCH]])
        rows.append(embed_audio(clap, audio, sampling_rate))
        if progress:
            progress(min(start + BATCH, len(clip_ids)), len(clip_ids), "clips heard by CLAP")
    sounds = np.concatenate(rows)  # [n, E]
    said = [embed_text(clap, list(phrases)).mean(0) for phrases in vocabulary.values()]
    concepts = tuple(
        # CLAP hears whole clips, also of what comes and goes
        Concept(name, VOCABULARY[CONCEPT_INDEX[name]].family if name in CONCEPT_INDEX else "words")
        for name in vocabulary
    )
    nothing = np.zeros((len(sounds), parts, 0), np.float32)
    return Hearing(SOURCE, tuple(clip_ids), concepts, sounds @ np.stack(said, 1), nothing, sounds)


def with_any_text(hearing: Hearing, clap: Clap) -> Hearing:
    """CLAP's hearing with the power to judge names that are not in its vocabulary."""

    def hears(name: str) -> np.ndarray | None:
        words = name.replace(": ", " ")
        try:
            said = embed_text(clap, [template.format(words) for template in TEMPLATES])
        except MusaeError:  # longer than CLAP reads
            return None
        return hearing.embedding @ said.mean(0)

    return replace(hearing, hears=hears)
