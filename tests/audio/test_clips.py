import json

import numpy as np
import pytest
import soundfile

from musae_jax.audio.clips import Clip, load_clip, load_truth, open_clips, split_tracks
from musae_jax.errors import MusaeError
from musae_jax.files import write_json_lines

RATE = 8000


def ramp(path, seconds: float) -> None:
    """Sound whose sample values tell the time: value = seconds / 100."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.arange(round(seconds * RATE)) / RATE / 100, RATE, subtype="FLOAT")


def test_files_are_cut_into_windows(tmp_path):
    ramp(tmp_path / "album" / "long.wav", 5.0)
    ramp(tmp_path / "tail.wav", 4.5)
    ramp(tmp_path / "short.wav", 0.7)
    (tmp_path / "notes.txt").write_text("not music")
    source = open_clips(tmp_path, seconds=2.0)
    found = {clip.id: (clip.start, round(clip.seconds, 3)) for clip in source.clips}
    assert found == {
        "album_long-0000": (0.0, 2.0),
        "album_long-0001": (2.0, 2.0),
        "album_long-0002": (4.0, 1.0),  # a remainder of 1 s is kept
        "short": (0.0, 0.7),
        "tail-0000": (0.0, 2.0),
        "tail-0001": (2.0, 2.0),  # and one of 0.5 s is dropped
    }
    assert source.skipped == ()
    third = next(clip for clip in source.clips if clip.id == "album_long-0002")
    audio = load_clip(third, RATE, 2.0)
    assert audio.shape == (2 * RATE,)
    np.testing.assert_allclose(audio[:RATE], (4 + np.arange(RATE) / RATE) / 100, atol=1e-6)
    assert not audio[RATE:].any()


def test_a_bad_file_among_good_ones_is_skipped_and_named(tmp_path):
    ramp(tmp_path / "good.wav", 3.0)
    ramp(tmp_path / "blip.wav", 0.2)
    (tmp_path / "words.wav").write_text("hello")
    soundfile.write(tmp_path / "quiet.wav", np.zeros(2 * RATE), RATE)
    calls = []
    source = open_clips(tmp_path, 2.0, progress=lambda *call: calls.append(call))
    assert {clip.id for clip in source.clips} == {"good-0000", "good-0001", "quiet"}
    assert [name for name, _ in source.skipped] == ["blip.wav", "words.wav"]
    assert "0.20 s" in source.skipped[0][1]
    assert "not audio" in source.skipped[1][1]
    assert source.silent == ("quiet.wav",)
    assert "2 files skipped" in source.summary()
    assert "words.wav" in source.summary()
    assert calls[-1] == (4, 4, "files")


def test_offsets_and_sound_beyond_full_scale_are_mended_for_the_whole_file(tmp_path):
    tone = np.sin(2 * np.pi * 440 * np.arange(4 * RATE) / RATE)
    loud = np.concatenate([0.1 * tone[: 2 * RATE], 5 * tone[: 2 * RATE]])
    files = {"loud": loud, "offset": 0.3 + 0.2 * tone, "both": 0.4 + 2 * tone, "fine": tone, "over": 1.05 * tone}
    files["apart"] = np.stack([tone, -tone], axis=1)  # what is heard of it is silence
    files["constant"] = np.full(4 * RATE, 0.3)
    for name, sound in files.items():
        soundfile.write(tmp_path / f"{name}.wav", sound, RATE, subtype="FLOAT")
    source = open_clips(tmp_path, 2.0)
    assert dict(source.mended) == {
        "both.wav": "a constant offset of 0.40 taken away, a peak of 2.00 scaled down to 1",
        "constant.wav": "a constant offset of 0.30 taken away",
        "loud.wav": "a peak of 5.00 scaled down to 1",
        "offset.wav": "a constant offset of 0.30 taken away",
    }
    assert source.silent == ("apart.wav", "constant.wav") and "mended: loud.wav (a peak of 5.00" in source.summary()
    heard = {clip.id: load_clip(clip, RATE, 2.0) for clip in source.clips}
    wanted = {"loud": loud / 5, "offset": 0.2 * tone, "both": tone, "fine": tone, "over": tone}
    for name, sound in wanted.items():
        for half in (0, 1):
            expected = sound[2 * RATE * half : 2 * RATE * (half + 1)]
            np.testing.assert_allclose(heard[f"{name}-{half:04d}"], expected, atol=1e-6)
    assert np.abs(heard["constant-0000"]).max() < 1e-6


def test_a_folder_without_usable_sound_is_refused(tmp_path):
    with pytest.raises(MusaeError, match="not a folder"):
        open_clips(tmp_path / "none")
    with pytest.raises(MusaeError, match="holds no wav"):
        open_clips(tmp_path)
    (tmp_path / "words.wav").write_text("hello")
    ramp(tmp_path / "blip.wav", 0.2)
    with pytest.raises(MusaeError, match=r"blip\.wav lasts 0\.20 s.*and 1 more"):
        open_clips(tmp_path)


def test_a_folder_of_silence_is_refused(tmp_path):
    soundfile.write(tmp_path / "quiet.wav", np.zeros(2 * RATE), RATE)
    with pytest.raises(MusaeError, match="that can be read is silent"):
        open_clips(tmp_path, 2.0)


def test_names_that_meet_as_slugs_stay_apart(tmp_path):
    for name in ("a b.wav", "a_b.wav", "a_b.flac", "élan.wav"):
        ramp(tmp_path / name, 1.0) if name.endswith("wav") else soundfile.write(tmp_path / name, np.zeros(RATE), RATE)
    clips = open_clips(tmp_path).clips
    ids = [clip.id for clip in clips]
    assert len(set(ids)) == 4
    assert all(id.isascii() and "/" not in id and " " not in id for id in ids)
    assert len({clip.track for clip in clips}) == 4


def make_manifest(folder, rows):
    for row in rows:
        ramp(folder / row["audio"], row["seconds"])
    write_json_lines(folder / "manifest.jsonl", rows)


def test_a_manifest_brings_captions_tracks_and_truth(tmp_path):
    rows = [
        {"id": f"c{i}", "audio": f"audio/c{i}.wav", "track": f"t{i // 2}", "caption": f"piece {i}", "seconds": 2.0}
        for i in range(4)
    ]
    (tmp_path / "truth").mkdir()
    active = np.arange(100)[:, None] >= np.array([0, 50, 100])  # [T, C]
    np.savez(tmp_path / "truth" / "c1.npz", active=active)
    rows[1]["truth"] = "truth/c1.npz"
    make_manifest(tmp_path, rows)
    concepts = [{"name": f"concept {i}", "family": "test", "level": "frame"} for i in range(3)]
    (tmp_path / "concepts.json").write_text(json.dumps(concepts))
    source = open_clips(tmp_path, 2.0)
    assert [clip.id for clip in source.clips] == ["c0", "c1", "c2", "c3"]
    assert [clip.track for clip in source.clips] == ["t0", "t0", "t1", "t1"]
    assert source.clips[2].caption == "piece 2"
    assert list(source.concepts) == concepts
    assert load_truth(source.clips[0]) is None
    np.testing.assert_array_equal(load_truth(source.clips[1]), active)
    halves = [clip for clip in open_clips(tmp_path, 1.0).clips if clip.truth]
    np.testing.assert_array_equal(load_truth(halves[1]), active[50:])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"id": "a"}], "row 1 of .* names no sound file"),
        ([], "no rows"),
        ([{"id": "a", "audio": "none.wav"}], "no file in .* can be used: .*none.wav cannot be read"),
    ],
)
def test_a_malformed_manifest_is_one_sentence(tmp_path, rows, words):
    write_json_lines(tmp_path / "manifest.jsonl", rows)
    with pytest.raises(MusaeError, match=words):
        open_clips(tmp_path)


def test_ids_used_twice_are_refused(tmp_path):
    make_manifest(tmp_path, [{"id": "a", "audio": f"{i}.wav", "seconds": 1.0} for i in range(2)])
    with pytest.raises(MusaeError, match="'a' more than once"):
        open_clips(tmp_path)


def some_clips(tracks: int) -> list[Clip]:
    return [Clip(f"c{i}-{j}", f"t{i}", None, 0.0, 1.0) for i in range(tracks) for j in range(3)]


def test_the_split_keeps_tracks_whole_and_does_not_depend_on_order():
    clips = some_clips(9)
    split = split_tracks(clips, seed=3)
    assert split == split_tracks(clips[::-1], seed=3)
    assert split != split_tracks(clips, seed=4)
    sides = {track: {split[clip.id] for clip in clips if clip.track == track} for track in {c.track for c in clips}}
    assert all(len(side) == 1 for side in sides.values())
    assert sorted(split.values()).count("label") == 15
    assert set(split_tracks(some_clips(1), seed=0).values()) == {"label"}
