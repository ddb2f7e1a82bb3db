"""What a path is, and what this machine has: the text behind `musae info` and `musae doctor`."""

import importlib.metadata
import importlib.util
import platform
from pathlib import Path

import jax

from musae_jax.activations.store import open_store
from musae_jax.compose.soundfont import find_soundfont
from musae_jax.errors import MusaeError
from musae_jax.files import read_json
from musae_jax.models.checkpoints import load_musicgen
from musae_jax.sae.formats import is_sae, load_sae
from musae_jax.sae.hooks import describe_hook


def describe(path: str) -> str:
    """A few lines about a run folder, an activation store, an SAE, or a model."""
    folder = Path(path)
    if (folder / "run.json").exists():
        record = read_json(folder / "run.json")
        stages = ", ".join(f"{name} {row['seconds']:.0f} s" for name, row in record["stages"].items())
        return f"run of {record['config']['model']}, {record['state']}: {stages}"
    if (folder / "metadata.json").exists():
        store = open_store(folder)
        clips, positions, width = len(store.clip_ids), store.positions, store.d_in
        return f"activations at {store.hook}: {clips} clips × {positions} positions × {width}"
    if is_sae(folder):
        c = load_sae(folder).config
        active = f", k = {c.k}" if c.k else ""
        return f"{c.architecture} SAE: {c.d_in} → {c.d_sae}{active}, at {describe_hook(c.hook)}"
    if path != "pocket" and folder.exists() and not (folder / "config.json").exists():
        raise MusaeError(
            f"{path} holds no run.json, metadata.json, cfg.json or config.json; give a folder that musae wrote"
        )
    mg = load_musicgen(path)
    c = mg.config
    count = sum(leaf.size for leaf in jax.tree.leaves(mg.params))
    sizes = f"{c.decoder.num_hidden_layers} blocks of width {c.decoder.hidden_size}"
    codes = f"{c.num_codebooks} codebooks of {c.decoder.vocab_size}, {c.frame_rate:g} Hz frames"
    tokenizer = "with" if mg.tokenizer is not None else "without"
    return (
        f"MusicGen: {sizes}, {codes}, {c.sampling_rate} Hz sound, {count / 1e6:.1f} M parameters, {tokenizer} tokenizer"
    )


def doctor() -> str:
    """Versions and devices, and how to get what is missing."""
    names = ("jax", "flax", "optax", "orbax-checkpoint", "transformers", "librosa", "numpy")
    lines = [f"python {platform.python_version()}", *(f"{name} {importlib.metadata.version(name)}" for name in names)]
    lines += [f"device {device.platform} {device.device_kind}" for device in jax.devices()]
    font = find_soundfont()
    lines.append(f"soundfont {font.name}" if font else "no soundfont: `pip install pretty_midi` brings one")
    if importlib.util.find_spec("tinysoundfont") is None:
        lines.append("tinysoundfont (optional) is missing: `pip install --no-deps tinysoundfont`")
    return "\n".join(lines)
