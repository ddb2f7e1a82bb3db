"""Folders of SAELens: the real library reads ours and writes its own for us, and old layouts follow its old rules."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_formats import D, F, edit, random_sae

from musae_jax.errors import MusaeError
from musae_jax.sae.formats import load_sae, save_sae
from musae_jax.sae.sae import sae_decode, sae_encode

RULES = ["jumprelu", "topk", "standard", "gated"]
# One of the paper's published cfg.json (MusicGen-small, hook 5) with smaller sizes; only paths are left out.
PAPER = {
    "model_name": "facebook/musicgen-small", "model_class_name": "HookedTransformer", "hook_name": "hook_layers.5",
    "hook_eval": "NOT_IN_USE", "hook_layer": 5, "hook_head_index": None, "dataset_path": "ManzhenWei/MusicSet",
    "dataset_trust_remote_code": True, "streaming": False, "is_dataset_tokenized": True, "context_size": 501,
    "use_cached_activations": True, "cached_activations_path": "hook_layers.5/", "architecture": "standard", "d_in": D,
    "d_sae": F, "b_dec_init_method": "geometric_median", "expansion_factor": 32, "activation_fn": "topk",
    "activation_fn_kwargs": {"k": 4}, "normalize_sae_decoder": True, "noise_scale": 0.0, "from_pretrained_path": None,
    "apply_b_dec_to_input": True, "decoder_orthogonal_init": False, "decoder_heuristic_init": False,
    "init_encoder_as_decoder_transpose": False, "n_batches_in_buffer": 2, "training_tokens": 63172593,
    "finetuning_tokens": 0, "store_batch_size_prompts": 64, "train_batch_size_tokens": 64,
    "normalize_activations": "none", "seqpos_slice": [None], "device": "cuda", "act_store_device": "cuda", "seed": 42,
    "dtype": "float32", "prepend_bos": True, "jumprelu_init_threshold": 0.001, "jumprelu_bandwidth": 0.001,
    "autocast": False, "autocast_lm": False, "compile_llm": False, "llm_compilation_mode": None, "compile_sae": False,
    "sae_compilation_mode": None, "adam_beta1": 0, "adam_beta2": 0.999, "mse_loss_normalization": None,
    "l1_coefficient": 0.001, "lp_norm": 1, "scale_sparsity_penalty_by_decoder_norm": False, "l1_warm_up_steps": 49353,
    "lr": 0.0003, "lr_scheduler_name": "constant", "lr_warm_up_steps": 0, "lr_end": 3e-5, "lr_decay_steps": 197414,
    "n_restart_cycles": 1, "finetuning_method": None, "use_ghost_grads": False, "feature_sampling_window": 2000,
    "dead_feature_window": 1000, "dead_feature_threshold": 1e-08, "n_eval_batches": 10,
    "eval_batch_size_prompts": None, "log_to_wandb": True, "log_activations_store_to_wandb": False,
    "log_optimizer_state_to_wandb": False, "wandb_project": "mg-sae", "wandb_id": None, "run_name": "sae-32_k_100_5",
    "wandb_entity": None, "wandb_log_frequency": 10, "eval_every_n_wandb_logs": 1000000000, "resume": False,
    "n_checkpoints": 1, "checkpoint_path": "checkpoints/lnhkcc6r", "verbose": True, "model_kwargs": {},
    "model_from_pretrained_kwargs": {"center_writing_weights": False}, "sae_lens_version": "5.3.2",
    "sae_lens_training_version": "5.3.2", "duration": 10, "module_name": "", "store_size": None,
    "feature_sampling_method": "anthropic", "resample_batches": 32, "feature_reinit_scale": 0.2,
    "dead_feature_estimation_method": "no_fire", "tokens_per_buffer": 64128,
}  # fmt: skip


def tokens(n: int = 60, seed: int = 9, d: int = D) -> np.ndarray:
    return (2 * np.random.default_rng(seed).normal(size=(n, d))).astype(np.float32)


def flat(folder, record: dict, **tensors) -> dict:
    """A folder in the layout of SAELens 1 to 5; returns the tensors."""
    params = {name: np.asarray(value) for name, value in random_sae("standard").params.items()} | tensors
    save_file(params, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(record))
    return params


def naive_topk(p: dict, x: np.ndarray, k: int) -> np.ndarray:
    pre = (x.astype(np.float64) - p["b_dec"]) @ p["W_enc"] + p["b_enc"]
    keep = np.zeros(pre.shape, bool)
    np.put_along_axis(keep, np.argsort(-pre, axis=1)[:, :k], True, axis=1)
    return np.where(keep, np.maximum(pre, 0), 0)


def test_the_papers_checkpoints_subtract_b_dec_and_keep_the_k_largest(tmp_path):
    p = flat(tmp_path, PAPER)
    sae = load_sae(tmp_path)
    assert (sae.config.architecture, sae.config.k) == ("topk", 4)
    assert sae.config.hook == "blocks.5.resid_post"  # its hook 5 is the paper's layer 6
    assert sae.config.metadata["hook_name_in_file"] == "hook_layers.5"
    assert sae.config.metadata["training"]["train_batch_size_tokens"] == 64
    x = tokens()
    expected = naive_topk(p, x, 4)
    np.testing.assert_allclose(sae_encode(sae.config, sae.params, x), expected, atol=1e-4)
    assert not np.allclose(sae_encode(sae.config, sae.params, x + 1), expected, atol=0.1)
    save_sae(tmp_path / "again", sae)
    again = load_sae(tmp_path / "again")
    assert again.config == sae.config and again.config.metadata == sae.config.metadata


OLD = {"d_in": D, "d_sae": F, "dtype": "torch.float32", "hook_point": "blocks.3.hook_resid_post", "device": "cpu"}


def test_the_oldest_layout_is_relu_with_b_dec_subtracted(tmp_path):
    p = flat(tmp_path, {**OLD, "normalize_activations": False, "l1_coefficient": 1e-3, "use_ghost_grads": True})
    sae = load_sae(tmp_path)
    x = tokens()
    f = np.maximum((x - p["b_dec"]) @ p["W_enc"] + p["b_enc"], 0)
    np.testing.assert_allclose(sae_encode(sae.config, sae.params, x), f, atol=1e-4)
    assert sae.config.hook == "blocks.3.resid_post"


def test_a_finetuning_factor_acts_on_the_reconstruction_only(tmp_path):
    scale = np.linspace(0.5, 2, F).astype(np.float32)
    record = {**OLD, "architecture": "standard", "activation_fn_str": "relu", "finetuning_scaling_factor": True}
    p = flat(tmp_path, record, finetuning_scaling_factor=scale)
    sae = load_sae(tmp_path)
    x = tokens()
    f = np.maximum((x - p["b_dec"]) @ p["W_enc"] + p["b_enc"], 0)
    np.testing.assert_allclose(sae_encode(sae.config, sae.params, x), f, atol=1e-4)
    x_hat = (f * scale) @ p["W_dec"] + p["b_dec"]
    np.testing.assert_allclose(sae_decode(sae.config, sae.params, f), x_hat, rtol=1e-4, atol=1e-3)
    flat(tmp_path, {**record, "finetuning_scaling_factor": False}, scaling_factor=scale)
    with pytest.raises(MusaeError, match="scaling_factor that is not 1"):
        load_sae(tmp_path)
    flat(tmp_path, record)
    with pytest.raises(MusaeError, match="lacks the finetuning_scaling_factor"):
        load_sae(tmp_path)
    flat(tmp_path, {**record, "finetuning_scaling_factor": False}, scaling_factor=np.ones(F, np.float32))
    np.testing.assert_allclose(load_sae(tmp_path).params["W_dec"], p["W_dec"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"activation_fn_str": "tanh-relu"}, "activation_fn is 'tanh-relu'"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {}}, "only k is known"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4, "postact_fn": "id"}}, "only k is known"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 99}}, "k = 99 is more than d_sae"),
        ({"activation_fn": "topk", "activation_fn_kwargs": {"k": 4}, "architecture": "gated"}, "in the rule 'gated'"),
        ({"architecture": "topk"}, "activation_fn is 'relu'"),
        ({"normalize_activations": True}, r"activation_scaler\.json is not there"),
        ({"hook_point": "blocks.3.attn.hook_z"}, "reshape_activations is 'hook_z'"),
        ({"center": True}, "unknown fields center"),
        ({"apply_b_dec_to_input": "yes"}, "apply_b_dec_to_input is yes"),
    ],
)
def test_old_layouts_with_an_unknown_rule_are_refused(tmp_path, changes, words):
    flat(tmp_path, {**OLD, **changes})
    with pytest.raises(MusaeError, match=words) as caught:
        load_sae(tmp_path)
    assert "\n" not in str(caught.value)


def test_checkpoints_in_mid_training_keep_their_threshold_under_other_names(tmp_path):
    sae = random_sae("jumprelu")
    params = {name: np.asarray(value) for name, value in sae.params.items()}
    threshold = params.pop("threshold")
    save_sae(tmp_path, sae)
    (tmp_path / "golden.safetensors").unlink()
    save_file({**params, "log_threshold": np.log(threshold)}, tmp_path / "sae_weights.safetensors")
    np.testing.assert_allclose(load_sae(tmp_path).params["threshold"], threshold, rtol=1e-6)
    edit(tmp_path, architecture="batchtopk", k=2.5, topk_threshold_lr=0.01)
    save_file({**params, "topk_threshold": np.array(0.7)}, tmp_path / "sae_weights.safetensors")
    again = load_sae(tmp_path)
    assert (again.config.architecture, again.config.k) == ("jumprelu", 2.5)
    np.testing.assert_allclose(again.params["threshold"], np.full(F, 0.7), rtol=1e-6)
    assert again.config.metadata["training"] == {"topk_threshold_lr": 0.01}


def test_damaged_helpers_of_a_checkpoint_are_refused(tmp_path):
    save_sae(tmp_path, random_sae())
    edit(tmp_path, normalize_activations="expected_average_only_in")
    (tmp_path / "activation_scaler.json").write_text('{"scaling_factor": null}')
    with pytest.raises(MusaeError, match="scaling_factor null, not a number > 0"):
        load_sae(tmp_path)
    edit(tmp_path, normalize_activations="covariance_whitening")
    save_file({"mean": np.zeros(3, np.float32)}, tmp_path / "activation_whitening.safetensors")
    with pytest.raises(MusaeError, match="does not hold mean, matrix and inverse_matrix of width 7"):
        load_sae(tmp_path)


# From here on, against the library itself.


@pytest.fixture(scope="module")
def lens():
    """sae_lens, with torch, whose imports warn about themselves."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torch")
        return pytest.importorskip("sae_lens")


def both(lens, folder, x: np.ndarray):
    """(f, x̂) of SAELens and of ours for the SAE in a folder."""
    import torch

    theirs = lens.SAE.load_from_disk(str(folder), device="cpu")
    with torch.no_grad():
        f = theirs.encode(torch.from_numpy(x))
        x_hat = theirs.decode(f).numpy()
        f = f.numpy()
    sae = load_sae(folder)
    g = np.asarray(sae_encode(sae.config, sae.params, x))
    return theirs, (f, x_hat), (g, np.asarray(sae_decode(sae.config, sae.params, g)))


def agree(theirs, ours) -> None:
    for a, b in zip(theirs, ours, strict=True):
        assert (a != 0).any()
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * np.abs(a).max())


@pytest.mark.parametrize("apply_b_dec", [True, False])
@pytest.mark.parametrize("architecture", RULES)
def test_saelens_reads_ours(lens, tmp_path, architecture, apply_b_dec):
    save_sae(tmp_path, random_sae(architecture, apply_b_dec_to_input=apply_b_dec))
    theirs, f, g = both(lens, tmp_path, tokens())
    agree(f, g)
    assert theirs.cfg.architecture() == architecture
    assert theirs.cfg.metadata.hook_name == "blocks.3.resid_post" and theirs.cfg.metadata.model_name == "m"


def randomise(module, seed: int = 0) -> None:
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator).abs() * (0.3 if name == "threshold" else 1))
            if name != "threshold":
                tensor.mul_(torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1)


@pytest.mark.parametrize("apply_b_dec", [True, False])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Standard", {}),
        ("JumpReLU", {}),
        ("Gated", {}),
        ("TopK", {"k": 3}),
        ("TopK", {"k": 3, "rescale_acts_by_decoder_norm": True}),
    ],
)
def test_we_read_what_saelens_saves(lens, tmp_path, name, options, apply_b_dec):
    config = getattr(lens, f"{name}SAEConfig")(d_in=D, d_sae=F, apply_b_dec_to_input=apply_b_dec, **options)
    sae = getattr(lens, f"{name}SAE")(config)
    randomise(sae)
    sae.save_model(tmp_path)
    _, f, g = both(lens, tmp_path, tokens())
    agree(f, g)


def training_sae(lens, name: str, normalise: str = "none", apply_b_dec: bool = True):
    options = {
        "TopK": {"k": 3},
        "BatchTopK": {"k": 2.5},
        "MatryoshkaBatchTopK": {"k": 3.0, "matryoshka_widths": [5, F]},
    }
    config = getattr(lens, f"{name}TrainingSAEConfig")(
        d_in=D, d_sae=F, normalize_activations=normalise, apply_b_dec_to_input=apply_b_dec, **options.get(name, {})
    )
    sae = getattr(lens, f"{name}TrainingSAE")(config)
    randomise(sae)
    if hasattr(sae, "topk_threshold"):
        sae.topk_threshold.fill_(1.25)
    return sae


ALL_TRAINED = ["Standard", "JumpReLU", "Gated", "TopK", "BatchTopK", "MatryoshkaBatchTopK"]


@pytest.mark.parametrize("name", ALL_TRAINED)
def test_we_read_what_a_training_of_saelens_ends_with(lens, tmp_path, name):
    training_sae(lens, name).save_inference_model(tmp_path)
    _, f, g = both(lens, tmp_path, tokens())
    agree(f, g)


@pytest.mark.parametrize("apply_b_dec", [True, False])
@pytest.mark.parametrize("normalise", ["none", "expected_average_only_in", "covariance_whitening"])
@pytest.mark.parametrize("name", ALL_TRAINED)
def test_a_checkpoint_in_mid_training_is_folded_as_saelens_folds_it_at_the_end(
    lens, tmp_path, name, normalise, apply_b_dec
):
    import torch
    from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening

    sae = training_sae(lens, name, normalise, apply_b_dec)
    matrix = torch.randn(D, D, generator=torch.Generator().manual_seed(5)).double() / 2 + torch.eye(D).double()
    whitening = ActivationWhitening(torch.linspace(-1, 1, D).double(), matrix, torch.linalg.inv(matrix))
    sae.save_model(tmp_path / "middle")
    scaler = ActivationScaler()
    if normalise == "expected_average_only_in":
        scaler = ActivationScaler(scaling_factor=0.37)
        sae.fold_activation_norm_scaling_factor(0.37)
    elif normalise == "covariance_whitening":
        scaler = ActivationScaler(whitening=whitening)
        sae.fold_activation_whitening(whitening.mean, whitening.matrix, whitening.inverse_matrix)
    scaler.save(str(tmp_path / "middle" / "activation_scaler.json"))
    sae.save_inference_model(tmp_path / "end")
    x = tokens()
    _, f, _ = both(lens, tmp_path / "end", x)
    ours = load_sae(tmp_path / "middle")
    g = np.asarray(sae_encode(ours.config, ours.params, x))
    x_hat = np.asarray(sae_decode(ours.config, ours.params, g))
    for a, b in zip(f, (g, x_hat), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=2e-5 * np.abs(a).max())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_saelens_and_we_read_the_papers_layout_alike(lens, tmp_path):
    flat(tmp_path, PAPER)
    theirs, f, g = both(lens, tmp_path, tokens())
    assert theirs.cfg.architecture() == "topk"
    agree(f, g)


@pytest.mark.parametrize("name", ["AbsTopK", "MatchingPursuit", "Transcoder", "SkipTranscoder", "JumpReLUTranscoder"])
def test_what_is_not_one_of_our_rules_is_refused(lens, tmp_path, name):
    kind = name if "Transcoder" in name else f"{name}SAE"
    more = {"AbsTopK": {"k": 3}, "MatchingPursuit": {"residual_threshold": 0.1}}
    options = more.get(name, {"d_out": D, "apply_b_dec_to_input": False})
    getattr(lens, kind)(getattr(lens, f"{kind}Config")(d_in=D, d_sae=F, **options)).save_model(tmp_path)
    with pytest.raises(MusaeError, match="architecture is '"):
        load_sae(tmp_path)


@pytest.mark.parametrize("normalise", ["layer_norm", "constant_norm_rescale", "expected_average_only_in"])
def test_what_cannot_be_folded_is_refused(lens, tmp_path, normalise):
    config = lens.StandardSAEConfig(d_in=D, d_sae=F, normalize_activations=normalise)
    lens.StandardSAE(config).save_model(tmp_path)
    with pytest.raises(MusaeError, match=normalise):
        load_sae(tmp_path)


def test_half_precision_of_torch(lens, tmp_path):
    sae = lens.StandardSAE(lens.StandardSAEConfig(d_in=D, d_sae=F, dtype="bfloat16"))
    randomise(sae)
    sae.save_model(tmp_path)
    theirs = lens.SAE.load_from_disk(str(tmp_path), device="cpu", dtype="float32")
    ours = load_sae(tmp_path)
    np.testing.assert_array_equal(ours.params["W_enc"], theirs.W_enc.detach().numpy())
