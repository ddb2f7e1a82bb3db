"""`musae bench syntheory` on a tiny model, and its probe where the answer is known."""

import json

import numpy as np
import pytest

from musae_jax import cli
from musae_jax.bench.syntheory import PUBLISHED_HIDDEN, PUBLISHED_LINEAR, _measure
from musae_jax.compose.syntheory import SETS


def test_published_figures_for_every_set():
    assert PUBLISHED_LINEAR.keys() == PUBLISHED_HIDDEN.keys() == SETS.keys()
    assert np.mean(list(PUBLISHED_LINEAR.values())) == pytest.approx(0.685, abs=0.001)  # as the paper prints
    assert np.mean(list(PUBLISHED_HIDDEN.values())) == pytest.approx(0.929, abs=0.001)


def test_every_set_and_layer_stands_beside_its_controls(tiny_folder, tmp_path, capsys):
    path = tmp_path / "rows.json"
    sets = ("chords", "tempos")
    command = ["bench", "syntheory", "--model", str(tiny_folder), "--examples", "24", "--seeds", "2"]
    assert cli.main([*command, "--sets", *sets, "--json", str(path)]) == 0
    rows = json.loads(path.read_text())
    assert [r["name"] for r in rows] == [f"syntheory/{s}/blocks.{i}.resid_post" for s in sets for i in (0, 1)]
    for row in rows:
        assert row["peer"] == PUBLISHED_LINEAR[row["name"].split("/")[1]] and len(row["values"]) == 2
        assert row["random_weights"] <= 1 and 0 <= row["chance"] <= 0.25
    out = capsys.readouterr().out
    assert all(name in out for name in sets)
    assert cli.main([*command[:4], "--sets", "rhythms"]) == 2
    assert "no concept set 'rhythms'" in capsys.readouterr().err
    for flag, words in (("--seeds", "--seeds is 0"), ("--examples", "--examples is 0; a probe needs 10 or more")):
        assert cli.main([*command[:4], flag, "0"]) == 2
        assert words in " ".join(capsys.readouterr().err.split())
    assert cli.main([*command[:4], "--peak", "2"]) == 2
    assert "--peak is 2.0; it must be above 0 and at most 1" in capsys.readouterr().err


def test_the_probe_reads_classes_and_extrapolates_tempi():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 400)
    x = np.eye(5)[labels] @ rng.normal(size=(5, 12)) + 0.1 * rng.normal(size=(400, 12))
    assert _measure(x.astype(np.float32), labels, False, 0) > 0.97
    assert _measure(rng.normal(size=(400, 12)).astype(np.float32), labels, False, 0) < 0.35
    tempi = rng.integers(50, 211, 400)
    x = np.outer(tempi, rng.normal(size=12)) + rng.normal(size=(400, 12))
    assert _measure(x, tempi, True, 0) > 0.97
    assert _measure(rng.normal(size=(400, 12)), tempi, True, 0) < 0.1
