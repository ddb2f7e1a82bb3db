import json
import resource
import shutil
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from musae_jax.errors import MusaeError
from musae_jax.info import describe
from musae_jax.sae.formats import load_sae, save_contrast, save_maximum, save_sae
from musae_jax.sae.sae import ARCHITECTURES, SAE, SAEConfig, sae_decode, sae_encode

D, F = 7, 20


def random_sae(architecture: str = "jumprelu", d: int = D, f: int = F, seed: int = 0, **options) -> SAE:
    rng = np.random.default_rng(seed)
    biases = ("b_gate", "b_mag", "r_mag") if architecture == "gated" else ("b_enc",)
    shapes = {"W_enc": (d, f), **dict.fromkeys(biases, (f,)), "W_dec": (f, d), "b_dec": (d,)}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    if architecture == "jumprelu":
        params["threshold"] = rng.uniform(0.1, 1.0, size=f).astype(np.float32)
    metadata = {"model_name": "m", "hook_name": "blocks.3.resid_post"}
    k = {"topk": min(4, f), "groupmax": next(k for k in (4, 2, 1) if f % k == 0)}.get(architecture)
    return SAE(SAEConfig(d, f, architecture, k, metadata=metadata, **options), params)


def edit(folder, **changes) -> None:
    """Changes fields of cfg.json; None removes one."""
    path = folder / "cfg.json"
    record = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in record.items() if value is not None}))


@settings(max_examples=20, deadline=None)
@given(
    architecture=st.sampled_from(ARCHITECTURES),
    d=st.integers(1, 9),
    f=st.integers(1, 30),
    seed=st.integers(0, 1000),
    apply_b_dec=st.booleans(),
    maximum=st.booleans(),
)
def test_what_is_saved_is_loaded(tmp_path_factory, architecture, d, f, seed, apply_b_dec, maximum):
    folder = tmp_path_factory.mktemp("sae")
    sae = random_sae(architecture, d, f, seed, apply_b_dec_to_input=apply_b_dec)
    sae = sae.replace(maximum=np.arange(f, dtype=np.float32) if maximum else None)
    save_sae(folder, sae)
    again = load_sae(folder)
    assert again.config == sae.config
    assert again.config.metadata == sae.config.metadata
    assert again.params.keys() == sae.params.keys()
    for name, value in sae.params.items():
        np.testing.assert_array_equal(again.params[name], value)
    np.testing.assert_array_equal(again.maximum, sae.maximum)
    shutil.rmtree(folder)


def test_the_files_are_those_of_saelens(tmp_path):
    save_sae(tmp_path, random_sae())
    record = json.loads((tmp_path / "cfg.json").read_text())
    metadata = record.pop("metadata")
    # Without a version SAELens takes the file for an old one and drops the metadata.
    assert metadata == {"model_name": "m", "hook_name": "blocks.3.resid_post", "sae_lens_version": "6.0.0"}
    assert record == {
        "architecture": "jumprelu",
        "d_in": D,
        "d_sae": F,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    shapes = {name: tensor.shape for name, tensor in load_file(tmp_path / "sae_weights.safetensors").items()}
    assert shapes == {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,), "threshold": (F,)}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_golden_triple_is_what_the_sae_computes(tmp_path, architecture):
    sae = random_sae(architecture)
    x = np.random.default_rng(1).normal(size=(100, D)).astype(np.float32)
    save_sae(tmp_path, sae, golden=x)
    golden = load_file(tmp_path / "golden.safetensors")
    assert golden["x"].shape == (16, D)
    f = sae_encode(sae.config, sae.params, golden["x"])
    np.testing.assert_allclose(f, golden["f"], atol=1e-5)
    np.testing.assert_allclose(sae_decode(sae.config, sae.params, f), golden["x_hat"], atol=1e-4)
    save_sae(tmp_path, sae)  # without activations, some that wake features are made up
    assert (load_file(tmp_path / "golden.safetensors")["f"] > 0).any(1).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("what", ["W_enc", "b_enc", "W_dec", "b_dec", "apply_b_dec_to_input"])
def test_a_changed_sae_is_refused(tmp_path, architecture, what):
    save_sae(tmp_path, random_sae(architecture))
    if what == "apply_b_dec_to_input":
        edit(tmp_path, apply_b_dec_to_input=False)
    else:
        tensors = load_file(tmp_path / "sae_weights.safetensors")
        what = "b_gate" if what == "b_enc" and architecture == "gated" else what
        tensors[what] = np.roll(tensors[what], 1, axis=0)
        save_file(tensors, tmp_path / "sae_weights.safetensors")
    with pytest.raises(MusaeError, match="does not compute what it did when it was saved"):
        load_sae(tmp_path)


def test_the_wrong_rule_is_refused(tmp_path):
    save_sae(tmp_path, random_sae("topk"))
    edit(tmp_path, architecture="standard")
    with pytest.raises(MusaeError, match="does not compute"):
        load_sae(tmp_path)
    edit(tmp_path, architecture="topk", k=5)
    with pytest.raises(MusaeError, match="does not compute"):
        load_sae(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "temporal"}, "architecture is 'temporal'"),
        ({"architecture": "gated"}, "b_gate is missing; b_mag is missing; r_mag is missing; b_enc is unknown"),
        ({"architecture": "groupmax", "k": 3}, "k = 3 does not divide d_sae = 20"),
        ({"architecture": None}, "architecture is None"),
        ({"normalize_activations": "layer_norm"}, "'layer_norm' depends on each token and cannot be folded"),
        ({"normalize_activations": "constant_norm_rescale"}, "'constant_norm_rescale' depends on each token"),
        ({"normalize_activations": "expected_average_only_in"}, r"but activation_scaler\.json is not there"),
        ({"normalize_activations": "covariance_whitening"}, r"but activation_whitening\.safetensors is not there"),
        ({"normalize_activations": "minmax"}, "'minmax', which is unknown"),
        ({"rescale_acts_by_decoder_norm": True}, "rescale_acts_by_decoder_norm is not a part of the rule jumprelu"),
        ({"reshape_activations": "hook_z"}, "reshape_activations is 'hook_z'"),
        ({"noise": 1}, "unknown fields noise"),
        ({"d_in": "7"}, "d_in is '7'"),
        ({"d_sae": 0}, "d_sae is 0"),
        ({"d_sae": 21}, r"W_enc is \[7, 20\], not \[7, 21\]"),
        ({"apply_b_dec_to_input": None}, "apply_b_dec_to_input is missing"),
        ({"architecture": "standard"}, "threshold is unknown"),
        ({"architecture": "topk"}, "k is None"),
        ({"activation_fn_str": "topk"}, "unknown fields metadata"),
    ],
)
def test_unknown_rules_are_refused(tmp_path, changes, words):
    save_sae(tmp_path, random_sae())
    edit(tmp_path, **changes)
    with pytest.raises(MusaeError, match=words) as caught:
        load_sae(tmp_path)
    assert "\n" not in str(caught.value)


def test_damaged_folders_are_one_sentence(tmp_path):
    with pytest.raises(MusaeError, match="holds no SAE"):
        load_sae(tmp_path)
    save_sae(tmp_path, random_sae())
    weights = tmp_path / "sae_weights.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(MusaeError, match="not a whole safetensors file"):
        load_sae(tmp_path)
    weights.unlink()
    with pytest.raises(MusaeError, match=r"sae_weights\.safetensors is missing"):
        load_sae(tmp_path)
    tensors = {name: np.full_like(value, np.nan) for name, value in random_sae().params.items() if name != "b_dec"}
    save_file(tensors, weights)
    with pytest.raises(MusaeError, match="b_dec is missing; W_dec holds values that are not finite"):
        load_sae(tmp_path)


def test_a_folder_of_saelens_without_our_files_loads(tmp_path):
    sae = random_sae("standard")
    save_sae(tmp_path, sae)
    (tmp_path / "golden.safetensors").unlink()
    edit(tmp_path, metadata={"sae_lens_version": "6.18.0", "prepend_bos": True})
    assert load_sae(tmp_path).maximum is None


def test_half_precision_weights_are_read_as_float32(tmp_path):
    sae = random_sae("standard")
    save_sae(tmp_path, sae)
    (tmp_path / "golden.safetensors").unlink()
    tensors = {name: value.astype(np.float16) for name, value in sae.params.items()}
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    edit(tmp_path, dtype="float16")
    again = load_sae(tmp_path)
    assert all(value.dtype == np.float32 for value in again.params.values())


def test_a_decoder_norm_applied_at_run_time_is_folded(tmp_path):
    sae = random_sae("topk")
    save_sae(tmp_path, sae)
    (tmp_path / "golden.safetensors").unlink()
    edit(tmp_path, rescale_acts_by_decoder_norm=True)
    x = np.random.default_rng(3).normal(size=(50, D)).astype(np.float32)
    p, norm = sae.params, np.linalg.norm(sae.params["W_dec"], axis=1)
    pre = ((x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]) * norm
    keep = pre >= np.sort(pre, axis=1)[:, -4, None]
    f = np.where(keep, np.maximum(pre, 0), 0)
    again = load_sae(tmp_path)
    np.testing.assert_allclose(sae_encode(again.config, again.params, x), f, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(again.params["W_dec"], axis=1), 1, atol=1e-6)
    x_hat = (f / norm) @ p["W_dec"] + p["b_dec"]
    np.testing.assert_allclose(sae_decode(again.config, again.params, f), x_hat, atol=1e-4)


def test_info_says_what_an_sae_is_and_where_it_reads(tmp_path):
    save_sae(tmp_path, random_sae("topk"))
    words = "topk SAE: 7 → 20, k = 4, at blocks.3.resid_post (output of block 3 counted from 0; layer 4 in the paper)"
    assert describe(str(tmp_path)) == words


def test_the_maximum_can_come_later(tmp_path):
    save_sae(tmp_path, random_sae())
    save_maximum(tmp_path, np.linspace(0, 3, F))
    np.testing.assert_allclose(load_sae(tmp_path).maximum, np.linspace(0, 3, F), rtol=1e-6)
    with pytest.raises(MusaeError, match=r"shape \(3,\), but 20"):
        save_maximum(tmp_path, np.ones(3))
    save_file({"other": np.ones(F)}, tmp_path / "feature_maximum.safetensors")
    with pytest.raises(MusaeError, match="does not hold `maximum`"):
        load_sae(tmp_path)


def test_the_contrasts_can_come_later(tmp_path):
    save_sae(tmp_path, random_sae())
    assert load_sae(tmp_path).contrast is None
    wanted = np.random.default_rng(0).normal(size=(F, D)).astype(np.float32)
    save_contrast(tmp_path, wanted)
    np.testing.assert_array_equal(load_sae(tmp_path).contrast, wanted)
    save_sae(tmp_path / "again", load_sae(tmp_path))
    np.testing.assert_array_equal(load_sae(tmp_path / "again").contrast, wanted)
    save_sae(tmp_path / "again", random_sae(seed=1))  # another, of which nothing is known yet
    assert load_sae(tmp_path / "again").contrast is None
    for bad in (wanted.T, wanted[:3], np.full_like(wanted, np.nan), wanted[0], np.ones(F)):
        with pytest.raises(MusaeError, match="run `musae features` again"):
            save_contrast(tmp_path, bad)
    save_file({"contrast": wanted.T.copy()}, tmp_path / "feature_contrast.safetensors")
    with pytest.raises(MusaeError, match="does not hold `contrast`"):
        load_sae(tmp_path)


def test_saving_refuses_what_does_not_fit(tmp_path):
    sae = random_sae()
    with pytest.raises(MusaeError, match="b_enc is"):
        save_sae(tmp_path / "a", sae.replace(params={**sae.params, "b_enc": np.zeros(3)}))
    assert not (tmp_path / "a").exists()


def test_a_disk_that_takes_no_more_leaves_no_sae(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(MusaeError, match="could not be written"):
            save_sae(tmp_path / "sae", random_sae())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list((tmp_path / "sae").iterdir())
