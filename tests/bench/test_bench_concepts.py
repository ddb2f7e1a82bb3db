"""`musae bench concepts` on a tiny run: figures that mean nothing, in the right places, beside every control."""

import dataclasses
import json
import runpy

import numpy as np
import pytest
from PIL import Image

from musae_jax import cli
from musae_jax.activations.residuals import weights_sha256
from musae_jax.bench.concepts_report import KINDS
from musae_jax.bench.heat_map import draw_heat_map
from musae_jax.compose.concepts import VOCABULARY
from musae_jax.config import ComposeConfig, RunConfig, TrainConfig
from musae_jax.run import begin_run, run_stage
from musae_jax.sae.formats import load_sae, save_sae

SIZE = ("--clips", "24", "--seconds", "2", "--shuffles", "19")


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder):
    config = RunConfig(
        out=tmp_path_factory.mktemp("concepts") / "run",
        model=str(tiny_folder),
        compose=ComposeConfig(clips=8, seconds=1.0),
        train=TrainConfig(d_sae=48, k=4, steps=20, batch_size=32, splice_clips=0),
    )
    run = begin_run(config)
    for stage in ("compose", "harvest", "train"):
        run_stage(run, stage)
    return run


@pytest.fixture(scope="module")
def report(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "concepts.json"
    assert cli.main(["bench", "concepts", "--run", str(run.folder), *SIZE, "--json", str(path)]) == 0
    return json.loads(path.read_text())


def test_every_concept_has_a_row_for_every_dictionary(report):
    assert list(report["coverage"]) == list(KINDS)
    assert all(0 <= share <= 1 for share in report["coverage"].values())
    counts = {kind: len([r for r in report["rows"] if r["dictionary"] == kind]) for kind in (*KINDS, "truth")}
    assert counts == {kind: len(VOCABULARY) * (3 if kind == "random_sae" else 1) for kind in counts}
    judged = [r for r in report["rows"] if r["auroc"] is not None]
    assert len(judged) > 100
    for row in judged:
        assert row["interval"] is None or row["interval"][0] <= row["interval"][1]
        assert 0.05 <= row["p"] <= row["q"] + 1e-9 <= 1 + 1e-9
        assert row["positives"] >= 4 and 0 < row["base_rate"] < 1
        assert (row["parts"] is not None) == (row["dictionary"] in ("sae", "random_sae", "random_weights"))
    assert report["config"]["hook"] == "blocks.1.resid_post" and report["config"]["d_sae"] == 48


def test_the_truth_itself_is_found_whole(report):
    truth = report["summary"]["truth"]
    assert truth["coverage"] == 1 and truth["mcc"] == pytest.approx(1, abs=1e-6) and truth["concepts_per_feature"] >= 1
    assert truth["interval"] == [1, 1] and truth["lead"] == report["coverage"]["sae"] - 1


def test_what_is_not_found_is_sorted_by_reason(report):
    found = {r["concept"] for r in report["rows"] if r["dictionary"] == "sae" and (r["auroc"] or 0) >= 0.9}
    missing = [name for names in report["not_found"].values() for name in names]
    assert len(missing) == len(set(missing)) and set(missing) | found == {c.name for c in VOCABULARY}
    assert not set(missing) & found


def test_the_table_of_the_docs_is_made_from_the_file(report, tmp_path, request):
    (tmp_path / "concepts.json").write_text(json.dumps(report))
    tables = runpy.run_path(str(request.config.rootpath / "scripts" / "figures.py"))["concept_tables"]
    text = "\n".join(tables(tmp_path / "concepts.json"))
    for kind, name in (("neurons", "neurons"), ("probe", "linear probe, the ceiling")):
        assert f"| {name} | {100 * report['coverage'][kind]:.1f} % (" in text
    assert f"told by the probe alone: {len(report['not_found']['told by the probe alone'])} (" in text


def test_a_second_call_is_the_same_and_harvests_nothing(run, report, tmp_path, capsys):
    written = {p: p.stat().st_mtime_ns for p in (run.folder / "concepts").rglob("*") if p.suffix == ".safetensors"}
    assert len(written) >= 2
    picture, path = tmp_path / "map.png", tmp_path / "again.json"
    files = ["--picture", str(picture), "--json", str(path)]
    assert cli.main(["bench", "concepts", "--run", str(run.folder), *SIZE, *files]) == 0
    assert json.loads(path.read_text()) == report
    assert {p: p.stat().st_mtime_ns for p in written} == written
    out = capsys.readouterr().out
    assert "found, by family" in out and "not found by the SAE" in out and all(kind in out for kind in KINDS)
    with Image.open(picture) as image:
        assert image.size[0] > 800


def test_an_sae_alone_gets_a_control_of_its_own(run, report, tmp_path, capsys):
    folder, path = str(run.sae_folder(1)), tmp_path / "rows.json"
    command = ["bench", "concepts", "--sae", folder, folder, *SIZE, "--json", str(path)]
    assert cli.main([*command, "--work", str(run.folder / "concepts")]) == 0
    found = json.loads(path.read_text())
    assert found["summary"]["sae"]["values"] == [report["coverage"]["sae"]] * 2
    assert {k: v for k, v in found["coverage"].items() if k != "random_weights"} == {
        k: v for k, v in report["coverage"].items() if k != "random_weights"
    }
    assert list((run.folder / "concepts").glob("random-weights-48-*"))
    assert "The picture" not in capsys.readouterr().out


def test_the_control_is_of_the_weights_that_its_saes_were_trained_on(run, tmp_path):
    other = dataclasses.replace(run.config, out=tmp_path / "run", seed=1)
    run = begin_run(other)
    for stage in ("compose", "harvest", "train"):
        run_stage(run, stage)
    assert cli.main(["bench", "concepts", "--run", str(run.folder), *SIZE]) == 0
    kept = {folder.name.rsplit("-", 1)[1] for folder in (run.folder / "concepts").glob("activations-*")}
    assert kept == {weights_sha256(mg.params)[:12] for mg in (run.model, run.control_model)}


def test_seeds_are_trained_beside_the_run(run, tmp_path, capsys):
    path = tmp_path / "rows.json"
    assert cli.main(["bench", "concepts", "--run", str(run.folder), *SIZE, "--seeds", "2", "--json", str(path)]) == 0
    assert "not found by the first SAE" in capsys.readouterr().out
    found = json.loads(path.read_text())
    assert len(found["summary"]["sae"]["values"]) == len(found["summary"]["random_weights"]["values"]) == 2
    assert found["config"]["saes"] == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "needs either --run or --sae"),
        (("--run", "RUN", "--sae", "SAE"), "needs either --run or --sae"),
        (("--run", "RUN", "--model", "pocket"), "--model goes with --sae"),
        (("--run", "RUN", "--layer", "0"), "has layers 1, not 0"),
        (("--run", "RUN", "--clips", "30"), "multiple of four"),
        (("--run", "RUN", "--clips", "4"), "in 4 clips no concept occurs often enough"),
        (("--run", "RUN", "--clips", "800000"), "GiB; 2 GiB of them can be judged"),
        (("--run", "RUN", "--shuffles", "0"), "--shuffles is 0"),
        (("--run", "RUN", "--seeds", "0"), "--seeds is 0"),
        (("--sae", "SAE", "--seeds", "2"), "--seeds goes with --run"),
        (
            ("--sae", "SAE", "OTHER"),
            "different models, MODEL, another; give seeds of one kind, or say which with --model",
        ),
        (
            ("--sae", "SAE", "OTHER", "--model", "MODEL"),
            "different hooks, blocks.1.resid_post, unnamed; give seeds of one kind, or say which with --layer",
        ),
        (("--sae", "SAE", "OTHER", "--model", "pocket", "--layer", "1"), "width 24, but pocket has width 192"),
        (("--sae", "SAE", "--model", "pocket"), "width 24, but pocket has width 192"),
    ],
)
def test_bad_calls_are_one_sentence(run, flags, words, capsys, tmp_path):
    sae = load_sae(run.sae_folder(1))
    other = dataclasses.replace(sae.config, metadata={"model_name": "another"})
    save_sae(tmp_path / "other", dataclasses.replace(sae, config=other))
    places = {"RUN": str(run.folder), "SAE": str(run.sae_folder(1)), "OTHER": str(tmp_path / "other")}
    places["MODEL"] = run.config.model
    words = words.replace("MODEL", run.config.model)
    pairs = zip(SIZE[::2], SIZE[1::2])
    small = tuple(part for name, value in pairs if name not in flags for part in (name, value))
    work = ("--work", str(tmp_path)) if "pocket" in flags and "--sae" in flags else ()
    assert cli.main(["bench", "concepts", *(places.get(flag, flag) for flag in flags), *small, *work]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_the_heat_map_is_darker_where_a_score_is_higher():
    rows = [("a", "a: one"), ("a", "a: two"), ("b", "b: three")]
    scores = {"sae": np.asarray([1.0, 0.5, np.nan]), "neurons": np.asarray([0.5, 1.0, 0.75])}
    picture = draw_heat_map("A title", rows, scores, 0.9, blocks=1)
    light = np.asarray(picture.convert("L"), float)
    from musae_jax.bench.heat_map import COLUMN, EDGE, HEAD, NAMES, ROW, SCALE

    def cell(row, column):
        y, x = HEAD + row * ROW + (ROW // 2 if row == 2 else 0), EDGE + NAMES + column * COLUMN
        return light[SCALE * (y + 1) : SCALE * (y + ROW - 3), SCALE * (x + 2) : SCALE * (x + 10)].mean()

    assert cell(0, 0) < 40 and cell(1, 0) > 220 and cell(2, 0) > 240
    assert cell(0, 1) > 220 and cell(1, 1) < 40 and 60 < cell(2, 1) < 200
