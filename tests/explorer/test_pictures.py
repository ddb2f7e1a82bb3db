import numpy as np
from PIL import Image

from musae_jax.explorer.pictures import MELS, RATE, mel_picture, write_picture


def test_a_rising_tone_rises_in_the_picture_and_time_runs_with_the_frames(tmp_path):
    time = np.arange(RATE * 2) / RATE
    audio = np.where(time < 1, np.sin(2 * np.pi * 300 * time), np.sin(2 * np.pi * 3000 * time)) * 0.3
    picture = mel_picture(audio)
    assert picture.shape == (MELS, 100) and picture.max() == 255
    rows = picture.argmax(0)
    assert (rows[:48] > rows[52:].max()).all()  # row 0 is the top: the low tone lies below the high one
    write_picture(tmp_path / "a.png", audio)
    image = Image.open(tmp_path / "a.png")
    assert image.size == (100, MELS) and image.mode == "P"
    light = np.asarray(image.convert("L"))
    assert light[rows[10], 10] < 60 < 230 < light[0, 10]  # ink on paper


def test_a_click_is_in_its_own_column():
    audio = np.zeros(RATE)
    audio[25 * 320 + 160] = 0.9  # the middle of frame 25
    assert mel_picture(audio).sum(0).argmax() == 25


def test_silence_and_short_clips_are_paper():
    assert mel_picture(np.zeros(RATE)).max() == 0 or len(np.unique(mel_picture(np.zeros(RATE)))) == 1
    assert mel_picture(np.zeros(100)).shape == (MELS, 1)
