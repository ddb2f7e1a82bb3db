"""From a model and music to residuals on disk, and from there to shuffled batches."""

from musae_jax.activations.batches import Batches
from musae_jax.activations.harvest import harvest, hook_name
from musae_jax.activations.store import Store, StoreWriter, open_store

__all__ = ["Batches", "Store", "StoreWriter", "harvest", "hook_name", "open_store"]
