"""Names from an audio classifier: the tags that are more probable where a feature fires than elsewhere."""

from collections.abc import Callable, Sequence

import numpy as np

from musae_jax.batching import in_batches
from musae_jax.compose.concepts import CONCEPT_INDEX, VOCABULARY
from musae_jax.features.firing import PARTS
from musae_jax.labels import onnx_tagger
from musae_jax.labels.hearing import Hearing
from musae_jax.labels.onnx_tagger import OnnxTagger
from musae_jax.labels.scores import Concept
from musae_jax.models.ast import Tagger, tag_probabilities

SOURCE = "tagger"
BATCH = 16  # windows at a time, at most
OVERLAP = 4  # windows begin so many times in the length of one


def tag_concepts(labels: Sequence[str]) -> tuple[Concept, ...]:
    """A concept for each class: the composer's where it bears that name, else one of whole clips."""
    return tuple(
        Concept(name, VOCABULARY[CONCEPT_INDEX[name]].family, VOCABULARY[CONCEPT_INDEX[name]].level)
        if name in CONCEPT_INDEX
        else Concept(name, name.split(": ")[0] if ": " in name else "tag")
        for name in labels
    )


def hear_tags(
    tagger: Tagger | OnnxTagger,
    clip_ids: Sequence[str],
    load: Callable[[str], np.ndarray],
    sampling_rate: int,
    progress: Callable[[int, int, str], None] | None = None,
    parts: int = PARTS,
) -> Hearing:
    """Log odds of every tag; `load(clip id)` gives audio [S].

    Of a clip they are the mean over windows that overlap, of a share of it those of the window whose middle is nearest;
    an ONNX tagger hears whole clips. The embedding is a clip's log odds, standardised.
    """
    listen = _by_window if isinstance(tagger, Tagger) else _by_clip
    concepts = tag_concepts(tagger.config.labels if isinstance(tagger, Tagger) else tagger.labels)
    framed = np.asarray([concept.level == "frame" for concept in concepts])
    clips, shares = [], []
    for done, clip in enumerate(clip_ids, start=1):
        odds, middles = listen(tagger, load(clip), sampling_rate)
        clips.append(odds.mean(0))
        nearest = np.abs(middles[:, None] - (np.arange(parts) + 0.5) / parts).argmin(0)  # [W]
        shares.append(odds[nearest][:, framed])
        if progress:
            progress(done, len(clip_ids), "clips tagged")
    heard = np.stack(clips)
    spread = heard.std(0)
    embedding = (heard - heard.mean(0)) / np.where(spread > 1e-6, spread, 1.0)
    return Hearing(SOURCE, tuple(clip_ids), concepts, heard, np.stack(shares), embedding)


def _by_window(tagger: Tagger, audio: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Log odds [W', C] of windows of a sound [S], and where their middles are, as shares of it, [W']."""
    windows, middles = tagger.front_end.cut(audio, rate, tagger.config.max_length, OVERLAP)
    size = min(len(windows), BATCH)  # clips of one length are compiled for once, and nothing is filled up
    return _log_odds(in_batches(lambda x: tag_probabilities(tagger.config, tagger.params, x), windows, size)), middles


def _by_clip(tagger: OnnxTagger, audio: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray]:
    return _log_odds(onnx_tagger.tag(tagger, audio[None], rate)), np.asarray([0.5])


def _log_odds(probability: np.ndarray) -> np.ndarray:
    likely = np.clip(np.asarray(probability, np.float64), 1e-6, 1 - 1e-6)
    return np.log(likely / (1 - likely)).astype(np.float32)
