"""Eight devices equal one. Devices are fake and must be asked for before jax starts, so all of it runs in processes."""

import functools
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import eight_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musae_jax.bench.hlo import collectives, gathers_of_features
from musae_jax.bench.pod import measure_pod
from musae_jax.bench.slices import LIBTPU, topology_devices
from musae_jax.errors import MusaeError
from musae_jax.mesh import join_processes, make_mesh
from musae_jax.sae.batch_topk import BatchTopKConfig
from musae_jax.sae.parallel import check_layout, training_mesh
from musae_jax.sae.shards import decode_groups, largest

ROOT = Path(__file__).parents[2]
QUICK = "--xla_backend_optimization_level=0"  # compiling is most of the time here
CASES = [
    pytest.param(size, f"{name} {layout}", marks=[pytest.mark.slow] if size == "slow" else [])
    for size, recipes in eight_devices.CASES.items()
    for name, layouts in recipes.items()
    for layout in layouts
]


def environment(devices: int) -> dict[str, str]:
    """That of a process with so many fake devices, which finds the package and the tests' helpers."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices} {QUICK}"
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}


@functools.cache
def results(size: str) -> dict[str, dict]:
    command = [sys.executable, str(Path(__file__).parent / "eight_devices.py"), size]
    out = subprocess.run(command, env=environment(8), capture_output=True, text=True)
    assert out.returncode == 0, out.stderr[-3000:]
    return json.loads(out.stdout.splitlines()[-1])


@pytest.mark.parametrize(("size", "case"), CASES)
def test_eight_devices_equal_one(size, case):
    found = results(size)[case]
    assert found["gradients"] <= 1e-5
    assert found["loss"] <= 1e-5
    assert found["weights"] <= 1e-5
    assert found["idle"] == 0
    if not case.startswith(("relu", "gated")):
        assert found["auxk"] > 0  # so AuxK was a part of what is compared
    if not case.endswith("pmap"):
        assert found["gathers"] == []  # of the features
        assert found["kinds"]["all-reduce"][0] > 0
        # Two matrices and two moments of each are held, of each SAE; besides them, vectors.
        matrices = 6 * 4 * eight_devices.D * eight_devices.F * (2 if case.startswith("group") else 1)  # bytes
        assert found["memory"] < 1.5 * matrices / eight_devices.LAYOUTS[case.split()[1]] + 8192


def test_a_gather_of_the_features_is_seen():
    text = """ENTRY %main (p: f32[16,8]) -> f32[16,64] {
  %p = f32[16,8]{1,0} parameter(0)
  %s = f32[] constant(0)
  %r = f32[16,8]{1,0} all-reduce(%p), to_apply=%add, metadata={op_name="step/sum"}
  ROOT %g = f32[16,64]{1,0} all-gather(%r), dimensions={1}, metadata={op_name="step/top_k"}
}"""
    found = collectives(text)
    assert [(one.kind, one.bytes) for one in found] == [("all-reduce", 512), ("all-gather", 4096)]
    assert [one.origin for one in gathers_of_features(found, 16, 99, 64)] == ["step/top_k"]  # of a dictionary [16, 64]
    assert [one.origin for one in gathers_of_features(found, 99, 16, 64)] == ["step/top_k"]
    assert gathers_of_features(found, 64, 64, 64) == []
    (candidates,) = collectives(text.replace("top_k", "all_gather"))[1:]
    assert gathers_of_features([candidates], 16, 64, 64) == []
    assert gathers_of_features([candidates], 99, 16, 64) == [candidates]


def test_branches_count_once_and_started_operations_by_their_result():
    text = """%dear (a: f32[8]) -> f32[64] {
  %g = (f32[8]{0}, f32[64]{0}) all-gather-start(%a), dimensions={0}
  ROOT %d = f32[64]{0} all-gather-done(%g)
}
%cheap (a: f32[8]) -> f32[64] {
  ROOT %g = f32[16]{0} all-gather(%a), dimensions={0}
}
%body (a: f32[8]) -> f32[8] {
  ROOT %q = (bf16[2,4]{1,0}, bf16[2,4]{1,0}, u32[], u32[]) collective-permute-start(%a)
}
ENTRY %main (p: f32[8], i: s32[]) -> f32[64] {
  %w = f32[8]{0} while(%p), condition=%true, body=%body
  ROOT %c = f32[64]{0} conditional(%i, %w, %w), branch_computations={%cheap, %dear}
}"""
    assert [(one.kind, one.bytes) for one in collectives(text)] == [("collective-permute", 16), ("all-gather", 256)]


def test_what_cannot_be_laid_out_is_one_sentence():
    with pytest.raises(MusaeError, match=r"model_parallel is 3, but it must divide the number of devices, which is 1"):
        make_mesh(3)
    mesh = jax.sharding.AbstractMesh((3, 4), ("data", "model"))
    with pytest.raises(MusaeError, match=r"batch_size of the SAE is 64, but the 3 devices .* such as 66"):
        check_layout(BatchTopKConfig(16, 64, 4, batch_size=64), mesh)
    with pytest.raises(MusaeError, match=r"d_sae of the SAE is 65, but the 4 devices .* such as 68"):
        check_layout(BatchTopKConfig(16, 65, 4, batch_size=66), mesh)
    with pytest.raises(MusaeError, match=r"group_fractions of the SAE end at the latents 1, 256, which cuts the 64"):
        check_layout(BatchTopKConfig(16, 256, 4, batch_size=66, group_fractions=(1 / 256, 255 / 256)), mesh)
    check_layout(BatchTopKConfig(16, 256, 4, batch_size=66, group_fractions=(1 / 64, 63 / 64)), mesh)
    with pytest.raises(MusaeError, match="a list of active latents is for one device, not 12"):
        check_layout(BatchTopKConfig(16, 256, 4, batch_size=66, sparse=True), mesh)


def test_processes_that_cannot_be_joined_are_one_sentence():
    join_processes("")
    with pytest.raises(MusaeError, match=r"need --coordinator"):
        join_processes("", 2, 0)
    with pytest.raises(MusaeError, match=r"needs --processes and --process .* they are 2 and 2"):
        join_processes("127.0.0.1:1", 2, 2)


def test_one_device_has_no_mesh():
    assert training_mesh([BatchTopKConfig(16, 64, 4, batch_size=7)]) is None


def test_helpers_on_one_device():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(5, 12)).astype(np.float32), rng.normal(size=(3, 12)).astype(np.float32)
    np.testing.assert_array_equal(largest(jnp.asarray(x), 4), -np.sort(-x, axis=1)[:, :4])
    parts = decode_groups(jnp.asarray(x), jnp.asarray(w.T), (2, 7, 12))
    np.testing.assert_allclose(parts[1], x[:, 2:7] @ w[:, 2:7].T, rtol=1e-5)
    np.testing.assert_allclose(sum(parts), x @ w.T, rtol=1e-5, atol=1e-6)


# --- the training loop ------------------------------------------------------------------------------------------------

PROGRAM = """
import sys, jax
port, number = map(int, sys.argv[4:6])
if port:
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, number)
from pathlib import Path
from musae_jax.activations.store import open_store
from musae_jax.sae.train import train_saes
from musae_jax.sae.batch_topk import BatchTopKConfig
from musae_jax.sae.topk import TopKConfig
from planted_store import CLIPS, D, F

COMMON = dict(steps=48, batch_size=64, lr=5e-3)
RECIPES = {"a": BatchTopKConfig(D, F, 3, **COMMON), "b": TopKConfig(D, F, 3, **COMMON),
           "c": BatchTopKConfig(D, F, 4, seed=1, **COMMON)}
train_saes(open_store(Path(sys.argv[1])), {Path(sys.argv[2]) / name: r for name, r in RECIPES.items()},
           held_out=[f"clip{i:03d}" for i in range(0, CLIPS, 4)], log_every=8, save_every=16,
           model_parallel=int(sys.argv[3]), progress=lambda done, total, unit: print(unit, done, flush=True))
print("devices", jax.device_count(), "processes", jax.process_count())
"""


def start(store, out, devices, model_parallel=1, port=0, number=0) -> subprocess.Popen:
    arguments = [store.name, str(out), str(model_parallel), str(port), str(number)]
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.Popen(
        command, env=environment(devices), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_saes(folder: Path, right: Path):
    from musae_jax.sae.formats import load_sae

    assert set(contents(folder)) == set(contents(right))
    for name in "abc":
        ours, theirs = load_sae(folder / name), load_sae(right / name)
        for key, value in theirs.params.items():
            difference = np.abs(np.asarray(ours.params[key]) - np.asarray(value)).max()
            assert difference <= 1e-5 * np.abs(np.asarray(value)).max(), key
        rows, others = ((at / name / "train.jsonl").read_text().splitlines() for at in (folder, right))
        losses = [[json.loads(row)["loss"] for row in log] for log in (rows, others)]
        np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    from planted_store import planted_store

    return planted_store(tmp_path_factory.mktemp("store") / "hook")


@pytest.fixture(scope="module")
def on_one(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("one")
    assert "devices 1 " in finish(start(store, out, devices=1))
    return out


def test_training_on_eight_devices_killed_and_resumed(store, on_one, tmp_path):
    assert "devices 8 " in finish(start(store, tmp_path / "whole", devices=8, model_parallel=4))
    assert_same_saes(tmp_path / "whole", on_one)
    process = start(store, tmp_path / "killed", devices=8, model_parallel=4)
    for line in process.stdout:
        if line.startswith("steps 24"):  # after the checkpoint of step 16
            process.kill()
            break
    process.communicate()
    assert (tmp_path / "killed" / "a" / "checkpoints").exists()
    lines = finish(start(store, tmp_path / "killed", devices=8, model_parallel=4)).splitlines()
    assert lines[0] == "steps 24"  # the first 16 were not done again
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_a_training_begun_on_eight_devices_ends_on_one(store, on_one, tmp_path):
    process = start(store, tmp_path / "moved", devices=8, model_parallel=2)
    for line in process.stdout:
        if line.startswith("steps 24"):
            process.kill()
            break
    process.communicate()
    lines = finish(start(store, tmp_path / "moved", devices=1)).splitlines()
    assert lines[0] == "steps 24"
    assert_same_saes(tmp_path / "moved", on_one)


@pytest.mark.slow
def test_two_processes_equal_one(store, on_one, tmp_path):
    """Both draw the stream, each keeps its rows on its two devices, and the first writes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = tmp_path / "two"
    processes = [start(store, out, devices=2, model_parallel=2, port=port, number=number) for number in range(2)]
    try:
        outputs = [finish(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all("devices 4 processes 2" in output for output in outputs)
    assert_same_saes(out, on_one)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason=LIBTPU)
def test_the_tpu_compiler_takes_the_step(tmp_path):
    """A small slice, with the real compiler; the same layout on a slice whose chips are too few does not fit."""
    musae = [sys.executable, "-m", "musae_jax.cli", "bench", "pod", "--topology", "v5e:2x2", "--model-parallel", "2"]
    sizes = ["--d-in", "512", "--batch-size", "4096", "--json", str(tmp_path / "rows.json")]
    out = subprocess.run([*musae, *sizes, "--d-sae", "8192"], env=environment(1), capture_output=True, text=True)
    assert out.returncode == 0, out.stderr[-3000:]
    rows = {row["name"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert set(rows["memory per chip"]) == {
        "name", "config", "device", "dtype", "ours", "peer", "peer_name", "unit", "ratio",
    }  # fmt: skip
    state = 6 * 4 * 512 * 8192 / 2  # two matrices and their moments, half of them on a chip
    assert state < rows["memory per chip"]["ours"] < 16 * 2**30
    encoder = 2 * 4096 * 512 * 8192 / 4
    assert 5 * encoder <= rows["FLOPs per chip and step"]["ours"] < 12 * encoder
    assert rows["roofline of the slice"]["ours"] == pytest.approx(4 * rows["roofline of a chip"]["ours"])
    out = subprocess.run([*musae, *sizes, "--d-sae", "4194304"], env=environment(1), capture_output=True, text=True)
    assert out.returncode == 2
    assert re.search(r"does not fit a chip on .*, which needs [\d.]+\w+ of 1[56]", out.stderr)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason=LIBTPU)
@pytest.mark.parametrize("program", ["harvest", "decode"])
def test_the_tpu_compiler_takes_the_model(tmp_path, program):
    """Two sums a layer and three; what has no room is one sentence."""
    musae = [sys.executable, "-m", "musae_jax.cli", "bench", "pod", "--topology", "v5e:2x2", "--model-parallel", "2"]
    musae += ["--program", program, "--size", "small"]
    json_file = tmp_path / "rows.json"
    out = subprocess.run(
        [*musae, "--rows", "4", "--seconds", "2", "--json", str(json_file)],
        env=environment(1), capture_output=True, text=True,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr[-3000:]
    rows = {row["name"]: row for row in json.loads(json_file.read_text())}
    call, sums = ("pass", 2 * 12) if program == "harvest" else ("step", 3 * 24)
    assert any(name.startswith(f"all-reduce per chip and {call} ({sums})") for name in rows)
    weights = 4 * 420e6 / 2  # half of the decoder on a chip
    assert weights < rows["memory per chip"]["ours"] < 16 * 2**30
    unit = "tokens/s" if program == "harvest" else "s of music/s"
    assert rows["roofline of the slice"]["unit"] == unit and rows["roofline"]["unit"] in ("passes/s", "steps/s")
    out = subprocess.run([*musae, "--rows", "3"], env=environment(1), capture_output=True, text=True)
    assert out.returncode == 2 and "rows is 3, but the 2 devices along data" in out.stderr.replace("\n", " ")


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MusaeError, match=r"`pip install libtpu`"):
        topology_devices("v5e:2x2")
    with pytest.raises(MusaeError, match=r"topology is 'v9', but it must begin with one of v4"):
        measure_pod(BatchTopKConfig(16, 64, 4), "v9", 1)
