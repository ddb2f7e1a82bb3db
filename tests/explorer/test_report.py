import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from synthetic_run import CONCEPTS, HOOK, SAE, make_run

from musae_jax.errors import MusaeError
from musae_jax.explorer.report import write_report
from musae_jax.features.exemplars import load_exemplars
from musae_jax.files import read_json_lines, write_json, write_json_lines


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("run"), clips=32, features=48, seconds=2.0)
    write_report(run, 'A </script> & "title"', {"model": "tiny"}, media_features=8)
    return run


def page_of(run):
    return (run / "report" / "index.html").read_text(encoding="utf-8")


def data_of(run):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page_of(run), re.S)[1])


def test_the_page_needs_no_network_and_no_other_folder(run):
    page = page_of(run)
    style_and_script = page.replace("http://www.w3.org/", "")  # names of XML languages, never loaded
    assert not re.search(r"https?:|//cdn|fetch\(|XMLHttpRequest|import\(|@import|url\((?!data:)", style_and_script)
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=[\"'](?!data:)", page)
    assert "{{" not in re.sub(r'id="data">.*?</script>', "", page, flags=re.S)
    for media in data_of(run)["media"]:
        for name in (media["sound"], media["mel"]):
            assert not name.startswith(("/", "..")) and (run / "report" / name).stat().st_size > 100
    files = {p.relative_to(run / "report").as_posix() for p in (run / "report").rglob("*") if p.is_file()}
    assert files == {"index.html"} | {m[k] for m in data_of(run)["media"] for k in ("sound", "mel")}


def test_every_feature_is_listed_with_its_names_and_statistics(run):
    data = data_of(run)
    rows = read_json_lines(run / "features" / HOOK / SAE / "features.jsonl")
    labels = read_json_lines(run / "labels" / "labels.jsonl")
    assert [f["feature"] for f in data["features"]] == list(range(48))
    for shown, row in zip(data["features"], rows):
        assert {k: shown[k] for k in row} == row and shown["hook"] == HOOK and shown["sae"] == SAE
        names = [n for n in labels if n["feature"] == row["feature"]]
        assert sorted(n["name"] for n in shown["names"]) == sorted(n["name"] for n in names)
        for name in shown["names"]:
            assert {"source", "confidence", "holds", "judged"} <= set(name) and "captions" not in name
            assert ({"score", "null_p95", "n"} <= set(name)) == (name["source"] != "llm")
        holds = [name["holds"] for name in shown["names"]]
        assert holds == sorted(holds, reverse=True)


def test_a_name_stands_beside_the_judgement_of_another_source(run):
    names = {(f["feature"], n["source"]): n for f in data_of(run)["features"] for n in f["names"]}
    judged = {(r["feature"], r["source"]): r for r in read_json_lines(run / "validation" / "names.jsonl")}
    assert {source for _, source in judged} == {"truth", "descriptors", "tagger", "clap", "llm"}
    for key, name in names.items():
        if key in judged:
            assert name["judged"] == {k: judged[key][k] for k in name["judged"]} and name["judged"]["scorer"] != key[1]
            assert name["holds"] == judged[key]["passed"]
        else:  # a word of an audio LLM alone is no evidence
            assert name["judged"] is None and name["holds"] == (name["confidence"] > 0 and key[1] != "llm")
    assert {name["holds"] for key, name in names.items() if key in judged} == {True, False}
    assert any(name["judged"] and name["judged"]["span"] for name in names.values())


def test_features_carry_bucket_family_and_intruder_where_they_were_judged(run):
    data = data_of(run)
    nature = {r["feature"]: r for r in read_json_lines(run / "validation" / "features.jsonl")}
    for shown in data["features"]:
        expected = nature.get(shown["feature"], {})
        assert [shown.get(k) for k in ("bucket", "family", "intruder")] == [
            expected.get(k) for k in ("bucket", "family", "intruder")
        ]
    assert data["proof"]["controls"].keys() == {"neurons", "random_weights"} and len(data["filters"]) == 96


def test_before_validation_names_rest_on_their_own_confidence(run, tmp_path):
    for part in ("features", "labels"):
        shutil.copytree(run / part, tmp_path / part)
    write_report(tmp_path, media_features=1)
    data = data_of(tmp_path)
    assert data["proof"] is None and data["filters"] == [] and "bucket" not in data["features"][0]
    for name in (n for f in data["features"] for n in f["names"]):
        assert name["judged"] is None and name["holds"] == (name["confidence"] > 0)


def test_exemplars_carry_their_curve_on_the_scale_of_the_features_maximum(run):
    data = data_of(run)
    assert len(data["exemplars"]) == 8
    steered = {f"{HOOK}/{SAE}/{r['feature']}" for r in read_json_lines(run / "steering" / "sounds.jsonl")}
    assert steered <= set(data["exemplars"])  # steered features are always heard
    maximum = {f["feature"]: f["maximum"] for f in data["features"]}
    saved = {(e.feature, e.clip): e for e in load_exemplars(run / "features" / HOOK / SAE)}
    for key, shown in data["exemplars"].items():
        feature = int(key.split("/")[-1])
        assert {e["half"] for e in shown} <= {"label", "score"} and shown
        for exemplar in shown:
            curve = np.frombuffer(base64.b64decode(exemplar["curve"]), np.uint8)
            assert len(curve) == 100  # 2 s at 50 Hz
            expected = saved[feature, exemplar["clip"]].curve / maximum[feature] * 255
            np.testing.assert_allclose(curve, np.minimum(expected, 255), atol=1.5)
            assert data["media"][exemplar["media"]]["seconds"] == 2.0 and exemplar["caption"]


def test_truth_steering_and_quality_are_shown_with_their_controls(run):
    data = data_of(run)
    assert [r["concept"] for r in data["truth"]] == [c.name for c in CONCEPTS]
    assert data["truth"][0].keys() >= {"sae_auroc", "neuron_auroc", "random_weights_auroc", "sae_null_p95", "base_rate"}
    (sae,) = data["saes"]  # the control is not a dictionary of its own
    assert sae["metrics"]["fvu"] == 0.214 and sae["control"]["fvu"] == 0.378 and len(sae["training"]) == 100
    for rows in data["steering"].values():
        assert {r["arm"] for r in rows} == {"unsteered", "sae", "random", "inactive", "diff_in_means", "prompt"}
        assert all(0 <= r["media"] < len(data["media"]) for r in rows)
    assert data["steeringSummary"]["features"] and dict(map(tuple, data["about"]))["config.layers"] == "[2]"


def test_a_title_cannot_break_the_page(run):
    assert "<title>A &lt;/script&gt; &amp; &quot;title&quot;</title>" in page_of(run)
    assert data_of(run)["title"] == 'A </script> & "title"'


def test_writing_again_replaces_the_report(run):
    before = data_of(run)
    (run / "report" / "stray.txt").write_text("old")
    write_report(run, 'A </script> & "title"', {"model": "tiny"}, media_features=8)
    after = data_of(run)
    assert not (run / "report" / "stray.txt").exists()
    before["about"], after["about"] = before["about"][:-1], after["about"][:-1]  # the date
    assert before == after


def test_music_without_truth_and_without_steering(tmp_path):
    run = make_run(tmp_path, clips=32, features=24, seconds=1.0, truth=False)
    shutil.rmtree(run / "sae")
    (run / "run.json").unlink()
    data = json.loads(json.dumps(data_of(write_report(run).parent.parent)))
    assert data["proof"]["overall"] is None and "concepts" not in data["proof"]  # nobody knows what is right
    assert data["truth"] == [] and data["steeringSummary"] is None and data["saes"][0]["metrics"] is None
    assert {n["source"] for f in data["features"] for n in f["names"]} == {"descriptors"}


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(MusaeError, match="holds no features"):
        write_report(tmp_path)
    run = make_run(tmp_path / "run", clips=16, features=24, seconds=1.0, truth=False)
    shutil.rmtree(run / "features" / HOOK / SAE / "clips")
    with pytest.raises(MusaeError, match=r"\.ogg is missing"):
        write_report(run)
    assert not (run / "report").exists()  # nothing half-written


def test_two_dictionaries(tmp_path):
    run = make_run(tmp_path, clips=16, features=24, seconds=1.0, truth=False)
    other = run / "features" / "blocks.0.resid_post" / "wide"
    shutil.copytree(run / "features" / HOOK / SAE, other)
    write_json(
        run / "sae" / "blocks.0.resid_post" / "wide" / "metrics.json", {"fvu": 0.1, "l0": 3.0, "dead_share": 0.0}
    )
    write_json_lines(run / "sae" / "blocks.0.resid_post" / "wide" / "train.jsonl", [])
    write_report(run)
    data = data_of(run)
    assert len(data["features"]) == 48 and [s["hook"] for s in data["saes"]] == ["blocks.0.resid_post", HOOK]


BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
SCENE = Path(__file__).with_name("scene.html").read_text(encoding="utf-8")  # clicks through the page


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_the_page_works_in_a_browser(run, tmp_path):
    folder = tmp_path / "report moved"  # relative paths, and a space
    shutil.copytree(run / "report", folder)
    page = folder / "index.html"
    page.write_text(page.read_text(encoding="utf-8").replace("</body>\n", SCENE), encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000", "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout
    assert "<title>ERROR" not in dom, re.search(r"<title>(.*?)</title>", dom)[1]
    out = json.loads(re.search(r'<pre id="result">(.*?)</pre>', dom, re.S)[1].replace("&amp;", "&"))
    assert out["rows"] == 48 and out["tiles"] == 7 and out["curves"] >= 1 and out["title"] != "unnamed"
    assert out["ascending"] == list(range(48)) and out["dense"] == sorted(out["dense"], reverse=True)
    assert 0 < len(out["found"]) < 48 and all(out["title"] in text for text in out["found"])
    assert out["clicked"].endswith("%2F0") and out["down"].endswith("%2F1") and out["up"].endswith("%2F0")
    assert out["players"] >= 9 and out["steering"]
    assert out["stayed"] and 48 < out["cursor"] < 50  # an arrow on a player seeks and leaves the feature
    proof = data_of(run)["proof"]
    assert out["judged"] and out["nature"]
    assert set(out["verdicts"]) <= {"passed", "not passed"}
    assert out["buckets"] == proof["buckets"] and sum(out["bySource"]) > 0
    assert out["sources"] == len(proof["sources"]) and out["fates"] == len(proof["concepts"])
    assert out["rights"] == 3 and out["families"] == len(proof["families"]) and out["filters"] == 8
    assert out["concepts"] == len(CONCEPTS) and out["truthFirst"] == min(c.name for c in CONCEPTS)
    assert out["effects"] == 2 and out["against"] == 6 and out["run"] > 200 and out["switched"] and out["back"]
