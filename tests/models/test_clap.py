"""CLAP against transformers on random weights: towers, embeddings, front end, folders; and the ways to be wrong."""

import dataclasses
import json
import warnings

import jax
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

from musae_jax.audio.clap_mel import ClapMelConfig, clap_mel, repeat_pad, window_starts
from musae_jax.errors import MusaeError
from musae_jax.models.clap import (
    Clap,
    ClapConfig,
    audio_embeddings,
    embed_audio,
    embed_text,
    random_clap,
    text_embeddings,
)
from musae_jax.models.clap_checkpoints import load_clap, read_clap_config, save_clap
from musae_jax.models.clap_table import IGNORED, clap_from_hf, hf_shapes
from musae_jax.models.folder import CONFIG, WEIGHTS
from musae_jax.models.htsat import HTSAT, HTSATConfig
from musae_jax.models.roberta import Roberta, RobertaConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

MEL = ClapMelConfig(
    sampling_rate=8000, feature_size=16, fft_window_size=256, hop_length=80, frequency_max=3500.0, max_length_s=2
)
TEXT = RobertaConfig(
    vocab_size=40, hidden_size=24, num_hidden_layers=1, num_attention_heads=4, intermediate_size=40,
    max_position_embeddings=24,
)  # fmt: skip
CONFIGS = {
    # LAION's in small: four pieces of time, the last stage a single window.
    "even": ClapConfig(
        audio=HTSATConfig(
            window_size=8, num_mel_bins=16, spec_size=64, hidden_size=24, depths=(2, 1), num_attention_heads=(2, 4),
            patch_embeds_hidden_size=12,
        ),
        text=TEXT,
        mel=MEL,
        projection_dim=20,
    ),
    # Patches that overlap, windows that do not fit, three pieces, odd widths, other activations, no biases.
    "odd": ClapConfig(
        audio=HTSATConfig(
            window_size=5, num_mel_bins=24, spec_size=72, patch_size=5, patch_stride=3, hidden_size=30, depths=(2, 1),
            num_attention_heads=(3, 5), patch_embeds_hidden_size=15, qkv_bias=False, mlp_ratio=2.5, hidden_act="relu",
            layer_norm_eps=1e-3,
        ),
        text=dataclasses.replace(
            TEXT, hidden_size=21, num_hidden_layers=2, num_attention_heads=3, intermediate_size=33, type_vocab_size=2,
            pad_token_id=3, layer_norm_eps=1e-5, hidden_act="gelu_new",
        ),
        mel=dataclasses.replace(MEL, feature_size=24, fft_window_size=512, hop_length=83),
        projection_dim=7,
        projection_hidden_act="gelu",
    ),
}  # fmt: skip
# One block of a single window, for what says nothing of the architecture.
LEAST = ClapConfig(
    audio=HTSATConfig(
        window_size=4, num_mel_bins=16, spec_size=16, hidden_size=8, depths=(1,), num_attention_heads=(2,),
        patch_embeds_hidden_size=8,
    ),
    text=TEXT,
    mel=dataclasses.replace(MEL, hop_length=2000),
    projection_dim=20,
)  # fmt: skip
IDS = np.array([[0, 9, 3, 22, 8, 35, 7, 2, 11], [0, 12, 30, 2, 1, 1, 1, 1, 1], [0, 2, 1, 1, 1, 1, 1, 1, 1]])


def torch_clap(config: ClapConfig, seed: int = 0):
    """transformers' model with every weight random, statistics and tables of positions too."""
    torch.manual_seed(seed)
    model = transformers.ClapModel(transformers.ClapConfig(**config.to_hf())).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            value.normal_(0.0, value[0].numel() ** -0.5 if value.ndim > 1 else 0.3)
            if "orm" in key and key.endswith("weight"):
                value.add_(1.0)
            if key.endswith("bias_table"):
                value.normal_(0.0, 1.0)
        norm = model.audio_model.audio_encoder.batch_norm
        norm.running_mean.normal_(-30.0, 10.0)
        norm.running_var.uniform_(50.0, 400.0)
    return model


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """pair(name) -> (transformers' model, ours, the folder between them), each made once."""
    made = {}

    def make(name):
        if name not in made:
            config, folder = CONFIGS[name], tmp_path_factory.mktemp(name)
            theirs = torch_clap(config)
            theirs.save_pretrained(folder)
            extractor(config.mel).save_pretrained(folder)
            word_tokenizer().save(str(folder / "tokenizer.json"))
            made[name] = theirs, load_clap(folder), folder
        return made[name]

    return make


def extractor(mel: ClapMelConfig):
    return transformers.ClapFeatureExtractor(
        **dataclasses.asdict(mel), truncation="rand_trunc", padding="repeatpad", top_db=None
    )


def word_tokenizer():
    words = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "slow": 4, "piano": 5, "drums": 6}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    ends = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return tokenizer


def noise(*shape, seed=0):
    return (0.3 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def some_mel(config, frames, batch=3):
    """Clips with bands and rhythms of their own, so that their means differ too."""
    bands = config.audio.num_mel_bins
    return -30 + 40 * (noise(batch, frames, bands) + noise(batch, 1, bands, seed=1) + noise(batch, frames, 1, seed=2))


def texts(config):
    ids = np.where(IDS == 1, config.text.pad_token_id, IDS)
    ids = np.where((IDS == 3) & (config.text.pad_token_id == 3), 5, ids)
    return ids, (IDS != 1).astype(np.int32)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_survives_the_folder(pair, name):
    assert pair(name)[1].config == CONFIGS[name]


# The image's full length, and one that is stretched much.
@pytest.mark.parametrize(("name", "frames"), [("even", 256), ("odd", 37)])
def test_sound(pair, name, frames):
    model, clap, _ = pair(name)
    config, mel = clap.config, some_mel(clap.config, frames)
    with torch.no_grad():
        tower = model.audio_model(torch.tensor(mel)[:, None]).pooler_output
        embedded = torch.nn.functional.normalize(model.audio_projection(tower), dim=-1)

    @jax.jit
    def both(params):
        return HTSAT(config.audio).apply({"params": params["audio"]}, mel), audio_embeddings(config, params, mel)

    ours, ours_embedded = both(clap.params)
    assert np.abs(np.diff(ours_embedded, axis=0)).max() > 0.05  # the clips are told apart
    np.testing.assert_allclose(ours, tower, atol=1e-5)
    np.testing.assert_allclose(ours_embedded, embedded, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_words(pair, name):
    model, clap, _ = pair(name)
    config, (ids, mask) = clap.config, texts(clap.config)
    with torch.no_grad():
        tower = model.text_model(torch.tensor(ids), torch.tensor(mask)).pooler_output
        embedded = torch.nn.functional.normalize(model.text_projection(tower), dim=-1)

    @jax.jit
    def both(params):
        return Roberta(config.text).apply({"params": params["text"]}, ids, mask), text_embeddings(
            config, params, ids, mask
        )

    ours, ours_embedded = both(clap.params)
    assert np.abs(np.diff(ours_embedded, axis=0)).max() > 0.05
    np.testing.assert_allclose(ours, tower, atol=1e-5)
    np.testing.assert_allclose(ours_embedded, embedded, atol=1e-5)


def test_without_jit_it_is_the_same():
    clap = random_clap(LEAST, jax.random.key(0))
    mel, (ids, mask) = some_mel(LEAST, LEAST.mel.frames), texts(LEAST)
    # One of the two is given as transformers has spectrograms.
    plain = audio_embeddings.__wrapped__(LEAST, clap.params, mel[:, None])
    np.testing.assert_allclose(plain, audio_embeddings(LEAST, clap.params, mel), atol=1e-6)
    plain = text_embeddings.__wrapped__(LEAST, clap.params, ids, mask)
    np.testing.assert_allclose(plain, text_embeddings(LEAST, clap.params, ids, mask), atol=1e-6)


def test_gradients_equal_torchs_and_statistics_get_none(pair):
    model, clap, _ = pair("even")
    mel = some_mel(clap.config, 201, 1)
    wanted = noise(1, clap.config.projection_dim, seed=5)

    def fit(tower):
        return (audio_embeddings(clap.config, clap.params | {"audio": tower}, mel) * wanted).sum()

    ours = jax.jit(jax.grad(fit))(clap.params["audio"])
    model.zero_grad()
    embedded = model.audio_projection(model.audio_model(torch.tensor(mel)[:, None]).pooler_output)
    (torch.nn.functional.normalize(embedded, dim=-1) * torch.tensor(wanted)).sum().backward()
    encoder = model.audio_model.audio_encoder
    attention = encoder.layers[0].blocks[1].attention
    for mine, theirs in (
        (ours["patches"]["kernel"], encoder.patch_embed.proj.weight.grad.permute(2, 3, 1, 0)),
        (ours["stage_0_block_1"]["relative_bias"], attention.self.relative_position_bias_table.grad),
        (ours["merging_0"]["reduction"]["kernel"], encoder.layers[0].downsample.reduction.weight.grad.T),
        (ours["batch_norm"]["scale"], encoder.batch_norm.weight.grad),
    ):
        assert np.abs(mine).max() > 0
        np.testing.assert_allclose(mine, theirs, atol=1e-5 * np.abs(mine).max() + 1e-7)
    assert not np.any(ours["batch_norm"]["mean"]) and not np.any(ours["batch_norm"]["var"])


LAION = ClapMelConfig()


@pytest.mark.parametrize(
    ("mel", "seconds"),
    # Whole; longer than half; odd and repeated with a rest; a few samples; LAION's own.
    [(MEL, 2.0), (MEL, 1.3), (MEL, 0.456125), (MEL, 0.000875), (CONFIGS["odd"].mel, 0.7), (LAION, 10.0), (LAION, 3.3)],
)
def test_front_end_matches_the_feature_extractor(mel, seconds):
    audio = noise(round(seconds * mel.sampling_rate))
    theirs = extractor(mel)(audio, sampling_rate=mel.sampling_rate, return_tensors="np")["input_features"][0]
    ours = clap_mel(mel, repeat_pad(mel, audio)[None])
    assert ours.shape == theirs.shape == (1, mel.frames, mel.feature_size)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_front_end_of_a_pure_tone_and_of_silence():
    """Quiet bands beside loud ones, and the floor."""
    time = np.arange(MEL.samples) / MEL.sampling_rate
    tone = np.sin(2 * np.pi * 440 * time).astype(np.float32)
    theirs = extractor(MEL)(tone, sampling_rate=MEL.sampling_rate, return_tensors="np")["input_features"]
    ours = clap_mel(MEL, np.stack([tone, 0 * tone]))
    assert np.ptp(ours[0]) > 80
    np.testing.assert_allclose(ours[:1], theirs[0], atol=1e-4)
    np.testing.assert_array_equal(ours[1], -100)


@pytest.mark.parametrize("samples", [1, 16_000, 16_001, 23_999, 24_000, 24_001, 100_003])
def test_windows_reach_from_the_first_sample_to_the_last(samples):
    starts = window_starts(MEL, samples)
    assert starts[0] == 0 and starts[-1] == max(0, samples - MEL.samples)
    assert (np.diff(starts) > 0).all() and (np.diff(starts) <= MEL.samples // 2).all()
    assert len(starts) == 1 + -(-max(0, samples - MEL.samples) // (MEL.samples // 2))


def test_embed_audio(pair, monkeypatch):
    """Short and long clips as transformers hears them, window by window; twice the same; at another rate nearly so."""
    monkeypatch.setattr("musae_jax.models.clap.BATCH", 4)
    model, clap, _ = pair("even")
    mel = clap.config.mel

    def theirs(rows):
        inputs = extractor(mel)(list(rows), sampling_rate=mel.sampling_rate, return_tensors="pt")
        with torch.no_grad():
            made = model.audio_projection(model.audio_model(inputs["input_features"].float()).pooler_output)
        return torch.nn.functional.normalize(made, dim=-1).numpy()

    short = noise(3, 5001)
    np.testing.assert_allclose(embed_audio(clap, short, 8000), theirs(short), atol=1e-5)
    long = noise(4, 30_000, seed=1) * np.linspace(0, 2, 30_000, dtype=np.float32)
    found = embed_audio(clap, long, 8000)
    windows = [theirs(long[:, start : start + mel.samples]) for start in (0, 7000, 14_000)]
    assert np.abs(windows[0] - windows[1]).max() > 0.01
    mean = np.mean(windows, axis=0)
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean, axis=-1, keepdims=True), atol=1e-5)
    np.testing.assert_array_equal(found, embed_audio(clap, long, 8000))

    import soxr

    low = np.stack([soxr.resample(clip, 8000, 6000) for clip in long[:1]])
    back = np.stack([soxr.resample(clip, 6000, 8000) for clip in low])
    np.testing.assert_allclose(embed_audio(clap, low, 6000), embed_audio(clap, back, 8000), atol=1e-6)


@pytest.mark.parametrize(
    ("audio", "words"),
    [(noise(100), "give mono clips"), (noise(2, 0), "give mono clips"), (np.full((1, 9), np.nan), "not numbers")],
)
def test_sound_that_cannot_be_embedded(pair, audio, words):
    with pytest.raises(MusaeError, match=words):
        embed_audio(pair("even")[1], audio, 8000)


def test_embed_text(pair):
    model, clap, _ = pair("even")
    lines = ["slow piano", "drums", "slow slow drums piano piano"]
    found = embed_text(clap, lines)
    ids = np.array([[0, 4, 5, 2, 1, 1, 1], [0, 6, 2, 1, 1, 1, 1], [0, 4, 4, 6, 5, 5, 2]])
    with torch.no_grad():
        tower = model.text_model(torch.tensor(ids), torch.tensor(ids != 1)).pooler_output
        theirs = torch.nn.functional.normalize(model.text_projection(tower), dim=-1)
    np.testing.assert_allclose(found, theirs, atol=1e-5)
    # 22 tokens are all that there are positions for, though texts are padded to multiples of 16.
    assert embed_text(clap, "drums " * 20).shape == (1, 20)
    with pytest.raises(MusaeError, match="a text has 23 tokens, but this model reads 22"):
        embed_text(clap, "drums " * 21)
    with pytest.raises(MusaeError, match="no text"):
        embed_text(clap, [])
    with pytest.raises(MusaeError, match="no tokenizer"):
        embed_text(clap.replace(tokenizer=None), "drums")
    with pytest.raises(MusaeError, match="at most 22 tokens"):
        text_embeddings(clap.config, clap.params, np.zeros((1, 23), int), np.ones((1, 23), int))


def test_spectrograms_that_do_not_fit(pair):
    clap = pair("even")[1]
    for shape, words in (((1, 257, 16), "up to 256"), ((1, 9, 15), "9 frames of 15"), ((9, 16), r"reads \[B, T, M\]")):
        with pytest.raises(MusaeError, match=words):
            audio_embeddings(clap.config, clap.params, np.zeros(shape))


@pytest.mark.parametrize("name", CONFIGS)
def test_saved_by_us_read_by_transformers_and_by_us(pair, tmp_path, name):
    theirs, clap, _ = pair(name)
    save_clap(tmp_path / "saved", clap)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, info = transformers.ClapModel.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    for key, value in theirs.state_dict().items():
        np.testing.assert_array_equal(model.state_dict()[key], value, err_msg=key)
    again = load_clap(tmp_path / "saved")
    assert again.config == clap.config
    jax.tree.map(np.testing.assert_array_equal, again.params, clap.params)
    found = transformers.ClapFeatureExtractor.from_pretrained(tmp_path / "saved")
    audio = noise(999)
    np.testing.assert_array_equal(
        found(audio, sampling_rate=8000, return_tensors="np")["input_features"],
        extractor(clap.config.mel)(audio, sampling_rate=8000, return_tensors="np")["input_features"],
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert tokenizer(["slow piano"])["input_ids"] == [[0, 4, 5, 2]]


def test_a_random_model_differs_by_key():
    first, second = (random_clap(LEAST, jax.random.key(seed)) for seed in (0, 1))
    np.testing.assert_allclose(np.exp(first.params["logit_scale"]["text"]), 1 / 0.07, rtol=1e-5)
    mel = some_mel(LEAST, LEAST.mel.frames)
    found = [np.asarray(audio_embeddings(LEAST, clap.params, mel)) for clap in (first, second)]
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 0.1
    bad = dataclasses.replace(LEAST, audio=dataclasses.replace(LEAST.audio, window_size=5))
    with pytest.raises(MusaeError, match=r"this configuration is no CLAP: .* too few for windows of 5"):
        random_clap(bad, jax.random.key(0))


@pytest.fixture
def broken(pair, tmp_path):
    """The tensors, the config and the front end of a good folder, and a way to load what becomes of them."""
    folder = pair("even")[2]
    parts = [json.loads((folder / name).read_text()) for name in (CONFIG, "preprocessor_config.json")]
    tensors = load_file(folder / WEIGHTS)

    def load():
        save_file(tensors, tmp_path / WEIGHTS, {"format": "pt"})
        for name, part in zip((CONFIG, "preprocessor_config.json"), parts):
            (tmp_path / name).write_text(json.dumps(part))
        return load_clap(tmp_path)

    return tensors, *parts, load


def test_every_problem_of_the_tensors_is_listed_at_once(broken):
    tensors, *_, load = broken
    block = "audio_model.audio_encoder.layers.1.blocks.0"
    del tensors["text_model.pooler.dense.bias"]
    tensors[f"{block}.intermediate.dense.weight"] = tensors[f"{block}.intermediate.dense.weight"].T.copy()
    tensors["audio_model.audio_encoder.layers.0.blocks.7.output.dense.bias"] = np.zeros(12, np.float32)
    tensors["audio_model.audio_encoder.batch_norm.running_var"][3] = np.inf
    tensors["logit_scale_t"] = np.array(2)
    with pytest.raises(MusaeError) as error:
        load()
    message = str(error.value)
    assert "not a CLAP that musae_jax can read (5 found)" in message
    for words in (
        "tensor text_model.pooler.dense.bias is missing (expected shape (24,))",
        f"tensor {block}.intermediate.dense.weight has shape (24, 96), expected (96, 24)",
        "tensor audio_model.audio_encoder.layers.0.blocks.7.output.dense.bias has no place in this model",
        "tensor audio_model.audio_encoder.batch_norm.running_var has values that are not finite",
        "tensor logit_scale_t holds int64, expected floating point",
    ):
        assert words in message


def test_buffers_may_be_absent(pair, broken):
    tensors, *_, load = broken
    for key in [key for key in tensors if IGNORED.fullmatch(key)]:
        del tensors[key]
    jax.tree.map(np.testing.assert_array_equal, load().params, pair("even")[1].params)


def test_fused_checkpoints_are_refused(broken):
    _, config, _, load = broken
    config["audio_config"]["enable_fusion"] = True
    with pytest.raises(
        MusaeError, match=r"is a CLAP with feature fusion.* choose one without, such as laion/clap-htsat-unf"
    ):
        load()


def test_every_problem_of_the_configuration_is_listed_at_once(broken):
    _, config, front, load = broken
    config["audio_config"] |= {"hidden_size": 25, "surprise": 1, "spec_size": 60}
    config["text_config"] |= {"num_attention_heads": 5, "position_embedding_type": "relative_key"}
    config |= {"projection_hidden_act": "mish", "wonder": 2}
    front |= {"truncation": "fusion", "feature_size": 17, "frequency_max": 4001}
    with pytest.raises(MusaeError) as error:
        load()
    for words in (
        "audio_config.surprise is an attribute that musae_jax does not know",
        "audio_config.hidden_size is 25, but the last stage is 24 wide",
        "audio_config.spec_size is 60, no multiple of 16 mel bands",
        "text_config.hidden_size 24 is no multiple of 5 heads",
        "text_config.position_embedding_type is 'relative_key'",
        "config.wonder is an attribute",
        "projection_hidden_act is 'mish'",
        "preprocessor_config.truncation is 'fusion' and only 'rand_trunc' is supported",
        "the front end gives 17 mel bands, the tower reads 16",
        "bands reach from 50 to 4001 Hz in sound of 8000 Hz",
    ):
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("audio_config", {"depths": [2, 0]}, r"depths is \(2, 0\), which are not numbers above zero"),
        ("audio_config", {"depths": [2, 2, 2]}, r"depths \(2, 2, 2\) for heads \(2, 4\)"),
        ("audio_config", {"patch_size": [4, 8]}, r"patch_size is \(4, 8\), not a value of type int"),
        ("audio_config", {"patch_stride": [3, 3]}, "patches of 4 every 3"),
        ("audio_config", {"window_size": 16}, "too few for windows of 16"),
        ("audio_config", {"num_attention_heads": [5, 4]}, r"heads \(5, 4\) for stages of widths \(12, 24\)"),
        ("text_config", {"pad_token_id": 50}, "beyond 40 words"),
        ("text_config", {"hidden_act": "mish"}, "hidden_act is 'mish'"),
    ],
)
def test_sizes_that_cannot_be(broken, part, change, words):
    _, config, _, load = broken
    config[part] |= change
    with pytest.raises(MusaeError, match=words):
        load()


def test_other_models_and_no_models(broken, tmp_path):
    _, config, _, load = broken
    config["model_type"] = "musicgen"
    with pytest.raises(MusaeError, match="type 'musicgen', but a 'clap' is expected"):
        load()
    config["model_type"] = "clap"
    del config["text_config"]
    with pytest.raises(MusaeError, match="the block text_config is missing"):
        load()
    with pytest.raises(MusaeError, match=r"there is no folder .* laion/clap-htsat-unfused"):
        load_clap(tmp_path / "nowhere")


def test_from_the_hub_with_its_front_end(pair, monkeypatch):
    import huggingface_hub

    asked = {}

    def download(hub_id, revision, allow_patterns):
        asked[hub_id, revision] = allow_patterns
        return str(pair("even")[2])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_clap("laion/some-clap", revision="v2").config == CONFIGS["even"]
    patterns = asked["laion/some-clap", "v2"]
    assert {"config.json", "preprocessor_config.json", "tokenizer.json", "model*.safetensors"} <= set(patterns)


SIZES = {
    "clap-htsat-unfused": {},
    "larger_clap_music": {"depths": [2, 2, 12, 2], "patch_embeds_hidden_size": 128, "hidden_size": 1024},
}


@pytest.mark.parametrize("name", SIZES)
def test_every_tensor_has_the_shape_that_transformers_gives_it(tmp_path, name):
    """LAION's sizes; nothing is computed on either side. Without preprocessor_config.json the front end is LAION's."""
    config = transformers.ClapConfig(audio_config={**SIZES[name], "model_type": "clap_audio_model"})
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        theirs = {key: tuple(value.shape) for key, value in transformers.ClapModel(config).state_dict().items()}
    found = read_clap_config(tmp_path)
    assert found.mel == LAION and found.audio.frames == 1024 and found.text.longest == 512
    ours = {key: shape for key, (shape, *_) in hf_shapes(found).items()}
    assert ours == {key: shape for key, shape in theirs.items() if not IGNORED.fullmatch(key)}
    # Attributes that transformers 4.27 wrote.
    first = json.loads((tmp_path / CONFIG).read_text())
    first["audio_config"] |= {"patch_stride": [4, 4], "enable_patch_fusion": False, "fusion_num_hidden_layers": 2}
    first["audio_config"] |= {"projection_hidden_size": 768, "torch_dtype": None, "torchscript": False}
    first["text_config"] |= {"fusion_hidden_size": 768, "fusion_num_hidden_layers": 2, "use_cache": True}
    first |= {"hidden_size": 768, "num_hidden_layers": 16, "text_config_dict": None, "_commit_hash": None}
    (tmp_path / CONFIG).write_text(json.dumps(first))
    assert read_clap_config(tmp_path) == found


@pytest.mark.slow
def test_at_the_size_of_clap_htsat_unfused_it_equals_transformers(tmp_path):
    config = ClapConfig(audio=HTSATConfig(), text=RobertaConfig())
    model = torch_clap(config)
    tensors = {key: value.numpy() for key, value in model.state_dict().items()}
    params, problems = clap_from_hf(tensors, config)
    assert problems == []
    clap = Clap(config, params)
    assert 153e6 < sum(leaf.size for leaf in jax.tree.leaves(params)) < 154e6
    audio = np.stack([noise(700_000), np.sin(np.arange(700_000) ** 1.3 / 300).astype(np.float32)])
    ids, mask = texts(config)
    mel = clap_mel(config.mel, audio[:, : config.mel.samples])
    features = extractor(config.mel)(list(audio[:, : config.mel.samples]), sampling_rate=48_000, return_tensors="pt")
    np.testing.assert_allclose(mel, features["input_features"][:, 0], atol=1e-4)
    with torch.no_grad():
        theirs = model(torch.tensor(ids), features["input_features"].float(), attention_mask=torch.tensor(mask))
    np.testing.assert_allclose(audio_embeddings(config, params, mel), theirs.audio_embeds, atol=1e-4)
    np.testing.assert_allclose(text_embeddings(config, params, ids, mask), theirs.text_embeds, atol=1e-4)
    assert embed_audio(clap, audio[:, :600_000], 48_000).shape == (2, 512)
