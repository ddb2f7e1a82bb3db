"""CLAP's towers against transformers on random weights."""

import dataclasses

import jax
import numpy as np
import pytest
from clap_models import CONFIGS, LEAST, extractor, noise, some_mel, texts, torch, torch_clap

from musae_jax.audio.clap_mel import clap_mel
from musae_jax.errors import MusaeError
from musae_jax.models.clap import Clap, ClapConfig, audio_embeddings, embed_audio, random_clap, text_embeddings
from musae_jax.models.clap_table import clap_from_hf
from musae_jax.models.htsat import HTSAT, HTSATConfig
from musae_jax.models.roberta import Roberta, RobertaConfig


@pytest.mark.parametrize("name", CONFIGS)
def test_config_survives_the_folder(clap_pair, name):
    assert clap_pair(name)[1].config == CONFIGS[name]


# The image's full length, and one that is stretched much.
@pytest.mark.parametrize(("name", "frames"), [("even", 256), ("odd", 37)])
def test_sound(clap_pair, name, frames):
    model, clap, _ = clap_pair(name)
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
def test_words(clap_pair, name):
    model, clap, _ = clap_pair(name)
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


def test_gradients_equal_torchs_and_statistics_get_none(clap_pair):
    model, clap, _ = clap_pair("even")
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


def test_spectrograms_that_do_not_fit(clap_pair):
    clap = clap_pair("even")[1]
    for shape, words in (((1, 257, 16), "up to 256"), ((1, 9, 15), "9 frames of 15"), ((9, 16), r"reads \[B, T, M\]")):
        with pytest.raises(MusaeError, match=words):
            audio_embeddings(clap.config, clap.params, np.zeros(shape))


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
