"""SAEs on activations whose features are known: does each architecture find them, and in the published order?

A small SynthSAEBench (arXiv 2602.14687): its generator, hierarchy and measures at a sixteenth of its features, as many
planted for each latent, and k as the L0 of the d_sae most frequent features. What it published at 16,384 features
stands beside; a smaller truth is another truth, so the order is to be met and the figures to be near. Two things differ
besides size: activations are centred and scaled before training, and directions are moved apart by plain gradients.
"""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from musae_jax.bench.rows import bench_row
from musae_jax.files import read_json
from musae_jax.sae.batch_topk import BatchTopKConfig
from musae_jax.sae.controls import pca_sae, random_sae
from musae_jax.sae.metrics import evaluate
from musae_jax.sae.planted import PlantedActivations, PlantedConfig, plant
from musae_jax.sae.recipe import Recipe
from musae_jax.sae.recovery import recovery
from musae_jax.sae.relu import ReLUConfig
from musae_jax.sae.sae import SAE
from musae_jax.sae.stability import stability
from musae_jax.sae.train import METRICS, train_saes

PEER = "SynthSAEBench-16k"
# At L0 = 25, d_sae 4096, 200M tokens (SAELens, docs/synth_sae_bench.md).
PUBLISHED = {
    "matryoshka": {"f1": 0.8793, "mcc": 0.7927, "uniqueness": 0.9987, "fvu": 1 - 0.7792},
    "batch_topk": {"f1": 0.7316, "mcc": 0.7574, "uniqueness": 0.9837, "fvu": 1 - 0.7923},
    "relu": {"f1": 0.5562, "mcc": 0.6039, "uniqueness": 0.8976, "fvu": 1 - 0.7654},
}
MEASURES = {  # unit, whether more is better
    "f1": ("mean over latents", True),
    "f1_matched": ("mean over latents", True),
    "mcc": ("mean |cosine|", True),
    "uniqueness": ("share of latents", True),
    "fvu": ("share of variance", False),
    "l0": ("latents per token", True),
    "dead_share": ("share of latents", False),
}

Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class PlantedBench:
    """The size of the bench; the published one is in parentheses.

    Attributes:
      planted: the truth (16,384 features in 768 dimensions, 128 trees).
      d_sae: latents (4096).
      k: active latents per token (25).
      l1_coefficient: of the ReLU SAE, set so that its L0 comes near k (tuned while training).
      steps, batch_size, lr: of all (195,000, 1024, 3e-4).
      shards: of 8192 tokens each that are trained on again and again (200M tokens, none twice).
      seeds: SAEs of each kind (5).
    """

    planted: PlantedConfig = dataclasses.field(default_factory=lambda: PlantedConfig(1024, 128, roots=8))
    d_sae: int = 256
    k: int = 5
    l1_coefficient: float = 3.0
    steps: int = 4000
    batch_size: int = 1024
    lr: float = 2e-3
    shards: int = 32
    seeds: int = 3

    def recipes(self) -> dict[str, Recipe]:
        """The architectures; nested groups are 1/32, 1/8, 1/2 and all of the latents, as published."""
        sizes = {"d_in": self.planted.d_in, "d_sae": self.d_sae}
        common = {"steps": self.steps, "batch_size": self.batch_size, "lr": self.lr}
        nested = (1 / 32, 3 / 32, 3 / 8, 1 / 2)
        return {
            "matryoshka": BatchTopKConfig(**sizes, k=self.k, group_fractions=nested, **common),
            "batch_topk": BatchTopKConfig(**sizes, k=self.k, **common),
            "relu": ReLUConfig(**sizes, l1_coefficient=self.l1_coefficient, **common),
        }


def bench_planted(bench: PlantedBench | None = None, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Rows `planted/KIND/MEASURE` for Matryoshka, BatchTopK, ReLU + L1, random directions and PCA; see `bench_row`.

    Every kind is trained from `seeds` weights on one stream of tokens and measured on two shards that none has seen.
    `stability` rows say how many features the seeds share.
    """
    b = bench or PlantedBench()
    source = PlantedActivations(plant(b.planted), b.shards + 2)
    test = range(b.shards, b.shards + 2)
    held_out = [id for shard in test for id in source.shard_clips(shard)]
    with tempfile.TemporaryDirectory() as work:
        folders = {
            Path(work) / kind / str(seed): dataclasses.replace(recipe, seed=seed)
            for kind, recipe in b.recipes().items()
            for seed in range(b.seeds)
        }
        saes = train_saes(source, folders, held_out, drop_start=False, save_every=b.steps, progress=progress)
        found = [(folder.parent.name, sae, read_json(folder / METRICS)) for folder, sae in zip(folders, saes)]
    sample = source.shard(0)[1].reshape(-1, source.d_in)
    for seed in range(b.seeds):
        control = random_sae(jax.random.key(seed), sample, b.d_sae, b.k)
        found.append(("random", control, evaluate(control, source, held_out, drop_start=False)))
    pca = pca_sae(sample, min(b.d_sae // 2, source.d_in), b.k)
    found.append(("pca", pca, evaluate(pca, source, held_out, drop_start=False)))
    return _rows(b, source, test, found)


def _rows(
    b: PlantedBench, source: PlantedActivations, test: range, found: list[tuple[str, SAE, dict[str, Any]]]
) -> list[dict[str, Any]]:
    record = dataclasses.asdict(b)
    scores: dict[str, list[dict[str, float]]] = {}
    decoders: dict[str, list[np.ndarray]] = {}
    for kind, sae, metrics in found:
        scores.setdefault(kind, []).append({**metrics, **recovery(sae, source, test)})
        decoders.setdefault(kind, []).append(np.asarray(sae.params["W_dec"]))
    rows = []
    for kind, ones in scores.items():
        for measure, (unit, more) in MEASURES.items():
            peer = PUBLISHED.get(kind, {}).get(measure)
            values, beside = [one[measure] for one in ones], PEER if peer else None
            rows.append(bench_row(f"planted/{kind}/{measure}", record, values, unit, peer, beside, more))
        if len(ones) > 1:
            alike = stability(decoders[kind])["above"]
            rows += [
                bench_row(f"planted/{kind}/stability_{level}", record, share, "share of features")
                for level, share in alike.items()
            ]
    true_l0 = scores["random"][0]["true_l0"]
    return [*rows, bench_row("planted/truth/l0", record, true_l0, "features per token")]
