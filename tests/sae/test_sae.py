import jax
import numpy as np
import pytest

from musae_jax.sae.sae import SAE, SAEConfig, sae_decode, sae_encode

D, F = 7, 20


def random_sae(architecture: str, seed: int = 0, apply_b_dec: bool = True) -> SAE:
    rng = np.random.default_rng(seed)
    params = {
        "W_enc": rng.normal(size=(D, F)),
        "W_dec": rng.normal(size=(F, D)),
        "b_dec": rng.normal(size=D),
    }
    if architecture == "gated":
        params |= {name: rng.normal(size=F) for name in ("b_gate", "r_mag", "b_mag")}
    else:
        params["b_enc"] = rng.normal(size=F)
    if architecture == "jumprelu":
        params["threshold"] = rng.uniform(0.1, 2.0, size=F)
    config = SAEConfig(D, F, architecture, 4 if architecture == "topk" else None, apply_b_dec)
    return SAE(config, {name: value.astype(np.float32) for name, value in params.items()})


def naive(sae: SAE, x: np.ndarray) -> np.ndarray:
    """One token, one feature at a time, in float64."""
    p = {name: np.asarray(value, np.float64) for name, value in sae.params.items()}
    out = np.zeros((len(x), F))
    for n, token in enumerate(x.astype(np.float64)):
        centred = token - p["b_dec"] if sae.config.apply_b_dec_to_input else token
        pre = [centred @ p["W_enc"][:, j] + p.get("b_enc", np.zeros(F))[j] for j in range(F)]
        for j in range(F):
            if sae.config.architecture == "jumprelu":
                keep = pre[j] > p["threshold"][j]
            elif sae.config.architecture == "topk":
                keep = sorted(pre, reverse=True).index(pre[j]) < sae.config.k
            elif sae.config.architecture == "gated":
                keep = pre[j] + p["b_gate"][j] > 0
                pre[j] = pre[j] * np.exp(p["r_mag"][j]) + p["b_mag"][j]
            else:
                keep = True
            out[n, j] = max(pre[j], 0.0) if keep else 0.0
    return out


@pytest.mark.parametrize("architecture", ["jumprelu", "topk", "standard", "gated"])
@pytest.mark.parametrize("apply_b_dec", [True, False])
def test_the_rules_are_those_of_a_naive_reading(architecture, apply_b_dec):
    sae = random_sae(architecture, apply_b_dec=apply_b_dec)
    x = np.random.default_rng(1).normal(size=(30, D)).astype(np.float32)
    f = np.asarray(sae_encode(sae.config, sae.params, x))
    expected = naive(sae, x)
    np.testing.assert_allclose(f, expected, atol=1e-5)
    assert (f > 0).any() and (f == 0).any()
    x_hat = np.asarray(sae_decode(sae.config, sae.params, f))
    np.testing.assert_allclose(x_hat, expected @ sae.params["W_dec"] + sae.params["b_dec"], atol=1e-4)


@pytest.mark.parametrize("architecture", ["jumprelu", "topk", "standard", "gated"])
def test_jit_and_leading_axes_change_nothing(architecture):
    sae = random_sae(architecture)
    x = np.random.default_rng(2).normal(size=(3, 5, D)).astype(np.float32)
    f = np.asarray(sae_encode(sae.config, sae.params, x))
    assert f.shape == (3, 5, F)
    jitted = jax.jit(sae_encode, static_argnums=0)(sae.config, sae.params, x)
    np.testing.assert_allclose(jitted, f, atol=1e-6)
    np.testing.assert_allclose(sae_encode(sae.config, sae.params, x.reshape(-1, D)).reshape(f.shape), f, atol=1e-6)


def test_the_config_is_static_whatever_its_metadata():
    one, two = (SAEConfig(D, F, metadata={"hook_name": hook, "list": [1]}) for hook in ("a", "b"))
    assert hash(one) == hash(two)
    assert one.hook == "a"
    with pytest.raises(ValueError, match="batch_topk"):
        SAEConfig(D, F, "batch_topk")
    with pytest.raises(ValueError, match="1 <= k"):
        SAEConfig(D, F, "topk")
