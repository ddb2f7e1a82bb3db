"""Sound written as it comes: stereo, clipping, and nothing under its name when the maker fails."""

import struct

import numpy as np
import pytest
import soundfile

from musae_jax.audio.sink import _wav_header, sound_sink
from musae_jax.errors import MusaeError


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_blocks_of_stereo_become_one_file(tmp_path, suffix):
    sound = np.stack([np.sin(np.arange(9000) * 0.05), 2 * np.sin(np.arange(9000) * 0.03)])  # [2, S], one too loud
    for name in ("a", "b"):
        with sound_sink(tmp_path / f"{name}.{suffix}", suffix, 16_000, 2, 9000) as write:
            for first in range(0, 9000, 2500):
                write(sound[:, first : first + 2500])
    heard, rate = soundfile.read(tmp_path / f"a.{suffix}", always_2d=True)
    assert rate == 16_000 and heard.shape == (9000, 2)
    assert np.abs(heard.T - np.clip(sound, -1, 1)).max() < (0.2 if suffix == "ogg" else 1e-4)
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_a_maker_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(MusaeError, match="not numbers"), sound_sink(tmp_path / "a.wav", "wav", 16_000, 1, 9) as write:
        write(np.zeros(5))
        write(np.full(4, np.nan))
    assert not list(tmp_path.iterdir())


def test_the_header_of_a_stream_states_its_length_where_it_fits():
    assert struct.unpack("<I", _wav_header(16_000, 2, 100)[-4:]) == (400,)
    assert struct.unpack("<I", _wav_header(16_000, 2, 1 << 31)[-4:]) == (0xFFFFFFFF,)
