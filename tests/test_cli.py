"""The command: what it prints, what it exits with, and bad input as one clear sentence with nothing half-written."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import yaml

from musae_jax import cli
from musae_jax.audio.io import read_audio, write_audio
from musae_jax.config import RunConfig, TrainConfig, from_record, read_yaml, to_record
from musae_jax.errors import MusaeError
from musae_jax.models.checkpoints import save_musicgen
from musae_jax.models.decoder import PREFIXED
from musae_jax.models.melody import MelodyConfig
from musae_jax.models.musicgen import random_musicgen

SMALL = ("--compose.seconds", "2", "--train.steps", "20", "--train.d-sae", "64", "--train.batch-size", "128")


def fails(capsys, *arguments) -> str:
    """The one sentence of a command that must exit 2."""
    try:
        code = cli.main([str(a) for a in arguments])
    except SystemExit as stop:  # the flag parser leaves by itself
        code = stop.code
    assert code == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return re.sub(r"\s+", " ", err)


def test_usage_names_every_verb(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"musae {verb}" in out for verb in cli.VERBS)
    assert cli.main([]) == 2


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code == 0
    assert f"musae {verb}" in capsys.readouterr().out


def test_unknown_verbs_and_flags(capsys, tmp_path):
    assert "'sing' is not a verb" in fails(capsys, "sing")
    assert "--bogus" in fails(capsys, "compose", "--out", tmp_path / "x", "--bogus")
    assert not (tmp_path / "x").exists()


def test_a_config_survives_its_record_and_its_file(tmp_path):
    config = RunConfig(train=TrainConfig(k=7), seed=3)
    for one in (config, RunConfig(train=TrainConfig(log=("wandb", "tensorboard")))):
        assert from_record(RunConfig, json.loads(json.dumps(to_record(one))), "record") == one
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"train": {"k": 7}, "seed": 3}))
    assert read_yaml(RunConfig, tmp_path / "c.yaml") == config
    assert cli.parse("run", ["--config", str(tmp_path / "c.yaml"), "--train.k", "9"]).train.k == 9  # flags win


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trian: {}", "'trian', which is unknown"),
        ("seed: much", "seed, must be int"),
        ("train: {log: [wandb, mlflow]}", "log, must be a list of tensorboard or wandb, not .'wandb', 'mlflow'."),
        ("[1]", "must hold"),
        ("a: [", "not a YAML"),
    ],
)
def test_bad_config_files(text, words, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(MusaeError, match=words):
        read_yaml(RunConfig, tmp_path / "c.yaml")


def test_the_presets_are_whole_configs(request):
    folder = request.config.rootpath / "configs"
    assert list(folder.glob("*.yaml"))
    for preset in folder.glob("*.yaml"):
        assert isinstance(read_yaml(RunConfig, preset), RunConfig), preset


def test_bad_models_and_folders(capsys, tmp_path, tiny_folder):
    def run(*flags):
        return fails(capsys, "run", "--out", tmp_path / "out", *SMALL, *flags)

    (tmp_path / "empty").mkdir()
    assert "empty" in run("--model", tmp_path / "empty")
    assert "empty" in run("--model", tiny_folder, "--audio", tmp_path / "empty", "--out", tmp_path / "out2")
    broken = shutil.copytree(tiny_folder, tmp_path / "broken")
    data = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert "model.safetensors" in run("--model", broken, "--out", tmp_path / "out3")
    foreign = shutil.copytree(tiny_folder, tmp_path / "foreign")
    (foreign / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "bert" in run("--model", foreign, "--out", tmp_path / "out4")
    assert not list(tmp_path.glob("out*/activations/*/shard*"))


def test_a_bad_file_among_good_ones_is_skipped_counted_and_named(tmp_path, tiny_folder, capsys):
    music = tmp_path / "music"
    music.mkdir()
    rng = np.random.default_rng(0)
    for name in "abcdefgh":
        write_audio(music / f"{name}.wav", rng.normal(size=32_000).astype(np.float32) * 0.1, 16_000)
    write_audio(music / "low.wav", rng.normal(size=16_000).astype(np.float32) * 0.1, 8_000)
    (music / "text.wav").write_text("this is no sound")
    out = tmp_path / "run"
    assert (
        cli.main(
            [
                "run",
                "--out",
                str(out),
                "--model",
                str(tiny_folder),
                "--audio",
                str(music),
                *SMALL,
                "--steer.features",
                "0",
            ]
        )
        == 0
    )
    found = json.loads((out / "clips.json").read_text())
    assert found["clips"] == 9
    assert [row["path"].endswith("text.wav") for row in found["skipped"]] == [True]
    # nobody knows the truth of a user's music, and the pocket's ears have not learned it
    assert not (out / "validation" / "truth_table.jsonl").exists()
    summary = json.loads((out / "validation" / "summary.json").read_text())
    assert summary["overall"] is None and summary["controls"] == {}
    rows = (out / "labels" / "labels.jsonl").read_text().splitlines()
    assert {json.loads(row)["source"] for row in rows} <= {"descriptors"}
    capsys.readouterr()


def test_generate_writes_sound_and_the_same_sound_again(tmp_path, tiny_folder, capsys):
    files = [tmp_path / name for name in ("a.wav", "b.wav", "c.wav")]
    for file, seed in zip(files, (1, 1, 2)):
        arguments = ["generate", "flute solo", "--out", str(file), "--model", str(tiny_folder)]
        assert cli.main([*arguments, "--seconds", "0.5", "--seed", str(seed)]) == 0
    assert "real time" in capsys.readouterr().out
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()
    assert len(read_audio(files[0], 16_000)) == 8_000
    assert "--seconds" in fails(capsys, "generate", "x", "--out", tmp_path / "d.wav", "--seconds", "0")


def test_generate_follows_a_melody(tmp_path, tiny_folder, tiny_musicgen, capsys):
    config = tiny_musicgen.config
    config = dataclasses.replace(
        config,
        decoder=dataclasses.replace(config.decoder, model_type=PREFIXED),
        melody=MelodyConfig(chroma_length=20),
    )
    mg = random_musicgen(config, jax.random.key(0), tiny_musicgen.tokenizer)
    # As drawn, the weights are so small that the sampling noise hides any condition.
    louder = {name: jax.tree.map(lambda x: 8 * x, mg.params[name]) for name in ("decoder", "melody_projection")}
    save_musicgen(tmp_path / "melody", mg.replace(params=mg.params | louder))
    time = np.arange(44_100) / 22_050
    for name, pitch in (("low", 220.0), ("high", 349.2)):
        write_audio(tmp_path / f"{name}.wav", np.sin(2 * np.pi * pitch * time).astype(np.float32) / 2, 22_050)

    def made(name, *flags):
        out = tmp_path / name
        arguments = ["generate", "flute", "--out", str(out), "--model", str(tmp_path / "melody"), "--seconds", "0.5"]
        assert cli.main([*arguments, *map(str, flags)]) == 0
        return out.read_bytes()

    low = made("a.wav", "--melody", tmp_path / "low.wav")
    assert low == made("b.wav", "--melody", tmp_path / "low.wav")
    assert len({low, made("c.wav", "--melody", tmp_path / "high.wav"), made("d.wav")}) == 3
    windows = ("--window-seconds", 0.3, "--stride-seconds", 0.2)
    slid = {made(f"{name}-slid.wav", "--melody", tmp_path / f"{name}.wav", *windows) for name in ("low", "high")}
    assert len(slid | {low}) == 3
    assert cli.main(["info", str(tmp_path / "melody")]) == 0
    assert "takes a melody" in capsys.readouterr().out

    flags = ("generate", "x", "--out", tmp_path / "e.wav", "--seconds", "0.5", "--melody")
    error = fails(capsys, *flags, tmp_path / "low.wav", "--model", tiny_folder)
    assert "takes no melody" in error and error.count(";") == 1
    write_audio(tmp_path / "none.wav", np.zeros(9000, np.float32), 22_050)
    assert "none.wav is silent" in fails(capsys, *flags, tmp_path / "none.wav", "--model", tmp_path / "melody")
    assert "gone.wav cannot be read" in fails(capsys, *flags, tmp_path / "gone.wav", "--model", tmp_path / "melody")
    assert not (tmp_path / "e.wav").exists()


def test_info_and_doctor(tmp_path, tiny_folder, capsys):
    assert cli.main(["info", str(tiny_folder)]) == 0
    assert "2 blocks of width 24 and 2 heads, 2 codebooks of 16" in capsys.readouterr().out
    assert "config.json" in fails(capsys, "info", tmp_path)
    assert cli.main(["doctor"]) == 0
    assert "jax" in capsys.readouterr().out


def test_a_full_disk_is_one_sentence(tmp_path):
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000));"
        "from musae_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "compose", "--out", str(tmp_path / "full"), "--clips", "2", "--seconds", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not list((tmp_path / "full").rglob("*.flac")) and not (tmp_path / "full" / "manifest.jsonl").exists()
