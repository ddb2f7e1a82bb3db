"""Folders written by transformers and by us, and the ways in which a folder can be wrong."""

import contextlib
import dataclasses
import json
import pickle
import re
import shutil
import warnings

import jax
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

from musae_jax.errors import MusaeError
from musae_jax.models.checkpoints import load_musicgen, save_musicgen
from musae_jax.models.chroma import encode_melody
from musae_jax.models.folder import CONFIG, INDEX, PICKLED, PICKLED_INDEX, WEIGHTS
from musae_jax.models.generate import generate
from musae_jax.models.musicgen import Sampling, encode_text, forward
from musae_jax.models.summary import describe_model

torch = pytest.importorskip("torch")

IDS = np.array([[5, 9, 3, 22, 8, 41, 7, 1], [12, 30, 1, 0, 0, 0, 0, 0]])


def torch_load(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        cls = getattr(transformers, json.loads((folder / CONFIG).read_text())["architectures"][0])
        return cls.from_pretrained(folder, output_loading_info=True)


def assert_same(mg, other):
    """Equal bit for bit; the codec's folded weight norm may differ by a rounding."""
    assert mg.config == other.config
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-7), mg.params["audio"], other.params["audio"])
    rest, other_rest = ({name: tree for name, tree in p.items() if name != "audio"} for p in (mg.params, other.params))
    jax.tree.map(np.testing.assert_array_equal, rest, other_rest)


def word_tokenizer():
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, "slow": 3, "piano": 4, "drums": 5}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


@pytest.mark.parametrize("size", ["even", "odd", "stereo", "melody", "odd melody", "stereo melody"])
def test_saved_by_us_read_by_transformers_and_by_us(pair, tmp_path, size):
    mg = pair(size).ours
    save_musicgen(tmp_path / "saved", mg.replace(tokenizer=word_tokenizer()))
    model, info = torch_load(tmp_path / "saved")
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    c = mg.config.decoder
    columns = np.random.default_rng(0).integers(0, c.vocab_size + 1, (2, c.num_codebooks, 9))
    ids = torch.tensor(IDS)
    with torch.no_grad():
        theirs = model(
            input_ids=ids, attention_mask=ids != 0, decoder_input_ids=torch.tensor(columns).reshape(-1, 9)
        ).logits  # fmt: skip
    ours = forward(mg.config, mg.params, columns, encode_text(mg, IDS), delayed=True).logits
    theirs = theirs.reshape(*ours.shape[:2], -1, ours.shape[-1])[:, :, -9:]  # a melody model has its prefix in front
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * theirs.abs().max().item())

    again = load_musicgen(tmp_path / "saved")
    save_musicgen(tmp_path / "again", again)
    assert_same(mg, again)
    assert_same(again, load_musicgen(tmp_path / "again"))
    padding = 13 if mg.config.melody is None else 0  # a melody checkpoint would read it
    wanted = np.pad([[1, 1, 1], [1, 1, 0]], ((0, 0), (0, padding)))
    np.testing.assert_array_equal(encode_text(again, ["slow piano", "drums"]).mask, wanted)
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs(["slow piano"])["input_ids"] == [[3, 4, 1]] and theirs.pad_token_id == 0


@pytest.mark.parametrize("size", ["even", "stereo"])
def test_transformers_prepares_text_and_sound_by_a_folder_of_ours(pair, tmp_path, size):
    """Its processor gives the ids and the sound that its model and ours take alike."""
    from transformers import AutoProcessor, MusicgenProcessor

    mg, model = pair(size).ours, pair(size).theirs
    save_musicgen(tmp_path / "saved", mg.replace(tokenizer=word_tokenizer()))
    processor = AutoProcessor.from_pretrained(tmp_path / "saved")
    assert isinstance(processor, MusicgenProcessor)
    channels, rate = mg.config.audio_channels, mg.config.sampling_rate
    sound = np.random.default_rng(0).normal(size=(channels, 80)).astype(np.float32)
    inputs = processor(
        audio=sound if channels == 2 else sound[0], text=["slow piano"], sampling_rate=rate, return_tensors="pt"
    )
    np.testing.assert_array_equal(inputs["input_ids"], [[3, 4, 1]])
    assert inputs["input_values"].shape == (1, channels, 80)
    with pytest.raises(ValueError, match=f"sampling rate of {rate}"):
        processor(audio=sound[0], text=["slow"], sampling_rate=rate + 1)
    made = model.generate(**inputs, do_sample=False, max_new_tokens=12, guidance_scale=1.0)
    prompt = sound[None] if channels == 2 else sound
    frames = 12 - mg.config.decoder.delays + 1
    text = encode_text(mg, inputs["input_ids"].numpy())
    ours = generate(mg.config, mg.params, text, jax.random.key(0), frames / 50, 1.0, temperature=0.0, prompt=prompt)
    np.testing.assert_allclose(ours.audio.reshape(made.shape), made, atol=1e-4)


def test_transformers_prepares_a_melody_by_a_folder_of_ours(pair, tmp_path):
    mg = pair("melody").ours
    save_musicgen(tmp_path / "saved", mg.replace(tokenizer=word_tokenizer()))
    found = json.loads((tmp_path / "saved" / "preprocessor_config.json").read_text())
    assert found["processor_class"] == "MusicgenMelodyProcessor" and found["sampling_rate"] == 400
    assert (found["num_chroma"], found["n_fft"], found["hop_length"], found["chunk_length"]) == (12, 16384, 4096, 30)
    pytest.importorskip("torchaudio")
    from transformers import AutoProcessor, MusicgenMelodyProcessor

    processor = AutoProcessor.from_pretrained(tmp_path / "saved")
    assert isinstance(processor, MusicgenMelodyProcessor)
    sound = np.random.default_rng(0).normal(size=30_000).astype(np.float32)
    inputs = processor(audio=sound, text=["slow piano"], sampling_rate=400, return_tensors="np")
    np.testing.assert_array_equal(inputs["input_features"], encode_melody(mg.config, sound[None]))


def test_a_checkpoint_samples_as_its_generation_config_says(pair, tmp_path):
    from transformers import GenerationConfig

    mg, own = pair("even").ours, Sampling(guidance_scale=1.5, top_k=5, top_p=0.9, temperature=0.25)
    assert mg.config.sampling == Sampling(guidance_scale=3.0, top_k=250, top_p=1.0, temperature=1.0)  # it says nothing
    save_musicgen(tmp_path, mg.replace(config=dataclasses.replace(mg.config, sampling=own)))
    theirs = GenerationConfig.from_pretrained(tmp_path)
    assert Sampling(theirs.guidance_scale, theirs.top_k, theirs.top_p, theirs.temperature) == own and theirs.do_sample
    again = load_musicgen(tmp_path)
    assert again.config.sampling == own
    text, key = encode_text(mg, IDS), jax.random.key(0)
    by_itself, told, otherwise = (
        generate(c, mg.params, text, key, 0.6, audio=False, **settings).codes
        for c, settings in ((again.config, {}), (mg.config, vars(own)), (again.config, {"temperature": 2.0}))
    )
    np.testing.assert_array_equal(by_itself, told)
    assert (np.asarray(otherwise) != np.asarray(told)).mean() > 0.2


@pytest.mark.parametrize(("name", "value"), [("temperature", -1), ("top_k", 2.5), ("top_p", "most"), ("top_k", True)])
def test_sampling_that_cannot_be_is_refused(pair, tmp_path, name, value):
    save_musicgen(tmp_path, pair("even").ours)
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(MusaeError, match=f"{name} in generation_config.json is {value!r}, but it must be a"):
        load_musicgen(tmp_path)


def test_half_precision_file_and_parameters(pair, tmp_path):
    mg = pair("even").ours
    save_musicgen(tmp_path / "half", mg, dtype="float16")
    assert (tmp_path / "half" / WEIGHTS).stat().st_size < 0.6 * (pair("even").folder / WEIGHTS).stat().st_size
    half = load_musicgen(tmp_path / "half")
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {np.dtype("float32")}
    low = load_musicgen(tmp_path / "half", dtype="bfloat16")
    codes = np.zeros((1, 4, 8), int)
    exact = forward(mg.config, mg.params, codes).logits
    np.testing.assert_allclose(forward(half.config, half.params, codes).logits, exact, atol=0.02)
    np.testing.assert_allclose(forward(low.config, low.params, codes).logits.astype(np.float32), exact, atol=0.4)


def test_shards(pair, tmp_path):
    """Shards of ours and of transformers, and a shard that is gone."""
    mg, model = pair("odd").ours, pair("odd").theirs
    save_musicgen(tmp_path / "ours", mg, shard_bytes=60_000)
    assert len(list((tmp_path / "ours").glob("model-0*.safetensors"))) > 2
    assert_same(mg, load_musicgen(tmp_path / "ours"))
    torch_load(tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs", max_shard_size="60KB")
    assert (tmp_path / "theirs" / INDEX).is_file()
    assert_same(mg, load_musicgen(tmp_path / "theirs"))
    gone = sorted((tmp_path / "ours").glob("model-0*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(MusaeError, match=f"{gone.name} is missing"):
        load_musicgen(tmp_path / "ours")
    # Writing one file over the shards leaves a folder that loads.
    save_musicgen(tmp_path / "ours", mg)
    load_musicgen(tmp_path / "ours")


@pytest.fixture
def broken(pair, tmp_path):
    """A copy of a good folder, its tensors and its config, and a way to write them back."""
    folder = tmp_path / "model"
    shutil.copytree(pair("odd").folder, folder)
    tensors, config = load_file(folder / WEIGHTS), json.loads((folder / CONFIG).read_text())

    def load():
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(config))
        return load_musicgen(folder)

    return folder, tensors, config, load


def test_older_names_are_known(pair, broken):
    _, tensors, config, load = broken
    for key in list(tensors):
        if "parametrizations" in key:
            new = key.replace("parametrizations.weight.original0", "weight_g")
            tensors[new.replace("parametrizations.weight.original1", "weight_v")] = tensors.pop(key)
    tensors["text_encoder.encoder.embed_tokens.weight"] = tensors.pop("text_encoder.shared.weight")
    tensors["decoder.model.decoder.embed_positions.weights"] = np.zeros((2048, 39), np.float32)
    config["torch_dtype"] = config["decoder"]["torch_dtype"] = "float32"
    config["text_encoder"] |= {"output_past": True, "n_positions": 512, "task_specific_params": {"a": 1}}
    assert_same(pair("odd").ours, load())


def test_every_problem_is_listed_at_once(broken):
    _, tensors, _, load = broken
    del tensors["decoder.lm_heads.1.weight"]
    del tensors["audio_encoder.decoder.layers.0.conv.bias"]
    tensors["enc_to_dec_proj.weight"] = tensors["enc_to_dec_proj.weight"].T.copy()
    tensors["decoder.model.decoder.layers.5.fc1.weight"] = np.zeros((70, 39), np.float32)
    tensors["decoder.model.decoder.layers.2.fc1.weight"][3, 4] = np.nan
    with pytest.raises(MusaeError) as error:
        load()
    message = str(error.value)
    for words in (
        "tensor decoder.lm_heads.1.weight is missing (expected shape (32, 39))",
        "audio_encoder.decoder.layers.0.conv.bias is missing",
        "tensor enc_to_dec_proj.weight has shape (20, 39), expected (39, 20)",
        "tensor decoder.model.decoder.layers.5.fc1.weight has no place",
        "layers.2.fc1.weight has values that are not finite",
        "(5 found)",
    ):
        assert words in message
    assert "\n" not in message


def test_unknown_config_attributes_are_refused_by_name(broken):
    _, _, config, load = broken
    config["decoder"]["rotary_base"] = 10000
    config["decoder"]["scale_embedding"] = True
    config["text_encoder"]["mixture"] = 4
    config["conditioner"] = {}
    with pytest.raises(MusaeError) as error:
        load()
    for words in (
        "decoder.rotary_base",
        "decoder.scale_embedding is True",
        "text_encoder.mixture",
        "conditioner is an",
    ):
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": 40}, "hidden_size 40 is not a multiple of 3 heads"),
        ({"num_codebooks": 4}, "num_codebooks is 4 while the codec gives 3"),
        ({"vocab_size": 64, "pad_token_id": 64}, "vocab_size is 64 while the codec has 32"),
        ({"activation_function": "mish"}, "'mish'"),
        ({"num_hidden_layers": "five"}, "'five'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, which is too small"),
    ],
)
def test_configs_that_contradict_themselves(broken, change, words):
    _, _, config, load = broken
    config["decoder"] |= change
    with pytest.raises(MusaeError, match=words):
        load()


@pytest.mark.parametrize("kind", ["bert", None, ["musicgen"], {}])
def test_another_model_is_refused(broken, kind):
    _, _, config, load = broken
    config["model_type"] = kind
    with pytest.raises(MusaeError, match=rf"of type {re.escape(repr(kind))}, but a 'musicgen' or 'musicgen_melody' is"):
        load()


def test_files_that_are_not_what_they_should_be(broken, tmp_path):
    folder, _, _, load = broken
    load()
    whole = (folder / WEIGHTS).read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not safetensors at all", whole[:7] + b"\xff" + whole[8:]):
        (folder / WEIGHTS).write_bytes(content)
        with pytest.raises(MusaeError, match="not a complete safetensors file"):
            load_musicgen(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(MusaeError, match="has neither"):
        load_musicgen(folder)

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    (folder / PICKLED).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(MusaeError, match=r"pytorch_model.bin is not a whole file of torch"):
        load_musicgen(folder)
    torch.save({"a": Trap()}, folder / PICKLED)
    with pytest.raises(MusaeError, match="a pickle can run code"):
        load_musicgen(folder)
    assert not (tmp_path / "sprung").exists()
    (folder / PICKLED).unlink()
    for name in ("../../secret.safetensors", "/etc/secret.safetensors", "a\\b.safetensors", "c/d.safetensors"):
        (folder / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(MusaeError, match="outside its folder"):
            load_musicgen(folder)
    for weights in ({"a": "code.py"}, {"a": ".."}, {"a": 3}, ["a"], None):
        (folder / INDEX).write_text(json.dumps({"weight_map": weights}))
        with pytest.raises(MusaeError, match=r"which is no|has no weight_map"):
            load_musicgen(folder)
    (folder / CONFIG).write_text("{")
    with pytest.raises(MusaeError, match="not readable JSON"):
        load_musicgen(folder)
    (folder / CONFIG).unlink()
    with pytest.raises(MusaeError, match=r"config.json is missing"):
        load_musicgen(folder)
    with pytest.raises(MusaeError, match="there is no folder"):
        load_musicgen(tmp_path / "nothing")
    with pytest.raises(MusaeError, match="is a file"):
        load_musicgen(tmp_path / "model" / INDEX)


def test_pickled_folders_are_read_without_running_them(pair, tmp_path):
    """pytorch_model.bin, whole and in shards, as transformers wrote them before safetensors."""
    state, folder = pair("odd").theirs.state_dict(), tmp_path / "model"
    shutil.copytree(pair("odd").folder, folder)
    (folder / WEIGHTS).unlink()
    torch.save(state, folder / PICKLED)
    assert_same(pair("odd").ours, load_musicgen(folder))
    assert "pytorch_model.bin" in describe_model(folder)
    (folder / PICKLED).unlink()
    halves = {f"pytorch_model-{i + 1:05}-of-00002.bin": sorted(state)[i::2] for i in range(2)}
    for name, keys in halves.items():
        torch.save({key: state[key] for key in keys}, folder / name)
    places = {key: name for name, keys in halves.items() for key in keys}
    (folder / PICKLED_INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert_same(pair("odd").ours, load_musicgen(folder))
    assert "pytorch_model-00001-of-00002.bin and 1 more" in describe_model(folder)
    torch.save({}, folder / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(MusaeError, match=r"is not in pytorch_model-00002-of-00002\.bin, where the index puts it"):
        load_musicgen(folder)
    (folder / "pytorch_model-00001-of-00002.bin").unlink()
    with pytest.raises(MusaeError, match=r"pytorch_model-00001-of-00002\.bin is missing"):
        describe_model(folder)


def test_a_model_is_told_from_its_headers(pair, monkeypatch):
    told = describe_model(pair("stereo").folder)
    mg = pair("stereo").ours
    count = sum(leaf.size for leaf in jax.tree.leaves(mg.params)) / 1e6
    assert "MusicGen: 2 blocks of width 24 and 2 heads, 6 codebooks of 32, 50 Hz frames, 400 Hz stereo sound" in told
    assert f"{count:.1f} M parameters, without tokenizer" in told
    assert "Hugging Face layout, model.safetensors" in told and "float32" in told


def header(size: int, text: bytes, data: bytes = b"") -> bytes:
    return size.to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "content",
    [
        header(2**63, b"{}"),
        header(10**12, b"{}"),
        header(0, b""),
        header(2, b"{}", b"left over"),
        header(2, b"[]"),
        header(4, b'{"a"'),
        header(56, b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}  ', bytes(4)),
        header(66, b'{"a":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,4]}}  ', bytes(4)),
        header(56, b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}}  ', bytes(8)),
        header(56, b'{"a":{"dtype":"Q99","shape":[1],"data_offsets":[0,4]}}  ', bytes(4)),
        header(20_000, b"[" * 20_000),
    ],
)
def test_absurd_safetensors_headers(broken, content):
    folder, *_ = broken
    (folder / WEIGHTS).write_bytes(content)
    for read in (load_musicgen, describe_model):
        with pytest.raises(MusaeError, match="not a complete safetensors file") as error:
            read(folder)
        assert "\n" not in str(error.value)


def test_tensors_of_a_wrong_type_and_names_with_control_characters(broken):
    _, tensors, _, load = broken
    tensors["decoder.lm_heads.1.weight"] = tensors["decoder.lm_heads.1.weight"].astype(np.int32)
    tensors["audio_encoder.decoder.layers.0.conv.bias"] = np.ones(8, bool)
    tensors["\x1b[31mred\nline"] = np.zeros(1)
    with pytest.raises(MusaeError) as error:
        load()
    message = str(error.value)
    assert "tensor decoder.lm_heads.1.weight holds int32, expected floating point" in message
    assert "audio_encoder.decoder.layers.0.conv.bias holds bool, expected floating point" in message
    assert "tensor ?[31mred?line has no place" in message
    tensors |= {f"x{i}": np.zeros(1) for i in range(500)}
    with pytest.raises(MusaeError, match=r"\(503 found\).*and 491 more$"):
        load()


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("decoder", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, which is too large"),
        ("decoder", {"hidden_size": float("nan")}, "decoder.hidden_size is nan"),
        ("text_encoder", {"num_layers": 10**7}, "num_layers is 10000000, which is too large"),
        ("text_encoder", {"relative_attention_num_buckets": 3}, "text_encoder has 3 buckets"),
        ("text_encoder", {"relative_attention_max_distance": 2}, "text_encoder has 12 buckets for .* up to 2"),
        ("audio_encoder", {"compress": 3}, "compress is 3, but this port expects at most num_filters, 2"),
        ("audio_encoder", {"num_residual_layers": 10**9}, "at most 16 of each"),
        ("audio_encoder", {"upsampling_ratios": ["5", 2]}, "audio_encoder.upsampling_ratios"),
        ("audio_encoder", {"target_bandwidths": [float("inf")]}, "audio_encoder.target_bandwidths"),
        ("audio_encoder", {"num_filters": 10**12}, "num_filters is 1000000000000"),
        ("audio_encoder", {"num_filters": 2**24}, "has shape"),
        ("decoder", {"hidden_size": 3 * 2**22}, "has shape"),
    ],
)
def test_configs_of_absurd_sizes_are_refused_at_once(broken, part, change, words):
    folder, _, config, load = broken
    config[part] |= change
    with pytest.raises(MusaeError, match=words):
        load()
    with contextlib.suppress(MusaeError):  # not so absurd that it could not be told
        describe_model(folder)


def test_a_broken_tokenizer_is_named(broken):
    folder, _, _, load = broken
    assert load().tokenizer is None
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(MusaeError, match=r"tokenizer.json cannot be read"):
        load()


def test_a_hub_id_that_cannot_be_fetched(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MusaeError, match=r"nobody/no-such-musicgen is no local folder and could not be fetched"):
        load_musicgen("nobody/no-such-musicgen")
