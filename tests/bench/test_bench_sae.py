"""The speed bench at a tiny size; what it finds at the stated one is in docs/speed.md."""

import importlib.util

import numpy as np
import pytest

from musae_jax.bench.sae import MODULES, SaeBench, bench_sae
from musae_jax.bench.trainers import TRAINERS, Size, some_weights
from musae_jax.errors import MusaeError

SIZE = Size(16, 256, 4, 128)
INSTALLED = [peer for peer, module in MODULES.items() if importlib.util.find_spec(module)]


def test_rows():
    rows = bench_sae(SaeBench(SIZE, turns=1, peers=()))
    by_name = {row["name"]: row for row in rows}
    assert list(by_name) == [
        *(f"sae/topk/{what}" for what in ("tokens", "list", "dense", "over_encoder")),
        *(f"sae/batch_topk/{what}" for what in ("tokens", "list", "dense", "over_encoder")),
        "sae/topk/fvu",
        "sae/topk/memory",
        "sae/feed/wait",
    ]
    assert all(np.isfinite(row["ours"]) and row["ours"] > 0 for row in rows)
    assert by_name["sae/topk/tokens"]["ours"] in (by_name["sae/topk/list"]["ours"], by_name["sae/topk/dense"]["ours"])
    assert by_name["sae/topk/fvu"]["ours"] < 1 and by_name["sae/topk/fvu"]["peer_name"] == "another seed"
    assert by_name["sae/topk/memory"]["ours"] > 50
    assert by_name["sae/feed/wait"]["ours"] < 1


@pytest.mark.skipif(len(INSTALLED) == len(MODULES), reason="all peers are installed")
def test_a_peer_that_is_missing_is_named():
    missing = next(peer for peer in MODULES if peer not in INSTALLED)
    with pytest.raises(MusaeError, match=f"{missing} is not installed"):
        bench_sae(SaeBench(SIZE, peers=(missing,)))


@pytest.mark.parametrize("peer", MODULES)
@pytest.mark.filterwarnings("ignore")
def test_the_libraries_learn_the_same_from_the_same_start(peer):
    """Same weights, same batches: after 40 steps the weights agree. SAELens lets decoder rows grow, so is near only."""
    if peer not in INSTALLED:
        pytest.skip(f"{peer} is not installed")
    W, rng = some_weights(SIZE), np.random.default_rng(1)
    batches = rng.standard_normal((40, SIZE.batch_size, SIZE.d_in), np.float32)
    ours, theirs, other = (TRAINERS[name](SIZE, W) for name in ("musae_jax", peer, "musae_jax"))
    for trainer in (ours, theirs):
        trainer.steps(batches)
    other.steps(batches[::-1].copy())
    ours, theirs, other = ours.params(), theirs.params(), other.params()
    for name, value in ours.items():
        moved = np.abs(value - (W if name.startswith("W") else 0)).mean()
        apart, by_order = (np.abs(value - weights[name]).mean() for weights in (theirs, other))
        assert apart < (0.2 if peer == "sae-lens" else 0.01) * moved, name
        assert apart < by_order, name  # the control: the same batches in another order
