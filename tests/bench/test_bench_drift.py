"""Drift against float32: what is narrower drifts further, and nothing drifts where nothing is narrower."""

import dataclasses

import jax
import numpy as np
import pytest

from musae_jax.bench import drift as module
from musae_jax.bench.drift import DriftBench, bench_drift
from musae_jax.bench.rows import bench_table
from musae_jax.models.musicgen import random_musicgen


@pytest.fixture(scope="module")
def rows(tiny_musicgen):
    return bench_drift(tiny_musicgen, "tiny", DriftBench(("mixed", "bfloat16"), clips=2, seconds=0.4))


def by(rows, dtype):
    return {row["name"].removeprefix("drift/"): row for row in rows if row["dtype"] == dtype}


def test_every_layer_has_its_drift_beside_that_of_the_weights_alone(rows):
    names = ["text", "blocks.0.resid_post", "blocks.1.resid_post", "logits", "greedy"]
    for dtype in ("float32", "mixed", "bfloat16"):
        assert list(by(rows, dtype)) == names
        assert by(rows, dtype)["greedy"]["ours"] > 0.8
    for name in names[1:3]:
        floor, mixed, low = (by(rows, dtype)[name] for dtype in ("float32", "mixed", "bfloat16"))
        assert floor["ours"] < 1e-6 < 1e-5 < mixed["ours"] < low["ours"] < 0.05
        assert 1e-5 < mixed["peer"] <= 1.1 * mixed["ours"] and floor["peer"] is None
    assert by(rows, "mixed")["text"]["ours"] == 0  # its text encoder is float32's
    assert 0 <= by(rows, "mixed")["logits"]["ours"] < 1e-3
    assert "drift/greedy (bfloat16)" in bench_table(rows)


def test_float32_on_exact_weights_does_not_drift(tiny_musicgen):
    """Weights that bfloat16 holds exactly leave nothing to the control."""
    rounded = tiny_musicgen.replace(params=module._rounded(tiny_musicgen.params, "bfloat16"))
    rows = bench_drift(rounded, "tiny", DriftBench(("bfloat16",), clips=2, seconds=0.4))
    assert all(row["peer"] == (1.0 if row["unit"] == "share" else 0.0) for row in by(rows, "bfloat16").values())
    assert by(rows, "bfloat16")["blocks.1.resid_post"]["ours"] > 1e-4


def test_a_model_without_tokenizer_and_one_of_many_layers(tiny_musicgen):
    """Layers stand in their order, the tenth after the ninth."""
    decoder = dataclasses.replace(tiny_musicgen.config.decoder, num_hidden_layers=11)
    deep = random_musicgen(dataclasses.replace(tiny_musicgen.config, decoder=decoder), jax.random.key(0))
    rows = bench_drift(deep, bench=DriftBench(("bfloat16",), clips=1, seconds=0.2))
    names = [row["name"] for row in rows if row["dtype"] == "bfloat16"]
    assert names[1:-2] == [f"drift/blocks.{i}.resid_post" for i in range(11)]
    assert np.isfinite([row["ours"] for row in rows]).all()
