import concurrent.futures
import functools
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from musae_jax.activations.harvest import divide, hook_name
from musae_jax.activations.harvest import harvest as harvest_with_large_shards
from musae_jax.activations.residuals import order_clips, weights_sha256
from musae_jax.activations.store import open_store
from musae_jax.audio.clips import Clip, load_clip, open_clips, split_tracks
from musae_jax.audio.io import write_audio
from musae_jax.errors import MusaeError
from musae_jax.info import describe
from musae_jax.models.decoder import DecoderConfig
from musae_jax.models.encodec import EncodecConfig
from musae_jax.models.musicgen import MusicGen, MusicGenConfig, encode_audio, forward, random_musicgen
from musae_jax.models.t5 import T5Config

RATE, SECONDS, CLIPS = 400, 1.0, 7
CONFIG = MusicGenConfig(
    text=T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2),
    audio=EncodecConfig(
        sampling_rate=RATE,
        upsampling_ratios=(4, 2),
        num_filters=2,
        hidden_size=8,
        codebook_size=16,
        target_bandwidths=(0.4,),  # 2 codebooks of 4 bits at 50 Hz
    ),
    decoder=DecoderConfig(
        vocab_size=16,
        num_hidden_layers=3,
        ffn_dim=24,
        num_attention_heads=2,
        hidden_size=12,
        num_codebooks=2,
        pad_token_id=16,
        bos_token_id=16,
    ),
)


# Three clips a shard, so that seven clips are three shards.
harvest = functools.partial(harvest_with_large_shards, shard_bytes=3 * 4 * 51 * 12)


@functools.cache
def model(seed: int = 0) -> MusicGen:
    return random_musicgen(CONFIG, jax.random.key(seed))


def make_music(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(CLIPS):
        seconds = 0.6 if i == 2 else SECONDS  # one is short, and padded
        write_audio(folder / f"track{i}.wav", 0.3 * rng.normal(size=round(seconds * RATE)).astype("f4"), RATE)


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    folder = tmp_path_factory.mktemp("music")
    make_music(folder)
    return open_clips(folder, SECONDS).clips


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_store_holds_what_the_model_computes(music, tmp_path):
    mg = model()
    calls = []
    stores = harvest(
        mg, music, (2, 0), SECONDS, tmp_path, batch_size=2, model="tiny", progress=lambda *call: calls.append(call)
    )
    assert list(stores) == [2, 0]
    assert {path.name for path in tmp_path.iterdir()} == {"blocks.0.resid_post", "blocks.2.resid_post"}
    store = stores[2]
    ordered = order_clips(music, 0, 3)
    assert (store.d_in, store.positions, store.clip_ids) == (12, 51, tuple(clip.id for clip in ordered))
    assert len(store) == 3
    assert {k: store.description[k] for k in ("model", "hook", "layer", "frame_rate", "dtype", "revision")} == {
        "model": "tiny",
        "hook": "blocks.2.resid_post",
        "layer": 2,
        "frame_rate": 50.0,
        "dtype": "float32",
        "revision": weights_sha256(mg.params),
    }
    assert store.description["codec"] == {
        "revision": weights_sha256(mg.params["audio"]),
        "sampling_rate": RATE,
        "codebooks": 2,
    }
    told = describe(str(tmp_path / "blocks.2.resid_post"))
    assert told.splitlines()[:4] == [
        "activations at blocks.2.resid_post: 7 clips × 51 positions × 12, float32, 3 shards, 0.0 MiB",
        f"model tiny, weights {weights_sha256(mg.params)[:12]}",
        f"codes of 2 codebooks from {RATE} Hz sound, codec {weights_sha256(mg.params['audio'])[:12]}, 50 Hz frames,"
        " 1 s a clip, delayed, text none",
        "7 tracks, split by track into 4 label, 3 score clips",
    ]
    assert store.tracks == {clip.id: clip.track for clip in music}
    assert store.split == split_tracks(music, 0)
    for layer in (0, 2):
        residuals = np.concatenate([block for _, block in stores[layer].shards()])
        for row, clip in enumerate(ordered):
            codes = encode_audio(CONFIG, mg.params, load_clip(clip, RATE, SECONDS)[None])
            expected = forward(CONFIG, mg.params, codes, taps=(0, 2)).residuals[layer][0]
            np.testing.assert_allclose(residuals[row], expected, atol=1e-5 * np.abs(expected).max())
    assert calls[0] == (0, CLIPS, "clips")
    assert calls[-1] == (CLIPS, CLIPS, "clips")


@pytest.mark.parametrize(("clips", "per_shard"), [(7, 3), (40, 3), (41, 1), (5, 100), (1, 2)])
def test_the_order_is_that_of_the_protocol(clips, per_shard):
    clips = [Clip(f"clip{i}", f"track{i // 2}", Path(), 0.0, 1.0) for i in range(clips)]
    split = split_tracks(clips, 5)
    ordered = [clip.id for clip in order_clips(clips, 5, per_shard)]
    assert ordered == [clip.id for clip in order_clips(clips[::-1], 5, per_shard)]  # whatever order they come in
    assert sorted(ordered) == sorted(clip.id for clip in clips)
    ranks = {clip.id: hashlib.sha256(f"5:{clip.id}".encode()).hexdigest() for clip in clips}
    counts = {}
    for half in ("label", "score"):
        mine = [id for id in ordered if split[id] == half]
        assert mine == sorted(mine, key=ranks.get)
        counts[half] = len(mine) // per_shard
    shards = [ordered[start : start + per_shard] for start in range(0, len(ordered), per_shard)]
    both = min(counts.values())
    longer = max(counts, key=counts.get)
    expected = ["label", "score"] * both + [longer] * (max(counts.values()) - both)
    assert [{split[id] for id in shard} for shard in shards[: len(expected)]] == [{half} for half in expected]
    rest = [split[id] for id in ordered[len(expected) * per_shard :]]
    assert rest == sorted(rest) and max(rest.count("label"), rest.count("score")) < per_shard


def test_a_finished_harvest_is_returned_and_another_one_refused(music, tmp_path):
    harvest(model(), music, [1], SECONDS, tmp_path)
    before = contents(tmp_path)
    calls = []
    store = harvest(model(), music, [1], SECONDS, tmp_path, progress=lambda *call: calls.append(call))[1]
    assert calls == [(CLIPS, CLIPS, "clips")]
    assert contents(tmp_path) == before
    assert len(store.clip_ids) == CLIPS
    with pytest.raises(MusaeError, match="revision is"):
        harvest(model(1), music, [1], SECONDS, tmp_path)
    with pytest.raises(MusaeError, match="clips is 7 there and 5 here"):
        harvest(model(), music[:5], [1], SECONDS, tmp_path)
    assert contents(tmp_path) == before


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
import test_harvest as t
t.harvest(t.model(), t.open_clips(sys.argv[1], t.SECONDS).clips, [0, 1], t.SECONDS, sys.argv[2], batch_size=2,
          progress=lambda done, total, unit: print(done, flush=True))
"""


def test_killed_and_resumed_it_ends_with_the_same_bytes(music, tmp_path):
    harvest(model(), music, [0, 1], SECONDS, tmp_path / "whole", batch_size=2)
    command = [sys.executable, "-c", PROGRAM.format(tests=str(Path(__file__).parent)), str(music[0].path.parent)]
    process = subprocess.Popen(
        [*command, str(tmp_path / "killed")], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    for line in process.stdout:
        if line.strip() == "5":  # in the second shard
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    with pytest.raises(MusaeError, match="unfinished"):
        open_store(tmp_path / "killed" / hook_name(0))
    calls = []
    harvest(
        model(), music, [0, 1], SECONDS, tmp_path / "killed", batch_size=2, progress=lambda done, *_: calls.append(done)
    )
    assert calls[0] in (3, 6)  # whole shards were kept
    kept = {name: data for name, data in contents(tmp_path / "killed").items() if "/." not in name}
    assert kept == contents(tmp_path / "whole")


@pytest.mark.parametrize(("process", "order"), [(0, [0, 2, 4]), (1, [1, 3])])
def test_a_process_takes_its_own_shards_and_then_the_others(process, order):
    shards = divide([0, 1, 2, 3, 4], process, 2)
    assert shards[: len(order)] == order and sorted(shards) == [0, 1, 2, 3, 4]
    assert shards == divide([0, 1, 2, 3, 4], process, 2)
    assert divide([5, 1], 0, 1) == [5, 1]


def test_processes_share_the_shards(music, tmp_path):
    """Side by side, and one alone whose fellow never comes: the store is that of one process."""
    harvest(model(), music, [0, 1], SECONDS, tmp_path / "whole", batch_size=2)

    def run(out, process):
        return harvest(model(), music, [0, 1], SECONDS, tmp_path / out, batch_size=2, process=process, processes=2)

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        stores = [made.result() for made in [threads.submit(run, "two", process) for process in range(2)]]
    assert stores[0][0].content_sha256 == stores[1][0].content_sha256
    assert contents(tmp_path / "two") == contents(tmp_path / "whole")
    run("alone", 1)
    assert contents(tmp_path / "alone") == contents(tmp_path / "whole")
    written = [(tmp_path / "alone" / hook_name(0) / f"shard-0000{i}.safetensors").stat().st_mtime_ns for i in range(3)]
    assert written[1] == min(written)  # its own first


def test_one_hook_can_lag_behind_another(music, tmp_path):
    harvest(model(), music, [0, 1], SECONDS, tmp_path / "whole", batch_size=2)
    harvest(model(), music, [0], SECONDS, tmp_path / "part", batch_size=2)
    harvest(model(), music, [0, 1], SECONDS, tmp_path / "part", batch_size=2)
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_what_cannot_be_harvested_is_one_sentence(music, tmp_path):
    with pytest.raises(MusaeError, match="no clips"):
        harvest(model(), [], [0], SECONDS, tmp_path)
    with pytest.raises(MusaeError, match="layer 3 is not in this model; choose from 0 to 2"):
        harvest(model(), music, [3], SECONDS, tmp_path)
    with pytest.raises(MusaeError, match="'int8'"):
        harvest(model(), music, [0], SECONDS, tmp_path, dtype="int8")
    mg = model()
    broken = mg.replace(params={**mg.params, "decoder": jax.tree.map(lambda leaf: leaf * np.nan, mg.params["decoder"])})
    with pytest.raises(MusaeError, match=r"not finite at blocks\.0\.resid_post for 3 of 3 clips"):
        harvest(broken, music, [0], SECONDS, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))
