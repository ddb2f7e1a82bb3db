import errno
import hashlib
import json
import re
import resource
import signal

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from musae_jax.activations.store import StoreWriter, join_stores, open_store
from musae_jax.errors import MusaeError

DESCRIPTION = {"model": "test", "hook": "blocks.1.resid_post", "layer": 1, "d": 6, "positions": 5, "dtype": "float32"}
IDS = [f"clip{i}" for i in range(7)]


def residuals(n: int = 7, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 5, 6)).astype(np.float32)


def write(folder, shards: int | None = None, **changes) -> StoreWriter:
    """The first `shards` shards of 3 clips (all by default) of the test's residuals."""
    writer = StoreWriter(folder, {**DESCRIPTION, **changes}, IDS, clips_per_shard=3)
    while writer.done < (writer.shards if shards is None else shards):
        first = 3 * writer.missing[0]
        writer.write_shard(residuals()[first : first + 3])
    return writer


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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
    with pytest.raises(MusaeError, match=r"unfinished \(2 of 3 shards\)"):
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


def test_writers_share_a_store(tmp_path):
    """Each leaves alone what another has written; whoever sees the last shard finishes."""
    write(tmp_path / "whole")
    one, two = (StoreWriter(tmp_path / "store", DESCRIPTION, IDS, 3) for _ in range(2))
    two.write_shard(residuals()[6:], 2)
    assert one.missing == (0, 1, 2) and one.has_shard(2) and not one.has_shard(1) and one.missing == (0, 1)
    one.write_shard(residuals()[:3], 0)
    before = (tmp_path / "store" / "shard-00000.safetensors").stat()
    two.write_shard(residuals(seed=1)[:3], 0)  # too late
    after = (tmp_path / "store" / "shard-00000.safetensors").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    with pytest.raises(MusaeError, match="unfinished"):
        open_store(tmp_path / "store")
    two.write_shard(residuals()[3:6])  # the first that it knows to be missing
    assert two.complete and not one.complete
    assert open_store(tmp_path / "store").clip_ids == tuple(IDS)
    assert one.has_shard(1) and one.complete
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_a_writer_killed_before_the_last_word_is_finished_by_the_next(tmp_path):
    write(tmp_path / "store", shards=2)
    unfinished = (tmp_path / "store" / "metadata.json").read_bytes()
    write(tmp_path / "store")
    whole = contents(tmp_path / "store")
    (tmp_path / "store" / "metadata.json").write_bytes(unfinished)
    assert StoreWriter(tmp_path / "store", DESCRIPTION, IDS, 3).complete
    assert contents(tmp_path / "store") == whole


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
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "store").glob("shard-*")}
    writer = StoreWriter(tmp_path / "store", DESCRIPTION, IDS, 3)
    assert writer.missing == (1,)
    with pytest.raises(MusaeError, match="unfinished"):  # the metadata does not promise what is not there
        open_store(tmp_path / "store")
    writer.write_shard(residuals()[3:6])
    blocks = [block for _, block in open_store(tmp_path / "store").shards()]
    np.testing.assert_array_equal(np.concatenate(blocks), residuals())
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "store").glob("shard-*")}
    assert {name: after[name] for name in before} == before  # the others are not touched


def test_a_truncated_shard_is_one_sentence(tmp_path):
    write(tmp_path / "store")
    path = tmp_path / "store" / "shard-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(MusaeError, match=r"shard-00002\.safetensors is truncated \(\d+ bytes, \d+ were written\)"):
        open_store(tmp_path / "store")


def test_a_flipped_bit_is_one_sentence(tmp_path):
    write(tmp_path / "store")
    path = tmp_path / "store" / "shard-00001.safetensors"
    whole = path.read_bytes()
    for place in (-1, -5, len(whole) // 2, whole.index(b"F32"), 0):  # numbers, and the header
        data = bytearray(whole)
        data[place] ^= 1
        path.write_bytes(data)
        store = open_store(tmp_path / "store")
        np.testing.assert_array_equal(store.shard(0)[1], residuals()[:3])
        with pytest.raises(
            MusaeError, match=r"shard-00001\.safetensors is damaged.*delete that file and harvest again"
        ):
            store.shard(1)
    data = bytearray(whole)
    data[-5] ^= 1
    path.write_bytes(data)
    assert (open_store(tmp_path / "store", verify=False).shard(1)[1] != residuals()[3:6]).sum() == 1
    path.unlink()  # as the sentence says
    write(tmp_path / "store")
    assert path.read_bytes() == whole


def test_the_hash_is_checked_at_the_first_read_only(tmp_path):
    write(tmp_path / "store")
    path = tmp_path / "store" / "shard-00001.safetensors"
    store = open_store(tmp_path / "store")
    store.shard(1)
    with open(path, "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    store.shard(1)
    with pytest.raises(MusaeError, match="damaged"):
        open_store(tmp_path / "store").shard(1)


def test_metadata_that_was_changed_is_one_sentence(tmp_path):
    write(tmp_path / "store")
    path = tmp_path / "store" / "metadata.json"
    text = path.read_text()
    path.write_text(text.replace("clip4", "clip9"))
    with pytest.raises(MusaeError, match=r"metadata\.json is damaged: .* content_sha256"):
        open_store(tmp_path / "store")
    path.write_text(text.replace('"description": {', '"description": [], "was": {'))
    with pytest.raises(MusaeError, match=r"metadata\.json is damaged"):
        open_store(tmp_path / "store")


def test_the_written_protocol_is_enough_to_read_a_store(tmp_path):
    """What the module's docstring says, with other libraries."""
    tracks, split = {id: f"track-{id[4]}" for id in IDS}, {id: "label" if id < "clip4" else "score" for id in IDS}
    writer = StoreWriter(tmp_path, {**DESCRIPTION, "text": "ø"}, IDS, 3, tracks, split)
    for start in (0, 3, 6):
        writer.write_shard(residuals()[start : start + 3])
    metadata = json.loads((tmp_path / "metadata.json").read_bytes())
    assert metadata["format"] == "musae-activations/2" and metadata["complete"] is True

    def digest(value) -> str:
        return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    description = metadata["description"]
    assert metadata["content_sha256"] == digest({"description": description, "shards": metadata["shards"]})
    assert description["clips_sha256"] == hashlib.sha256("\n".join(IDS).encode()).hexdigest()
    assert (description["clips"], description["clips_per_shard"]) == (7, 3)
    blocks = []
    for row in metadata["shards"]:
        assert (tmp_path / row["file"]).stat().st_size == row["bytes"]
        with safe_open(tmp_path / row["file"], "np") as file:
            block = file.get_tensor("residuals")
            assert file.metadata() == {"store": digest(description), "sha256": row["sha256"]}
        assert hashlib.sha256(block.tobytes()).hexdigest() == row["sha256"]
        assert row["tracks"] == [tracks[id] for id in row["clips"]]
        assert row["split"] == [split[id] for id in row["clips"]]
        blocks.append(block)
    np.testing.assert_array_equal(np.concatenate(blocks), residuals())
    store = open_store(tmp_path)
    assert (store.tracks, store.split, store.content_sha256) == (tracks, split, metadata["content_sha256"])


def part(folder, ids, **changes):
    writer = StoreWriter(folder, {**DESCRIPTION, **changes}, ids, 2)
    while not writer.complete:
        rows = [IDS.index(id) for id in writer.shard_clips(writer.done)]
        writer.write_shard(residuals()[rows])
    return open_store(folder)


def test_stores_of_one_hook_are_joined(tmp_path):
    joined = join_stores([part(tmp_path / "a", IDS[:3]), part(tmp_path / "b", IDS[3:])])
    assert joined.clip_ids == tuple(IDS) and joined.hook == DESCRIPTION["hook"] and len(joined) == 4
    np.testing.assert_array_equal(np.concatenate([block for _, block in joined.shards()]), residuals())
    (tmp_path / "b" / "shard-00001.safetensors").unlink()
    with pytest.raises(MusaeError, match=r"b/shard-00001\.safetensors"):
        joined.shard(3)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (
            {"hook": "blocks.2.resid_post"},
            "hook is 'blocks.1.resid_post' in the first and 'blocks.2.resid_post' in the",
        ),
        ({"model": "another"}, "model is 'test'"),
        ({"dtype": "bfloat16"}, "dtype is 'float32' in the first and 'bfloat16' in the second"),
    ],
)
def test_stores_that_do_not_agree_are_not_joined(tmp_path, changes, found):
    stores = [part(tmp_path / "a", IDS[:3]), part(tmp_path / "b", IDS[3:], **changes)]
    with pytest.raises(MusaeError, match=rf"a and .*b cannot be joined: {re.escape(found)}"):
        join_stores(stores)


def test_a_clip_that_comes_twice_is_not_joined(tmp_path):
    with pytest.raises(MusaeError, match="the clip 'clip2' is in two of the stores"):
        join_stores([part(tmp_path / "a", IDS[:3]), part(tmp_path / "b", IDS[2:])])
    with pytest.raises(MusaeError, match="no activation stores"):
        join_stores([])


def test_what_is_not_a_store_is_one_sentence(tmp_path):
    with pytest.raises(MusaeError, match="not an activation store"):
        open_store(tmp_path)
    (tmp_path / "metadata.json").write_text("{")
    with pytest.raises(MusaeError, match="not valid JSON"):
        open_store(tmp_path)
    (tmp_path / "metadata.json").write_text(json.dumps({"format": "musae-activations/9"}))
    with pytest.raises(MusaeError, match="'musae-activations/9'"):
        open_store(tmp_path)
    (tmp_path / "metadata.json").write_text(json.dumps({"format": "musae-activations/2"}))
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
