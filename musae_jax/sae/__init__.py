"""Sparse autoencoders: the inference rule, training, metrics, and the files that others read."""

from musae_jax.sae.batch_topk import BatchTopKConfig
from musae_jax.sae.formats import load_sae, save_maximum, save_sae
from musae_jax.sae.metrics import evaluate
from musae_jax.sae.sae import SAE, SAEConfig, sae_decode, sae_encode
from musae_jax.sae.train import train_sae

__all__ = [
    "SAE",
    "BatchTopKConfig",
    "SAEConfig",
    "evaluate",
    "load_sae",
    "sae_decode",
    "sae_encode",
    "save_maximum",
    "save_sae",
    "train_sae",
]
