import numpy as np
import pytest
from planted_store import POSITIONS, D, planted_store

from musae_jax.errors import MusaeError
from musae_jax.sae.metrics import evaluate
from musae_jax.sae.sae import SAE, SAEConfig


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return planted_store(tmp_path_factory.mktemp("store") / "hook")


def random_sae(seed: int = 0, features: int = 9) -> SAE:
    rng = np.random.default_rng(seed)
    params = {
        "W_enc": rng.normal(size=(D, features)) / 4,
        "b_enc": np.r_[rng.normal(size=features - 1), -1e6],
        "W_dec": rng.normal(size=(features, D)),
        "b_dec": rng.normal(size=D) + 20,
        "threshold": rng.uniform(0, 2, size=features),
    }
    return SAE(SAEConfig(D, features), {name: value.astype(np.float32) for name, value in params.items()})


@pytest.mark.parametrize("drop_start", [True, False])
@pytest.mark.parametrize("clips", [None, ["clip003", "clip011", "clip012", "clip039"]])
def test_measures_are_those_of_the_definitions(store, drop_start, clips):
    sae = random_sae()
    x = np.concatenate([residuals for _, residuals in store.shards()]).astype(np.float64)
    if clips is not None:
        x = x[[int(id[4:]) for id in clips]]
    x = x[:, int(drop_start) :]
    p = {name: value.astype(np.float64) for name, value in sae.params.items()}
    pre = (x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]
    f = np.where(pre > p["threshold"], np.maximum(pre, 0), 0)
    x_hat = f @ p["W_dec"] + p["b_dec"]
    mean = x.mean((0, 1))
    error, size, size_hat = (x - x_hat) ** 2, (x - mean) ** 2, (x_hat - mean) ** 2
    measured = evaluate(sae, store, clips, drop_start)
    assert measured["fvu"] == pytest.approx(error.sum() / size.sum(), rel=1e-4)
    assert measured["fvu_within_positions"] == pytest.approx(error.sum() / ((x - x.mean(0)) ** 2).sum(), rel=1e-4)
    assert measured["l0"] == pytest.approx((f > 0).sum() / f[..., 0].size, rel=1e-3)
    expected = np.sqrt(size_hat.sum(-1)).sum() / np.sqrt(size.sum(-1)).sum()
    assert measured["l2_ratio"] == pytest.approx(expected, rel=1e-4)
    expected = size_hat.sum() / ((x - mean) * (x_hat - mean)).sum()
    assert measured["relative_reconstruction_bias"] == pytest.approx(expected, rel=1e-3)
    dead = ~(f > 0).any((0, 1))
    assert dead.any()
    assert measured["dead_share"] == dead.mean()
    assert measured["density"]["never"] == dead.sum()
    assert sum(measured["density"]["counts"]) == (~dead).sum()
    assert measured["tokens"] == len(x) * (POSITIONS - drop_start)


def test_the_mean_and_the_position_mean_are_the_zeros_of_the_two_measures(store):
    x = np.concatenate([residuals for _, residuals in store.shards()])[:, 1:]
    sae = random_sae()
    params = {**sae.params, "threshold": np.full(9, 1e9, np.float32), "b_dec": x.mean((0, 1))}
    measured = evaluate(sae.replace(params=params), store)
    assert measured["fvu"] == pytest.approx(1.0, rel=1e-5)
    # The positions' means are most of this store's variance, which the second measure does not forgive.
    assert measured["fvu_within_positions"] > 5
    assert measured["l0"] == 0
    assert measured["dead_share"] == 1


def test_what_does_not_fit_is_one_sentence(store):
    with pytest.raises(MusaeError, match="none of the clips"):
        evaluate(random_sae(), store, ["nobody"])
    sae = SAE(SAEConfig(D + 1, 9), {})
    with pytest.raises(MusaeError, match=r"width 17, but .* holds width 16"):
        evaluate(sae, store)
