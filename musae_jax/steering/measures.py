"""What is heard in finished clips: none of these but `activation` looks at the SAE.

judge        log odds of the concept by the judge that hears audio only (`validation.judge`)
tagger       log odds by the audio classifier, the pocket's or an AST
clap         cosine of the sound and the name's words
descriptors  the signal descriptor of the name, in its own unit, towards the end that the name expects
exemplars    cosine of the sound and the mean of the feature's strongest clips, of the half that did not name it
activation   the feature's mean activation when the sound is encoded and harvested anew, unsteered, as a share of its
             greatest
adherence    cosine of the sound and the prompt; none where there is no prompt
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from musae_jax.batching import in_batches
from musae_jax.compose.concepts import CONCEPT_INDEX, VOCABULARY
from musae_jax.features.firing import PARTS
from musae_jax.labels.hearing import Hearing
from musae_jax.labels.scores import Concept
from musae_jax.labels.vocabulary import columns_of
from musae_jax.models.musicgen import MusicGen, encode_audio, forward
from musae_jax.sae.sae import SAE, sae_encode
from musae_jax.steering.directions import layer_of
from musae_jax.validation.judge import Judge, judge_probabilities

CONCEPT_MEASURES = ("judge", "tagger", "clap", "descriptors", "exemplars")  # of the concept, the most independent first
MEASURES = (*CONCEPT_MEASURES, "activation", "adherence")
SILENT = 1e-3  # root mean square, -60 dBFS
CLIPPED = 0.01  # share of samples at full scale
LOOPED = 0.5  # share of frames that repeat exactly what was some lag earlier

Ear = Callable[[Sequence[str], Callable[[str], np.ndarray]], Hearing]


def judge_ear(judge: Judge, sampling_rate: int) -> Ear:
    """The judge as a source that hears whole clips: log odds of each of its concepts."""
    concepts = tuple(
        Concept(name, VOCABULARY[CONCEPT_INDEX[name]].family if name in CONCEPT_INDEX else name) for name in judge.names
    )

    def hear(clip_ids: Sequence[str], load: Callable[[str], np.ndarray]) -> Hearing:
        likely = np.asarray(judge_probabilities(judge, [load(clip) for clip in clip_ids], sampling_rate))
        likely = likely.astype(np.float64).clip(1e-6, 1 - 1e-6)
        nothing = np.zeros((len(clip_ids), PARTS, 0), np.float32)
        odds = np.log(likely / (1 - likely)).astype(np.float32)
        return Hearing("judge", tuple(clip_ids), concepts, odds, nothing)

    return hear


def told(name: str, hearing: Hearing) -> np.ndarray | None:
    """How much of a name a source hears in each clip, in its own unit: [n], or None if the name means nothing to it."""
    columns = columns_of(name, hearing)
    if columns:
        return np.maximum.reduce([hearing.of(column).mean(1) for column in columns])
    return hearing.hears(name) if hearing.hears else None


def near(embedding: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Cosines of [n, E] with [E] or, row by row, [n, E]. -> [n]"""
    lengths = np.linalg.norm(embedding, axis=-1) * np.linalg.norm(direction, axis=-1)
    return (embedding * direction).sum(-1) / np.maximum(lengths, 1e-12)


def remeasure(mg: MusicGen, sae: SAE, audio: np.ndarray, features: Sequence[int], batch_size: int) -> np.ndarray:
    """Mean activation of features when audio [R, S] is encoded and harvested anew. -> [R, F']"""
    layer, places = layer_of(sae), jnp.asarray(list(features), int)

    def measure(batch: np.ndarray) -> jax.Array:
        codes = encode_audio(mg.config, mg.params, batch)
        residuals = forward(mg.config, mg.params, codes, taps=(layer,), logits=False).residuals[layer]
        # [B, T, F'] without the start step
        return sae_encode(sae.config, sae.params, residuals[:, 1:])[..., places].mean(1)

    return in_batches(measure, audio, batch_size)


def collapses(audio: np.ndarray, codes: np.ndarray) -> dict[str, np.ndarray]:
    """Which clips are no music any more, by kind: {"silent", "clipping", "loop"}: bool [R].

    audio [R, S] within -1 and 1, codes [R, K, T]. Silent: below -60 dBFS. Clipping: more than 1 % of samples at full
    scale. A loop: more than half of the frames are the same in all codebooks as some lag, the same for all, earlier;
    lags reach to half of the clip.
    """
    frames = codes.shape[-1]
    repeated = np.zeros(len(codes))
    for lag in range(1, frames // 2 + 1):
        same = (codes[:, :, lag:] == codes[:, :, :-lag]).all(1).mean(1)
        repeated = np.maximum(repeated, same)
    return {
        "silent": np.sqrt((audio.astype(np.float64) ** 2).mean(1)) < SILENT,
        "clipping": (np.abs(audio) >= 0.999).mean(1) > CLIPPED,
        "loop": repeated > LOOPED,
    }


def concept_measures(name: str, heard: Mapping[str, Hearing], exemplars: np.ndarray | None) -> dict[str, np.ndarray]:
    """What each source hears of a name in n clips: {measure: [n]}, without those to which it means nothing.

    `exemplars` [E] is the mean of CLAP's embeddings of the feature's strongest clips.
    """
    found = {source: told(name, hearing) for source, hearing in heard.items()}
    if exemplars is not None and "clap" in heard:
        found["exemplars"] = near(heard["clap"].embedding, exemplars)
    return {
        measure: np.asarray(found[measure], float) for measure in CONCEPT_MEASURES if found.get(measure) is not None
    }
