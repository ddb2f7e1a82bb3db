"""ONNX taggers: patches, and with onnxruntime and onnx installed a small embedding model with two heads."""

import json
import shutil
import sys

import numpy as np
import pytest

from musae_jax.audio.musicnn_mel import musicnn_mel
from musae_jax.errors import MusaeError
from musae_jax.labels.onnx_tagger import cut_patches, load_onnx_folder, load_onnx_tagger, tag
from musae_jax.labels.tags import hear_tags


def test_patches_are_cut_every_62_frames_and_a_short_sound_is_repeated():
    mel = np.arange(400)[:, None] + np.zeros((1, 3), np.float32)
    for frames, starts in ((128, [0]), (189, [0]), (190, [0, 62]), (400, [0, 62, 124, 186, 248])):
        patches = cut_patches(mel[:frames])
        assert patches.shape == (len(starts), 128, 3)
        np.testing.assert_array_equal(patches[:, :, 1], np.asarray(starts)[:, None] + np.arange(128))
    np.testing.assert_array_equal(cut_patches(mel[:50])[0, :, 0], np.arange(128) % 50)


def test_without_onnxruntime_one_sentence_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MusaeError, match=r"pip install \"musae-jax\[onnx\]\""):
        load_onnx_tagger(tmp_path / "model.onnx", [tmp_path / "head.onnx"])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with an embedding model (5 numbers, and 3 classes of its own) and heads, and their weights."""
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    folder, rng = tmp_path_factory.mktemp("onnx"), np.random.default_rng(0)

    def write(name, nodes, inputs, outputs, **weights):
        graph = onnx.helper.make_graph(
            nodes,
            name,
            [onnx.helper.make_tensor_value_info(key, onnx.TensorProto.FLOAT, shape) for key, shape in inputs.items()],
            [onnx.helper.make_tensor_value_info(key, onnx.TensorProto.FLOAT, shape) for key, shape in outputs.items()],
            [onnx.numpy_helper.from_array(value.astype(np.float32), key) for key, value in weights.items()],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
        onnx.save(model, folder / f"{name}.onnx")

    node = onnx.helper.make_node
    project = rng.normal(size=(96, 5)) * 0.1
    write(
        "effnet-bsdynamic-1",
        [
            node("ReduceMean", ["mel"], ["mean"], axes=[1], keepdims=0),
            node("MatMul", ["mean", "project"], ["embeddings"]),
            node("MatMul", ["embeddings", "own"], ["activations"]),
        ],
        {"mel": ["n", 128, 96]},
        {"activations": ["n", 3], "embeddings": ["n", 5]},
        project=project,
        own=rng.normal(size=(5, 3)),
    )
    heads = {"mood-effnet-1": 2, "genre-effnet-1": 4}
    weights = {name: rng.normal(size=(5, classes)) for name, classes in heads.items()}
    for name, classes in heads.items():
        steps = [node("MatMul", ["x", "w"], ["y"]), node("Sigmoid", ["y"], ["z"])]
        write(name, steps, {"x": ["n", 5]}, {"z": ["n", classes]}, w=weights[name])
        (folder / f"{name}.json").write_text(json.dumps({"classes": [f"class {i}" for i in range(classes)]}))
    wide = [node("MatMul", ["x", "w"], ["z"])]
    write("wide-other-1", wide, {"x": ["n", 6]}, {"z": ["n", 2]}, w=rng.normal(size=(6, 2)))
    (folder / "wide-other-1.json").write_text('{"classes": ["a", "b"]}')
    return folder, project, weights


def test_probabilities_are_the_means_over_patches(models):
    folder, project, weights = models
    tagger = load_onnx_tagger(folder / "effnet-bsdynamic-1.onnx", [folder / f"{name}.onnx" for name in weights])
    assert tagger.labels[:3] == ("mood: class 0", "mood: class 1", "genre: class 0")
    audio = np.random.default_rng(1).normal(size=(2, 80 * 16000)).astype(np.float32) * 0.1  # 79 patches, two batches
    found = tag(tagger, audio, 16000)
    assert found.shape == (2, 6) and found.dtype == np.float32
    for row, clip in zip(found, audio):
        embeddings = cut_patches(musicnn_mel(clip)).mean(1) @ project
        expected = [1 / (1 + np.exp(-embeddings @ w)) for w in weights.values()]
        np.testing.assert_allclose(row, np.concatenate([e.mean(0) for e in expected]), atol=1e-5)
    np.testing.assert_allclose(tag(tagger, audio[:1], 16000), found[:1], atol=1e-6)
    assert np.isfinite(tag(tagger, np.zeros((1, 500)), 44100)).all()
    with pytest.raises(MusaeError, match=r"expects \[B, S\]"):
        tag(tagger, audio[0], 16000)


def test_files_that_do_not_fit_are_refused_by_name(models, tmp_path):
    folder, _, _ = models
    effnet, mood = folder / "effnet-bsdynamic-1.onnx", folder / "mood-effnet-1.onnx"
    with pytest.raises(MusaeError, match=r"none\.onnx is missing"):
        load_onnx_tagger(folder / "none.onnx", [mood])
    with pytest.raises(MusaeError, match="no head"):
        load_onnx_tagger(effnet, [])
    with pytest.raises(MusaeError, match="different widths"):
        load_onnx_tagger(effnet, [mood, folder / "wide-other-1.onnx"])
    with pytest.raises(MusaeError, match="one output of width 6"):
        load_onnx_tagger(effnet, [folder / "wide-other-1.onnx"])
    copy = tmp_path / "head-x.onnx"
    copy.write_bytes(mood.read_bytes())
    with pytest.raises(MusaeError, match=r"head-x\.json is missing"):
        load_onnx_tagger(effnet, [copy])
    for text, named in (("{", "does not name"), ("[]", "does not name"), ('{"classes": [1]}', "no list of names")):
        (tmp_path / "head-x.json").write_text(text)
        with pytest.raises(MusaeError, match=named):
            load_onnx_tagger(effnet, [copy])
    (tmp_path / "head-x.json").write_text('{"classes": ["a", "b", "c"]}')
    with pytest.raises(MusaeError, match="one output of width 3"):
        load_onnx_tagger(effnet, [copy])
    copy.write_bytes(b"nothing")
    with pytest.raises(MusaeError, match="no ONNX model"):
        load_onnx_tagger(effnet, [copy])


def test_a_folder_of_models_is_a_source_of_names(models, tmp_path):
    folder, _, weights = models
    with pytest.raises(MusaeError, match="holds 0 models discogs-effnet"):
        load_onnx_folder(tmp_path)
    shutil.copy(folder / "effnet-bsdynamic-1.onnx", tmp_path / "discogs-effnet-bsdynamic-1.onnx")
    for name in weights:
        for suffix in (".onnx", ".json"):
            shutil.copy(folder / f"{name}{suffix}", tmp_path)
    tagger = load_onnx_folder(tmp_path)
    sounds = dict(zip("abc", np.random.default_rng(1).normal(size=(3, 40_000)).astype(np.float32)))
    heard = hear_tags(tagger, "abc", sounds.__getitem__, 16_000, parts=4)
    probability = tag(tagger, np.stack(list(sounds.values())), 16_000)
    np.testing.assert_allclose(1 / (1 + np.exp(-heard.clips)), probability, atol=1e-5)
    assert heard.parts.shape == (3, 4, 0) and heard.embedding.shape == heard.clips.shape == (3, 6)
    assert heard.concepts[0].name == "genre: class 0" and heard.concepts[0].family == "genre"
