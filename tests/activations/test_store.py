import errno
import json
import resource
import signal

import numpy as np
import pytest
from safetensors.numpy import load_file

from musae_jax.activations.store import StoreWriter, open_store
from musae_jax.errors import MusaeError

DESCRIPTION = {"model": "test", "hook": "blocks.1.resid_post", "layer": 1, "d": 6, "positions": 5, "dtype": "float32"}
IDS = [f"clip{i}" for i in range(7)]


def residuals(n: int = 7, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 5, 6)).astype(np.float32)


def write(folder, shards: int | None = None, **changes) -> StoreWriter:
    """The first `shards` shards of 3 clips (all by default) of the test's residuals."""
    writer = StoreWriter(folder, {**DESCRIPTION, **changes}, IDS, clips_per_shard=3)
    while writer.done < (writer.shards if shards is None else shards):
        first = 3 * writer.done
        writer.write_shard(residuals()[first : first + len(writer.shard_clips(writer.done))])
    return writer


def test_what_is_written_is_read(tmp_path):
    write(tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert (store.d_in, store.positions, len(store), store.clip_ids) == (6, 5, 3, tuple(IDS))
    ids, blocks = zip(*store.shards())
    assert ids == (tuple(IDS[:3]), tuple(IDS[3:6]), tuple(IDS[6:]))
    np.testing.assert_array_equal(np.concatenate(blocks), residuals())


@pytest.mark.parametrize(("dtype", "error"), [("float16", 1e-3), ("bfloat16", 8e-3)])
def test_smaller_dtypes_round(tmp_path, dtype, error):
    write(tmp_path / "store", dtype=dtype)
    block = np.concatenate([block for _, block in open_store(tmp_path / "store").shards()]).astype(np.float32)
    assert 0 < np.abs(block - residuals()).max() < error * np.abs(residuals()).max()


def test_a_shard_is_a_safetensors_file(tmp_path):
    write(tmp_path / "store")
    tensors = load_file(tmp_path / "store" / "shard-00001.safetensors")
    np.testing.assert_array_equal(tensors["residuals"], residuals()[3:6])


def test_an_unfinished_store_is_refused_and_gone_on_with(tmp_path):
    write(tmp_path / "store", shards=2)
    with pytest.raises(MusaeError, match=r"unfinished \(6 of 7 clips\)"):
        open_store(tmp_path / "store")
    before = (tmp_path / "store" / "shard-00000.safetensors").stat().st_mtime_ns
    assert StoreWriter(tmp_path / "store", DESCRIPTION, IDS, 3).done == 2
    write(tmp_path / "store")
    write(tmp_path / "whole")
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "store").iterdir())
    for name in names:
        assert (tmp_path / "store" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert (tmp_path / "store" / "shard-00000.safetensors").stat().st_mtime_ns == before


def test_another_store_in_the_folder_is_refused(tmp_path):
    write(tmp_path / "store", shards=1)
    with pytest.raises(MusaeError, match="model is 'test' there and 'other' here"):
        StoreWriter(tmp_path / "store", {**DESCRIPTION, "model": "other"}, IDS, 3)
    with pytest.raises(MusaeError, match="clips_sha256"):
        StoreWriter(tmp_path / "store", DESCRIPTION, IDS[::-1], 3)
    assert StoreWriter(tmp_path / "store", DESCRIPTION, IDS, 3).done == 1  # and left as it was


def test_a_missing_shard_is_one_sentence_and_is_written_again(tmp_path):
    write(tmp_path / "store")
    (tmp_path / "store" / "shard-00001.safetensors").unlink()
    with pytest.raises(MusaeError, match=r"shard-00001\.safetensors is missing"):
        open_store(tmp_path / "store")
    assert StoreWriter(tmp_path / "store", DESCRIPTION, IDS, 3).done == 1
    write(tmp_path / "store")
    assert open_store(tmp_path / "store").clip_ids == tuple(IDS)


def test_a_truncated_shard_is_one_sentence(tmp_path):
    write(tmp_path / "store")
    path = tmp_path / "store" / "shard-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(MusaeError, match=r"shard-00002\.safetensors is truncated \(\d+ bytes, \d+ were written\)"):
        open_store(tmp_path / "store")


def test_a_flipped_bit_is_one_sentence(tmp_path):
    write(tmp_path / "store")
    path = tmp_path / "store" / "shard-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    store = open_store(tmp_path / "store")
    with pytest.raises(MusaeError, match=r"shard-00001\.safetensors is damaged"):
        list(store.shards())


def test_what_is_not_a_store_is_one_sentence(tmp_path):
    with pytest.raises(MusaeError, match="not an activation store"):
        open_store(tmp_path)
    (tmp_path / "metadata.json").write_text("{")
    with pytest.raises(MusaeError, match="not valid JSON"):
        open_store(tmp_path)
    (tmp_path / "metadata.json").write_text(json.dumps({"format": "musae-activations/9"}))
    with pytest.raises(MusaeError, match="'musae-activations/9'"):
        open_store(tmp_path)
    (tmp_path / "metadata.json").write_text(json.dumps({"format": "musae-activations/1"}))
    with pytest.raises(MusaeError, match="damaged"):
        open_store(tmp_path)


def test_a_disk_that_takes_no_more_leaves_whole_shards(tmp_path):
    writer = write(tmp_path / "store", shards=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        with pytest.raises(MusaeError, match="could not be written") as caught:
            writer.write_shard(residuals()[3:6])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.__cause__.errno in (errno.EFBIG, errno.ENOSPC)
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["metadata.json", "shard-00000.safetensors"]
    write(tmp_path / "store")
    assert open_store(tmp_path / "store").clip_ids == tuple(IDS)
