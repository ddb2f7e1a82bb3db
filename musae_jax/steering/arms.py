"""What is put beside what: the arms of a steering experiment, and the clips they make.

  sae            the feature's vector, α·β along its contrast or its decoder row (`how`), at the SAE's layer
  decoder        along its decoder row, where the feature's vector is its contrast
  random         a random direction, another for each pair: one alone may by luck point at the concept
  inactive       another feature's vector of the same kind, which is silent where this one fires
  other_layer    the feature's own vector, added at another layer
  diff_in_means  from clips without the concept to clips with it
  probe          the weights of a logistic regression that tells them
  pca            the first principal component of the same clips or frames
  prompt         no vector: the concept's words are added to the prompt
  unsteered      nothing

At each strength all vectors have the norm of the SAE's. Clips are paired: those of one prompt and seed begin from the
same noise, and differ by their arm only.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import numpy as np

from musae_jax.models.edits import Edits
from musae_jax.sae.sae import SAE
from musae_jax.steering.choices import How
from musae_jax.steering.directions import (
    contrast_vectors,
    difference_in_means,
    feature_vectors,
    layer_of,
    orthogonal_to,
    pca_direction,
    probe_directions,
    random_direction,
)

VECTORS = {"contrast": contrast_vectors, "add": feature_vectors}  # the feature's vector
DOSED = ("sae", "random")  # made at every strength, the others at the one at which arms are compared
FEWEST = 4  # clips or frames on either side of a contrast


@dataclass(frozen=True)
class Target:
    """A feature to steer.

    Attributes:
      name: what it is called; `phrase`: how a prompt asks for it.
      sources: who gave the name and who confirmed it.
      prompts: the texts to which it is steered, "" for none.
    """

    feature: int
    name: str
    phrase: str = ""
    sources: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ("",)

    def pairs(self, clips: int, first: int = 0) -> list[tuple[str, int]]:
        """(prompt, seed) of each of the clips, prompts in turn; seeds from `first` on."""
        count = len(self.prompts)
        return [(self.prompts[n % count], first + n // count) for n in range(clips)]


@dataclass(frozen=True)
class Row:
    """One clip to make; `feature` is None for the unsteered clip that all features of a prompt and seed share, and
    `text` the prompt as it is given, with the concept's words where the arm adds them."""

    feature: int | None
    arm: str
    strength: float
    prompt: str
    seed: int
    text: str


def choose_targets(
    rows: Iterable[Mapping[str, Any]], judged: Iterable[str] = (), count: int = 6, per_family: int = 2
) -> list[Target]:
    """The best-named features: one a name, at most `per_family` a family ("family: value"), by confidence.

    `rows` are those of labels.jsonl of one SAE. Names that the judge knows (`judged`) come first, because their effect
    can be told from the sound alone. Names at or below their null (confidence 0) are not steered. Where that gives
    fewer than `count`, more of a family are taken, and then more of a name.
    """
    judged = set(judged)
    rank = sorted(
        (row for row in rows if row["confidence"] > 0),
        key=lambda row: (row["name"] not in judged, -row["confidence"], row["feature"]),
    )
    targets: list[Target] = []
    for most, of_name in ((per_family, 1), (count, 1), (count, count)):
        for row in rank:
            family = row["name"].split(":")[0]
            alike = sum(one.name.split(":")[0] == family for one in targets)
            same = sum(one.name == row["name"] for one in targets)
            taken = any(one.feature == row["feature"] for one in targets)
            if not taken and alike < most and same < of_name and len(targets) < count:
                targets.append(Target(row["feature"], row["name"], sources=(row["source"],)))
    return targets


def inactive_feature(clip_mean: np.ndarray, fires: np.ndarray, feature: int) -> int:
    """The feature that is most silent in the clips where `feature` fires, bool [n], by clip means [n, F].

    Each is counted in shares of its own greatest; of equally silent ones it is that which is strongest elsewhere, so
    that the control is a feature like others.
    """
    greatest = clip_mean.max(0)
    shares = clip_mean / np.maximum(greatest, 1e-12)
    there = np.where(greatest > 0, shares[fires].mean(0), np.inf)
    there[feature] = np.inf
    return int(np.lexsort((-shares[~fires].mean(0), there.round(6)))[0])


def contrast_directions(
    x: np.ndarray, holds: Mapping[int, np.ndarray], arms: Iterable[str]
) -> dict[int, dict[str, np.ndarray]]:
    """Directions of the arms that are read off residuals x [n, T, D] with and without a concept: {feature: {arm: [D]}}.

    `holds` says for each feature where its concept is, bool [n, T]; without `FEWEST` on either side it has none.
    """
    usable = {f: told for f, told in holds.items() if min(told.sum(), (~told).sum()) >= FEWEST}
    found: dict[int, dict[str, np.ndarray]] = {feature: {} for feature in usable}
    if not usable:
        return found
    probes = probe_directions(x, np.stack(list(usable.values()), 2)) if "probe" in arms else []
    for feature, weights in zip(usable, probes):
        found[feature]["probe"] = weights
    first = pca_direction(x.reshape(-1, x.shape[-1])) if "pca" in arms else None
    for feature, told in usable.items():
        if "diff_in_means" in arms:
            found[feature]["diff_in_means"] = difference_in_means(x, told)
        if first is not None:
            found[feature]["pca"] = first
    return found


def inactive_direction(sae: SAE, feature: int, inactive: int, how: How) -> np.ndarray:
    """The direction of another feature, less what of it lies along the feature's own. -> [D]"""
    rows = sae.params["W_dec"] if how == "add" else sae.contrast
    return orthogonal_to(rows[inactive], rows[feature])


def pair_number(prompt: str, seed: int) -> int:
    """Of a prompt and seed, below 2^32, the same whatever else is asked for."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{prompt}".encode()).digest()[:4])


def plan_rows(
    targets: Sequence[Target],
    arms: Mapping[int, Sequence[str]],
    strengths: Sequence[float],
    main: Mapping[int, float],
    clips: int,
    first: int = 0,
) -> list[Row]:
    """Every clip of an experiment: the unsteered ones first, then each feature's.

    `arms` are those of each feature, `main` the strength at which all of them are made; `DOSED` ones are made at all
    `strengths` too.
    """
    pairs = {target.feature: target.pairs(clips, first) for target in targets}
    every = dict.fromkeys(pair for one in pairs.values() for pair in one)
    rows = [Row(None, "unsteered", 0.0, prompt, seed, prompt) for prompt, seed in every]
    for target in targets:
        for arm in arms[target.feature]:
            doses = {main[target.feature], *(strengths if arm in DOSED else ())}
            for strength in sorted(doses) if arm != "prompt" else (0.0,):
                rows += [
                    Row(target.feature, arm, float(strength), prompt, seed, _text(target, arm, prompt))
                    for prompt, seed in pairs[target.feature]
                ]
    return rows


def _text(target: Target, arm: str, prompt: str) -> str:
    return prompt if arm != "prompt" else f"{prompt}, {target.phrase}" if prompt else target.phrase


def row_vectors(
    sae: SAE,
    rows: Sequence[Row],
    directions: Mapping[int, Mapping[str, np.ndarray]],
    other_layer: int | None,
    key: jax.Array,
    how: How,
    maximum: Any = None,
) -> dict[int, np.ndarray]:
    """What is added in each row, after which layer: {layer: float32 [R, D]}, zeros where nothing is.

    `directions` gives those of each feature's arms but the random one, of any length: all are brought to the norm of
    the SAE's vector. A random direction, from `key`, is the same at all strengths of a feature and pair.
    """
    layer = layer_of(sae)
    vectors = {at: np.zeros((len(rows), sae.config.d_in), np.float32) for at in (layer, other_layer) if at is not None}
    steered = {row.feature for row in rows if row.feature is not None}
    units = {feature: np.asarray(VECTORS[how](sae, {feature: 1.0}, maximum)) for feature in steered}

    @cache
    def drawn(feature: int, prompt: str, seed: int) -> np.ndarray:
        own = jax.random.fold_in(jax.random.fold_in(key, feature), np.uint32(pair_number(prompt, seed)))
        return np.asarray(random_direction(own, Edits(vectors={layer: units[feature]})).vectors[layer])

    for place, row in enumerate(rows):
        if row.arm in ("unsteered", "prompt"):
            continue
        own = row.strength * units[row.feature]
        if row.arm in ("sae", "other_layer"):
            vectors[layer if row.arm == "sae" else other_layer][place] = own
            continue
        random = row.arm == "random"
        direction = drawn(row.feature, row.prompt, row.seed) if random else directions[row.feature][row.arm]
        size = np.linalg.norm(own) * np.sign(row.strength) / max(np.linalg.norm(direction), 1e-12)
        vectors[layer][place] = size * direction
    return vectors
