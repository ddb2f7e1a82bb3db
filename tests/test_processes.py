"""Several processes of the command, as a person starts them: shared harvests, one of them killed; shared prompts."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from musae_jax import cli
from musae_jax.activations.store import open_store
from musae_jax.models.checkpoints import save_musicgen
from musae_jax.models.musicgen import random_musicgen

HOOK = "blocks.0.resid_post"


def test_processes_share_the_prompts(tmp_path, tiny_folder, capsys):
    flags = ("--model", str(tiny_folder), "--seconds", "0.5")
    prompts = ("drums", "piano", "")

    def make(out, *more):
        assert cli.main(["generate", *prompts, "--out", str(tmp_path / out), *flags, *more]) == 0
        return {path.name: path.read_bytes() for path in (tmp_path / out).iterdir()}

    whole = make("one")
    assert set(make("two", "--processes", "2", "--process", "1")) == {"1-piano.wav"}
    made = make("two", "--processes", "2", "--process", "0")
    assert set(made) == set(whole)
    for name, sound in whole.items():  # rows of another batch are the same but for rounding
        samples = (np.frombuffer(data[44:], np.int16).astype(int) for data in (sound, made[name]))
        assert np.abs(np.subtract(*samples)).max() <= 1
    capsys.readouterr()
    make("four", "--processes", "4", "--process", "2")
    assert cli.main(["generate", "x", "--out", str(tmp_path / "x.wav"), *flags, "--processes", "2"]) == 2
    assert "--processes is 2 and --process None" in capsys.readouterr().err.replace("\n", " ")
    assert cli.main(["generate", "x", "--out", str(tmp_path / "x.wav"), *flags, "--model-parallel", "2"]) == 2
    assert "model_parallel is 2, but it must divide the number of devices" in capsys.readouterr().err.replace("\n", " ")


# --- the harvest ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide(tmp_path_factory, tiny_config):
    """A model of one block so wide that eight clips fill a shard."""
    decoder = dataclasses.replace(tiny_config.decoder, hidden_size=2048, num_hidden_layers=1)
    folder = tmp_path_factory.mktemp("wide")
    save_musicgen(folder, random_musicgen(dataclasses.replace(tiny_config, decoder=decoder), jax.random.key(0)))
    return folder


def road(out: Path, model: Path, until: str, *more: str) -> list[str]:
    flags = ("--compose.clips", "44", "--harvest.no-control", "--harvest.layers", "0", *more)
    return ["run", "--out", str(out), "--model", str(model), "--until", until, *flags]


@pytest.fixture(scope="module")
def whole(wide, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    assert cli.main(road(out, wide, "harvest")) == 0
    assert len(shards(out)) == 6
    return out


def shards(out: Path) -> list[Path]:
    return sorted((out / "activations" / HOOK).glob("shard-*"))


def contents(out: Path) -> dict[str, bytes]:
    """The store, but for what a killed process has begun and not named."""
    folder = out / "activations" / HOOK
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def begin(out: Path, model: Path, *more: str) -> None:
    assert cli.main(road(out, model, "compose", *more)) == 0
    assert not (out / "activations").exists()


def start(out: Path, number: int, *more: str, devices: int = 1) -> subprocess.Popen:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-m", "musae_jax.cli", "harvest", "--run", str(out)]
    return subprocess.Popen(
        [*command, "--processes", "2", "--process", str(number), *more],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen) -> None:
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err[-3000:]


def wait_for(out: Path, odd: bool, process: subprocess.Popen) -> None:
    """Until a shard is there that belongs to the process of this parity."""
    deadline = time.monotonic() + 900
    while not any(int(path.stem[-5:]) % 2 == odd for path in shards(out)):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


def kill(process: subprocess.Popen) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_two_processes_write_the_store_of_one_and_one_may_be_lost(whole, wide, tmp_path):
    """The second has written shards of its own when it is killed; the first makes what it leaves."""
    out = tmp_path / "run"
    begin(out, wide)
    processes = [start(out, number) for number in range(2)]
    wait_for(out, True, processes[1])
    kill(processes[1])
    assert len(shards(out)) < 6
    finish(processes[0])
    assert contents(out) == contents(whole)
    assert cli.main(road(out, wide, "harvest")) == 0  # done before


@pytest.mark.slow
def test_killed_and_started_again_they_end_with_the_same_store(whole, wide, tmp_path):
    out = tmp_path / "run"
    begin(out, wide)
    processes = [start(out, number) for number in range(2)]
    wait_for(out, False, processes[0])
    for process in processes:
        kill(process)
    kept = {path: path.stat().st_mtime_ns for path in shards(out)}
    assert 1 <= len(kept) < 6
    processes = [start(out, number) for number in range(2)]
    for process in processes:
        finish(process)
    assert contents(out) == contents(whole)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.slow
def test_joined_processes_with_two_devices_each(whole, wide, tmp_path):
    """Along model within a process; numbers from jax."""
    out = tmp_path / "run"
    begin(out, wide, "--harvest.model-parallel", "2")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(out, number, "--coordinator", f"127.0.0.1:{port}", devices=2) for number in range(2)]
    try:
        for process in processes:
            finish(process)
    finally:
        for process in processes:
            process.kill()
    ours, right = (open_store(run / "activations" / HOOK) for run in (out, whole))
    assert ours.description == right.description
    for (ids, block), (others, exact) in zip(ours.shards(), right.shards()):
        assert ids == others
        assert np.abs(block - exact).max() <= 1e-5 * np.abs(exact).max()
