"""The export for Neuronpedia against the run it was made from."""

import gzip
import json

import pytest
from synthetic_run import HOOK, SAE, make_run

from musae_jax.cli import main
from musae_jax.errors import MusaeError
from musae_jax.explorer.neuronpedia import write_neuronpedia
from musae_jax.features.exemplars import load_exemplars
from musae_jax.files import read_json_lines

BATCHES = ("features", "activations", "explanations")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"), clips=32, features=48, seconds=2.0)


def records(folder):
    plain = {path.stem: read_json_lines(path) for path in folder.glob("*.jsonl")}
    packed = {name: gzip.decompress((folder / name / "batch-0.jsonl.gz").read_bytes()) for name in BATCHES}
    return plain, {name: [json.loads(line) for line in lines.splitlines()] for name, lines in packed.items()}


def test_every_record_of_the_run_is_there(run, tmp_path):
    (folder,) = write_neuronpedia(run, tmp_path)
    assert folder == tmp_path / "model" / f"2-{SAE}"
    plain, batches = records(folder)
    assert plain.keys() == {"release", "model", "sourceset", "source"} and all(len(p) == 1 for p in plain.values())
    (source,) = plain["source"]
    assert source["id"] == f"2-{SAE}" and source["num_prompts"] == 32 and source["num_tokens_in_prompt"] == 100
    features = read_json_lines(run / "features" / HOOK / SAE / "features.jsonl")
    labels = read_json_lines(run / "labels" / "labels.jsonl")
    judged = read_json_lines(run / "validation" / "names.jsonl")
    exemplars = load_exemplars(run / "features" / HOOK / SAE)
    assert [len(batches[name]) for name in BATCHES] == [len(features), len(exemplars), len(labels)]
    assert all(row["modelId"] == "model" and row["layer"] == f"2-{SAE}" for name in BATCHES for row in batches[name])
    for name in BATCHES[1:]:
        assert len({row["id"] for row in batches[name]}) == len(batches[name])
    for row, exemplar in zip(batches["activations"], exemplars):
        assert row["index"] == str(exemplar.feature) and row["dataSource"] == exemplar.clip
        assert row["values"] == pytest.approx(exemplar.curve.tolist(), abs=1e-4)
        assert row["tokens"][:2] == ["0.00", "0.02"] and len(row["tokens"]) == len(row["values"]) == 100
        assert row["values"][row["maxValueTokenIndex"]] == row["maxValue"]
    scores = [score for row in batches["explanations"] for score in row["scores"]]
    assert len(scores) == len(judged) + sum(row["source"] != "llm" for row in labels)
    assert all(0 <= score["value"] <= 1 and json.loads(score["jsonDetails"])["q"] is not None for score in scores)


def test_a_second_export_is_the_same_bytes(run, tmp_path, capsys):
    paths = []
    for name in ("one", "two"):
        assert main(["export", "--run", str(run), "--neuronpedia", str(tmp_path / name)]) == 0
        paths.append(sorted(p for p in (tmp_path / name).rglob("*") if p.is_file()))
    assert capsys.readouterr().out.splitlines()[0] == str(tmp_path / "one" / "model" / f"2-{SAE}")
    assert len(paths[0]) == 7 and [p.read_bytes() for p in paths[0]] == [p.read_bytes() for p in paths[1]]


def test_a_run_without_features_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(MusaeError, match="holds no features"):
        write_neuronpedia(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
