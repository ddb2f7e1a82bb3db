import contextlib
import os
import sys
import uuid

import fsspec
import numpy as np
import pytest

from musae_jax.activations.batches import Batches
from musae_jax.activations.store import StoreWriter, open_store
from musae_jax.errors import MusaeError
from musae_jax.info import describe
from musae_jax.places import file_size, inside, list_sizes, open_place, read_bytes, write_bytes

DESCRIPTION = {"model": "test", "hook": "blocks.1.resid_post", "layer": 1, "d": 6, "positions": 5, "dtype": "bfloat16"}
IDS = [f"clip{i}" for i in range(7)]
RESIDUALS = np.random.default_rng(0).normal(size=(7, 5, 6)).astype(np.float32)


@pytest.fixture
def url():
    root = f"memory://bucket-{uuid.uuid4()}"
    yield f"{root}/activations"
    fsspec.filesystem("memory").rm(root, recursive=True)


@pytest.fixture
def s3():
    """A bucket of a local object server; needs s3fs and moto."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    settings = {"key": "any", "secret": "any", "client_kwargs": {"endpoint_url": f"http://{host}:{port}"}}
    fsspec.config.conf["s3"] = settings
    try:
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket/activations"
    finally:
        del fsspec.config.conf["s3"]
        server.stop()


def write(folder, shards: int = 3) -> StoreWriter:
    writer = StoreWriter(folder, DESCRIPTION, IDS, 3)
    while writer.done < shards:
        start = 3 * writer.missing[0]
        writer.write_shard(RESIDUALS[start : start + 3])
    return writer


def contents(place) -> dict[str, bytes]:
    return {name: read_bytes(place, name).tobytes() for name in list_sizes(place)}


def check_store(url, tmp_path):
    """Written, killed, gone on with and read, a store behind a URL is the store on disk."""
    write(url, shards=1)
    with pytest.raises(MusaeError, match=r"activations is unfinished \(1 of 3 shards\)"):
        open_store(url)
    assert StoreWriter(url, DESCRIPTION, IDS, 3).missing == (1, 2)
    write(url)
    write(tmp_path / "disk")
    assert contents(open_place(url)) == contents(open_place(tmp_path / "disk"))
    far, near = open_store(url), open_store(tmp_path / "disk")
    assert far.content_sha256 == near.content_sha256 and far.name == url
    streams = [Batches(store, 8, buffer_mb=0) for store in (far, near)]
    for _ in range(12):
        np.testing.assert_array_equal(*(next(stream) for stream in streams))
    place = open_place(url)
    data = bytearray(contents(place)["shard-00001.safetensors"])
    data[-1] ^= 1
    write_bytes(place, "shard-00001.safetensors", bytes(data))
    with pytest.raises(MusaeError, match=r"activations/shard-00001\.safetensors is damaged"):
        list(open_store(url).shards())
    write_bytes(place, "shard-00001.safetensors", bytes(data[:-1]))
    with pytest.raises(MusaeError, match=r"activations/shard-00001\.safetensors is truncated"):
        open_store(url)
    place.system.rm(f"{place.root}/shard-00001.safetensors")
    with pytest.raises(MusaeError, match=r"activations/shard-00001\.safetensors is missing"):
        open_store(url)
    assert write(url).complete
    assert contents(place) == contents(open_place(tmp_path / "disk"))


def test_a_store_behind_a_url(url, tmp_path):
    check_store(url, tmp_path)


def test_a_store_on_an_object_server(s3, tmp_path):
    check_store(s3, tmp_path)


def test_a_file_url_is_a_folder(tmp_path):
    write(f"file://{tmp_path}/store")
    assert open_store(tmp_path / "store").clip_ids == tuple(IDS)
    assert isinstance(open_store(f"file://{tmp_path}/store").shard(0)[1], np.memmap)  # not fetched


def test_a_file_that_is_not_there_has_no_size(url, tmp_path):
    for place in (url, tmp_path / "store"):
        folder = write(place, shards=1).folder
        assert file_size(folder, "shard-00000.safetensors") == list_sizes(folder)["shard-00000.safetensors"]
        assert file_size(folder, "shard-00001.safetensors") is None


def test_info_tells_what_is_behind_a_url(url):
    write(url)
    with pytest.raises(MusaeError, match="nothing is not an activation store"):
        describe(f"{url}/nothing")
    assert "blocks.1.resid_post: 7 clips × 5 positions × 6, bfloat16" in describe(url)


def test_a_put_that_fails_leaves_whole_shards(url, monkeypatch):
    writer = write(url, shards=1)
    with monkeypatch.context() as patch:
        patch.setattr(
            type(writer.folder.system), "pipe_file", lambda *_, **__: (_ for _ in ()).throw(KeyError("quota"))
        )
        with pytest.raises(MusaeError, match=r"shard-00001\.safetensors could not be written \(KeyError: 'quota'\)"):
            writer.write_shard(RESIDUALS[3:6])
    assert set(list_sizes(writer.folder)) == {"metadata.json", "shard-00000.safetensors"}
    assert write(url).complete


def test_a_place_that_cannot_be_reached_is_one_sentence(url, monkeypatch):
    write(url)
    store = open_store(url)

    def fail(*_, **__):
        raise TimeoutError("no answer")

    monkeypatch.setattr(type(store.places[0].system), "cat_file", fail)
    with pytest.raises(MusaeError, match=r"shard-00000\.safetensors could not be read \(TimeoutError: no answer\)"):
        store.shard(0)


def test_a_url_without_a_driver_is_one_sentence(monkeypatch):
    with pytest.raises(MusaeError, match="nowhere://bucket/store cannot be opened"):
        open_store("nowhere://bucket/store")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MusaeError, match=r"gs://bucket/store cannot be opened \(.*gcsfs.*\); `pip install`"):
        open_store("gs://bucket/store")
    with pytest.raises(MusaeError, match="not an activation store"):
        open_store("memory://nothing-here")


def test_a_path_keeps_its_slashes(tmp_path):
    assert inside(open_place("memory://a/b/"), "c").location == "memory://a/b/c"
    assert inside(open_place(tmp_path), "c").root == f"{tmp_path}/c"
    assert open_place("C:/music").system is None


def test_a_listing_survives_files_that_others_rename(tmp_path, monkeypatch):
    """A shard under way has a temporary name, which may be gone before its size is asked for."""
    place = open_place(tmp_path)
    (tmp_path / "whole").write_bytes(b"123")
    (tmp_path / "temporary").write_bytes(b"12")
    scandir = os.scandir

    @contextlib.contextmanager
    def lost(folder):
        with scandir(folder) as entries:
            listed = list(entries)
        (tmp_path / "temporary").unlink()
        yield listed

    monkeypatch.setattr(os, "scandir", lost)
    assert list_sizes(place) == {"whole": 3}
