"""A planted bench that takes seconds."""

from musae_jax.bench.planted import PlantedBench
from musae_jax.sae.planted import PlantedConfig

TINY = PlantedBench(
    planted=PlantedConfig(64, 24, roots=3, depth=2, rank=4, min_probability=0.02, max_probability=0.3),
    d_sae=32, k=4, steps=300, batch_size=256, lr=5e-3, shards=2, seeds=2,
)  # fmt: skip
