"""A small activation store with known structure: sparse sums of planted directions, a mean that depends on position."""

from pathlib import Path

import numpy as np

from musae_jax.activations.store import Store, StoreWriter, open_store

D, F, POSITIONS, CLIPS = 16, 24, 11, 40


def planted_store(folder: Path, clips: int = CLIPS) -> Store:
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(F, D))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    weights = rng.uniform(0.5, 1.5, (clips, POSITIONS, F)) * (rng.random((clips, POSITIONS, F)) < 2 / F)
    residuals = weights @ directions + 3 * rng.normal(size=(POSITIONS, D)) + 20
    description = {"model": "planted", "hook": "blocks.0.resid_post", "layer": 0, "d": D, "positions": POSITIONS}
    writer = StoreWriter(folder, {**description, "dtype": "float32"}, [f"clip{i:03d}" for i in range(clips)], 7)
    while not writer.complete:
        start = 7 * writer.done
        writer.write_shard(residuals[start : start + len(writer.shard_clips(writer.done))].astype(np.float32))
    return open_store(folder)
