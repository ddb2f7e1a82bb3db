"""A model on eight devices is that on one; devices are fake and must be asked for before jax starts."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from musae_jax.errors import MusaeError
from musae_jax.mesh import make_mesh, share_of_work
from musae_jax.models.layout import (
    check_model_parallel,
    equal_rows,
    mesh_of,
    param_shardings,
    place_musicgen,
    place_rows,
)


@functools.cache
def results() -> dict[str, dict]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    flags += " --xla_backend_optimization_level=0"  # compiling is most of the time here
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    command = [sys.executable, str(Path(__file__).parent / "layouts.py")]
    out = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr[-3000:]
    return json.loads(out.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["data 8", "data 4 x model 2"])
def test_eight_devices_equal_one(layout):
    """Residuals and logits to rounding, tokens exactly: guided, edited, in windows, streamed, after a melody."""
    found = results()[layout]
    assert set(found["same"]) == {
        "greedy", "sampled, edited", "windows", "stream", "codes", "melody", "melody two-pass",
    }  # fmt: skip
    assert [name for name, same in found["same"].items() if not same] == []
    assert {name: far for name, far in found["far"].items() if far > 1e-5} == {}
    assert len(found["far"]) == 11
    assert "there are 3 rows for the" in found["refused"]


@pytest.mark.slow
def test_what_devices_say_to_each_other():
    """Nothing along data; along model three sums a layer and the logits."""
    assert results()["data 8"]["said"] == {}
    said = results()["data 4 x model 2"]["said"]
    layers, rows, books, vocabulary = 2, 2, 2, 16
    assert said["all-reduce"][0] == 3 * layers
    assert said["all-gather"] == [1, 4 * rows * books * vocabulary]
    assert set(said) == {"all-reduce", "all-gather"}


@pytest.mark.slow
def test_a_device_holds_its_share_of_the_decoder():
    assert results()["data 8"]["share"] == 1.0
    assert 0.5 < results()["data 4 x model 2"]["share"] < 0.6  # norms and embeddings are whole


def test_every_matrix_of_the_decoder_but_the_embedding_is_cut(tiny_musicgen):
    shardings = param_shardings(AbstractMesh((4, 2), ("data", "model")), tiny_musicgen.params)
    leaves = zip(jax.tree.leaves_with_path(tiny_musicgen.params), jax.tree.leaves(shardings))
    matrices = {(jax.tree_util.keystr(path), leaf.ndim > 1, any(at.spec)) for (path, leaf), at in leaves}
    assert {name for name, _, cut in matrices if cut and not name.startswith("['decoder']")} == set()
    assert {name for name, matrix, cut in matrices if name.startswith("['decoder']") and matrix and not cut} == {
        "['decoder']['embedding']"
    }


def test_what_cannot_be_cut_is_one_sentence(tiny_config):
    check_model_parallel(tiny_config, AbstractMesh((1, 2), ("data", "model")))
    with pytest.raises(MusaeError, match=r"model_parallel is 4, but it must divide .* num_attention_heads, which is 2"):
        check_model_parallel(tiny_config, AbstractMesh((2, 4), ("data", "model")))


def test_on_one_device_everything_is_as_it_was(tiny_musicgen):
    assert place_musicgen(tiny_musicgen, make_mesh()) is tiny_musicgen
    params, rows = tiny_musicgen.params, np.zeros((3, 2))
    assert mesh_of(params) is None and place_rows(params, rows) is rows and equal_rows(params, 3) == 3


def test_shares_of_work():
    assert share_of_work("") == (0, 1)
    assert share_of_work("", 3, 2) == (2, 3)
    for processes, process in ((3, 3), (3, None), (None, 0), (2, -1)):
        with pytest.raises(MusaeError, match=r"give how many there are, and which of them this is"):
            share_of_work("", processes, process)
