"""EnCodec against `transformers.EncodecModel` on random weights: latents, codes, waveform, files, gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musae_jax.errors import MusaeError
from musae_jax.models.encodec import (
    EncodecConfig,
    EncodecDecoder,
    EncodecEncoder,
    decode,
    dequantize,
    encode,
    pad_frames,
    quantize,
    random_encodec,
)
from musae_jax.models.encodec_table import encodec_from_hf, encodec_to_hf

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# 24 kHz-style, everything odd: causal, shortcuts, two dilated residual blocks a stage, untidy trimming.
ODD = EncodecConfig(
    target_bandwidths=(5.4,),
    sampling_rate=9000,
    hidden_size=10,
    num_filters=6,
    num_residual_layers=2,
    upsampling_ratios=(5, 3, 2),
    kernel_size=5,
    last_kernel_size=3,
    trim_right_ratio=0.7,
    codebook_size=64,
)
# MusicGen's codec in small: non-causal, no shortcuts, four codebooks at 50 Hz.
MUSICGEN = EncodecConfig(
    target_bandwidths=(1.0,),
    sampling_rate=8000,
    hidden_size=16,
    num_filters=4,
    upsampling_ratios=(5, 4, 4, 2),
    use_causal_conv=False,
    use_conv_shortcut=False,
    codebook_size=32,
)
STEREO = dataclasses.replace(MUSICGEN, audio_channels=2, pad_mode="constant", num_lstm_layers=1, compress=4)
jitted_encode = jax.jit(encode, static_argnums=0)
jitted_decode = jax.jit(decode, static_argnums=0)
CONFIGS = {"odd": ODD, "musicgen": MUSICGEN, "stereo": STEREO}


def torch_model(config, seed=0):
    torch.manual_seed(seed)
    model = transformers.EncodecModel(transformers.EncodecConfig(**config.to_hf())).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("original0"):
                tensor.mul_(torch.rand_like(tensor) + 0.5)  # so that g is not simply the norm of v
            elif tensor.ndim == 1:
                tensor.add_(torch.randn_like(tensor) * 0.1)
        for name, tensor in model.named_buffers():
            if name.endswith("codebook.embed"):
                tensor.copy_(torch.randn_like(tensor) * 0.5 ** int(name.split(".")[2]))
    return model


def torch_tensors(model):
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def converted(config, seed=0):
    model = torch_model(config, seed)
    params, used, problems = encodec_from_hf(torch_tensors(model), config)
    assert problems == []
    assert used == set(torch_tensors(model))
    return model, params


def noise(config, samples, batch=2):
    return np.random.default_rng(0).normal(size=(batch, samples, config.audio_channels)).astype(np.float32) * 0.3


def close(ours, theirs, tolerance=1e-4):
    assert ours.shape == theirs.shape
    assert np.abs(theirs).max() > 1e-3
    assert np.abs(np.asarray(ours) - theirs).max() <= tolerance * np.abs(theirs).max()


@pytest.mark.parametrize("name", CONFIGS)
# 1 and 7 are shorter than the padding of the first layers; 1601 leaves every stage with a part frame.
@pytest.mark.parametrize("samples", [1, 7, 1601])
def test_encoder_matches_transformers(name, samples):
    config = CONFIGS[name]
    model, params = converted(config)
    audio = noise(config, samples)
    with torch.no_grad():
        theirs = model.encoder(torch.from_numpy(audio).transpose(1, 2))
        their_codes = model.quantizer.encode(theirs)
    ours = jax.jit(EncodecEncoder(config).apply)({"params": params["encoder"]}, audio)
    assert ours.shape[1] == -(-samples // config.hop_length)
    close(ours, theirs.transpose(1, 2).numpy())
    codes = jitted_encode(config, params, audio if config.audio_channels == 2 else audio[..., 0])
    assert codes.dtype == jnp.int32
    np.testing.assert_array_equal(codes, their_codes.transpose(0, 1).numpy())
    assert len(np.unique(codes)) > 1


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("frames", [1, 2, 23])
def test_decoder_matches_transformers(name, frames):
    config = CONFIGS[name]
    model, params = converted(config, seed=1)
    codes = np.random.default_rng(1).integers(0, config.codebook_size, (2, config.num_quantizers, frames))
    with torch.no_grad():
        theirs = model.decode(torch.from_numpy(codes)[None], [None])[0].transpose(1, 2).numpy()
    ours = jitted_decode(config, params, jnp.asarray(codes, jnp.int32))
    assert ours.shape[1] == frames * config.hop_length
    close(ours, theirs[..., 0] if config.audio_channels == 1 else theirs)


def test_default_encode_of_transformers_gives_our_codes():
    model, params = converted(MUSICGEN)
    audio = noise(MUSICGEN, 3200)
    with torch.no_grad():
        theirs = model.encode(torch.from_numpy(audio).transpose(1, 2)).audio_codes[0]
    np.testing.assert_array_equal(jitted_encode(MUSICGEN, params, audio[..., 0]), theirs.numpy())


def test_older_weight_norm_names_and_folded_weights_read_the_same():
    _, params = converted(ODD)
    tensors = torch_tensors(torch_model(ODD))
    older = {
        key.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for key, value in tensors.items()
    }
    assert set(older) != set(tensors)
    folded = {key: value for key, value in tensors.items() if "parametrizations" not in key}
    for name, module in torch_model(ODD).named_modules():
        if isinstance(module, torch.nn.Conv1d | torch.nn.ConvTranspose1d):
            folded[f"{name}.weight"] = module.weight.detach().numpy()
    for variant in (older, folded):
        again, used, problems = encodec_from_hf(variant, ODD)
        assert problems == []
        assert used == set(variant)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), again, params)


@pytest.mark.parametrize("name", CONFIGS)
def test_saved_weights_load_in_transformers(name, tmp_path):
    from safetensors.numpy import save_file

    config = CONFIGS[name]
    params = random_encodec(config, jax.random.key(0))
    save_file(encodec_to_hf(params, config), tmp_path / "model.safetensors", metadata={"format": "pt"})
    transformers.EncodecConfig(**config.to_hf()).save_pretrained(tmp_path)
    model, info = transformers.EncodecModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    codes = np.random.default_rng(1).integers(0, config.codebook_size, (1, config.num_quantizers, 9))
    with torch.no_grad():
        theirs = model.eval().decode(torch.from_numpy(codes)[None], [None])[0].transpose(1, 2).numpy()
    close(jitted_decode(config, params, jnp.asarray(codes)), theirs[..., 0] if config.audio_channels == 1 else theirs)
    again, _, problems = encodec_from_hf(encodec_to_hf(params, config), config)
    assert problems == []
    assert jax.tree.structure(again) == jax.tree.structure(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), again, params)


def test_conversion_reports_every_problem():
    tensors = torch_tensors(torch_model(MUSICGEN))
    del tensors["encoder.layers.0.conv.bias"]
    del tensors["decoder.layers.3.conv.parametrizations.weight.original0"]
    tensors["encoder.layers.13.lstm.weight_hh_l1"] = tensors["encoder.layers.13.lstm.weight_hh_l1"][:, :-1]
    tensors["quantizer.layers.0.codebook.embed"] = tensors["quantizer.layers.0.codebook.embed"] * np.nan
    _, _, problems = encodec_from_hf(tensors, MUSICGEN)
    assert len(problems) == 4
    for name in ("encoder.layers.0.conv.bias", "decoder.layers.3.conv", "weight_hh_l1", "layers.0.codebook.embed"):
        assert any(name in problem for problem in problems)


def test_silent_channel_is_zero_not_nan():
    tensors = torch_tensors(torch_model(MUSICGEN))
    for part in ("original0", "original1"):
        tensors[f"encoder.layers.0.conv.parametrizations.weight.{part}"][0] = 0.0
    params, _, problems = encodec_from_hf(tensors, MUSICGEN)
    assert problems == []
    assert np.all(params["encoder"]["first"]["kernel"][..., 0] == 0)


SMALL = dataclasses.replace(ODD, upsampling_ratios=(3, 2), target_bandwidths=(27.0,))  # gradients compile slowly


@pytest.mark.parametrize("config", [SMALL, STEREO], ids=["odd", "stereo"])
def test_gradient_is_right_and_reaches_every_parameter(config):
    params = random_encodec(config, jax.random.key(1))
    audio = noise(config, 2 * config.hop_length + 3, batch=1)

    @jax.jit
    @jax.value_and_grad
    def loss(halves):
        latents = EncodecEncoder(config).apply({"params": halves["encoder"]}, audio)
        return jnp.mean(EncodecDecoder(config).apply({"params": halves["decoder"]}, latents) ** 2)

    def moved(step):
        return jax.tree.map(lambda p, g: p + step * g / norm, halves, gradient)

    halves = {half: params[half] for half in ("encoder", "decoder")}
    gradient = loss(halves)[1]
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, jax.tree_util.keystr(path)
    norm = float(jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient))))
    slope = float(loss(moved(1e-2))[0] - loss(moved(-1e-2))[0]) / 2e-2
    assert slope == pytest.approx(norm, rel=2e-2)


def test_lstm_gradient_matches_torch():
    from musae_jax.models.lstm import LSTM

    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 7, 5)).astype(np.float32)
    weight = rng.normal(size=x.shape).astype(np.float32)
    peer = torch.nn.LSTM(5, 5, 2, batch_first=True)
    params = {}
    for l in range(2):
        params[f"input_{l}"] = getattr(peer, f"weight_ih_l{l}").detach().numpy().T
        params[f"recurrent_{l}"] = getattr(peer, f"weight_hh_l{l}").detach().numpy().T
        params[f"bias_{l}"] = (getattr(peer, f"bias_ih_l{l}") + getattr(peer, f"bias_hh_l{l}")).detach().numpy()
    their_x = torch.from_numpy(x).requires_grad_()
    theirs = peer(their_x)[0] + their_x
    (theirs * torch.from_numpy(weight)).sum().backward()
    ours, pull = jax.vjp(lambda p, x: LSTM(2).apply({"params": p}, x)[0], params, x)
    gradient, dx = pull(jnp.asarray(weight))
    close(ours, theirs.detach().numpy(), 1e-5)
    close(dx, their_x.grad.numpy(), 1e-5)
    for l in range(2):
        close(gradient[f"input_{l}"], getattr(peer, f"weight_ih_l{l}").grad.numpy().T, 1e-5)
        close(gradient[f"recurrent_{l}"], getattr(peer, f"weight_hh_l{l}").grad.numpy().T, 1e-5)
        close(gradient[f"bias_{l}"], getattr(peer, f"bias_ih_l{l}").grad.numpy(), 1e-5)


@pytest.mark.parametrize("length,left,right", [(1, 3, 3), (3, 3, 5), (4, 3, 3), (9, 6, 0), (9, 0, 4)])
def test_reflection_matches_transformers_even_when_longer_than_the_input(length, left, right):
    from transformers.models.encodec.modeling_encodec import EncodecConv1d

    x = np.random.default_rng(0).normal(size=(2, length, 3)).astype(np.float32)
    theirs = EncodecConv1d._pad1d(torch.from_numpy(x).transpose(1, 2), (left, right), "reflect").transpose(1, 2)
    np.testing.assert_array_equal(pad_frames(jnp.asarray(x), left, right, "reflect"), theirs.numpy())


def test_random_parameters_keep_the_scale_of_the_signal():
    for config in CONFIGS.values():
        params = random_encodec(config, jax.random.key(2))
        template = jax.eval_shape(EncodecEncoder(config).init, jax.random.key(0), noise(config, config.hop_length))
        assert jax.tree.map(jnp.shape, params["encoder"]) == jax.tree.map(jnp.shape, template["params"])
        audio = jitted_decode(config, params, jitted_encode(config, params, jnp.squeeze(noise(config, 800))))
        assert 0.02 < float(jnp.std(audio)) < 5.0
        other = random_encodec(config, jax.random.key(3))
        assert not np.array_equal(params["decoder"]["last"]["kernel"], other["decoder"]["last"]["kernel"])


def test_quantize_takes_the_nearest_of_what_is_left():
    codebooks = jnp.asarray([[[1.0, 0.0], [-1.0, 0.0]], [[0.0, 0.5], [0.0, -0.5]]])
    latents = jnp.asarray([[[0.8, 0.4], [-2.0, -0.1]]])
    codes = quantize(codebooks, latents)
    np.testing.assert_array_equal(codes, [[[0, 1], [0, 1]]])
    np.testing.assert_allclose(dequantize(codebooks, codes), [[[1.0, 0.5], [-1.0, -0.5]]])
    np.testing.assert_allclose(dequantize(codebooks, codes[:, :1]), [[[1.0, 0.0], [-1.0, 0.0]]])


def test_config_round_trip_and_derived_numbers():
    for config in CONFIGS.values():
        theirs = transformers.EncodecConfig(**config.to_hf())
        assert EncodecConfig.from_hf(theirs.to_dict()) == config == EncodecConfig.from_hf(config.to_hf())
        for name in ("hop_length", "frame_rate", "codebook_nbits", "num_quantizers"):
            assert getattr(config, name) == getattr(theirs, name)
    assert ODD.num_quantizers == 3 and MUSICGEN.num_quantizers == 4
    hash(MUSICGEN)  # static under jit


def test_published_musicgen_block_is_read():
    block = {
        "_name_or_path": "facebook/encodec_32khz", "architectures": ["EncodecModel"], "audio_channels": 1,
        "chunk_length_s": None, "codebook_dim": 128, "codebook_size": 2048, "hidden_size": 128, "model_type": "encodec",
        "num_filters": 64, "num_beams": 1, "overlap": None, "sampling_rate": 32000, "target_bandwidths": [2.2],
        "torch_dtype": "float32", "trim_right_ratio": 1, "upsampling_ratios": [8, 5, 4, 4], "use_causal_conv": False,
        "use_conv_shortcut": False,
    }  # fmt: skip
    config = EncodecConfig.from_hf(block)
    assert (config.num_quantizers, config.frame_rate, config.hop_length) == (4, 50, 640)


@pytest.mark.parametrize(
    "change,named",
    [
        ({"num_heads": 8}, "num_heads"),
        ({"normalize": True}, "normalize"),
        ({"chunk_length_s": 1.0, "overlap": 0.01}, "chunk_length_s"),
        ({"norm_type": "time_group_norm"}, "norm_type"),
        ({"pad_mode": "mirror"}, "pad_mode"),
        ({"audio_channels": 3}, "audio_channels"),
        ({"codebook_size": 1000}, "codebook_size"),
        ({"codebook_dim": 7}, "codebook_dim"),
        ({"use_causal_conv": False, "trim_right_ratio": 0.5}, "trim_right_ratio"),
        ({"target_bandwidths": [0.1]}, "target_bandwidths"),
        ({"target_bandwidths": []}, "target_bandwidths"),
        ({"upsampling_ratios": [8, 0]}, "upsampling_ratios"),
        ({"kernel_size": "7"}, "kernel_size"),
        ({"num_filters": 0}, "num_filters"),
        ({"use_causal_conv": 1}, "use_causal_conv"),
        ({"model_type": "dac"}, "model_type"),
    ],
)
def test_config_refuses_by_name(change, named):
    with pytest.raises(MusaeError, match=named):
        EncodecConfig.from_hf({**ODD.to_hf(), **change})


def test_wrong_audio_shape_is_refused():
    params = random_encodec(MUSICGEN, jax.random.key(0))
    with pytest.raises(MusaeError, match=r"\[B, S\]"):
        encode(MUSICGEN, params, jnp.zeros((1, 400, 2)))
