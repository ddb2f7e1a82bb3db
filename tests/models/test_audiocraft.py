"""Checkpoints in audiocraft's layout, written from transformers' models: the same weights, the same numbers."""

import json
import re
import shutil
import warnings

import jax
import numpy as np
import pytest
import yaml

from musae_jax import cli
from musae_jax.errors import MusaeError
from musae_jax.models.audiocraft_config import Tree
from musae_jax.models.checkpoints import load_musicgen, save_musicgen
from musae_jax.models.musicgen import decode_codes, encode_audio, encode_text, forward
from musae_jax.models.summary import describe_model

torch = pytest.importorskip("torch")

IDS = np.array([[5, 9, 3, 22, 8, 41, 7, 1], [12, 30, 1, 0, 0, 0, 0, 0]])
MODELS = ["craft", "craft-stereo", "craft-melody", "craft-stereo-melody"]


def lm_state(model) -> dict:
    """audiocraft's names for a transformers language model, from `models/lm.py` and `modules/transformer.py`."""
    decoder, melody, state = model.decoder.model.decoder, hasattr(model.config, "num_chroma"), {}
    for k, (embedding, head) in enumerate(zip(decoder.embed_tokens, model.decoder.lm_heads)):
        state[f"emb.{k}.weight"], state[f"linears.{k}.weight"] = embedding.weight, head.weight
    for i, layer in enumerate(decoder.layers):
        to = f"transformer.layers.{i}"
        attentions, norms = {"self_attn": layer.self_attn}, {"norm1": layer.self_attn_layer_norm}
        if not melody:
            attentions["cross_attention"], norms["norm_cross"] = layer.encoder_attn, layer.encoder_attn_layer_norm
        for name, attention in attentions.items():
            parts = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
            state[f"{to}.{name}.in_proj_weight"] = torch.cat(parts)
            state[f"{to}.{name}.out_proj.weight"] = attention.out_proj.weight
        state[f"{to}.linear1.weight"], state[f"{to}.linear2.weight"] = layer.fc1.weight, layer.fc2.weight
        for name, norm in {**norms, "norm2": layer.final_layer_norm}.items():
            state[f"{to}.{name}.weight"], state[f"{to}.{name}.bias"] = norm.weight, norm.bias
    state["out_norm.weight"], state["out_norm.bias"] = decoder.layer_norm.weight, decoder.layer_norm.bias
    projections = {"description": model.enc_to_dec_proj}
    if melody:
        projections["self_wav"] = model.audio_enc_to_dec_proj
        state["condition_provider.conditioners.self_wav.chroma.spec.window"] = torch.hann_window(16384)
    for name, projection in projections.items():
        to = f"condition_provider.conditioners.{name}.output_proj"
        state[f"{to}.weight"], state[f"{to}.bias"] = projection.weight, projection.bias
    return {name: value.detach().clone() for name, value in state.items()}


def codec_state(codec) -> dict:
    """audiocraft's names for a transformers codec: a wrapper more around each convolution, older weight norm names."""
    state = {}
    for name, value in codec.state_dict().items():
        name = re.sub(r"^(encoder|decoder)\.layers\.", r"\1.model.", name)
        transposed = re.match(r"decoder\.model\.(\d+)\.conv\.", name)
        if transposed and type(codec.decoder.layers[int(transposed[1])]).__name__ == "EncodecConvTranspose1d":
            name = name.replace(".conv.", ".convtr.convtr.")
        else:
            name = name.replace(".conv.", ".conv.conv.")
        name = name.replace("parametrizations.weight.original0", "weight_g")
        name = name.replace("parametrizations.weight.original1", "weight_v")
        state[re.sub(r"quantizer\.layers\.(\d+)\.codebook\.", r"quantizer.vq.layers.\1._codebook.", name)] = value
    return state


def lm_yaml(model) -> dict:
    c, codec = model.config.decoder, model.config.audio_encoder
    delays = [k // c.audio_channels for k in range(c.num_codebooks)]
    chroma = {
        "sample_rate": "${sample_rate}", "n_chroma": 12, "radix2_exp": 14, "argmax": True, "match_len_on_eval": False,
        "eval_wavs": None, "n_eval_wavs": 100, "cache_path": None,
    }  # fmt: skip
    melody = (
        {"self_wav": {"model": "chroma_stem", "chroma_stem": chroma}} if hasattr(model.config, "num_chroma") else {}
    )
    return {
        "solver": "musicgen",
        "sample_rate": codec.sampling_rate,
        "channels": c.audio_channels,
        "lm_model": "transformer_lm",
        "interleave_stereo_codebooks": {"use": c.audio_channels == 2, "per_timestep": False},
        "codebooks_pattern": {
            "modeling": "delay",
            "delay": {"delays": delays, "flatten_first": 0, "empty_initial": 0},
            "music_lm": {"group_by": 2},
        },
        "transformer_lm": {
            "dim": c.hidden_size, "num_heads": c.num_attention_heads, "num_layers": c.num_hidden_layers,
            "hidden_scale": 4, "n_q": c.num_codebooks, "card": c.vocab_size, "dropout": 0.0, "emb_lr": None,
            "activation": "gelu", "norm_first": True, "bias_ff": False, "bias_attn": False, "bias_proj": False,
            "past_context": None, "causal": True, "custom": False, "memory_efficient": True,
            "attention_as_float32": False, "layer_scale": None, "positional_embedding": "sin", "xpos": False,
            "checkpointing": "torch", "weight_init": "gaussian", "depthwise_init": "current", "zero_bias_init": True,
            "norm": "layer_norm", "cross_attention": False, "qk_layer_norm": False, "qk_layer_norm_cross": False,
            "attention_dropout": None, "kv_repeat": 1, "two_step_cfg": False,
        },
        "fuser": {
            "cross_attention_pos_emb": False, "cross_attention_pos_emb_scale": 1, "sum": [],
            "prepend": ["self_wav", "description"] if melody else [], "cross": [] if melody else ["description"],
            "input_interpolate": [],
        },
        "dataset": {"segment_duration": 30, "batch_size": 192},
        "conditioners": {
            "args": {"drop_desc_p": 0.5}, **melody,
            "description": {
                "model": "t5",
                "t5": {"name": "t5-base", "finetune": False, "word_dropout": 0.3, "normalize_text": False},
            },
        },
    }  # fmt: skip


def codec_yaml(model) -> dict:
    c = model.config.audio_encoder
    return {
        "sample_rate": c.sampling_rate,
        "channels": 1,
        "compression_model": "encodec",
        "encodec": {
            "autoencoder": "seanet", "quantizer": "rvq", "sample_rate": "${sample_rate}", "channels": "${channels}",
            "causal": False, "renormalize": False,
        },
        "seanet": {
            "dimension": c.hidden_size, "channels": "${channels}", "causal": "${encodec.causal}",
            "n_filters": c.num_filters, "n_residual_layers": c.num_residual_layers, "ratios": c.upsampling_ratios,
            "activation": "ELU", "activation_params": {"alpha": 1.0}, "norm": "weight_norm", "norm_params": {},
            "kernel_size": 7, "residual_kernel_size": 3, "last_kernel_size": 7, "dilation_base": 2,
            "pad_mode": c.pad_mode, "true_skip": not c.use_conv_shortcut, "compress": 2, "lstm": 2,
            "disable_norm_outer_blocks": 0, "encoder": {},
            "decoder": {"trim_right_ratio": 1.0, "final_activation": None, "final_activation_params": None},
        },
        "rvq": {"n_q": len(model.audio_encoder.quantizer.layers), "q_dropout": False, "bins": c.codebook_size},
    }  # fmt: skip


def package(state: dict, config: dict) -> dict:
    return {"best_state": state, "xp.cfg": yaml.safe_dump(config), "version": "1.4.0a2", "exported": True}


def write(folder, model, lm=None, codec=None):
    """The two files, and the text encoder's folder beside them."""
    folder.mkdir(exist_ok=True)
    torch.save(lm or package(lm_state(model), lm_yaml(model)), folder / "state_dict.bin")
    own = package(codec_state(model.audio_encoder), codec_yaml(model))
    torch.save(codec or own, folder / "compression_state_dict.bin")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.text_encoder.save_pretrained(folder / "t5-base")
    return folder


@pytest.fixture(params=MODELS)
def both(request, pair, tmp_path):
    """A transformers model, and the folder that audiocraft would have written of it."""
    model = pair(request.param).theirs
    return model, write(tmp_path / "model", model)


@pytest.fixture
def mono(pair, tmp_path):
    model = pair("craft").theirs
    return model, write(tmp_path / "model", model)


def test_logits_codes_and_sound_are_those_of_the_same_weights(both):
    model, folder = both
    mg = load_musicgen(folder)
    c = mg.config.decoder
    columns = np.random.default_rng(0).integers(0, c.vocab_size + 1, (2, c.num_codebooks, 9))
    ids = torch.tensor(IDS)
    audio = np.random.default_rng(1).normal(0, 0.3, (2, 1 if c.audio_channels == 1 else 2, 200)).astype(np.float32)
    melody = None if mg.config.melody is None else np.eye(12, dtype=np.float32)[[[3, 7, 0, 11], [5, 5, 1, 2]]]
    tune = {} if melody is None else {"input_features": torch.tensor(melody)}
    with torch.no_grad():
        logits = model(
            input_ids=ids, attention_mask=ids != 0, decoder_input_ids=torch.tensor(columns).reshape(-1, 9), **tune
        ).logits  # fmt: skip
        sides = [
            model.audio_encoder.encode(torch.tensor(audio[:, i : i + 1])).audio_codes[0] for i in range(audio.shape[1])
        ]
        codes = torch.stack(sides, 2).reshape(2, c.num_codebooks, -1)
        n = c.audio_channels
        sound = [model.audio_encoder.decode(codes[None, :, i::n], [None]).audio_values for i in range(n)]
    ours = forward(mg.config, mg.params, columns, encode_text(mg, IDS), delayed=True, melody=melody).logits
    logits = logits.reshape(*ours.shape[:2], -1, ours.shape[-1])[:, :, -9:]  # a melody's prefix stands in front
    np.testing.assert_allclose(ours, logits, atol=1e-4 * logits.abs().max().item())
    found = encode_audio(mg.config, mg.params, audio if n == 2 else audio[:, 0])
    np.testing.assert_array_equal(found, codes)
    theirs = torch.cat(sound, 1).numpy() if n == 2 else sound[0][:, 0].numpy()
    np.testing.assert_allclose(decode_codes(mg.config, mg.params, codes.numpy()), theirs, atol=1e-5)


def test_it_is_the_same_model_as_the_hugging_face_folder(both, pair, tmp_path, request):
    model, folder = both
    mg, other = load_musicgen(folder), load_musicgen(save(model, tmp_path / "hf"))
    assert mg.config.decoder == other.config.decoder and mg.config.melody == other.config.melody
    assert mg.config.text == other.config.text and mg.config.audio.num_quantizers == other.config.audio.num_quantizers
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-7), mg.params, other.params)
    save_musicgen(tmp_path / "ours", mg)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), mg.params, load_musicgen(tmp_path / "ours").params
    )


def save(model, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    return folder


def same(folder, model, tmp_path):
    other = load_musicgen(save(model, tmp_path / "other"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-7), load_musicgen(folder).params, other.params)


def test_half_precision_torchs_own_attention_and_spare_codebooks(mono, tmp_path):
    model, folder = mono
    state = {
        k.replace("attn.", "attn.mha.").replace("attention.", "attention.mha."): v for k, v in lm_state(model).items()
    }
    codec, config = codec_state(model.audio_encoder), codec_yaml(model)
    config["rvq"]["n_q"] = 6
    for k in (4, 5):
        for part in ("embed", "embed_avg", "cluster_size", "inited"):
            codec[f"quantizer.vq.layers.{k}._codebook.{part}"] = codec[f"quantizer.vq.layers.0._codebook.{part}"]
    write(folder, model, package(state, lm_yaml(model)), package(codec, config))
    same(folder, model, tmp_path)
    torch.save(package({k: v.half() for k, v in state.items()}, lm_yaml(model)), folder / "state_dict.bin")
    half = load_musicgen(folder).params["decoder"]["heads"]
    np.testing.assert_allclose(half, load_musicgen(tmp_path / "other").params["decoder"]["heads"], rtol=1e-3, atol=1e-6)


def test_a_codec_that_is_only_named_and_a_text_encoder_in_the_file(mono, tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model, folder = mono
    named = {"pretrained": "facebook/encodec_32khz", "exported": True, "version": "1.4.0a2"}
    torch.save(named, folder / "compression_state_dict.bin")
    assert "codec facebook/encodec_32khz, which is not here" in describe_model(folder)
    with pytest.raises(
        MusaeError, match=r"only the name of its codec, facebook/encodec_32khz: put that model's folder"
    ):
        load_musicgen(folder)
    save(model.audio_encoder, tmp_path / "encodec_32khz")  # beside the model
    same(folder, model, tmp_path)
    shutil.move(folder / "t5-base", tmp_path / "t5-base")
    state = lm_state(model)
    for key, value in model.text_encoder.state_dict().items():
        state[f"condition_provider.conditioners.description.t5.{key}"] = value * 2
    torch.save(package(state, lm_yaml(model)), folder / "state_dict.bin")
    trained = load_musicgen(folder).params["text"]["embedding"]
    np.testing.assert_allclose(trained, 2 * load_musicgen(tmp_path / "other").params["text"]["embedding"])
    assert "its own weights are in the file" in describe_model(folder)
    shutil.rmtree(tmp_path / "t5-base")
    with pytest.raises(
        MusaeError, match=r"only the name of its text encoder, t5-base: put that model's folder at .*/model/t5-base"
    ):
        load_musicgen(folder)


def test_what_it_is_without_its_weights(both):
    model, folder = both
    told = describe_model(folder)
    c = model.config.decoder
    stereo = c.audio_channels == 2
    kind = "MusicGen that takes a melody" if hasattr(model.config, "num_chroma") else "MusicGen"
    assert f"{kind}: {c.num_hidden_layers} blocks of width {c.hidden_size} and {c.num_attention_heads} heads" in told
    assert f"{c.num_codebooks} codebooks of {c.vocab_size}" in told
    assert ("100 Hz frames, 400 Hz stereo sound" if stereo else "50 Hz frames, 500 Hz mono sound") in told
    assert "audiocraft layout, state_dict.bin and 1 more" in told and "float32" in told
    assert "text encoder t5-base, from" in told


def refused(folder, *words) -> None:
    with pytest.raises(MusaeError) as error:
        load_musicgen(folder)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("transformer_lm.norm_first", False, "transformer_lm.norm_first is False"),
        ("transformer_lm.positional_embedding", "rope", "transformer_lm.positional_embedding is 'rope'"),
        ("transformer_lm.rotary", 3, "transformer_lm.rotary is an attribute that musae_jax does not know"),
        ("transformer_lm.dim", "wide", "transformer_lm.dim is 'wide'"),
        ("transformer_lm.num_layers", 10**9, "transformer_lm.num_layers is 1000000000, which is too large"),
        ("transformer_lm.num_heads", 7, "not a multiple of 7 heads"),
        ("transformer_lm.num_heads", None, "transformer_lm.num_heads is None"),
        ("transformer_lm.n_q", 3, "delays is [0, 1, 2, 3] and only [0, 1, 2] is supported"),
        ("transformer_lm.card", 64, "transformer_lm.card is 64 while the codec has 32"),
        ("lm_model", "transformer_lm_magnet", "lm_model is 'transformer_lm_magnet'"),
        ("codebooks_pattern.modeling", "parallel", "codebooks_pattern.modeling is 'parallel'"),
        ("codebooks_pattern.delay.delays", [0, 0, 0, 0], "delays is [0, 0, 0, 0]"),
        ("codebooks_pattern.delay.flatten_first", 1, "flatten_first is 1"),
        ("conditioners.self_wav", {"model": "chroma_stem"}, "conditioners.self_wav.chroma_stem.sample_rate is missing"),
        ("conditioners.style", {"model": "style"}, "conditioners.style is a kind of conditioning that is not read"),
        ("conditioners.description.model", "clap", "conditioners.description is not a t5"),
        ("conditioners.description.t5.name", "../../secret", "names '../../secret' as its text encoder"),
        ("fuser.cross", [], "cross-attention"),
        ("sample_rate", 32000, "sample_rate is 32000, the codec's 500"),
    ],
)
def test_language_models_that_cannot_be_run(mono, path, value, words):
    model, folder = mono
    config = lm_yaml(model)
    block = config
    for name in path.split(".")[:-1]:
        block = block[name]
    block[path.split(".")[-1]] = value
    torch.save(package(lm_state(model), config), folder / "state_dict.bin")
    refused(folder, words)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("seanet.norm", "time_group_norm", "seanet.norm is 'time_group_norm'"),
        ("seanet.n_filters", None, "seanet.n_filters is None"),
        ("seanet.ratios", [5, "x"], "seanet.ratios"),
        ("seanet.decoder.n_filters", 4, "seanet.decoder.n_filters is 4 there and 2 in seanet"),
        ("seanet.lstm", 0, "seanet.lstm is 0"),
        ("seanet.channels", 2, "seanet.channels is 2"),
        ("encodec.renormalize", True, "encodec.renormalize is True"),
        ("encodec.sample_rate", "${nowhere}", "encodec.sample_rate is None"),
        ("encodec.sample_rate", "${encodec.sample_rate}", "encodec.sample_rate is"),
        ("rvq.n_q", 2, "rvq.n_q is 2, but the language model writes 4"),
        ("rvq.bins", 33, "codebook_size is 33"),
        ("compression_model", "dac", "compression_model is 'dac'"),
    ],
)
def test_codecs_that_cannot_be_run(mono, path, value, words):
    model, folder = mono
    config = codec_yaml(model)
    block = config
    for name in path.split(".")[:-1]:
        block = block[name]
    block[path.split(".")[-1]] = value
    torch.save(package(codec_state(model.audio_encoder), config), folder / "compression_state_dict.bin")
    refused(folder, words)
    assert "musae cannot load it" in describe_model(folder)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("conditioners.self_wav.model", "style", "conditioners.self_wav is not a chroma_stem"),
        ("conditioners.self_wav.chroma_stem.radix2_exp", 12, "chroma_stem.radix2_exp is 12 and only 14 is supported"),
        ("conditioners.self_wav.chroma_stem.argmax", False, "chroma_stem.argmax is False"),
        ("conditioners.self_wav.chroma_stem.winhop", 512, "chroma_stem.winhop is 512"),
        ("conditioners.self_wav.chroma_stem.blur", 1, "chroma_stem.blur is an attribute that musae_jax does not know"),
        ("conditioners.self_wav.chroma_stem.sample_rate", 16000, "sample_rate is 16000 and not the model's, 500"),
        ("conditioners.self_wav.chroma_stem", {"n_chroma": 12}, "chroma_stem.sample_rate is missing"),
        (
            "conditioners.self_wav.chroma_stem.n_chroma",
            24,
            "self_wav.output_proj.weight has shape (30, 12)",
        ),
        ("dataset.segment_duration", "long", "dataset.segment_duration is 'long'"),
        ("dataset.segment_duration", 10**9, "dataset.segment_duration is 1000000000"),
        ("fuser.prepend", ["self_wav"], "fuser does not prepend the melody and the description"),
        ("fuser.prepend", 3, "fuser does not prepend the melody and the description"),
        ("fuser.cross", ["description"], "fuser does not prepend the melody and the description"),
        ("conditioners.description", None, "conditioners.description is not a t5"),
    ],
)
def test_melody_checkpoints_that_cannot_be_run(pair, tmp_path, path, value, words):
    model = pair("craft-melody").theirs
    config = lm_yaml(model)
    block = config
    for name in path.split(".")[:-1]:
        block = block[name]
    block[path.split(".")[-1]] = value
    folder = write(tmp_path / "model", model, package(lm_state(model), config))
    refused(folder, words)
    if "has shape" not in words:
        told = describe_model(folder)
        assert told.startswith("MusicGen that takes a melody: 2 blocks") and "musae cannot load it" in told


def test_every_wrong_tensor_is_named_in_audiocrafts_words(mono):
    model, folder = mono
    state, codec = lm_state(model), codec_state(model.audio_encoder)
    del state["emb.1.weight"]
    state["transformer.layers.0.self_attn.in_proj_weight"] = torch.zeros(91, 30)
    state["transformer.layers.9.linear1.weight"] = torch.zeros(2)
    torch.save(package(state, lm_yaml(model)), folder / "state_dict.bin")
    refused(
        folder,
        "tensor emb.1.weight is missing (expected shape (33, 30))",
        "tensor transformer.layers.0.self_attn.in_proj_weight has shape (91, 30), expected (90, 30)",
        "tensor transformer.layers.9.linear1.weight has no place",
        "(3 found)",
    )
    torch.save(package(lm_state(model), lm_yaml(model)), folder / "state_dict.bin")
    del codec["decoder.model.3.convtr.convtr.bias"]
    codec["encoder.model.0.conv.conv.weight_v"] = codec["encoder.model.0.conv.conv.weight_v"].to(torch.int64)
    codec["quantizer.vq.layers.0._codebook.embed"] = torch.zeros(3, 3)
    codec["encoder.model.77.conv.conv.bias"] = torch.zeros(3)
    torch.save(package(codec, codec_yaml(model)), folder / "compression_state_dict.bin")
    refused(
        folder,
        "the codec's encoder.model.0.conv.conv.weight_v holds int64, expected floating point",
        "the codec's quantizer.vq.layers.0._codebook.embed has shape (3, 3), expected (32, 8)",
        "the codec's encoder.model.77.conv.conv.bias has no place",
        "(4 found)",
    )


class Spring:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_hostile_and_broken_files(mono, tmp_path, capsys):
    model, folder = mono
    path = folder / "state_dict.bin"
    whole = path.read_bytes()
    torch.save(package(lm_state(model), lm_yaml(model)) | {"version": Spring(tmp_path / "sprung")}, path)
    refused(folder, "a pickle can run code")
    with pytest.raises(MusaeError, match="a pickle can run code"):
        describe_model(folder)
    for verb in (["info", str(folder)], ["generate", "x", "--out", str(tmp_path / "x.wav"), "--model", str(folder)]):
        assert cli.main(verb) == 2
        said = capsys.readouterr().err.strip()
        assert "a pickle can run code" in said and "Traceback" not in said
    assert not (tmp_path / "sprung").exists()
    for content in (whole[: len(whole) // 2], b"", b"neither"):
        path.write_bytes(content)
        refused(folder, "state_dict.bin is not a whole file")
    torch.save({"best_state": {"model": {"a": torch.zeros(2)}}, "xp.cfg": "a: 1"}, path)  # a training checkpoint
    refused(folder, "export the model again")
    for text in ("a: [", "- 1", "a: &x [1]\nb: *x", "[" * 5000, 3, None):
        torch.save(package(lm_state(model), {}) | {"xp.cfg": text}, path)
        refused(folder, "xp.cfg")
    path.write_bytes(whole)
    (folder / "compression_state_dict.bin").unlink()
    refused(folder, "compression_state_dict.bin is missing")
    torch.save({"pretrained": "dac_44khz"}, folder / "compression_state_dict.bin")
    refused(folder, "names 'dac_44khz' as its codec")
    for name in ("..", 3):
        torch.save({"pretrained": name}, folder / "compression_state_dict.bin")
        refused(folder, "as its codec, which is not one")


def test_interpolations_are_looked_up_where_they_are_read(tmp_path):
    tree = Tree("a: ${b.c}\nb: {c: '${d}', e: '${a}x'}\nd: 5\nf: ${f}", tmp_path)
    assert tree.get("a") == 5 and tree.block("b") == {"c": 5, "e": "${a}x"} and tree.get("f") == "${f}"


def test_hugging_faces_layout_goes_first_where_a_folder_has_both(mono, pair):
    _, folder = mono
    shutil.copytree(pair("even").folder, folder, dirs_exist_ok=True)
    assert load_musicgen(folder).config.decoder.hidden_size == 32
    assert json.loads((folder / "config.json").read_text())["model_type"] == "musicgen"
