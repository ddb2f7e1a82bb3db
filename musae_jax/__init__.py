"""Find, name, prove and steer the concepts a music generator has learned."""

from musae_jax.errors import MusaeError
from musae_jax.models.checkpoints import load_musicgen, save_musicgen
from musae_jax.models.chroma import encode_melody
from musae_jax.models.decoder import TextStates
from musae_jax.models.edits import Edits
from musae_jax.models.generate import generate, generate_stream
from musae_jax.models.musicgen import MusicGen, Output, decode_codes, encode_audio, encode_text, forward
from musae_jax.sae.formats import load_sae, save_sae
from musae_jax.sae.sae import SAE, SAEConfig, sae_decode, sae_encode
from musae_jax.steering.directions import steer, steer_contrast

__all__ = [
    "SAE",
    "Edits",
    "MusaeError",
    "MusicGen",
    "Output",
    "SAEConfig",
    "TextStates",
    "decode_codes",
    "encode_audio",
    "encode_melody",
    "encode_text",
    "forward",
    "generate",
    "generate_stream",
    "load_musicgen",
    "load_sae",
    "sae_decode",
    "sae_encode",
    "save_musicgen",
    "save_sae",
    "steer",
    "steer_contrast",
]
