"""The bench of steering at a tiny size; what it finds on the pocket model is in docs/steer.md."""

import numpy as np
import pytest

from musae_jax.bench.steer import SteerBench, bench_steer


@pytest.mark.slow
def test_steering_beside_generation_left_alone(tiny_musicgen):
    bench = SteerBench(2, 0.2, 40, 3, turns=1, features=2, strengths=(0.5, 1.0), sweep_seconds=0.2, sweep_batch=5)
    rows = bench_steer(tiny_musicgen, "tiny", bench)
    ways = ("add", "add on beats", "clamp", "clamp topk", "hold", "sweep")
    cpu, work = ([row for row in rows if row["unit"] == unit] for unit in ("CPU s", "MFLOP"))
    rows = [row for row in rows if row["unit"] not in ("CPU s", "MFLOP")]
    assert [row["name"] for row in rows] == [f"steer/{way}" for way in ways]
    assert [row["name"] for row in cpu] == [f"steer/{way}, CPU time" for way in ways]
    assert [row["name"] for row in work] == [f"steer/{way}, work" for way in ways[:-1]]
    assert all(row["ours"] > 0 for row in cpu) and all(row["ours"] > row["peer"] for row in work)
    by_name = {row["name"]: row["ratio"] for row in work}
    assert by_name["steer/add, work"] > 0.99 > by_name["steer/clamp topk, work"]
    assert all(np.isfinite(row["ratio"]) and row["peer_name"] == "our own unsteered generation" for row in rows)
    assert rows[-1]["unit"] == "s" and rows[0]["unit"] == "s of music/s"
