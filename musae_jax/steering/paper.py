"""The paper's own protocol (arXiv 2505.18186, section on steering and Table 2), beside its published figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from musae_jax.files import read_json_lines
from musae_jax.sae.sae import SAE
from musae_jax.steering.directions import layer_of

PROMPT = "Simple melody"
# Table 2, MusicGen-large, 32 features a coordinate: share of features whose sound moved towards their exemplars, by k
# and our layer (the paper's less one).
PUBLISHED = {
    100: {23: (96, 408), 35: (46, 131), 45: (27, 177)},
    32: {23: (44, 149), 35: (39, 135), 45: (16, 71)},
}


def published_share(sae: SAE) -> float | None:
    """What the paper found with this SAE; None where it is not one of the paper's."""
    c = sae.config
    theirs = str(c.metadata.get("hook_name_in_file", "")).startswith("hook_layers.")
    large = str(c.metadata.get("model_name", "")).endswith("musicgen-large") and c.d_sae == 32 * c.d_in
    moved = PUBLISHED.get(int(c.k or 0), {}).get(layer_of(sae)) if theirs and large else None
    return moved[0] / moved[1] if moved else None


def paper_table(summary: Mapping[str, Any], out: Path, sae: SAE) -> dict[str, Any]:
    """Shares of features whose sound is nearer to their exemplars than the unsteered one: in the first clip, as the
    paper had one, and in the mean of all; the same along a random direction; the share beyond luck."""
    rows = [row for row in read_json_lines(out / "effects.jsonl") if row["measure"] == "exemplars"]
    seeds = sorted({row["seed"] for row in rows})
    found: dict[tuple[int, str], dict[int, float]] = {}
    for row in rows:
        found.setdefault((row["feature"], row["arm"]), {})[row["seed"]] = row["value"]
    features = sorted({row["feature"] for row in rows})
    table: dict[str, Any] = {"prompt": PROMPT, "features": len(features), "clips": len(seeds)}
    for arm in ("sae", "random"):
        gains = np.asarray([[found[f, arm][s] - found[f, "unsteered"][s] for s in seeds] for f in features])
        table[arm] = {
            "first_clip": round(float((gains[:, 0] > 0).mean()), 4),
            "mean_of_clips": round(float((gains.mean(1) > 0).mean()), 4),
        }
    return {**table, "above_random_and_unsteered": summary["steered"], "published": published_share(sae)}
