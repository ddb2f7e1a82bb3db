"""Who listens to the clips of a target, and what they hear: a feature at a time, so that no more sound is held."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from musae_jax.labels.descriptors import CONCEPTS
from musae_jax.labels.hearing import Hearing
from musae_jax.steering.arms import Row, Target
from musae_jax.steering.experiment import Experiment, sound_of
from musae_jax.steering.measures import Ear, collapses, concept_measures, near, remeasure

DESCRIBED = frozenset(concept.name for concept in CONCEPTS)


@dataclasses.dataclass(frozen=True)
class Listeners:
    """Who hears the clips.

    Attributes:
      ears: by source, `measures.CONCEPT_MEASURES` in that order.
      say: CLAP's embeddings of texts [N, E], for the adherence to prompts; None without CLAP.
      exemplars: CLAP's mean embedding [E] of each feature's strongest clips.
      corpus: CLAP's embeddings of music [M, E], from which Fréchet and kernel distances are taken.
    """

    ears: Mapping[str, Ear]
    say: Callable[[list[str]], np.ndarray] | None = None
    exemplars: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)
    corpus: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Heard:
    """What was heard in n clips: `values` {measure: [n]}, `active` [n, F'], `broken` {kind of collapse: bool [n]},
    CLAP's `embedding` [n, E] or None, and their sound, `audio` [n, S]."""

    values: Mapping[str, np.ndarray]
    active: np.ndarray
    broken: Mapping[str, np.ndarray]
    embedding: np.ndarray | None
    audio: np.ndarray


def hear_concept(
    target: Target, listeners: Listeners, audio: np.ndarray, first: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, Hearing]]:
    """What the ears hear of a target's concept in sounds [n, S], {measure: [n]}, and all that they hear.

    With `first` no more than the most independent one that knows the name is asked.
    """
    exemplars, heard = listeners.exemplars.get(target.feature), {}
    values: dict[str, np.ndarray] = {}
    for source, ear in listeners.ears.items():
        if source == "descriptors" and target.name not in DESCRIBED:
            continue  # slow, and another measures it better
        heard[source] = ear([str(n) for n in range(len(audio))], lambda clip: audio[int(clip)])
        values = concept_measures(target.name, heard, exemplars)
        if first and values:
            break
    return values, heard


def hear_target(
    one: Experiment,
    target: Target,
    listeners: Listeners,
    rows: Sequence[Row],
    codes: np.ndarray,
    features: Sequence[int],
) -> Heard:
    """Everything that is measured in the clips of a target, codes [n, K, T]; `features` are those whose activations are
    told, in shares of their greatest, the target's among them."""
    audio = sound_of(one, codes)
    values, heard = hear_concept(target, listeners, audio)
    active = remeasure(one.mg, one.sae, audio, features, min(one.config.batch_size, len(audio)))
    active = active / np.maximum(one.maximum[list(features)], 1e-12)
    values["activation"] = active[:, list(features).index(target.feature)]
    adherence = _adherence(rows, heard, listeners)
    if adherence is not None:
        values["adherence"] = adherence
    embedding = heard["clap"].embedding if "clap" in heard else None
    return Heard(values, active, collapses(audio, codes), embedding, audio)


def _adherence(rows: Sequence[Row], heard: Mapping[str, Hearing], listeners: Listeners) -> np.ndarray | None:
    """Cosine of each clip and its prompt (without the words that an arm adds), NaN without one: [R]; None without
    CLAP or prompts."""
    texts = sorted({row.prompt for row in rows} - {""})
    if not texts or listeners.say is None or "clap" not in heard:
        return None
    said = dict(zip(texts, listeners.say(texts)))
    nothing = np.full(heard["clap"].embedding.shape[1], np.nan)
    return near(heard["clap"].embedding, np.stack([said.get(row.prompt, nothing) for row in rows]))
