"""How much of a planted truth an SAE has found: SynthSAEBench's measures (arXiv 2602.14687, SAELens `synthetic.evals`).

A latent is taken for the planted feature whose direction is nearest to its decoder row, and judged as a classifier of
whether that feature fires.
"""

from collections.abc import Collection
from typing import Any

import numpy as np

from musae_jax.sae.matching import largest_cosines, match_rows
from musae_jax.sae.planted import PlantedActivations
from musae_jax.sae.sae import SAE, sae_encode


def recovery(sae: SAE, source: PlantedActivations, shards: Collection[int]) -> dict[str, Any]:
    """Scores over some shards of a planted source; a JSON-able dict, means over all F latents, dead ones count as 0.

    f1, precision, recall   of each latent for the feature nearest to it (the published definition)
    f1_matched              F1 where no two latents may stand for the same feature: the pairs are those of mcc
    mcc                     mean |cosine| of decoder rows and planted directions, matched one-to-one (Hungarian)
    uniqueness              different features that are some latent's nearest, as a share of F
    true_l0                 planted features active on a token
    """
    W_dec, directions = np.asarray(sae.params["W_dec"]), source.planted.directions
    _, nearest = largest_cosines(W_dec, directions)  # [F]
    latents, features, cosines = match_rows(W_dec, directions)
    both, fires = np.zeros(len(W_dec)), np.zeros(len(W_dec))
    matched_both = np.zeros(len(latents))
    total_truth, tokens = np.zeros(len(directions)), 0
    for shard in shards:
        truth = source.truth(shard) > 0  # [N, M]
        x = source.shard(shard)[1].reshape(-1, source.d_in)
        found = np.asarray(sae_encode(sae.config, sae.params, x)) > 0  # [N, F]
        both += (found & truth[:, nearest]).sum(0)
        matched_both += (found[:, latents] & truth[:, features]).sum(0)
        fires += found.sum(0)
        total_truth += truth.sum(0)
        tokens += len(x)
    truth_fires = total_truth[nearest]
    # 2 TP / (2 TP + FP + FN), the harmonic mean of precision and recall
    f1 = _share(2 * both, fires + truth_fires)
    f1_matched = np.zeros(len(W_dec))
    f1_matched[latents] = _share(2 * matched_both, fires[latents] + total_truth[features])
    return {
        "f1": float(f1.mean()),
        "precision": float(_share(both, fires).mean()),
        "recall": float(_share(both, truth_fires).mean()),
        "f1_matched": float(f1_matched.mean()),
        "mcc": float(cosines.mean()),
        "uniqueness": len(np.unique(nearest)) / len(W_dec),
        "true_l0": float(total_truth.sum() / tokens),
        "tokens": tokens,
    }


def _share(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return above / np.maximum(below, 1e-12)
