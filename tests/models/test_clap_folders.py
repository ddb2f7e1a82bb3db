"""CLAP's folders: written for transformers and read from it, and the ways to be wrong."""

import json
import warnings

import jax
import numpy as np
import pytest
from clap_models import CONFIGS, LAION, extractor, noise, torch, transformers
from safetensors.numpy import load_file, save_file

from musae_jax.errors import MusaeError
from musae_jax.models.clap_checkpoints import load_clap, read_clap_config, save_clap
from musae_jax.models.clap_table import IGNORED, hf_shapes
from musae_jax.models.folder import CONFIG, WEIGHTS


@pytest.mark.parametrize("name", CONFIGS)
def test_saved_by_us_read_by_transformers_and_by_us(clap_pair, tmp_path, name):
    theirs, clap, _ = clap_pair(name)
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


@pytest.fixture
def broken(clap_pair, tmp_path):
    """The tensors, the config and the front end of a good folder, and a way to load what becomes of them."""
    folder = clap_pair("even")[2]
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


def test_buffers_may_be_absent(clap_pair, broken):
    tensors, *_, load = broken
    for key in [key for key in tensors if IGNORED.fullmatch(key)]:
        del tensors[key]
    jax.tree.map(np.testing.assert_array_equal, load().params, clap_pair("even")[1].params)


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


def test_from_the_hub_with_its_front_end(clap_pair, monkeypatch):
    import huggingface_hub

    asked = {}

    def download(hub_id, revision, allow_patterns):
        asked[hub_id, revision] = allow_patterns
        return str(clap_pair("even")[2])

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
