"""Sound in and out: reading, resampling, writing, and cutting folders of music into clips."""

from musae_jax.audio.clips import Clip, ClipSource, load_clip, load_truth, open_clips, split_tracks
from musae_jax.audio.io import read_audio, write_audio

__all__ = [
    "Clip",
    "ClipSource",
    "load_clip",
    "load_truth",
    "open_clips",
    "read_audio",
    "split_tracks",
    "write_audio",
]
