import itertools
import json
import threading
import time
import tracemalloc
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    for other in (Batches(store, 11, 6), Batches(store, 11, 5, buffer_mb=1), Batches(store, 11, 5, drop_start=False)):
        with pytest.raises(MusaeError, match="other activations"):
            Batches(store, 11, 5).restore(other.state())
    another = {**Batches(store, 11, 5).state(), "content_sha256": "0"}
    with pytest.raises(MusaeError, match="content_sha256 is '0' there"):
        Batches(store, 11, 5).restore(another)
    with pytest.raises(MusaeError, match="batch size is 0"):
        Batches(store, 0)


def test_memory_is_that_of_the_buffer(store):
    tracemalloc.start()
    try:
        for batch in itertools.islice(Batches(store, 5, buffer_mb=0.25), 100):  # of 0.7 MiB; a shard is 0.1
            del batch
        # The buffer's two groups, the shard being read is mapped, a batch and what it is picked from.
        assert tracemalloc.get_traced_memory()[1] < (0.25 + 2 * 5 * WIDTH * 4 / 2**20 + 0.05) * 2**20
    finally:
        tracemalloc.stop()


class Watched:
    """A store that tells when a shard is read, and can hold the reader up or fail."""

    def __init__(self, store, seconds: float = 0.0):
        self.store, self.seconds = store, seconds
        self.read: list[int] = []
        self.reads = threading.Condition()
        self.fail_at: int | None = None

    def __getattr__(self, name):
        return getattr(self.store, name)

    def __len__(self):
        return len(self.store)

    def shard(self, index):
        time.sleep(self.seconds)
        with self.reads:
            if len(self.read) == self.fail_at:
                self.fail_at = None
                raise MusaeError("the network is down")
            self.read.append(index)
            self.reads.notify_all()
        return self.store.shard(index)

    def wait_for(self, count: int) -> bool:
        """Whether `count` shards come to be read without anything more being asked of the batches."""
        with self.reads:
            return self.reads.wait_for(lambda: len(self.read) >= count, timeout=30)


def test_the_next_group_is_read_while_one_is_dealt_and_no_more(store):
    watched = Watched(store)
    options = {"batch_size": 3 * (POSITIONS - 1), "clips": [f"clip{i}" for i in range(18)], "buffer_mb": 0}
    batches = Batches(watched, **options)  # a batch is a shard
    for done in range(1, 6):
        next(batches)
        assert watched.wait_for(done + 1), "the next group is not read before it is asked for"
    time.sleep(0.05)  # time enough to read more, were it to
    assert len(watched.read) == 6
    without = Watched(store)
    plain = Batches(without, **options, read_ahead=False)
    again = numbers(plain, 5)
    assert len(without.read) == 5
    np.testing.assert_array_equal(again, numbers(Batches(store, **options), 5))


def test_reading_and_training_take_the_time_of_the_longer(store):
    """A reader and a step of equal length: read ahead, they take little more than half of one after the other."""

    def seconds(read_ahead: bool) -> float:
        batches = Batches(Watched(store, 0.03), 3 * (POSITIONS - 1), buffer_mb=0, read_ahead=read_ahead)
        next(batches)
        begin = time.perf_counter()
        for _ in range(6):
            time.sleep(0.03)
            next(batches)
        return time.perf_counter() - begin

    assert min(seconds(True) for _ in range(2)) < 0.8 * min(seconds(False) for _ in range(2))


def test_what_stops_the_reader_is_told_when_its_tokens_are_asked_for_and_nothing_is_lost(store):
    expected = numbers(Batches(store, 7, buffer_mb=0), 20)
    watched = Watched(store)
    watched.fail_at = 2  # the third group, read while the second is dealt
    batches, seen, errors = Batches(watched, 7, buffer_mb=0), [], 0
    while len(seen) < 20:
        try:
            seen.append(next(batches)[:, 0])
        except MusaeError:
            errors += 1
            assert 7 * (len(seen) + 1) > 40  # two groups, of 24 or once 16 tokens, are dealt first
    assert errors == 1
    np.testing.assert_array_equal(np.concatenate(seen), expected)


def test_closing_stops_the_reader(store):
    watched = Watched(store, 0.02)
    options = {"batch_size": 3, "buffer_mb": 20 * (POSITIONS - 1) * WIDTH * 4 / 2**20 - 0.001}  # two groups or three
    batches = Batches(watched, **options)
    next(batches)
    assert watched.wait_for(4)  # three shards, and the first of those read ahead
    batches.close()
    read = len(watched.read)
    assert read < len(store)
    time.sleep(0.1)
    assert len(watched.read) == read
    whole = numbers(Batches(store, **options), 61)
    np.testing.assert_array_equal(numbers(batches, 60), whole[3:])  # and what was cut short is not dealt


def test_going_back_does_not_change_the_stream(store):
    batches = Batches(store, 11, 5, buffer_mb=0)
    begin = batches.state()
    whole = numbers(batches, 30)
    batches.restore(begin)
    np.testing.assert_array_equal(numbers(batches, 30), whole)


class InMemory:
    """Activations whose every vector is its own number, in shards of any size."""

    name, content_sha256, d_in, hook = "memory", "0" * 64, 2, "blocks.0.resid_post"
    description: ClassVar = {"dtype": "float32"}

    def __init__(self, sizes: list[int], positions: int):
        self.positions = positions
        starts = np.cumsum([0, *sizes])
        self.clips = [tuple(f"clip{i}" for i in range(a, b)) for a, b in itertools.pairwise(starts)]
        numbers = np.arange(starts[-1] * positions, dtype=np.float32).reshape(-1, positions, 1)
        self.blocks = np.split(np.concatenate([numbers, numbers], 2), starts[1:-1])

    def __len__(self):
        return len(self.clips)

    def shard_clips(self, index):
        return self.clips[index]

    def shard(self, index):
        return self.clips[index], self.blocks[index]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    positions=st.integers(2, 4),
    batch_size=st.integers(1, 40),
    buffered=st.integers(0, 60),
    seed=st.integers(0, 3),
    drop_start=st.booleans(),
    left_out=st.integers(0, 3),
    at=st.floats(0, 1),
)
def test_any_stream_deals_every_token_once_an_epoch_and_goes_on_anywhere(
    sizes, positions, batch_size, buffered, seed, drop_start, left_out, at
):
    store = InMemory(sizes, positions)
    clips = [id for shard in store.clips for id in shard][left_out % sum(sizes) :]

    def open_batches(read_ahead: bool = True):
        buffer_mb = buffered * 2 * 4 / 2**20  # tokens of two numbers
        return Batches(store, batch_size, seed, clips, drop_start, buffer_mb, read_ahead)

    first = int(drop_start)
    expected = sorted(int(id[4:]) * positions + p for id in clips for p in range(first, positions))
    batches = open_batches()
    assert batches.epoch_tokens == len(expected)
    count = 3 * len(expected) // batch_size + 1
    stream = numbers(batches, count)
    for epoch in range(3):
        assert sorted(stream[epoch * len(expected) : (epoch + 1) * len(expected)]) == expected
    cut = round(at * count)
    broken = open_batches(read_ahead=False)
    numbers(broken, cut)
    again = open_batches()
    again.restore(json.loads(json.dumps(broken.state())))
    np.testing.assert_array_equal(numbers(again, count - cut), stream[cut * batch_size :])


def test_shuffling_mixes_clips(store):
    batch = next(Batches(store, 32, seed=0))
    assert len(set(batch[:, 0] // 100)) > 10
