"""Our measures in SAEBench's shape: its keys, its definitions, and its own classes where it is installed."""

import json

import numpy as np
import pytest
from planted_store import D, planted_store
from test_metrics import random_sae

from musae_jax.sae.metrics import evaluate
from musae_jax.sae.saebench import saebench_core, write_saebench

# eval_output_schema_core.json of SAEBench 0.6.0.
KEYS = {
    "model_behavior_preservation": {"kl_div_score", "kl_div_with_ablation", "kl_div_with_sae"},
    "model_performance_preservation": {
        "ce_loss_score",
        "ce_loss_with_ablation",
        "ce_loss_with_sae",
        "ce_loss_without_sae",
    },
    "reconstruction_quality": {"explained_variance", "explained_variance_legacy", "mse", "cossim"},
    "shrinkage": {"l2_norm_in", "l2_norm_out", "l2_ratio", "relative_reconstruction_bias"},
    "sparsity": {"l0", "l1"},
    "token_stats": {"total_tokens_eval_reconstruction", "total_tokens_eval_sparsity_variance"},
    "misc_metrics": {
        "freq_over_1_percent",
        "freq_over_10_percent",
        "normalized_freq_over_1_percent",
        "normalized_freq_over_10_percent",
        "average_max_encoder_cosine_sim",
        "average_max_decoder_cosine_sim",
        "frac_alive",
    },
}
SPLICED = sorted(KEYS["model_behavior_preservation"] | KEYS["model_performance_preservation"])
TOP = {
    "eval_type_id", "eval_config", "eval_id", "datetime_epoch_millis", "eval_result_metrics", "eval_result_details",
    "sae_bench_commit_hash", "sae_lens_id", "sae_lens_release_id", "sae_lens_version", "sae_cfg_dict",
    "eval_result_unstructured",
}  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """(SAE, its store, its measures)."""
    store = planted_store(tmp_path_factory.mktemp("store") / "hook")
    sae = random_sae(features=40)
    return sae, store, evaluate(sae, store)


def test_the_keys_are_those_of_the_schema(measured):
    sae, _, metrics = measured
    core = saebench_core(sae, metrics, "one", "hook", 5)
    assert core.keys() == TOP
    assert {name: set(values) for name, values in core["eval_result_metrics"].items()} == KEYS
    assert sorted(core["eval_result_unstructured"]["not_measured"]) == SPLICED  # the model was not run
    values = {key: value for part in core["eval_result_metrics"].values() for key, value in part.items()}
    assert all(np.isfinite(value) for key, value in values.items() if key not in SPLICED)
    assert all(values[key] is None for key in SPLICED)
    json.dumps(core, allow_nan=False)
    assert core["eval_id"] == saebench_core(sae, metrics, "one", "hook", 6)["eval_id"]
    assert core["eval_id"] != saebench_core(sae, metrics, "two", "hook", 5)["eval_id"]


def test_the_numbers_are_those_of_its_definitions(measured):
    sae, store, metrics = measured
    x = np.concatenate([residuals for _, residuals in store.shards()]).astype(np.float64)[:, 1:].reshape(-1, D)
    p = {name: value.astype(np.float64) for name, value in sae.params.items()}
    pre = (x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]
    f = np.where(pre > p["threshold"], np.maximum(pre, 0), 0)
    x_hat = f @ p["W_dec"] + p["b_dec"]
    size, size_hat = np.linalg.norm(x, axis=1), np.linalg.norm(x_hat, axis=1)
    density = (f > 0).mean(0)
    error = ((x - x_hat) ** 2).sum(1)

    def largest(rows):
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return (unit @ unit.T - 2 * np.eye(len(rows))).max(1).mean()

    expected = {
        "explained_variance": 1 - error.sum() / ((x - x.mean(0)) ** 2).sum(),
        "explained_variance_legacy": (1 - error / ((x - x.mean(0)) ** 2).sum(1)).mean(),
        "mse": ((x - x_hat) ** 2).mean(),
        "cossim": ((x * x_hat).sum(1) / size / size_hat).mean(),
        "l2_norm_in": size.mean(),
        "l2_norm_out": size_hat.mean(),
        "l2_ratio": (size_hat / size).mean(),
        "relative_reconstruction_bias": (size_hat**2).mean() / (x * x_hat).sum(1).mean(),
        "l0": (f > 0).sum(1).mean(),
        "l1": f.sum(1).mean(),
        "freq_over_1_percent": (density > 0.01).mean(),
        "freq_over_10_percent": (density > 0.1).mean(),
        "normalized_freq_over_1_percent": density[density > 0.01].sum() / density.sum(),
        "normalized_freq_over_10_percent": density[density > 0.1].sum() / density.sum(),
        "average_max_encoder_cosine_sim": largest(p["W_enc"].T),
        "average_max_decoder_cosine_sim": largest(p["W_dec"]),
        "frac_alive": (density > 0).mean(),
        "total_tokens_eval_reconstruction": len(x),
        "total_tokens_eval_sparsity_variance": len(x),
    }
    core = saebench_core(sae, metrics)
    values = {key: value for part in core["eval_result_metrics"].values() for key, value in part.items()}
    got = {key: value for key, value in values.items() if key not in SPLICED}
    assert got == pytest.approx(expected, rel=1e-3)
    assert 0 < expected["freq_over_10_percent"] < 1


def test_cosines_go_on_past_a_block(measured, monkeypatch):
    from musae_jax.sae import saebench

    rows = np.random.default_rng(0).normal(size=(2500, 3)).astype(np.float32)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    expected = (unit @ unit.T - 2 * np.eye(len(rows))).max(1).mean()
    assert saebench._mean_largest_cosine(rows) == pytest.approx(expected, rel=1e-5)
    sae, _, metrics = measured
    monkeypatch.setattr(saebench, "MAX_PAIRS_OF", 39)
    core = saebench_core(sae, metrics)
    assert "average_max_encoder_cosine_sim" in core["eval_result_unstructured"]["not_measured"]


def test_it_is_written_beside_the_metrics(measured, tmp_path):
    sae, _, metrics = measured
    assert write_saebench(tmp_path, sae) is None
    (tmp_path / "metrics.json").write_text('{"loss": 3}')  # another's
    assert write_saebench(tmp_path, sae) is None
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    path = write_saebench(tmp_path, sae)
    assert path == tmp_path / "saebench_core.json"
    core = json.loads(path.read_text())
    assert core["sae_lens_id"] == tmp_path.name
    assert core["eval_result_metrics"]["sparsity"]["l0"] == metrics["l0"]
    (tmp_path / "splice.json").write_text(json.dumps({"saebench": dict.fromkeys(SPLICED, 0.25)}))
    core = json.loads(write_saebench(tmp_path, sae).read_text())
    assert core["eval_result_unstructured"]["not_measured"] == []
    assert core["eval_result_metrics"]["model_performance_preservation"]["ce_loss_score"] == 0.25


@pytest.mark.filterwarnings("ignore")
def test_saebench_accepts_it_once_the_model_was_run(measured):
    pydantic = pytest.importorskip("pydantic")
    output = pytest.importorskip("sae_bench.evals.core.eval_output", reason="pip install --no-deps sae-bench")
    sae, _, metrics = measured
    core = saebench_core(sae, {**metrics, **dict.fromkeys(SPLICED, 0.5)}, "one", "hook", 5)
    assert core["eval_result_unstructured"]["not_measured"] == []
    assert core["eval_config"]["compute_kl"] and core["eval_config"]["compute_ce_loss"]
    read = pydantic.TypeAdapter(output.CoreEvalOutput).validate_python(core)
    assert read.eval_result_metrics.sparsity.l0 == metrics["l0"]
