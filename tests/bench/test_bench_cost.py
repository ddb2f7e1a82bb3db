"""The table of costs at a tiny size; what it says of the true ones is in docs/speed.md."""

import numpy as np
import pytest

from musae_jax.bench.cost import CostBench, bench_cost
from musae_jax.errors import MusaeError


@pytest.mark.slow
def test_every_combination_stands_beside_its_floor():
    rows = bench_cost(CostBench(("tiny",), (1, 3), (3.0,), "mixed", turns=1))
    assert [row["name"] for row in rows] == ["cost/bandwidth", "cost/product"] + ["cost/generate", "cost/harvest"] * 2
    assert all(np.isfinite(row["ours"]) and row["ours"] > 0 for row in rows)
    one, three = rows[2], rows[4]
    assert one["peer"] > three["peer"]  # a step of three prompts reads three caches
    assert rows[3]["peer"] == rows[5]["peer"]  # a position costs the same FLOPs in any batch
    assert all(0 < row["ratio"] < 1 for row in rows[2:])


@pytest.mark.parametrize("seconds", [1.0, 31.0])
def test_a_length_that_cannot_be_timed_is_refused(seconds):
    with pytest.raises(MusaeError, match="give 3 to 30"):
        bench_cost(CostBench(("tiny",), (1,), (seconds,)))
