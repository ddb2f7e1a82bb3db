"""Activations with known truth: sparse sums of planted directions, as SynthSAEBench makes them.

The generator is that of Chanin and Garriga-Alonso 2026 (arXiv 2602.14687; SAELens `synthetic`) at any size: features
fire as a thresholded Gaussian with low-rank correlations, as often as a Zipf law says; some stand in trees, where a
child fires only with its parent, in proportion to it, and never with its siblings; and there are more directions than
dimensions. The source is an `Activations`, so `train_saes` runs on it as on music.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.special import ndtri

from musae_jax.activations.store import json_sha256
from musae_jax.errors import MusaeError

_PLANT, _SAMPLE = 0, 1  # streams of random numbers
_BLOCK = 256  # tokens drawn at a time: what fits a processor's cache is drawn several times as fast


@dataclasses.dataclass(frozen=True)
class PlantedConfig:
    """What is planted; SynthSAEBench-16k is PlantedConfig(16384, 768, roots=128).

    Attributes:
      features: M, how many are planted, the most frequent first.
      d_in: D.
      max_probability, min_probability, exponent: the share of tokens feature r = 1 … M fires on falls from the first to
        the second as r^-exponent.
      roots, branching, depth: the first features are the roots of trees, the next their children, level by level.
      rank, correlation: each feature's Gaussian is a sum of `rank` shared ones, with normal weights of this deviation,
        and its own rest.
      first_size, last_size: mean activation of the first and the last feature, linear between.
      size_mean, size_deviation: the deviation of an activation is |N(size_mean, size_deviation²)|, once a feature.
      bias: norm of a constant added to every token.
      repulsion_steps, repulsion_rate: gradient steps that make the random directions less alike, and their rate.
      seed: of all of it.
    """

    features: int = 2048
    d_in: int = 256
    _: dataclasses.KW_ONLY
    max_probability: float = 0.4
    min_probability: float = 5e-4
    exponent: float = 0.5
    roots: int = 16
    branching: int = 4
    depth: int = 3
    rank: int = 25
    correlation: float = 0.1
    first_size: float = 5.0
    last_size: float = 4.0
    size_mean: float = 0.5
    size_deviation: float = 0.5
    bias: float = 0.5
    repulsion_steps: int = 100
    repulsion_rate: float = 0.05
    seed: int = 42

    def __post_init__(self):
        if not 0 < self.min_probability < self.max_probability < 1:
            raise MusaeError(
                f"the planted features' probabilities fall from {self.max_probability} to {self.min_probability}; both"
                " must be between 0 and 1 and the first the larger"
            )
        if self.rank * self.correlation**2 >= 1:
            raise MusaeError(
                f"rank {self.rank} and correlation {self.correlation} leave the planted features nothing of their own;"
                f" keep correlation below {self.rank**-0.5:.3g}"
            )
        if (needed := self.level_ends[-1]) > self.features:
            raise MusaeError(
                f"{self.roots} trees of depth {self.depth} hold {needed} features, but only {self.features} are"
                " planted; plant fewer trees or more features"
            )

    @property
    def level_ends(self) -> tuple[int, ...]:
        """Where the roots end among the features, then each level of children."""
        sizes = [self.roots * self.branching**level for level in range(self.depth + 1)]
        return tuple(np.cumsum(sizes).tolist())


@dataclasses.dataclass(frozen=True, eq=False)
class Planted:
    """What `plant` made of a config; M features, all arrays NumPy.

    directions [M, D]: unit rows.  bias [D].  probabilities [M]: the share of tokens each feature is meant to fire on.
    thresholds [M]: of its Gaussian.  factor [M, rank], rest [M]: weights of the shared Gaussians and of its own.
    size, deviation [M]: mean and deviation of its activation.
    """

    config: PlantedConfig
    directions: np.ndarray
    bias: np.ndarray
    probabilities: np.ndarray
    thresholds: np.ndarray
    factor: np.ndarray
    rest: np.ndarray
    size: np.ndarray
    deviation: np.ndarray


def plant(config: PlantedConfig) -> Planted:
    """The features of a config; the same config plants the same ones."""
    c, rng = config, np.random.default_rng([_PLANT, config.seed])
    law = np.arange(1, c.features + 1, dtype=np.float64) ** -c.exponent
    share = (law - law[-1]) / max(law[0] - law[-1], 1e-30)
    probabilities = c.min_probability + (c.max_probability - c.min_probability) * share  # [M]
    factor = rng.normal(size=(c.features, c.rank)) * c.correlation
    own = 1 - (factor**2).sum(1)
    crowded = own < 0.01  # the shared Gaussians would leave a feature hardly anything
    factor[crowded] *= np.sqrt(0.99 / (factor[crowded] ** 2).sum(1, keepdims=True))
    bias = rng.normal(size=c.d_in)
    return Planted(
        config=c,
        directions=_spread(rng.normal(size=(c.features, c.d_in)), c.repulsion_steps, c.repulsion_rate),
        bias=(bias * c.bias / np.linalg.norm(bias)).astype(np.float32),
        probabilities=probabilities,
        thresholds=-ndtri(np.minimum(probabilities * _compensation(c, probabilities), 1.0)).astype(np.float32),
        factor=factor.astype(np.float32),
        rest=np.sqrt(np.maximum(1 - (factor**2).sum(1), 0.01)).astype(np.float32),
        size=np.linspace(c.first_size, c.last_size, c.features).astype(np.float32),
        deviation=np.abs(rng.normal(c.size_mean, c.size_deviation, c.features)).astype(np.float32),
    )


def _compensation(c: PlantedConfig, probabilities: np.ndarray) -> np.ndarray:
    """How much more often a child must try to fire because its parent may be silent and siblings exclude it [M]."""
    factors = np.ones(c.features)
    for parents, children in _levels(c):
        above = np.repeat(probabilities[parents], c.branching)
        own = probabilities[children]
        siblings = np.repeat(own.reshape(-1, c.branching).sum(1), c.branching) - own
        factors[children] = (1 + siblings / above) / above
    return factors


def _levels(c: PlantedConfig) -> Iterator[tuple[slice, slice]]:
    """(parents, children) of each level of the trees, from the top; a parent's children are neighbours."""
    ends = (0, *c.level_ends)
    for top, middle, bottom in zip(ends, ends[1:], ends[2:]):
        yield slice(top, middle), slice(middle, bottom)


def _spread(rows: np.ndarray, steps: int, rate: float) -> np.ndarray:
    """Unit rows [M, D], moved apart by gradient steps on their squared cosines."""
    unit = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    for _ in range(steps):
        # Σ (u·v)² over other rows has the gradient 2 (UᵀU − 1) u: a D × D matrix, never M × M.
        unit = unit - rate * (unit @ (unit.T @ unit) - unit) * unit.shape[1] / len(unit)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return unit


def sample_planted(planted: Planted, rng: np.random.Generator, tokens: int) -> np.ndarray:
    """Activations of the planted features on `tokens` independent tokens, float32 [N, M], 0 where one is silent."""
    activations = np.zeros((tokens, planted.config.features), np.float32)
    for start in range(0, tokens, _BLOCK):
        _draw(planted, rng, activations[start : start + _BLOCK])
    return activations


def _draw(planted: Planted, rng: np.random.Generator, activations: np.ndarray) -> None:
    """Fills zeros [N, M]."""
    c, tokens = planted.config, len(activations)
    level = rng.standard_normal(activations.shape, np.float32)
    level *= planted.rest
    level += rng.standard_normal((tokens, c.rank), np.float32) @ planted.factor.T
    token, feature = np.nonzero(level > planted.thresholds)
    size = planted.size[feature] + planted.deviation[feature] * rng.standard_normal(len(feature), np.float32)
    activations[token, feature] = np.maximum(size, 0)
    for parents, children in _levels(c):
        above = activations[:, parents] / planted.size[parents]  # [N, parents], 0 where silent
        below = activations[:, children].reshape(tokens, -1, c.branching) * above[:, :, None]
        # Of siblings that fire together one is left, each as likely.
        order = rng.random(below.shape, np.float32) * (below > 0)
        below *= (order == order.max(2, keepdims=True)) & (order > 0)
        activations[:, children] = below.reshape(tokens, -1)


@dataclasses.dataclass(frozen=True, eq=False)
class PlantedActivations:
    """An endless corpus cut to `shards`: an `Activations` whose clips are independent tokens drawn from `planted`.

    Nothing is kept: the same shard is drawn again, to the bit, whenever it is read.
    """

    planted: Planted
    shards_count: int
    clips_per_shard: int = 32
    tokens_per_clip: int = 256
    hook: str = "blocks.0.resid_post"

    @property
    def name(self) -> str:
        return "the planted activations"

    @property
    def description(self) -> dict[str, Any]:
        sizes = {"positions": self.positions, "d": self.d_in, "clips": len(self.clip_ids), "dtype": "float32"}
        plan = {**dataclasses.asdict(self.planted.config), "clips_per_shard": self.clips_per_shard}
        return {"model": "planted", "hook": self.hook, "layer": 0, "planted": plan, **sizes}

    @property
    def content_sha256(self) -> str:
        return json_sha256(self.description)

    @property
    def d_in(self) -> int:
        return self.planted.config.d_in

    @property
    def positions(self) -> int:
        """Tokens of a clip; there is no start step, so trainers want drop_start=False."""
        return self.tokens_per_clip

    @property
    def clip_ids(self) -> tuple[str, ...]:
        return tuple(id for shard in range(len(self)) for id in self.shard_clips(shard))

    def __len__(self) -> int:
        return self.shards_count

    def shard_clips(self, index: int) -> tuple[str, ...]:
        """The clip ids of one shard."""
        first = index * self.clips_per_shard
        return tuple(f"{number:06d}" for number in range(first, first + self.clips_per_shard))

    def truth(self, index: int) -> np.ndarray:
        """What the planted features did in a shard, float32 [n · P, M]; tokens in the order of `shard`."""
        rng = np.random.default_rng([_SAMPLE, self.planted.config.seed, index])
        return sample_planted(self.planted, rng, self.clips_per_shard * self.tokens_per_clip)

    def shard(self, index: int) -> tuple[tuple[str, ...], np.ndarray]:
        """(clip ids, activations [n, P, D] float32) of one shard."""
        x = self.truth(index) @ self.planted.directions + self.planted.bias
        return self.shard_clips(index), x.reshape(self.clips_per_shard, self.positions, self.d_in)

    def shards(self) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
        """All shards in order."""
        for index in range(len(self)):
            yield self.shard(index)
