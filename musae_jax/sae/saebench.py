"""Our measures in the shape of SAEBench's core evaluation (0.6.0, `CoreEvalOutput`), which its tables and plots read.

Numbers that were not measured are null and named in eval_result_unstructured.not_measured, never made up.
"""

import json
import uuid
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musae_jax.files import read_json, write_json
from musae_jax.sae.sae import SAE

METRICS, SPLICE, SAEBENCH = "metrics.json", "splice.json", "saebench_core.json"
MAX_PAIRS_OF = 2**16  # features up to which all pairs are compared
_BLOCK = 1024

_CATEGORIES = {
    "model_behavior_preservation": ("kl_div_score", "kl_div_with_ablation", "kl_div_with_sae"),
    "model_performance_preservation": (
        "ce_loss_score",
        "ce_loss_with_ablation",
        "ce_loss_with_sae",
        "ce_loss_without_sae",
    ),
    "reconstruction_quality": ("explained_variance", "explained_variance_legacy", "mse", "cossim"),
    "shrinkage": ("l2_norm_in", "l2_norm_out", "l2_ratio", "relative_reconstruction_bias"),
    "sparsity": ("l0", "l1"),
    "token_stats": ("total_tokens_eval_reconstruction", "total_tokens_eval_sparsity_variance"),
    "misc_metrics": (
        "freq_over_1_percent",
        "freq_over_10_percent",
        "normalized_freq_over_1_percent",
        "normalized_freq_over_10_percent",
        "average_max_encoder_cosine_sim",
        "average_max_decoder_cosine_sim",
        "frac_alive",
    ),
}


def saebench_core(sae: SAE, metrics: dict[str, Any], name: str = "", release: str = "", when_ms: int = 0) -> dict:
    """The core evaluation of SAEBench as a JSON-able dict, from what `evaluate` returned (or metrics.json holds).

    `name` and `release` become sae_lens_id and sae_lens_release_id; `when_ms` is the time of the measurement in
    milliseconds since 1970. Metrics may also hold any of SAEBench's kl_div_* and ce_loss_* under their own names.
    explained_variance is 1 − fvu; mse is of a coordinate (SAEBench divides by its batch size too).
    """
    c = sae.config
    known = {
        **{key: metrics[key] for key in (*_CATEGORIES["model_behavior_preservation"],) if key in metrics},
        **{key: metrics[key] for key in (*_CATEGORIES["model_performance_preservation"],) if key in metrics},
        **metrics.get("saebench", {}),
        "explained_variance": 1.0 - metrics["fvu"],
        "l0": metrics["l0"],
        "frac_alive": 1.0 - metrics["dead_share"],
        "total_tokens_eval_reconstruction": metrics["tokens"],
        "total_tokens_eval_sparsity_variance": metrics["tokens"],
    }
    if c.d_sae <= MAX_PAIRS_OF:
        known["average_max_encoder_cosine_sim"] = _mean_largest_cosine(np.asarray(sae.params["W_enc"]).T)
        known["average_max_decoder_cosine_sim"] = _mean_largest_cosine(np.asarray(sae.params["W_dec"]))
    results = {category: {key: known.get(key) for key in keys} for category, keys in _CATEGORIES.items()}
    missing = [key for keys in results.values() for key, value in keys.items() if value is None]
    identity = json.dumps([name, release, metrics], sort_keys=True)
    return {
        "eval_type_id": "core",
        "eval_config": {
            "model_name": str(c.metadata.get("model_name") or ""),
            "llm_dtype": "float32",
            "dataset": str(c.metadata.get("dataset_path") or "the run's own music"),
            "context_size": int(c.metadata.get("context_size") or 0),
            "compute_kl": "kl_div_score" not in missing,
            "compute_ce_loss": "ce_loss_score" not in missing,
            "compute_l2_norms": "l2_norm_in" not in missing,
            "compute_sparsity_metrics": "l1" not in missing,
            "compute_variance_metrics": "mse" not in missing,
            "compute_featurewise_density_statistics": False,
            "compute_featurewise_weight_based_metrics": False,
        },
        "eval_id": str(uuid.uuid5(uuid.NAMESPACE_OID, identity)),
        "datetime_epoch_millis": when_ms,
        "eval_result_metrics": results,
        "eval_result_details": [],
        "sae_bench_commit_hash": "musae_jax",
        "sae_lens_id": name,
        "sae_lens_release_id": release,
        "sae_lens_version": None,
        "sae_cfg_dict": {"architecture": c.architecture, "d_in": c.d_in, "d_sae": c.d_sae, "hook_name": c.hook},
        "eval_result_unstructured": {
            "not_measured": missing,
            "fvu_within_positions": metrics.get("fvu_within_positions"),
            "held_out": metrics.get("held_out"),
        },
    }


def write_saebench(folder: str | Path, sae: SAE, out: str | Path | None = None) -> Path | None:
    """Writes saebench_core.json beside the metrics.json of an SAE's folder, or to `out`; None without measures.

    With a splice.json there too (see `validation.splice`) nothing is left unmeasured.
    """
    folder = Path(folder)
    metrics = read_measures(folder) if (folder / METRICS).exists() else None
    if not isinstance(metrics, dict) or not {"fvu", "l0", "dead_share", "tokens"} <= set(metrics):
        return None
    when = int((folder / METRICS).stat().st_mtime * 1000)
    path = Path(out) if out else folder / SAEBENCH
    core = saebench_core(sae, metrics, folder.name, sae.config.hook, when)
    write_json(path, core)
    return path


def read_measures(folder: Path) -> Any:
    """metrics.json of an SAE's folder, and what splice.json beside it calls by SAEBench's names."""
    metrics = read_json(folder / METRICS)
    return metrics | read_json(folder / SPLICE)["saebench"] if (folder / SPLICE).exists() else metrics


def _mean_largest_cosine(rows: np.ndarray) -> float | None:
    """Mean over rows [F, D] of the largest cosine with another row."""
    if len(rows) < 2:
        return None
    unit = jnp.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), jnp.float32)
    largest = [_largest_cosine(unit, start) for start in range(0, len(rows), _BLOCK)]
    return float(np.concatenate([np.asarray(part) for part in largest])[: len(rows)].mean())


@jax.jit
def _largest_cosine(unit: jax.Array, start: jax.Array) -> jax.Array:
    """Of the rows from `start` on, as many as a block holds (past the end the last row again) [B]."""
    at = start + jnp.arange(_BLOCK)
    cosines = unit[jnp.minimum(at, len(unit) - 1)] @ unit.T  # [B, F]
    return jnp.where(jnp.arange(len(unit)) == at[:, None], -jnp.inf, cosines).max(1)
