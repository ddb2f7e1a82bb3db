import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import test_harvest as tiny

import musae_jax.activations.live as live_module
from musae_jax.activations.batches import Batches
from musae_jax.activations.live import live_activations
from musae_jax.audio.clips import open_clips
from musae_jax.errors import MusaeError
from musae_jax.sae.batch_topk import BatchTopKConfig
from musae_jax.sae.train import train_saes

SHARD = 3 * 4 * 51 * 12  # three clips, so that seven clips are three shards
LAYERS = (0, 2)


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    folder = tmp_path_factory.mktemp("music")
    tiny.make_music(folder)
    return open_clips(folder, tiny.SECONDS).clips


def live(music, layers=LAYERS, shard_bytes=SHARD):
    mg = tiny.model().replace()  # a model of its own, so that its passes can be told from those of other tests' threads
    return live_activations(mg, music, layers, tiny.SECONDS, batch_size=2, model="tiny", shard_bytes=shard_bytes)


def count_passes(monkeypatch, source) -> list[int]:
    """A list that grows by one with every shard that runs through the model of `source`."""
    passes, whole = [], live_module.clip_residuals

    def counted(mg, *rest):
        passes.extend([1] * (mg is source.model.mg))
        return whole(mg, *rest)

    monkeypatch.setattr(live_module, "clip_residuals", counted)
    return passes


def test_a_live_stream_is_the_stream_of_the_store_to_the_bit(music, tmp_path):
    stores = tiny.harvest(tiny.model(), music, LAYERS, tiny.SECONDS, tmp_path, batch_size=2, model="tiny")
    streams = live(music)
    for layer in LAYERS:
        near, far = stores[layer], streams[layer]
        assert {**far.description} == near.description
        assert (far.clip_ids, far.tracks, far.split) == (near.clip_ids, near.tracks, near.split)
        assert (far.d_in, far.positions, far.hook, len(far)) == (near.d_in, near.positions, near.hook, len(near))
        batches = [Batches(source, 64, seed=3, buffer_mb=0) for source in (near, far)]
        for _ in range(12):  # an epoch is 350 tokens
            np.testing.assert_array_equal(*(next(stream) for stream in batches))
    for (ids, block), (live_ids, live_block) in zip(stores[0].shards(), streams[0].shards(), strict=True):
        assert ids == live_ids
        np.testing.assert_array_equal(block, live_block)


@pytest.mark.parametrize("done", [0, 3, 9])
def test_a_live_stream_goes_on_from_its_state(music, done):
    batches = Batches(live(music)[2], 50, buffer_mb=0)
    for _ in range(done):
        next(batches)
    state = batches.state()
    again = Batches(live(music)[2], 50, buffer_mb=0)
    again.restore(state)
    for _ in range(8):
        np.testing.assert_array_equal(next(again), next(batches))


@pytest.mark.parametrize(("kept_mb", "expected"), [(live_module.KEPT_MB, 14), (0, 28)])
def test_layers_read_in_step_share_a_pass(music, monkeypatch, kept_mb, expected):
    monkeypatch.setattr(live_module, "KEPT_MB", kept_mb)
    sources = live(music, shard_bytes=SHARD // 3)  # seven shards of a clip
    passes = count_passes(monkeypatch, sources[0])
    buffer_mb = 2 * 150 * 12 * 4 / 2**20  # read in groups of three, three and one
    streams = [Batches(source, 30, buffer_mb=buffer_mb, read_ahead=False) for source in sources.values()]
    for _ in range(23):  # two epochs
        for stream in streams:
            next(stream)
    assert len(passes) == expected


def test_a_stream_that_fits_the_buffer_is_computed_once(music, monkeypatch):
    source = live(music, (2,))[2]
    passes = count_passes(monkeypatch, source)
    batches = Batches(source, 100)
    for _ in range(12):
        next(batches)
    assert len(passes) == 3  # shards


def test_one_half_is_computed_without_the_other(music, monkeypatch):
    source = live(music, (2,), shard_bytes=SHARD // 3)[2]
    passes = count_passes(monkeypatch, source)
    label = [id for id, half in source.split.items() if half == "label"]
    next(Batches(source, 50 * len(label), clips=label))
    assert len(passes) == len(label) < len(music)


def test_what_cannot_be_streamed_is_one_sentence(music, tmp_path):
    with pytest.raises(MusaeError, match="no clips"):
        live([])
    with pytest.raises(MusaeError, match="layer 3 is not in this model"):
        live(music, (3,))
    source = live(music)[2]
    with pytest.raises(MusaeError, match=r"the live stream of tiny at blocks\.2\.resid_post has width 12"):
        train_saes(source, {tmp_path / "sae": BatchTopKConfig(d_in=7, d_sae=16, k=2, steps=1, batch_size=8)})
    other = live_activations(tiny.model(1), music, LAYERS, tiny.SECONDS, batch_size=2, shard_bytes=SHARD)[2]
    with pytest.raises(MusaeError, match="other activations"):
        Batches(source, 8).restore(Batches(other, 8).state())


def train(music, out, progress=None):
    held_out = [id for id, half in live(music)[2].split.items() if half == "score"]
    config = BatchTopKConfig(d_in=12, d_sae=24, k=3, steps=40, batch_size=32)
    options = {"buffer_mb": 0, "log_every": 5, "save_every": 10, "progress": progress}
    return train_saes(live(music)[2], {out: config}, held_out, **options)


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
import test_live as t
t.train(t.open_clips(sys.argv[1], t.tiny.SECONDS).clips, sys.argv[2],
        progress=lambda done, total, unit: print(done, flush=True))
"""


def test_a_training_on_a_live_stream_that_is_killed_ends_with_the_same_bytes(music, tmp_path):
    train(music, tmp_path / "whole")
    command = [sys.executable, "-c", PROGRAM.format(tests=str(Path(__file__).parent)), str(music[0].path.parent)]
    process = subprocess.Popen(
        [*command, str(tmp_path / "killed")], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    for line in process.stdout:
        if line.strip() == "25":  # the last checkpoint is at step 20, in the middle of a group
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    assert (tmp_path / "killed" / "checkpoints").exists()
    steps = []
    train(music, tmp_path / "killed", progress=lambda done, total, unit: steps.append((done, unit)))
    assert steps[0] == (25, "steps")  # went on after 20
    assert tiny.contents(tmp_path / "killed") == tiny.contents(tmp_path / "whole")
