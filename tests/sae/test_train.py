import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from planted_store import CLIPS, D, F, planted_store

from musae_jax.errors import MusaeError
from musae_jax.sae.batch_topk import BatchTopKConfig
from musae_jax.sae.formats import load_sae
from musae_jax.sae.topk import TopKConfig
from musae_jax.sae.train import train_saes

CONFIG = BatchTopKConfig(D, F, k=3, steps=64, batch_size=64, lr=5e-3)
CONFIGS = {  # the first and the third are one group
    "first": CONFIG,
    "second": TopKConfig(D, F, k=3, steps=64, batch_size=64, lr=5e-3),
    "third": BatchTopKConfig(D, F, k=5, steps=64, batch_size=64, lr=3e-3, seed=1),
}
HELD_OUT = [f"clip{i:03d}" for i in range(0, CLIPS, 4)]
OPTIONS = {"held_out": HELD_OUT, "log_every": 8, "save_every": 16}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return planted_store(tmp_path_factory.mktemp("store") / "hook")


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    calls = []
    saes = train(store, folder, progress=lambda *call: calls.append(call))
    return folder, saes, calls


def train(store, folder: Path, configs=CONFIGS, **options):
    return train_saes(store, {folder / name: config for name, config in configs.items()}, **{**OPTIONS, **options})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_training_writes_the_saes_their_logs_and_their_measures(trained):
    folder, saes, calls = trained
    files = ("cfg.json", "sae_weights.safetensors", "golden.safetensors", "metrics.json", "train.jsonl")
    assert set(contents(folder)) == {f"{name}/{file}" for name in CONFIGS for file in files}
    for (name, config), sae in zip(CONFIGS.items(), saes):
        rows = [json.loads(line) for line in (folder / name / "train.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(8, 65, 8))
        assert rows[-1]["tokens"] == 64 * 64
        assert {"fvu", "auxk", "l0", "loss", "grad_norm", "lr", "dead", "skipped"} < set(rows[0])
        assert max(row["lr"] for row in rows) == pytest.approx(config.lr)
        assert rows[-1]["fvu"] < 0.7 * rows[0]["fvu"]
        assert all(abs(row["l0"] - config.k) < 0.05 for row in rows[2:])
        metrics = json.loads((folder / name / "metrics.json").read_text())
        assert metrics["held_out"] is True
        assert metrics["clips"] == len(HELD_OUT)
        assert 0 < metrics["fvu"] < 0.7
        assert abs(metrics["l0"] - config.k) < 1
        assert sae.config.hook == "blocks.0.resid_post"
        assert sae.config.metadata["model_name"] == "planted"
        assert sae.config.metadata["trained_as"] == config.architecture
        assert sae.config.architecture == config.rule
    assert "threshold" in rows[0]
    assert (8, 64, "steps") in calls and (64, 64, "steps") in calls
    assert calls[-1] == (len(HELD_OUT), len(HELD_OUT), "clips")


def test_trained_in_a_group_or_alone_is_the_same(store, trained, tmp_path):
    folder, saes, _ = trained
    alone = train(store, tmp_path, {"third": CONFIGS["third"]})[0]
    np.testing.assert_allclose(alone.params["W_dec"], saes[2].params["W_dec"], atol=2e-2)
    fvu, expected = (json.loads((path / "third" / "metrics.json").read_text())["fvu"] for path in (tmp_path, folder))
    assert fvu == pytest.approx(expected, rel=0.01)


def test_finished_saes_are_returned_and_others_refused(store, trained):
    folder, saes, _ = trained
    before = contents(folder)
    again = train(store, folder)
    np.testing.assert_array_equal(again[2].params["W_enc"], saes[2].params["W_enc"])
    assert contents(folder) == before
    with pytest.raises(MusaeError, match="trained in another way"):
        train(store, folder, {**CONFIGS, "second": CONFIG})


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from musae_jax.activations.store import open_store
from test_train import train
store = open_store(Path(sys.argv[1]))
train(store, Path(sys.argv[2]), progress=lambda done, total, unit: print(unit, done, flush=True))
"""


def run_training(store, out: Path) -> subprocess.Popen:
    program = PROGRAM.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", program, store.name, str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def test_killed_and_resumed_they_end_with_the_same_bytes(store, trained, tmp_path):
    process = run_training(store, tmp_path)
    for line in process.stdout:
        if line.startswith("steps 40"):  # after the checkpoint of step 32
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL
    assert not list(tmp_path.glob("*/metrics.json"))
    assert (tmp_path / "first" / "checkpoints").exists()
    calls = []
    train(store, tmp_path, progress=lambda *call: calls.append(call))
    assert calls[0] == (40, 64, "steps")  # steps 1 to 32 were not done again
    assert contents(tmp_path) == contents(trained[0])


def test_interrupted_again_and_again_they_end_with_the_same_bytes(store, trained, tmp_path):
    """Stops inside progress, where an exception leaves the files as a kill between two writes would."""

    class Stop(Exception):
        pass

    def measured() -> int:
        return len(list(tmp_path.glob("*/metrics.json")))

    for where, finished in (((24, "steps"), 0), ((56, "steps"), 0), ((len(HELD_OUT), "clips"), 1)):

        def progress(done, total, unit, where=where, finished=finished):
            if (done, unit) == where and measured() == finished:
                raise Stop

        with pytest.raises(Stop):
            train(store, tmp_path, progress=progress)
        assert measured() == finished
    train(store, tmp_path)
    assert contents(tmp_path) == contents(trained[0])


def test_a_checkpoint_of_another_training_is_refused(store, tmp_path):
    def stop(done, total, unit):
        if done == 24:
            raise KeyboardInterrupt

    one = {"sae": CONFIG}
    with pytest.raises(KeyboardInterrupt):
        train(store, tmp_path, one, progress=stop)
    with pytest.raises(MusaeError, match="training of another SAE"):
        train(store, tmp_path, one, held_out=[])
    with pytest.raises(MusaeError, match="training of another SAE"):
        train(store, tmp_path, {**one, "more": CONFIG})
    for path in (tmp_path / "sae" / "checkpoints").rglob("*"):
        if path.is_file() and path.stat().st_size > 500:
            path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(MusaeError, match=r"checkpoint in .* cannot be read") as caught:
        train(store, tmp_path, one)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_one_sentence(store, tmp_path):
    with pytest.raises(MusaeError, match="d_in of the SAE is 17"):
        train(store, tmp_path, {"sae": BatchTopKConfig(17, F, 3)})
    with pytest.raises(MusaeError, match="agree on steps, but it is 64 and 2000"):
        train(store, tmp_path, {"sae": CONFIG, "other": BatchTopKConfig(D, F, 3, batch_size=64)})
    with pytest.raises(MusaeError, match="no SAE was named"):
        train(store, tmp_path, {})
    with pytest.raises(MusaeError, match="none of the 0 clips"):
        train(store, tmp_path, {"sae": CONFIG}, held_out=store.clip_ids)
    assert not (tmp_path / "sae" / "cfg.json").exists()


def test_the_loaded_saes_are_the_returned_ones(trained):
    folder, saes, _ = trained
    for name, sae in zip(CONFIGS, saes):
        again = load_sae(folder / name)
        assert again.config == sae.config
        jax.tree.map(np.testing.assert_array_equal, again.params, sae.params)
