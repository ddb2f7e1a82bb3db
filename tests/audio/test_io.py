import errno
import resource
import signal

import numpy as np
import pytest
import soundfile

from musae_jax.audio.io import check_audio, read_audio, read_end, write_audio
from musae_jax.errors import MusaeError


def tone(seconds: float = 1.0, sampling_rate: int = 16000, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * sampling_rate)) / sampling_rate)).astype("f4")


def peak_hertz(audio: np.ndarray, sampling_rate: int) -> float:
    return np.abs(np.fft.rfft(audio * np.hanning(len(audio)))).argmax() * sampling_rate / len(audio)


@pytest.mark.parametrize(("suffix", "tolerance"), [(".wav", 4e-5), (".flac", 4e-5), (".ogg", 0.05)])
def test_what_is_written_is_read(tmp_path, suffix, tolerance):
    audio = tone(1.3)
    write_audio(tmp_path / f"a{suffix}", audio, 16000)
    again = read_audio(tmp_path / f"a{suffix}", 16000)
    assert again.dtype == np.float32
    assert again.shape == audio.shape
    assert np.abs(again - audio).max() < tolerance


def test_mp3_is_read(tmp_path):
    soundfile.write(tmp_path / "a.mp3", tone(2.0), 16000)
    assert abs(peak_hertz(read_audio(tmp_path / "a.mp3", 16000), 16000) - 440) < 2


def test_8_khz_stereo_is_mixed_and_resampled(tmp_path):
    left, right = tone(2.0, 8000, 440.0), tone(2.0, 8000, 1000.0)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 8000, subtype="FLOAT")
    audio = read_audio(tmp_path / "a.wav", 16000)
    assert audio.shape == (32000,)
    expected = (tone(2.0, 16000, 440.0) + tone(2.0, 16000, 1000.0)) / 2
    assert np.abs(audio[1000:-1000] - expected[1000:-1000]).max() < 2e-3


def test_a_window_is_the_middle_of_the_file(tmp_path):
    audio = tone(3.0)
    soundfile.write(tmp_path / "a.wav", audio, 16000, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav", 16000, 1.0, 0.5), audio[16000:24000])
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav", 16000, 2.5, 1.0), audio[40000:])
    with pytest.raises(MusaeError, match=r"lasts 3\.00 s"):
        read_audio(tmp_path / "a.wav", 16000, 3.0, 1.0)


def test_loud_sound_is_scaled_not_clipped(tmp_path):
    write_audio(tmp_path / "a.wav", 3 * tone(), 16000)
    again = read_audio(tmp_path / "a.wav", 16000)
    np.testing.assert_allclose(again, 2 * tone(), atol=1e-4)


def test_silence_is_allowed(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    assert check_audio(tmp_path / "a.wav").silent
    assert not read_audio(tmp_path / "a.wav", 16000).any()


def damaged(folder, kind: str):
    path = folder / f"bad.{kind.split()[-1]}"
    if kind == "empty wav":
        path.touch()
    elif kind == "text wav":
        path.write_text("These are words, not sound.\n" * 20)
    elif kind == "NaN wav":
        audio = tone()
        audio[[5, 900]] = np.nan
        soundfile.write(path, audio, 16000, subtype="FLOAT")
    elif kind == "folder wav":
        path.mkdir()
    elif kind == "slow wav":
        soundfile.write(path, tone(), 50)
    elif kind == "instant wav":
        soundfile.write(path, tone()[:1], 96_000)
    elif kind == "long flac":  # the header promises days
        soundfile.write(path, tone(), 16000)
        data = bytearray(path.read_bytes())
        data[21:26] = b"\xff\xff\xff\xff\xff"
        path.write_bytes(data)
    elif kind == "no samples wav":
        soundfile.write(path, np.zeros((0,)), 16000)
    else:
        audio = np.random.default_rng(0).normal(size=64000).astype("f4") * 0.1
        soundfile.write(path, audio, 16000)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] if kind.startswith("half") else data[:30])
    return path


BAD = {
    "empty wav": "is empty",
    "text wav": "not audio",
    "NaN wav": "2 samples that are not numbers",
    "no samples wav": "no sound",
    "half wav": "truncated",
    "half flac": "truncated",
    "half ogg": "truncated",
    "half mp3": "truncated",
    "head wav": "truncated|no sound",
    "folder wav": "is a folder",
    "slow wav": "states a sampling rate of 50 Hz",
    "long flac": "truncated",
}


@pytest.mark.parametrize(("kind", "words"), BAD.items())
def test_a_bad_file_is_one_sentence(tmp_path, kind, words):
    path = damaged(tmp_path, kind)
    for read in (check_audio, lambda path: read_audio(path, 16000)):
        with pytest.raises(MusaeError, match=words) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_file_of_less_than_a_sample_is_one_sentence(tmp_path):
    with pytest.raises(MusaeError, match="less than a sample"):
        read_audio(damaged(tmp_path, "instant wav"), 16000)


def test_a_file_that_cannot_be_sought_in_is_one_sentence(tmp_path):
    """Whose frames in the middle are damaged."""
    soundfile.write(tmp_path / "a.flac", np.random.default_rng(0).normal(size=160_000) * 0.1, 16000)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[len(data) // 4 :] = bytes(len(data) - len(data) // 4)
    (tmp_path / "a.flac").write_bytes(data)
    for read in (lambda path: read_audio(path, 16000, 8.0, 1.0), lambda path: read_end(path, 16000, 1, 1.0)):
        with pytest.raises(MusaeError, match=r"a\.flac is truncated or damaged"):
            read(tmp_path / "a.flac")


@pytest.mark.parametrize("channels", [1, 2, 5, 1024])
def test_any_number_of_channels_is_averaged(tmp_path, channels):
    sound = np.random.default_rng(0).normal(size=(3_000, channels)).astype(np.float32) / 10
    soundfile.write(tmp_path / "a.wav", sound, 16000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav", 16000), sound.mean(axis=1), atol=1e-6)
    info = check_audio(tmp_path / "a.wav")
    assert (info.samples, info.channels) == (3_000, channels)
    assert info.highest == pytest.approx(sound.mean(axis=1).max(), rel=1e-5)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(MusaeError, match="no such file"):
        read_audio(tmp_path / "none.wav", 16000)


def test_writing_refuses_what_is_not_sound(tmp_path):
    with pytest.raises(MusaeError, match="not numbers"):
        write_audio(tmp_path / "a.wav", np.array([0.0, np.inf]), 16000)
    with pytest.raises(MusaeError, match="shape"):
        write_audio(tmp_path / "a.wav", np.zeros((10, 2)), 16000)
    with pytest.raises(MusaeError, match=r"'\.txt'"):
        write_audio(tmp_path / "a.txt", np.zeros(10), 16000)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_takes_no_more_is_one_sentence_and_leaves_nothing(tmp_path):
    # A limit on the size of files makes a real write fail just as a full disk does.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(MusaeError, match="could not be written") as caught:
            write_audio(tmp_path / "a.wav", tone(), 16000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.__cause__.errno in (errno.EFBIG, errno.ENOSPC)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_the_same_sound_is_the_same_file(tmp_path, suffix):
    sound = 0.3 * np.sin(np.arange(40_000) * 0.05).astype(np.float32)
    for name in ("a", "b"):
        write_audio(tmp_path / f"{name}{suffix}", sound, 16_000)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    heard, _ = soundfile.read(tmp_path / f"b{suffix}")  # checksums are verified: damaged pages would be dropped
    assert len(heard) == len(sound) and np.corrcoef(heard, sound)[0, 1] > 0.95
