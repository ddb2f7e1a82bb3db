"""`musae generate`: files, folders and streams hold the same sound; what it goes on from may be any sound file."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from musae_jax import cli
from musae_jax.audio.io import read_audio, read_end
from musae_jax.errors import MusaeError
from musae_jax.sounds import sound_places

WINDOWS = ("--window-seconds", "0.6", "--stride-seconds", "0.36")


@pytest.fixture
def run(tiny_folder, capsysbinary):
    """run(*arguments) -> (exit code, standard output, standard error) of `musae generate`."""

    def generate(*arguments, seconds=0.9):
        command = ["generate", *arguments, "--model", tiny_folder, "--seconds", seconds]
        code = cli.main([str(a) for a in command])
        out, err = capsysbinary.readouterr()
        return code, out, " ".join(err.decode().split())

    return generate


def tone(seconds, rate, hertz=330.0):
    return 0.4 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def test_files_folders_and_streams_hold_the_same_sound(tmp_path, run):
    """Past the window; the first of several prompts is what it is alone."""
    code, out, err = run("flute", "--out", tmp_path / "a.wav", *WINDOWS)
    assert code == 0 and b"0.9 s of music" in out and b"real time" in out and b"compiling" in out
    file, rate = soundfile.read(tmp_path / "a.wav", dtype="int16")
    assert rate == 16_000 and len(file) == 14_400
    code, out, err = run("flute", "--out", "-", *WINDOWS)
    assert code == 0 and "real time" in err
    assert out[:44] == (tmp_path / "a.wav").read_bytes()[:44]
    np.testing.assert_array_equal(soundfile.read(io.BytesIO(out), dtype="int16")[0], file)
    raw = run("flute", "--out", "-", "--format", "raw", "--chunk-seconds", "0.9", *WINDOWS)[1]
    # The pieces differ, so rounding may tip a sample over.
    assert np.abs(np.frombuffer(raw, "<i2").astype(int) - file).max() <= 1
    code, out, _ = run("flute", "", "flute", "--out", tmp_path / "many", "--format", "flac", *WINDOWS)
    assert code == 0 and b"3 files in" in out and b"2.7 s of music" in out
    names = sorted(path.name for path in (tmp_path / "many").iterdir())
    assert names == ["0-flute.flac", "1-unconditional.flac", "2-flute.flac"]
    sounds = [soundfile.read(tmp_path / "many" / name, dtype="int16")[0] for name in names]
    assert np.abs(sounds[0].astype(int) - file).max() <= 1
    assert not np.array_equal(sounds[0], sounds[2])  # a prompt given twice is played twice


def test_a_named_pipe_is_a_stream(tmp_path, run):
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE) as reader:
        assert run("flute", "--out", tmp_path / "pipe")[0] == 0
        assert len(soundfile.read(io.BytesIO(reader.stdout.read()))[0]) == 14_400


def test_sound_goes_on_from_a_file(tmp_path, run):
    soundfile.write(tmp_path / "song.wav", np.stack([tone(3.0, 44_100), tone(3.0, 44_100, 660)], axis=1), 44_100)
    arguments = ("flute", "--continue-from", tmp_path / "song.wav", *WINDOWS)
    assert run(*arguments, "--out", tmp_path / "whole.wav")[0] == 0
    assert run(*arguments, "--out", tmp_path / "new.wav", "--no-keep-prompt")[0] == 0
    whole, new = (read_audio(tmp_path / name, 16_000) for name in ("whole.wav", "new.wav"))
    assert len(whole) == round((0.24 + 0.9) * 16_000) and len(new) == 14_400  # windows share 0.24 s
    np.testing.assert_array_equal(whole[-14_400:], new)
    assert run(*arguments[:-4], "--out", tmp_path / "c.wav")[0] == 0  # 30 s of window hold all of the file
    assert len(read_audio(tmp_path / "c.wav", 16_000)) == round(3.9 * 16_000)


@pytest.mark.parametrize(
    "sound",
    [
        (8_000, tone(1.0, 8_000)),
        (96_000, 5 * tone(1.0, 96_000)),  # far beyond full scale
        (22_050, 0.5 + tone(1.0, 22_050)),  # an offset
        (16_000, np.stack([tone(1.0, 16_000)] * 6, axis=1)),
        (16_000, tone(0.03, 16_000)),  # a frame and a half
    ],
)
def test_any_sound_can_be_gone_on_from(tmp_path, run, sound):
    rate, samples = sound
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    heard = read_end(tmp_path / "a.wav", 16_000, 1, 30.0)
    assert heard.shape == (1, round(len(samples) / rate * 16_000))
    assert np.abs(heard).max() < 1.01 and abs(heard.mean()) < 0.01
    code, _, err = run("--out", tmp_path / "b.wav", "--continue-from", tmp_path / "a.wav", seconds=0.2)
    assert code == 0, err


def test_only_the_end_of_a_file_is_read(tmp_path, monkeypatch):
    """A NaN near its beginning is not even noticed."""
    long = tone(60.0, 8_000)
    long[100] = np.nan
    soundfile.write(tmp_path / "long.wav", long, 8_000, subtype="FLOAT")
    end = read_end(tmp_path / "long.wav", 8_000, 2, 1.5)
    assert end.shape == (2, 12_000)
    np.testing.assert_allclose(end[1], long[-12_000:] - long[-12_000:].mean(), atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("silence", "is silent in its last 1.00 s"),
        ("nan", "not numbers"),
        ("text", "not audio"),
        ("tiny", "less than one frame"),
        ("missing", "no such file"),
    ],
)
def test_what_cannot_be_gone_on_from_is_one_sentence(tmp_path, run, kind, words):
    path = tmp_path / "a.wav"
    samples = {"silence": np.full(16_000, 0.3), "nan": np.full(16_000, np.nan), "tiny": tone(0.005, 16_000)}
    if kind in samples:
        soundfile.write(path, samples[kind], 16_000, subtype="FLOAT")
    elif kind == "text":
        path.write_text("words " * 100)
    code, out, err = run("flute", "--out", tmp_path / "b.wav", "--continue-from", path)
    assert code == 2 and words in err and str(path) in err and not out
    assert not (tmp_path / "b.wav").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a", "b", "--out", "-"), "takes the sound of one prompt"),
        (("a", "--out", "x.mp3"), "rename it"),
        (("a", "--out", "x.wav", "--format", "flac"), "leave one of them out"),
        (("a", "--out", "-", "--format", "ogg"), "cannot be written to a stream"),
        (("a", "b", "--out", "folder", "--format", "raw"), "cannot be written as raw"),
        (("a", "--out", "x.wav", "--top-p", "1.5"), "top_p is 1.5"),
        (("a", "--out", "x.wav", "--seed", "-1"), "--seed is -1"),
        (("a", "--out", "x.wav", "--window-seconds", "5"), "--stride-seconds is 18"),
    ],
)
def test_what_does_not_fit_together_is_one_sentence(tmp_path, run, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert code == 2 and words in err and not out
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_one_prompt_in_a_folder_that_exists(tmp_path):
    assert sound_places(tmp_path, ("Slow, calm!",), "auto") == [(tmp_path / "0-slow-calm.wav", "wav")]
    (tmp_path / "file").touch()
    with pytest.raises(MusaeError, match="need a folder"):
        sound_places(tmp_path / "file", ("a", "b"), "auto")


def test_a_reader_that_leaves_and_a_full_disk_are_one_sentence(tmp_path, tiny_folder):
    flags = f"--model {tiny_folder} --seconds 6 --chunk-seconds 0.5"
    main = f"{sys.executable} -m musae_jax.cli generate x {flags}"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {main} --out - | head -c 100 >{tmp_path}/a"], text=True,
                          stderr=subprocess.PIPE, check=False)  # fmt: skip
    assert done.returncode == 2 and "has closed it" in done.stderr and len(done.stderr.splitlines()) == 1
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000));"
        "from musae_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "generate", "x", *flags.split(), "--out", str(tmp_path / "full.wav")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "could not be written" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("*full*"))
