"""Folders of sparsify: by their layout, and by the library itself where it is installed."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from musae_jax.errors import MusaeError
from musae_jax.sae.formats import load_sae, save_sae
from musae_jax.sae.sae import sae_decode, sae_encode

D, F = 6, 24
RECORD = {
    "activation": "topk",
    "expansion_factor": 4,
    "normalize_decoder": True,
    "num_latents": 0,
    "k": 4,
    "multi_topk": True,
    "skip_connection": False,
    "transcode": False,
    "d_in": D,
}


def write(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    shapes = {"encoder.weight": (F, D), "encoder.bias": (F,), "W_dec": (F, D), "b_dec": (D,)}
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({**RECORD, **changes}))
    return tensors


def tokens(n: int = 50) -> np.ndarray:
    return (2 * np.random.default_rng(1).normal(size=(n, D))).astype(np.float32)


@pytest.mark.parametrize("activation", ["topk", "groupmax"])
def test_the_rule_is_a_naive_reading_of_it(tmp_path, activation):
    p = write(tmp_path / "layers.5", activation=activation)
    sae = load_sae(tmp_path / "layers.5")
    assert (sae.config.architecture, sae.config.k, sae.config.d_sae) == (activation, 4, F)
    assert sae.config.hook == "blocks.5.resid_post"
    x = tokens()
    f = np.maximum((x - p["b_dec"]) @ p["encoder.weight"].T + p["encoder.bias"], 0)
    for row in f:
        groups = row.reshape(4, -1) if activation == "groupmax" else [row]
        for group in groups:  # views: what is not among the largest of its group becomes 0
            group[np.argsort(-group)[4 // len(groups) :]] = 0
    got = np.asarray(sae_encode(sae.config, sae.params, x))
    np.testing.assert_allclose(got, f, atol=1e-4)
    np.testing.assert_allclose(sae_decode(sae.config, sae.params, f), f @ p["W_dec"] + p["b_dec"], atol=1e-3)
    save_sae(tmp_path / "ours", sae)
    again = load_sae(tmp_path / "ours")
    assert again.config == sae.config
    np.testing.assert_array_equal(again.params["W_enc"], sae.params["W_enc"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"transcode": True}, "transcode is True"),
        ({"skip_connection": True}, "skip_connection is True"),
        ({"signed": True}, "signed is True"),
        ({"activation": "relu"}, "activation is 'relu'"),
        ({"hookpoint": "h.1"}, "unknown fields hookpoint"),
        ({"k": 0}, "k is 0"),
        ({"d_in": None}, "d_in is None"),
        ({"k": 5, "activation": "groupmax"}, "k = 5 does not fit 24 features"),
        ({"expansion_factor": 8}, r"encoder|W_enc is \[6, 24\], not \[6, 48\]"),
        ({"num_latents": 30}, r"W_enc is \[6, 24\], not \[6, 30\]"),
    ],
)
def test_other_rules_are_refused(tmp_path, changes, words):
    write(tmp_path, **changes)
    with pytest.raises(MusaeError, match=words) as caught:
        load_sae(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_transcoders_skip_is_refused_by_its_tensor(tmp_path):
    tensors = write(tmp_path)
    save_file({**tensors, "W_skip": np.zeros((D, D), np.float32)}, tmp_path / "sae.safetensors")
    with pytest.raises(MusaeError, match="W_skip is unknown"):
        load_sae(tmp_path)


@pytest.mark.filterwarnings("ignore")  # torch and its friends warn about themselves
@pytest.mark.parametrize("activation", ["topk", "groupmax"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_we_read_what_sparsify_saves(tmp_path, activation, dtype):
    torch = pytest.importorskip("torch")
    sparsify = pytest.importorskip("sparsify", reason="pip install eai-sparsify")
    config = sparsify.SparseCoderConfig(activation=activation, expansion_factor=4, k=4)
    theirs = sparsify.SparseCoder(D, config, dtype=getattr(torch, dtype))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in theirs.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    theirs.save_to_disk(tmp_path / "h.2")
    theirs = sparsify.SparseCoder.load_from_disk(tmp_path / "h.2").float()
    x = tokens()
    with torch.no_grad():
        values, indices, _ = theirs.encode(torch.from_numpy(x))
        x_hat = theirs.decode(values, indices).numpy()
    f = np.zeros((len(x), F), np.float32)
    np.put_along_axis(f, indices.numpy(), values.numpy(), axis=1)
    sae = load_sae(tmp_path / "h.2")
    got = np.asarray(sae_encode(sae.config, sae.params, x))
    np.testing.assert_allclose(got, f, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        sae_decode(sae.config, sae.params, got), x_hat, rtol=1e-5, atol=1e-5 * np.abs(x_hat).max()
    )
