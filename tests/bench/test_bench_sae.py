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


@pytest.mark.parametrize(
    ("peer", "near"), [("dictionary-learning", 0.9999), ("eai-sparsify", 0.995), ("sae-lens", 0.7)]
)
@pytest.mark.filterwarnings("ignore")
def test_the_libraries_learn_the_same_from_the_same_start(peer, near):
    """Same weights, same batches: after 40 steps they have moved the same way.

    sparsify clips gradients of a loss of another scale; SAELens lets rows grow: another path to the same end.
    """
    if peer not in INSTALLED:
        pytest.skip(f"{peer} is not installed")
    W = some_weights(SIZE)
    scales = np.geomspace(4, 0.25, SIZE.d_in, dtype=np.float32)
    batches = np.random.default_rng(1).standard_normal((40, SIZE.batch_size, SIZE.d_in), np.float32) * scales
    ours, theirs, other = (TRAINERS[name](SIZE, W) for name in ("musae_jax", peer, "musae_jax"))
    for trainer in (ours, theirs):
        trainer.steps(batches)
    other.steps(batches[:, :, ::-1].copy())  # the control: the same numbers in other dimensions
    start = {name: W if name.startswith("W") else 0 for name in ours.params()}
    ours, theirs, other = ({n: p - start[n] for n, p in trainer.params().items()} for trainer in (ours, theirs, other))
    for name in ("W_enc_t", "W_dec"):
        assert _cosine(ours[name], other[name]) < 0.65 < near < _cosine(ours[name], theirs[name]), name


def _cosine(a, b):
    return (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
