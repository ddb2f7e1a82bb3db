"""A file of two hours is harvested in the memory that a short one takes: sound is read window by window."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile

HARVEST = """
import sys
from pathlib import Path
from musae_jax.bench.trainers import held_memory
from musae_jax.config import HarvestConfig, RunConfig
from musae_jax.run import begin_run, run_stage
model, audio, out = sys.argv[1:]
harvest = HarvestConfig(control=False, dtype="float16")
run = begin_run(RunConfig(out=Path(out), model=model, audio=Path(audio), harvest=harvest))
run_stage(run, "harvest")
print(len(run.clips.clips), held_memory("VmHWM"))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
def test_two_hours_take_no_more_memory_than_five_minutes(tmp_path, tiny_folder):
    peaks = {}
    minute = np.random.default_rng(0).normal(size=(60 * 16_000, 2)) * 0.1
    for minutes in (5, 120):
        (tmp_path / f"{minutes}").mkdir()
        with soundfile.SoundFile(tmp_path / f"{minutes}" / "long.flac", "w", 16_000, 2) as file:
            for _ in range(minutes):
                file.write(minute)
        command = [sys.executable, "-c", HARVEST, tiny_folder, tmp_path / f"{minutes}", tmp_path / f"run{minutes}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        clips, peak = done.stdout.split()
        assert int(clips) == 6 * minutes
        peaks[minutes] = float(peak)
    whole = 120 * 60 * 16_000 * 2 * 4 / 2**20  # MiB, as float32
    assert peaks[120] - peaks[5] < 0.25 * whole  # a shard of activations is longer
