import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from planted_store import CLIPS, D, F, planted_store

from musae_jax.activations.batches import Batches
from musae_jax.errors import MusaeError
from musae_jax.sae.batch_topk import BatchTopKConfig
from musae_jax.sae.formats import load_sae
from musae_jax.sae.train import activation_statistics, train_sae

CONFIG = BatchTopKConfig(D, F, k=3, steps=64, batch_size=64, lr=5e-3)
HELD_OUT = [f"clip{i:03d}" for i in range(0, CLIPS, 4)]
OPTIONS = {"held_out": HELD_OUT, "log_every": 8, "save_every": 16}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return planted_store(tmp_path_factory.mktemp("store") / "hook")


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "sae"
    calls = []
    sae = train_sae(store, CONFIG, out, progress=lambda *call: calls.append(call), **OPTIONS)
    return out, sae, calls


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_training_writes_the_sae_its_log_and_its_measures(trained):
    out, sae, calls = trained
    assert set(contents(out)) == {
        "cfg.json",
        "sae_weights.safetensors",
        "golden.safetensors",
        "metrics.json",
        "train.jsonl",
    }
    rows = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(8, 65, 8))
    assert rows[-1]["tokens"] == 64 * 64
    assert {"fvu", "auxk", "l0", "threshold", "loss", "grad_norm", "lr", "dead", "skipped"} < set(rows[0])
    assert rows[-1]["fvu"] < 0.7 * rows[0]["fvu"]
    assert all(abs(row["l0"] - 3) < 0.05 for row in rows)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["held_out"] is True
    assert metrics["clips"] == len(HELD_OUT)
    assert 0 < metrics["fvu"] < 0.7
    assert abs(metrics["l0"] - 3) < 1
    assert sae.config.hook == "blocks.0.resid_post"
    assert sae.config.metadata["model_name"] == "planted"
    assert (8, 64, "steps") in calls and (64, 64, "steps") in calls
    assert calls[-1] == (len(HELD_OUT), len(HELD_OUT), "clips")


def test_a_finished_sae_is_returned_and_another_one_refused(store, trained):
    out, sae, _ = trained
    before = contents(out)
    again = train_sae(store, CONFIG, out, **OPTIONS)
    np.testing.assert_array_equal(again.params["W_enc"], sae.params["W_enc"])
    assert contents(out) == before
    with pytest.raises(MusaeError, match="trained in another way"):
        train_sae(store, BatchTopKConfig(D, F, k=4, steps=64, batch_size=64), out, **OPTIONS)


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from musae_jax.activations.store import open_store
from musae_jax.sae.train import train_sae
from test_train import CONFIG, OPTIONS
train_sae(open_store(Path(sys.argv[1])), CONFIG, Path(sys.argv[2]), **OPTIONS,
          progress=lambda done, total, unit: print(unit, done, flush=True))
"""


def run_training(store, out: Path) -> subprocess.Popen:
    program = PROGRAM.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", program, store.name, str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def test_killed_and_resumed_it_ends_with_the_same_bytes(store, trained, tmp_path):
    out = tmp_path / "sae"
    process = run_training(store, out)
    for line in process.stdout:
        if line.startswith("steps 40"):  # after the checkpoint of step 32
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "metrics.json").exists()
    assert (out / "checkpoints").exists()
    calls = []
    train_sae(store, CONFIG, out, progress=lambda *call: calls.append(call), **OPTIONS)
    assert calls[0] == (40, 64, "steps")  # steps 1 to 32 were not done again
    assert contents(out) == contents(trained[0])


def test_interrupted_twice_it_ends_with_the_same_bytes(store, trained, tmp_path):
    """Stops inside progress, where an exception leaves the files as a kill between two writes would."""

    class Stop(Exception):
        pass

    def stop_at(step):
        def progress(done, total, unit):
            if unit == "steps" and done == step:
                raise Stop

        return progress

    for step in (24, 56):
        with pytest.raises(Stop):
            train_sae(store, CONFIG, tmp_path / "sae", progress=stop_at(step), **OPTIONS)
    train_sae(store, CONFIG, tmp_path / "sae", **OPTIONS)
    assert contents(tmp_path / "sae") == contents(trained[0])


def test_a_checkpoint_of_another_training_is_refused(store, tmp_path):
    def stop(done, total, unit):
        if done == 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sae(store, CONFIG, tmp_path / "sae", progress=stop, **OPTIONS)
    with pytest.raises(MusaeError, match="training of another SAE"):
        train_sae(store, CONFIG, tmp_path / "sae", **{**OPTIONS, "held_out": []})
    for path in (tmp_path / "sae" / "checkpoints").rglob("*"):
        if path.is_file() and path.stat().st_size > 500:
            path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(MusaeError, match=r"checkpoint in .* cannot be read") as caught:
        train_sae(store, CONFIG, tmp_path / "sae", **OPTIONS)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_one_sentence(store, tmp_path):
    with pytest.raises(MusaeError, match="d_in of the SAE is 17"):
        train_sae(store, BatchTopKConfig(17, F, 3), tmp_path / "sae")
    with pytest.raises(MusaeError, match="none of the 0 clips"):
        train_sae(store, CONFIG, tmp_path / "sae", held_out=store.clip_ids)
    assert not (tmp_path / "sae" / "cfg.json").exists()


def test_statistics_are_exact(store):
    x = np.concatenate([residuals for _, residuals in store.shards()])[:, 1:].reshape(-1, D).astype(np.float64)
    mean, scale = activation_statistics(Batches(store, 33))
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-9)
    assert scale == pytest.approx(np.sqrt(((x - x.mean(0)) ** 2).mean()), rel=1e-9)


def test_the_loaded_sae_is_the_returned_one(trained):
    out, sae, _ = trained
    again = load_sae(out)
    assert again.config == sae.config
    np.testing.assert_array_equal(again.params["threshold"], sae.params["threshold"])
