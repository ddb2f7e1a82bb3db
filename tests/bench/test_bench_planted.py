"""The bench of planted truth at a size that says nothing but that it works; the slow test checks the finding."""

import json

import pytest
from planted_size import TINY

from musae_jax import cli
from musae_jax.bench import planted
from musae_jax.bench.planted import MEASURES, PUBLISHED, bench_planted


@pytest.fixture(scope="module")
def rows():
    return {row["name"]: row for row in bench_planted(TINY)}


def test_every_kind_has_every_measure_and_controls_stand_beside(rows):
    for kind in ("matryoshka", "batch_topk", "relu", "random", "pca"):
        for measure in MEASURES:
            row = rows[f"planted/{kind}/{measure}"]
            assert row["peer"] == PUBLISHED.get(kind, {}).get(measure)
            assert ("values" in row) == (kind != "pca")
            assert row["config"]["planted"]["features"] == TINY.planted.features
        if kind != "pca":
            assert 0 <= rows[f"planted/{kind}/stability_0.9"]["ours"] <= rows[f"planted/{kind}/stability_0.7"]["ours"]
    json.dumps(list(rows.values()), allow_nan=False)


def test_training_beats_random_directions(rows):
    for measure in ("f1", "mcc"):
        for kind in ("matryoshka", "batch_topk"):
            row = rows[f"planted/{kind}/{measure}"]
            assert row["ours"] > 1.1 * rows[f"planted/random/{measure}"]["ours"]
    assert rows["planted/batch_topk/fvu"]["ours"] < 0.8 * rows["planted/random/fvu"]["ours"]
    assert rows["planted/truth/l0"]["ours"] > 1


def test_the_command_writes_the_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(planted, "bench_planted", lambda bench, progress: [{**ROW, "config": {"seeds": bench.seeds}}])
    assert cli.main(["bench", "planted", "--seeds", "4", "--json", str(tmp_path / "rows.json")]) == 0
    assert json.loads((tmp_path / "rows.json").read_text())[0]["config"] == {"seeds": 4}
    assert "planted/relu/f1" in capsys.readouterr().out


ROW = {"name": "planted/relu/f1", "dtype": "float32", "ours": 0.5, "unit": "x", "peer": None}


@pytest.mark.slow
def test_matryoshka_beats_batch_topk_beats_relu():
    rows = {row["name"]: row for row in bench_planted()}
    f1 = {kind: rows[f"planted/{kind}/f1"] for kind in ("matryoshka", "batch_topk", "relu", "random", "pca")}
    assert min(f1["matryoshka"]["values"]) > max(f1["batch_topk"]["values"])
    assert min(f1["batch_topk"]["values"]) > max(f1["relu"]["values"])
    assert min(f1["relu"]["values"]) > max(f1["random"]["values"]) and min(f1["relu"]["values"]) > f1["pca"]["ours"]
