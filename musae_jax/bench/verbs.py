"""`musae bench NAME`: each measures something, prints a table, and stands a control or a peer beside every figure."""

from musae_jax.bench.music_verbs import MUSIC
from musae_jax.bench.speed_verbs import SPEED

BENCHES = {**MUSIC, **SPEED}
