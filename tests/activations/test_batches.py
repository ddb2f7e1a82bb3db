import itertools
import json

import numpy as np
import pytest

from musae_jax.activations.batches import Batches
from musae_jax.activations.store import StoreWriter, open_store
from musae_jax.errors import MusaeError

CLIPS, POSITIONS, WIDTH = 20, 9, 1024


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Every vector's first number is the number of its token: clip · 100 + position."""
    folder = tmp_path_factory.mktemp("store")
    description = {"d": WIDTH, "positions": POSITIONS, "dtype": "float32"}
    writer = StoreWriter(folder, description, [f"clip{i}" for i in range(CLIPS)], clips_per_shard=3)
    while not writer.complete:
        clips = [int(id[4:]) for id in writer.shard_clips(writer.done)]
        residuals = np.zeros((len(clips), POSITIONS, WIDTH), np.float32)
        residuals[:, :, 0] = 100 * np.array(clips)[:, None] + np.arange(POSITIONS)
        writer.write_shard(residuals)
    return open_store(folder)


def numbers(batches, count: int) -> np.ndarray:
    return np.concatenate([np.zeros(0), *(batch[:, 0] for batch in itertools.islice(batches, count))])


def every(clips, first: int) -> list[int]:
    return sorted(100 * clip + position for clip in clips for position in range(first, POSITIONS))


# 0 MiB holds one shard at a time (24 tokens of 4 KiB are 0.1 MiB), 512 holds everything.
@pytest.mark.parametrize("buffer_mb", [0, 512])
@pytest.mark.parametrize("drop_start", [True, False])
def test_every_token_comes_once_an_epoch(store, buffer_mb, drop_start):
    batches = Batches(store, 7, seed=1, drop_start=drop_start, buffer_mb=buffer_mb)
    expected = every(range(CLIPS), int(drop_start))
    assert batches.epoch_tokens == len(expected)
    seen = numbers(batches, 3 * len(expected) // 7 + 1)
    epochs = [seen[i * len(expected) : (i + 1) * len(expected)] for i in range(3)]
    assert all(sorted(epoch) == expected for epoch in epochs)
    assert (epochs[0] != epochs[1]).any()
    assert all(batch.dtype == np.float32 and batch.shape == (7, WIDTH) for batch in itertools.islice(batches, 3))


def test_only_the_clips_asked_for(store):
    clips = [2, 3, 4, 17]
    batches = Batches(store, 4, clips=[f"clip{i}" for i in clips])
    assert sorted(numbers(batches, batches.epoch_tokens // 4)) == every(clips, 1)
    with pytest.raises(MusaeError, match="none of the 1 clips"):
        Batches(store, 4, clips=["nobody"])


@pytest.mark.parametrize("buffer_mb", [0, 512])
def test_the_same_seed_is_the_same_stream(store, buffer_mb):
    first, again, other = (Batches(store, 11, seed, buffer_mb=buffer_mb) for seed in (5, 5, 6))
    stream = numbers(first, 40)
    np.testing.assert_array_equal(stream, numbers(again, 40))
    assert (stream != numbers(other, 40)).any()


@pytest.mark.parametrize("buffer_mb", [0, 512])
@pytest.mark.parametrize("done", [0, 1, 13, 14, 15, 33])  # an epoch is 14.5 batches of 11
def test_a_stream_goes_on_from_its_state(store, buffer_mb, done):
    whole = numbers(Batches(store, 11, 5, buffer_mb=buffer_mb), done + 9)
    first = Batches(store, 11, 5, buffer_mb=buffer_mb)
    numbers(first, done)
    state = json.loads(json.dumps(first.state()))
    second = Batches(store, 11, 5, buffer_mb=buffer_mb)
    second.restore(state)
    np.testing.assert_array_equal(numbers(second, 9), whole[11 * done :])


def test_the_state_of_another_stream_is_refused(store):
    with pytest.raises(MusaeError, match="other activations"):
        Batches(store, 11, 5).restore(Batches(store, 11, 6).state())


def test_memory_is_that_of_the_buffer(store):
    batches = Batches(store, 5, buffer_mb=0)
    largest = 0
    for _ in range(60):
        next(batches)
        largest = max(largest, batches._loaded[1].nbytes)
    assert largest <= 3 * POSITIONS * WIDTH * 4


def test_shuffling_mixes_clips(store):
    batch = next(Batches(store, 32, seed=0))
    assert len(set(batch[:, 0] // 100)) > 10
