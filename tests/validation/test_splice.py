"""An SAE in the model: exact dictionaries cost nothing, empty ones what the controls cost, and sums are right."""

import jax
import numpy as np
import pytest

from musae_jax.errors import MusaeError
from musae_jax.models.delay import delayed_targets
from musae_jax.models.musicgen import forward, random_musicgen
from musae_jax.sae.controls import pca_sae
from musae_jax.sae.sae import SAE, SAEConfig, sae_decode, sae_encode
from musae_jax.validation.splice import splice

LAST = 1


@pytest.fixture(scope="module")
def mg(tiny_config):
    """Larger weights than a training starts from, so that the stream is worth something."""
    made = random_musicgen(tiny_config, jax.random.key(3))
    return made.replace(params=jax.tree.map(lambda leaf: leaf * 4 if leaf.ndim > 1 else leaf, made.params))


@pytest.fixture(scope="module")
def codes():
    return np.random.default_rng(0).integers(0, 16, (5, 2, 9))


def residuals(mg, codes) -> np.ndarray:
    return np.asarray(forward(mg.config, mg.params, codes, taps=(LAST,), logits=False).residuals[LAST], np.float64)


def empty_sae(width: int, constant) -> SAE:
    params = {"W_enc": np.zeros((width, 3)), "b_enc": np.zeros(3), "W_dec": np.ones((3, width)), "b_dec": constant}
    return SAE(SAEConfig(width, 3, "standard"), {name: np.float32(value) for name, value in params.items()})


def test_a_dictionary_that_loses_nothing_costs_nothing(mg, codes):
    sae = pca_sae(residuals(mg, codes).reshape(-1, 24))
    found = splice(mg, sae, LAST, codes, batch_size=2)
    assert found["clips"] == 5 and found["tokens"] == 5 * (9 + 9)
    for part in (found["all"], *found["codebooks"]):
        assert part["delta_ce"]["sae"] == pytest.approx(0, abs=1e-4)
        assert part["kl"]["sae"] == pytest.approx(0, abs=1e-4)
        assert part["kl"]["zero"] > 0.01 and part["kl"]["mean"] > 0.01


@pytest.mark.parametrize("drop_start", [True, False])
def test_an_empty_dictionary_costs_what_its_control_costs(mg, codes, drop_start):
    x = residuals(mg, codes)[:, int(drop_start) :]
    for name, constant in (("zero", np.zeros(24)), ("mean", x.mean((0, 1)))):
        found = splice(mg, empty_sae(24, constant), LAST, codes, drop_start=drop_start)
        for part in (found["all"], *found["codebooks"]):
            assert part["ce"]["sae"] == pytest.approx(part["ce"][name], abs=1e-5)
            assert part["kl"]["sae"] == pytest.approx(part["kl"][name], abs=1e-5)


def test_the_numbers_are_those_of_the_definitions(mg, codes):
    """After the last block the head can be applied by hand."""
    rng = np.random.default_rng(1)
    params = {"W_enc": rng.normal(size=(24, 7)), "b_enc": np.zeros(7), "W_dec": rng.normal(size=(7, 24)) / 5}
    sae = SAE(SAEConfig(24, 7, "standard"), {**{n: np.float32(v) for n, v in params.items()}, "b_dec": np.zeros(24)})
    x = residuals(mg, codes)
    x_hat = np.asarray(sae_decode(sae.config, sae.params, sae_encode(sae.config, sae.params, x)), np.float64)
    x_hat[:, 0] = x[:, 0]
    zero = np.zeros_like(x)
    zero[:, 0] = x[:, 0]
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), mg.params["decoder"])

    def log_p(h):
        h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
        logits = np.einsum("bpd,dkv->bkpv", h * p["norm"]["scale"] + p["norm"]["bias"], p["heads"])
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    targets, mask = (np.asarray(array) for array in delayed_targets(codes))
    clean = log_p(x)

    def means(log):
        ce = -np.take_along_axis(log, targets[..., None], -1)[..., 0]
        kl = (np.exp(clean) * (clean - log)).sum(-1)
        return [[(nats * mask)[:, k].sum() / mask[k].sum() / 5 for k in (0, 1)] for nats in (ce, kl)]

    found = splice(mg, sae, LAST, codes, batch_size=2)
    ce = {name: means(log_p(h))[0] for name, h in (("clean", x), ("sae", x_hat), ("zero", zero))}
    for k, part in enumerate(found["codebooks"]):
        assert part["ce"]["clean"] == pytest.approx(ce["clean"][k], rel=1e-4)
        assert part["ce"]["sae"] == pytest.approx(ce["sae"][k], rel=1e-4)
        assert part["kl"]["sae"] == pytest.approx(means(log_p(x_hat))[1][k], rel=1e-3)
        assert part["delta_ce"]["sae"] == pytest.approx(ce["sae"][k] - ce["clean"][k], abs=1e-4)
        lost = ce["zero"][k] - ce["clean"][k]
        if lost > 0:
            expected = (ce["zero"][k] - ce["sae"][k]) / lost
            assert part["loss_recovered"]["zero"] == pytest.approx(expected, rel=1e-2, abs=1e-2)
        else:
            assert part["loss_recovered"]["zero"] is None
    assert found["saebench"]["kl_div_with_sae"] == found["all"]["kl"]["sae"]
    assert found["saebench"]["ce_loss_with_ablation"] == found["all"]["ce"]["zero"]


def test_what_does_not_fit_is_one_sentence(mg, codes):
    with pytest.raises(MusaeError, match="d_in of the SAE is 23, but the residual stream of the model is 24"):
        splice(mg, empty_sae(23, np.zeros(23)), LAST, codes)
    with pytest.raises(MusaeError, match="no clips"):
        splice(mg, empty_sae(24, np.zeros(24)), LAST, codes[:0])
    with pytest.raises(MusaeError, match="layer"):
        splice(mg, empty_sae(24, np.zeros(24)), 2, codes)
