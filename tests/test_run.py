"""The road on a tiny model: every stage writes what it should; a killed run ends with the files of an unbroken one."""

import errno
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from math import comb
from pathlib import Path

import pytest
from llm_server import KEY, LLMServer

from musae_jax import cli
from musae_jax.config import RunConfig, from_record
from musae_jax.errors import MusaeError
from musae_jax.files import write_json, write_json_lines
from musae_jax.labels.llm.cache import ReplyCache
from musae_jax.labels.llm.messages import wav
from musae_jax.llm_stage import check_llm
from musae_jax.names import activity_of, firing_of
from musae_jax.run import STAGES, begin_run, open_run, run_stage

HOOK, SAE = "blocks.1.resid_post", "matryoshka-batchtopk-64-k8"

FLAGS = (
    "--compose.clips", "24", "--compose.seconds", "2", "--train.steps", "30", "--train.d-sae", "64", "--train.k", "8",
    "--train.batch-size", "128", "--features.maximum-share", "1.0", "--label.permutations", "19",
    "--validate.permutations", "19", "--validate.fresh", "10", "--steer.features", "1", "--steer.clips", "2",
    "--steer.seconds", "1",
)  # fmt: skip


def road(out: Path, model: Path) -> list[str]:
    return ["run", "--out", str(out), "--model", str(model), *FLAGS]


def files(folder: Path) -> dict[str, bytes]:
    """What a run made, but for the clock and the checkpoints that only a resume reads.

    A kill can leave a file under its hidden temporary name, which nothing reads.
    """
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("[!.]*")) if p.is_file()}
    return {
        name: data
        for name, data in found.items()
        if name not in ("run.json", "report/index.html") and "checkpoints" not in name
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_folder):
    out = tmp_path_factory.mktemp("whole") / "run"
    assert cli.main(road(out, tiny_folder)) == 0
    return out


def test_every_stage_leaves_its_files(whole):
    record = json.loads((whole / "run.json").read_text())
    assert record["state"] == "finished" and list(record["stages"]) == list(STAGES)
    made = files(whole)
    for name in (
        "music/manifest.jsonl",
        f"activations/{HOOK}/metadata.json",
        f"activations-random-weights/{HOOK}/metadata.json",
        f"sae/{HOOK}/{SAE}/sae_weights.safetensors",
        f"sae/{HOOK}/{SAE}/metrics.json",
        f"sae/{HOOK}/{SAE}/splice.json",
        f"sae/{HOOK}/{SAE}/train.png",
        f"sae/{HOOK}/{SAE}/feature_contrast.safetensors",
        f"sae/{HOOK}/{SAE}-random-weights/metrics.json",
        f"sae/{HOOK}/{SAE}-random-weights/splice.json",
        f"features/{HOOK}/{SAE}/features.jsonl",
        f"features/{HOOK}/{SAE}/statistics.safetensors",
        "labels/labels.jsonl",
        "labels/heard-tagger.safetensors",
        "labels/heard-clap.safetensors",
        "validation/truth_table.jsonl",
        "validation/names.jsonl",
        "validation/features.jsonl",
        "validation/filters.jsonl",
    ):
        assert name in made, name
    assert (whole / "report" / "index.html").exists()
    row = json.loads(made["validation/truth_table.jsonl"].splitlines()[0])
    assert {"concept", "sae_auroc", "neuron_auroc", "random_weights_auroc"} <= set(row)
    rows = [json.loads(line) for line in made["labels/labels.jsonl"].splitlines()]
    assert {row["source"] for row in rows} == {"truth", "descriptors", "tagger", "clap"}
    summary = json.loads(made["validation/summary.json"])
    assert set(summary["controls"]) == {"random_sae", "neurons", "pca", "random_weights"}
    for source, found in summary["sources"].items():
        assert found["named"] == sum(row["source"] == source for row in rows) and found["scored_by"] != source
    assert {"precision", "recall"} <= set(summary["overall"]) and len(summary["families"]) > 5
    assert summary["marked_on"] == {"clips": 10, "fresh": True}


def test_the_tables_of_the_docs_are_made_from_a_runs_files(whole, capsys, monkeypatch, request):
    script = str(request.config.rootpath / "scripts" / "figures.py")
    monkeypatch.setattr(sys, "argv", [script, str(whole)])
    runpy.run_path(script, run_name="__main__")
    out = capsys.readouterr().out
    measured = json.loads((whole / "sae" / HOOK / SAE / "metrics.json").read_text())
    summary = json.loads((whole / "validation" / "summary.json").read_text())
    assert f"| SAE's unexplained variance (FVU), held out | {measured['fvu']:.3f} |" in out
    for source, found in summary["sources"].items():
        assert f"| {source} | {found['named']} |" in out
    assert f"| SAE | {summary['overall']['names']}, of " in out and "## Steering" in out


def test_a_finished_run_is_left_alone_and_another_config_refused(whole, tiny_folder, capsys):
    before = files(whole)
    assert cli.main(road(whole, tiny_folder)) == 0
    assert files(whole) == before
    assert cli.main([*road(whole, tiny_folder), "--train.k", "9"]) == 2
    assert "another train; choose another --out" in " ".join(capsys.readouterr().err.split())
    assert cli.main([*road(whole, tiny_folder), "--validate.fresh", "4"]) == 2
    assert "another validate; choose another --out" in " ".join(capsys.readouterr().err.split())
    assert cli.main([*road(whole, tiny_folder), "--steer.seconds", "0.5"]) == 2
    assert "another steer; change that with `musae steer --run" in " ".join(capsys.readouterr().err.split())
    assert files(whole) == before


def test_what_an_audio_llm_lacks_is_told_at_the_beginning(tmp_path, tiny_folder, monkeypatch, capsys):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for flags, said in (((), "needs a model"), (("--label.llm.model", "a-model"), "there is no key for openai")):
        out = tmp_path / f"run{len(flags)}"
        assert cli.main([*road(out, tiny_folder), "--label.sources", "truth", "llm", *flags]) == 2
        assert said in capsys.readouterr().err.replace("\n", " ") and not (out / "music").exists()
        check_llm(open_run(out), "validate")  # does not ask, and lacks nothing


def test_what_cannot_be_steered_is_told_at_the_beginning(tmp_path, tiny_folder, capsys):
    for flags, said in ((("--steer.clips", "1"), "make 2 at least"), (("--steer.strengths", "0"), "none of them 0")):
        assert cli.main([*road(tmp_path / "run", tiny_folder), *flags]) == 2
        assert said in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "run").exists()


def test_a_run_that_an_older_version_began_goes_on(tmp_path):
    config = RunConfig(out=tmp_path)
    begin_run(config)
    record = json.loads((tmp_path / "run.json").read_text())
    record["config"]["validate"] = {"strong": 0.8, "draws": 200}  # what it did not know has its default now
    del record["config"]["steer"]
    write_json(tmp_path / "run.json", record)
    again = begin_run(config).config
    assert (again.validate.strong, again.validate.fresh, again.steer) == (0.8, 200, config.steer)
    with pytest.raises(MusaeError, match="another validate"):
        begin_run(replace(config, validate=replace(config.validate, strong=0.9)))


def test_a_stage_verb_works_on_a_run(whole, capsys):
    before = files(whole)
    (whole / "labels" / "heard-descriptors.safetensors").write_bytes(b"half a fi")
    assert cli.main(["label", "--run", str(whole)]) == 0
    assert cli.main(["validate", "--run", str(whole)]) == 0
    assert files(whole) == before
    capsys.readouterr()
    assert cli.main(["label", "--run", str(whole / "nothing")]) == 2
    assert "run.json is missing" in capsys.readouterr().err.replace("\n", "")


def test_an_audio_llm_names_and_another_source_judges(whole, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with LLMServer().running() as server:
        flags = ["--llm.model", "a-model", "--llm.base-url", server.url, "--llm.max-clips", "2"]
        assert cli.main(["label", "--run", str(out), *flags]) == 0
        paid = server.paid.total()
        assert cli.main(["label", "--run", str(out)]) == 0  # the run remembers, and its cache
        assert paid > 3 and server.paid.total() == paid and not server.faults
    rows = [json.loads(line) for line in (out / "labels" / "labels.jsonl").read_text().splitlines()]
    named = [row for row in rows if row["source"] == "llm"]
    assert named and all(row["name"] and row["evidence"]["model"] == "a-model" for row in named)
    assert len(rows) - len(named) == len((whole / "labels" / "labels.jsonl").read_text().splitlines())
    assert not any(KEY in path.read_text(errors="ignore") for path in out.rglob("*.json*"))
    assert cli.main(["validate", "--run", str(out)]) == 0
    summary = json.loads((out / "validation" / "summary.json").read_text())
    assert summary["sources"]["llm"]["named"] == len(named)
    stages = json.loads((out / "run.json").read_text())["stages"]
    assert "validate" in stages and "steer" not in stages  # what was made from other names is to be made again
    assert cli.main(["label", "--run", str(whole), "--llm.max-clips", "3"]) == 2
    assert "needs a model" in capsys.readouterr().err.replace("\n", " ")
    assert cli.main(["export", "--run", str(out)]) == 0
    assert cli.main(["label", "--run", str(out), "--sources", "llm", "--tagger", "no/such place"]) == 0  # tagger unused
    assert cli.main(["label", "--run", str(out), "--sources", "tagger"]) == 2
    assert "there is no folder" in capsys.readouterr().err.replace("\n", "")


def no_room(*_):
    raise OSError(errno.ENOSPC, "No space left on device", "a reply")


def test_an_audio_llm_that_fails_leaves_the_other_names_and_goes_on(whole, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    others = (whole / "labels" / "labels.jsonl").read_text()
    cost = out / "labels" / "llm-blocks.1.resid_post.json"
    with LLMServer().running() as server:
        command = ["label", "--run", str(out), "--llm.model", "a-model", "--llm.base-url", server.url]
        command += [
            "--llm.max-features", "5", "--llm.max-clips", "4", "--llm.presentation", "many", "--llm.concurrency", "1",
        ]  # fmt: skip
        server.behave = lambda *_: "401" if server.paid.total() >= 2 else ""
        assert cli.main(command) == 2
        said = capsys.readouterr().err.replace("\n", " ")
        assert "does not accept the key" in said and "the 2 answers paid now are taken from disk" in said
        assert (out / "labels" / "labels.jsonl").read_text() == others
        assert json.loads(cost.read_text())["usage"]["requests"] == 2
        assert "label" not in json.loads((out / "run.json").read_text())["stages"]
        server.behave = lambda *_: ""
        with monkeypatch.context() as full:
            full.setattr(ReplyCache, "put", no_room)
            assert cli.main(command) == 2
        assert "make room" in capsys.readouterr().err and (out / "labels" / "labels.jsonl").read_text() == others
        unkept, server.paid = server.paid, Counter()  # what was answered then is paid again: it could not be kept
        assert cli.main(command) == 0
    assert server.paid.total() == 3 and set(server.paid.values()) == {1} and unkept.total() > 2
    assert "3 requests paid (300 tokens in, 30 out, " in (said := capsys.readouterr().out.replace("\n", " "))
    assert "2 answers from disk; 0 failures" in said
    rows = [json.loads(line) for line in (out / "labels" / "labels.jsonl").read_text().splitlines()]
    named = [row["feature"] for row in rows if row["source"] == "llm"]
    found = whole / "features" / HOOK / SAE / "exemplars.jsonl"
    exemplars = [json.loads(line) for line in found.read_text().splitlines()]
    strength = Counter()
    for row in exemplars:
        strength[row["feature"]] += row["mean"] * (row["half"] == "label")
    assert len(named) == 5 and set(named) == {feature for feature, _ in strength.most_common(5)}


def test_an_audio_llm_judges_the_names_of_others(whole, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert cli.main(["validate", "--run", str(out), "--judge-llm"]) == 2
    assert "needs a model" in capsys.readouterr().err.replace("\n", " ")
    before = [json.loads(line) for line in (whole / "validation" / "names.jsonl").read_text().splitlines()]
    others = [row for row in before if row["source"] != "truth"]
    surest = min(others, key=lambda row: (not row["passed"], -row["detection"], row["feature"]))["feature"]
    run = open_run(out)
    firing = firing_of(run, activity_of(run, 1), "score")
    fires = firing.clips[:, firing.features.index(surest)]
    loud = {wav(run.audio(clip), 16_000).digest for clip, one in zip(firing.clip_ids, fires) if one}
    with LLMServer().running() as server:
        server.present = lambda sound, name: sound.split()[0] in loud  # it always hears what it is asked for
        command = ["validate", "--run", str(out), "--judge-llm", "--llm.model", "a-model", "--llm.base-url", server.url]
        assert cli.main([*command, "--llm.max-features", "1"]) == 0 and not server.faults
        paid = server.paid.total()
        assert f"{paid} requests paid" in capsys.readouterr().out
        judged = [json.loads(line) for line in (out / "validation" / "names.jsonl").read_text().splitlines()]
        assert cli.main([*command, "--llm.max-features", "1"]) == 0 and server.paid.total() == paid
        server.behave = lambda *_: "403"
        assert cli.main([*command, "--llm.max-features", "2"]) == 2
    assert "what the other sources gave is in" in capsys.readouterr().err.replace("\n", " ")
    names = {row["name"] for row in others if row["feature"] == surest}
    told = [row.pop("others") if "llm" in row["others"] else None for row in judged]
    for row, said in zip(judged, told):
        assert (said is not None) == (row["feature"] == surest and row["source"] != "truth")
        if said:
            n = said["llm"]["n"]
            assert said["llm"]["auroc"] == 1.0 and paid == n * len(names) <= 16 * len(names)
            assert said["llm"]["p"] in [round(1 / comb(n, k), 5) for k in range(1, n)]
    summary = json.loads((out / "validation" / "summary.json").read_text())["sources"]
    after = [json.loads(line) for line in (out / "validation" / "names.jsonl").read_text().splitlines()]
    assert after == before and all("llm" not in one for one in summary.values())  # the others' part is there


def test_steering_is_told_otherwise_by_its_verb(whole, tiny_folder, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    assert cli.main(["steer", "--run", str(out)]) == 0
    assert "nothing was steered" in capsys.readouterr().out  # in music by random weights no name is above its null
    labels = [json.loads(line) for line in (out / "labels" / "labels.jsonl").read_text().splitlines()]
    write_json_lines(out / "labels" / "labels.jsonl", [{**row, "confidence": 0.5} for row in labels])
    few = ["--features", "2", "--clips", "2", "--seconds", "0.5", "--calibration", "1"]
    arms = ["inactive", "decoder", "diff_in_means", "probe", "pca"]
    flags = ["--strengths", "-1", "0.5", "1", "--prompt", "slow flute", "--arms", *arms]
    contrast = out / "sae" / HOOK / SAE / "feature_contrast.safetensors"
    known = contrast.read_bytes()
    contrast.unlink()  # as in a run that an older version made
    page = (out / "report" / "index.html").read_bytes()
    assert cli.main(["steer", "--run", str(out), *few, *flags]) == 0
    told = capsys.readouterr().out
    assert (out / "steering" / "effects.jsonl").exists() and (out / "steering" / "sounds.jsonl").exists()
    assert contrast.read_bytes() == known
    assert (out / "report" / "index.html").read_bytes() != page
    assert json.loads((out / "run.json").read_text())["state"] == "finished"
    assert "of 2 features" in told and "principal component" in told and "other layer" not in told
    summary = json.loads((out / "steering" / "summary.json").read_text())
    assert {"unsteered", "random", "decoder", "probe", "pca"} <= set(summary["against"])
    assert set(summary["against"]) <= {"unsteered", "random", *arms}
    assert all(row["prompts"] == ["slow flute"] for row in summary["features"])
    assert json.loads((out / "run.json").read_text())["config"]["steer"]["strengths"] == [-1.0, 0.5, 1.0]
    assert cli.main([*road(out, tiny_folder)[:5], *FLAGS[: FLAGS.index("--steer.features")]]) == 0  # and remembers
    before = (out / "steering" / "summary.json").read_bytes()
    capsys.readouterr()
    assert cli.main(["steer", "--run", str(out), "--preset", "paper", *few]) == 0
    told = capsys.readouterr().out
    assert "Simple melody" in told and "random direction" in told and "published" not in told
    table = json.loads((out / "steering" / "paper" / "table.json").read_text())
    assert table["features"] == 2 and table["clips"] == 2 and 0 <= table["sae"]["first_clip"] <= 1
    assert (out / "steering" / "summary.json").read_bytes() == before
    assert cli.main(["steer", "--run", str(out), "--how", "add", *few]) == 0
    assert "decoder" not in json.loads((out / "steering" / "summary.json").read_text())["against"]
    assert cli.main(["steer", "--run", str(out), "--clips", "1"]) == 2
    assert "make 2 at least" in " ".join(capsys.readouterr().err.split())
    assert json.loads((out / "run.json").read_text())["config"]["steer"]["clips"] == 2


@pytest.mark.parametrize("harvest", [{"live": True}, {"store": "memory://bucket/run"}])
def test_without_a_disk_for_activations_the_sae_is_the_same(whole, tmp_path, harvest):
    record = json.loads((whole / "run.json").read_text())["config"]
    harvest = {**record["harvest"], **harvest, "control": False}
    changes = {"out": str(tmp_path / "run"), "audio": str(whole / "music"), "harvest": harvest}
    run = begin_run(from_record(RunConfig, {**record, **changes}, "the test's config"))
    for stage in ("harvest", "train", "features"):
        run_stage(run, stage)
    assert not list(tmp_path.rglob("shard-*"))
    expected, found = files(whole), files(tmp_path / "run")
    for name in found:
        if name.startswith(("sae/", "features/")) and name.endswith(".safetensors"):
            assert found[name] == expected[name], name


def _kill_when(out: Path, model: Path, seen) -> None:
    """Starts the road in a process of its own and kills it as soon as `seen()`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "musae_jax.cli", *road(out, model)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while not seen() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["music/audio/000-00005.flac", "activations", "sae", "features", "labels"])
def test_killed_at_any_moment_it_ends_with_the_same_files(whole, tiny_folder, tmp_path, moment):
    out = tmp_path / "run"
    _kill_when(out, tiny_folder, lambda: (out / moment).exists())
    assert cli.main(road(out, tiny_folder)) == 0
    expected, found = files(whole), files(out)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
