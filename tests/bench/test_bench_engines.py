"""The speed benches of the engine at a tiny size; what they find at the true one is in docs/speed.md."""

import numpy as np
import pytest

from musae_jax.bench.generate import GenerateBench, bench_generate
from musae_jax.bench.harvest import HarvestBench, bench_harvest

pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")


def test_generation_beside_transformers():
    rows = bench_generate(GenerateBench("tiny", 2, (5, 12), codec_batch=2, codec_seconds=0.5, turns=1))
    names = [row["name"] for row in rows]
    assert names == ["generate/steps"] * 4 + ["generate/compile", "codec/encode", "codec/decode"]
    assert all(np.isfinite(row["ours"]) for row in rows) and all(row["ratio"] for row in rows if row["peer"])


def test_harvest_beside_transformers_gives_the_same_residuals():
    rows = bench_harvest(HarvestBench("tiny", 2, 11, theirs=("float32",), turns=1))
    assert [row["name"] for row in rows] == ["harvest/tokens"] * 2 + ["harvest/memory"] + [
        "harvest/apart musae_jax"
    ] * 2
    tokens, _, memory, exact, mixed = rows
    assert exact["ours"] < 1e-5 and 1e-5 < mixed["ours"] < 0.02
    assert [row["dtype"] for row in rows[-2:]] == ["float32", "mixed"]
    assert memory["ours"] > 0 and tokens["config"]["layer"] == 1
