"""AST against transformers: logits, files both ways, front ends, windows, and what is refused."""

import dataclasses
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from musae_jax.errors import MusaeError
from musae_jax.models.ast import (
    MULTI,
    SINGLE,
    ASTConfig,
    load_tagger,
    parameter_shapes,
    random_tagger,
    save_tagger,
    tag,
    tag_logits,
)
from musae_jax.models.ast_front_end import MAEST, FrontEnd

# Odd everywhere: strides that differ, patches that do not fill the image, an odd window, no biases in the attention.
ODD = ASTConfig(
    hidden_size=21,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=34,
    hidden_act="relu",
    layer_norm_eps=1e-6,
    patch_size=5,
    qkv_bias=False,
    frequency_stride=4,
    time_stride=3,
    max_length=37,
    num_mel_bins=24,
    labels=("piano", "snare: loud", "Ünïcode", "x", "y"),
)
PLAIN = ASTConfig(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, patch_size=16, max_length=64,
    num_mel_bins=32, problem_type=SINGLE,
)  # fmt: skip
CONFIGS = {"odd": ODD, "plain": PLAIN}
logits = jax.jit(tag_logits, static_argnums=0)


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
    """A config, transformers' model of it with every parameter random, and the folder that transformers wrote."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = CONFIGS[request.param]
    torch.manual_seed(len(request.param))
    model = transformers.ASTForAudioClassification(transformers.ASTConfig(**config.to_hf())).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.normal_(float(value.ndim == 1 and name.endswith("weight")), 0.3)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(FrontEnd(num_mel_bins=config.num_mel_bins).to_hf(config.max_length))
    )
    return config, model, folder


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def theirs(model, mel):
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(mel)).logits.numpy()


def test_logits_match_transformers_and_do_not_need_jit(pair):
    config, model, folder = pair
    tagger = load_tagger(folder)
    assert tagger.config == config
    mel = noise(3, config.max_length, config.num_mel_bins)
    expected = theirs(model, mel)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(logits(config, tagger.params, mel), expected, atol=1e-5)
    if config == ODD:  # op by op, slow to start
        np.testing.assert_allclose(tag_logits(config, tagger.params, mel), expected, atol=1e-5)


def test_saved_folder_is_the_one_that_was_read_and_transformers_reads_it(pair, tmp_path):
    import transformers

    config, model, folder = pair
    save_tagger(tmp_path / "new", load_tagger(folder))
    ours, original = load_file(tmp_path / "new" / "model.safetensors"), load_file(folder / "model.safetensors")
    assert set(ours) == set(original)
    for key, value in original.items():
        np.testing.assert_array_equal(ours[key], value)
    again, info = transformers.ASTForAudioClassification.from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert list(again.config.id2label.values()) == list(config.labels)
    mel = noise(1, config.max_length, config.num_mel_bins)
    np.testing.assert_allclose(theirs(again.eval(), mel), theirs(model, mel), atol=1e-6)
    extractor = transformers.ASTFeatureExtractor.from_pretrained(tmp_path / "new")
    assert (extractor.num_mel_bins, extractor.max_length) == (config.num_mel_bins, config.max_length)


def test_random_tagger_saves_over_a_sharded_folder_and_loads(tmp_path):
    config = dataclasses.replace(ODD, labels=("a", "a", "b"))  # names need not differ
    tagger = random_tagger(config, jax.random.key(0), FrontEnd(MAEST, num_mel_bins=24, mean=1.5, std=0.5))
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    (tmp_path / "README.md").write_text("mine")
    save_tagger(tmp_path, tagger)
    again = load_tagger(str(tmp_path))
    assert (again.config, again.front_end) == (tagger.config, tagger.front_end)
    jax.tree.map(np.testing.assert_array_equal, again.params, tagger.params)
    assert not (tmp_path / "model.safetensors.index.json").exists() and (tmp_path / "README.md").exists()
    other = random_tagger(config, jax.random.key(1))
    assert not np.array_equal(other.params["head"]["kernel"], tagger.params["head"]["kernel"])


def test_every_bad_tensor_is_named_in_one_error(tmp_path):
    save_tagger(tmp_path, random_tagger(ODD, jax.random.key(0)))
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["classifier.dense.bias"]
    tensors["audio_spectrogram_transformer.layernorm.weight"] = noise(4)
    tensors["audio_spectrogram_transformer.encoder.layer.2.output.dense.bias"] = noise(21)
    tensors["audio_spectrogram_transformer.encoder.layer.0.attention.attention.key.bias"] = noise(21)
    tensors["classifier.layernorm.bias"] = np.full(21, np.nan, np.float32)
    tensors["classifier.layernorm.weight"] = np.ones(21, np.int32)
    save_file(tensors, path)
    with pytest.raises(MusaeError, match="audio classifier") as error:
        load_tagger(tmp_path)
    for part in (
        "classifier.dense.bias is missing", "layernorm.weight has shape (4,)", "layer.2.output.dense.bias has no place",
        "layer.0.attention.attention.key.bias has no place", "classifier.layernorm.bias has values",
        "classifier.layernorm.weight holds int32", "6 found",
    ):  # fmt: skip
        assert part in str(error.value)


def test_config_round_trip():
    transformers = pytest.importorskip("transformers")
    for config in (*CONFIGS.values(), ASTConfig()):
        values = json.loads(transformers.ASTConfig(**config.to_hf()).to_json_string(use_diff=False))
        assert ASTConfig.from_hf(values) == (config, []) == ASTConfig.from_hf(config.to_hf())
    assert ASTConfig().patches == 1212  # of AST on AudioSet
    assert dataclasses.replace(ASTConfig(), num_mel_bins=96, max_length=1876).patches == 1683  # of MAEST, 30 s
    assert ASTConfig.from_hf({"problem_type": None})[0].problem_type == MULTI
    hash(ODD)  # static under jit


@pytest.mark.parametrize(
    "change,named",
    [
        ({"model_type": "vit"}, "config.model_type"),
        ({"rope_theta": 2.0}, "config.rope_theta"),
        ({"hidden_act": "mish"}, "config.hidden_act"),
        ({"num_attention_heads": 4}, "no multiple of 4 heads"),
        ({"patch_size": 25}, "config.patch_size is 25"),
        ({"patch_size": [5, 5]}, "config.patch_size"),
        ({"max_length": 0}, "config.max_length"),
        ({"qkv_bias": 1}, "config.qkv_bias"),
        ({"problem_type": "regression"}, "config.problem_type"),
        ({"id2label": {"0": "a", "2": "b"}}, "config.id2label"),
        ({"id2label": ["a"]}, "config.id2label"),
        ({"num_mel_bins": 25}, "gives 24 bands and the model takes 25"),
    ],
)
def test_config_refuses_by_name(change, named, tmp_path):
    save_tagger(tmp_path, random_tagger(ODD, jax.random.key(0)))
    (tmp_path / "config.json").write_text(json.dumps(ODD.to_hf() | change))
    with pytest.raises(MusaeError, match=named):
        load_tagger(tmp_path)


@pytest.mark.parametrize(
    "values,named",
    [
        ({"feature_extractor_type": "ClapFeatureExtractor"}, "feature_extractor_type"),
        ({"n_fft": 512}, "n_fft"),
        ({"feature_extractor_type": MAEST, "n_fft": 1024}, "n_fft"),
        ({"log_compression": "log"}, "log_compression"),
        ({"feature_extractor_type": MAEST, "sampling_rate": 44100}, "sampling_rate"),
        ({"std": 0.0}, "std"),
        ({"sampling_rate": 16}, "sampling_rate"),
        ({"do_normalize": "yes"}, "do_normalize"),
    ],
)
def test_front_end_refuses_by_name(values, named):
    _, problems = FrontEnd.from_hf(values)
    assert len(problems) == 1 and named in problems[0]


def test_front_end_is_chosen_by_its_file(tmp_path):
    assert FrontEnd.from_hf({"feature_extractor_type": "ASTFeatureExtractor"}) == (FrontEnd(), [])
    assert FrontEnd.from_hf({"log_compression": "logC", "mean": 2}) == (
        FrontEnd(MAEST, num_mel_bins=96, mean=2.0, std=1.268292820667291),
        [],
    )
    for front_end in (FrontEnd(std=2.0, do_normalize=False), FrontEnd(MAEST, num_mel_bins=96, mean=1.0)):
        assert FrontEnd.from_hf(front_end.to_hf(7)) == (front_end, [])
    save_tagger(tmp_path, random_tagger(dataclasses.replace(PLAIN, num_mel_bins=96), jax.random.key(0)))
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(MusaeError, match=r"gives 128 bands \(there is no preprocessor_config.json"):
        load_tagger(tmp_path)


def test_source_that_is_nothing_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for source in (tmp_path / "none", "no such place/at all"):
        with pytest.raises(MusaeError, match="there is no folder"):
            load_tagger(source)
    with pytest.raises(MusaeError, match="is a file; give the folder"):
        load_tagger(tmp_path / "file")


@pytest.mark.parametrize("samples", [300, 5000, 16000, 200000], ids=["none", "short", "even", "long"])
@pytest.mark.parametrize("config", [ODD, dataclasses.replace(ASTConfig(), max_length=98)], ids=["odd", "audioset"])
def test_windows_are_what_transformers_extracts(config, samples):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    front_end = FrontEnd(num_mel_bins=config.num_mel_bins)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 128 bands leave some of them without a frequency
        extractor = transformers.ASTFeatureExtractor(**front_end.to_hf(config.max_length))
    for audio in (noise(samples) * 0.1, np.zeros(samples, np.float32)):
        expected = extractor(audio, sampling_rate=16000, return_tensors="np").input_values[0]
        found = front_end.windows(audio, config.max_length)
        assert np.isfinite(found).all() and found.shape[1:] == expected.shape
        np.testing.assert_allclose(found[0], expected, atol=1e-4)


def test_windows_cover_a_sound_from_its_first_frame_to_its_last():
    front_end = FrontEnd(num_mel_bins=24, do_normalize=False)
    audio = noise(400 + 99 * 160)
    mel = front_end.mel(audio)
    windows = front_end.windows(audio, 37)
    assert windows.shape == (3, 37, 24) and len(mel) == 100
    for window, start in zip(windows, (0, 32, 63)):
        np.testing.assert_array_equal(window, mel[start : start + 37])
    exact = front_end.windows(audio, 50)
    np.testing.assert_array_equal(exact.reshape(100, 24), mel)
    short = front_end.windows(audio, 101)
    assert short.shape == (1, 101, 24) and not short[0, 100].any()


def test_tags_are_mean_probabilities_of_windows_however_they_are_batched():
    tagger = random_tagger(ODD, jax.random.key(0))
    audio = noise(5, 9000) * 0.1  # two windows each, ten in two batches
    found = tag(tagger, audio, 16000)
    assert found.shape == (5, 5) and found.dtype == np.float32
    windows = np.stack([tagger.front_end.windows(clip, 37) for clip in audio])  # [B, W, T, M]
    expected = [jax.nn.sigmoid(logits(ODD, tagger.params, w)).mean(0) for w in windows]
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-6)
    np.testing.assert_array_equal(found, tag(tagger, audio, 16000))
    np.testing.assert_allclose(tag(tagger, np.concatenate([audio, audio]), 16000)[5:], found, atol=1e-6)
    assert np.isfinite(tag(tagger, np.zeros((8, 100)), 16000)).all()  # silence shorter than a frame


def test_one_class_of_several_sums_to_one_and_other_rates_are_resampled():
    tagger = random_tagger(PLAIN, jax.random.key(0))
    time = np.arange(32000) / 32000
    tone = np.stack([np.sin(2 * np.pi * 440 * time), np.sin(2 * np.pi * 2000 * time)])
    found = tag(tagger, tone, 32000)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(tag(tagger, tone[:, ::2], 16000), found, atol=1e-3)


def test_wrong_shapes_are_refused():
    tagger = random_tagger(PLAIN, jax.random.key(0))
    with pytest.raises(MusaeError, match=r"expects \[B, 64, 32\]"):
        tag_logits(PLAIN, tagger.params, jnp.zeros((1, 63, 32)))
    for audio in (np.zeros(100), np.zeros((1, 0)), np.zeros((1, 2, 3))):
        with pytest.raises(MusaeError, match=r"expects \[B, S\]"):
            tag(tagger, audio, 16000)


@pytest.mark.slow
def test_true_size_matches_transformers(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = ASTConfig(labels=tuple(f"class {i}" for i in range(527)))
    torch.manual_seed(0)
    model = transformers.ASTForAudioClassification(transformers.ASTConfig(**config.to_hf())).eval()
    model.save_pretrained(tmp_path)
    tagger = load_tagger(tmp_path)
    assert sum(np.prod(shape) for shape in parameter_shapes(config).values()) == sum(
        value.numel() for value in model.parameters()
    )
    audio = noise(1, 160000) * 0.1
    mel = tagger.front_end.windows(audio[0], config.max_length)
    np.testing.assert_allclose(logits(config, tagger.params, mel), theirs(model, mel), atol=1e-4)
    assert tag(tagger, audio, 16000).shape == (1, 527)
