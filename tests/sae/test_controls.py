import jax
import numpy as np
import pytest
from planted_store import D, planted_store

from musae_jax.activations.batches import Batches
from musae_jax.errors import MusaeError
from musae_jax.sae.controls import neuron_sae, pca_sae, random_sae
from musae_jax.sae.formats import load_sae, save_sae
from musae_jax.sae.metrics import evaluate
from musae_jax.sae.sae import sae_decode, sae_encode


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return planted_store(tmp_path_factory.mktemp("store") / "hook")


@pytest.fixture(scope="module")
def x(store):
    return next(Batches(store, 400))


def fvu(sae, x):
    x_hat = sae_decode(sae.config, sae.params, sae_encode(sae.config, sae.params, x))
    return float(((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum())


def test_each_is_an_sae_like_any_other(store, x, tmp_path):
    for name, sae in {
        "r": random_sae(jax.random.key(0), x, 50, 6),
        "p": pca_sae(x, k=6),
        "n": neuron_sae(x, 6),
    }.items():
        save_sae(tmp_path / name, sae)
        again = load_sae(tmp_path / name)
        measures = evaluate(again, store)
        assert measures["l0"] == pytest.approx(6, abs=0.01)
        assert 0 < measures["fvu"] < 1
        np.testing.assert_allclose(np.linalg.norm(again.params["W_dec"], axis=1), 1, atol=1e-6)


def test_all_components_and_all_neurons_lose_nothing(x):
    for sae in (pca_sae(x), neuron_sae(x)):
        assert sae.config.d_sae == 2 * D
        assert fvu(sae, x) < 1e-9


def test_principal_components_lose_the_variance_they_leave_out(x):
    variances = np.sort(np.linalg.eigvalsh(np.cov(x, rowvar=False)))[::-1]
    for components in (1, 3, 10):
        sae = pca_sae(x, components)
        assert sae.config.d_sae == 2 * components
        assert fvu(sae, x) == pytest.approx(variances[components:].sum() / variances.sum(), rel=1e-3)
    assert fvu(pca_sae(x, k=4), x) <= fvu(pca_sae(x, 4), x)  # each token chooses its own four


def test_no_other_scale_serves_the_random_directions_better(x):
    sae = random_sae(jax.random.key(0), x, 100, 8)
    best = fvu(sae, x)
    for factor in (0.9, 1.1):
        assert fvu(sae.replace(params={**sae.params, "W_enc": sae.params["W_enc"] * factor}), x) > best
    other = random_sae(jax.random.key(1), x, 100, 8)
    assert np.abs(np.asarray(other.params["W_dec"] - sae.params["W_dec"])).max() > 0.1


def test_too_many_features_are_refused(x):
    with pytest.raises(MusaeError, match="neurons control, which has 32"):
        neuron_sae(x, 33)
