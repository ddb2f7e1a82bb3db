"""What a path is, and what this machine has: the text behind `musae info` and `musae doctor`."""

import collections
import importlib.metadata
import importlib.util
import platform
from pathlib import Path

import jax

from musae_jax.activations.store import Store, is_store, open_store
from musae_jax.compose.soundfont import find_soundfont
from musae_jax.errors import MusaeError
from musae_jax.files import read_json
from musae_jax.models.ast import load_tagger
from musae_jax.models.audiocraft import is_audiocraft
from musae_jax.models.clap_checkpoints import read_clap_config
from musae_jax.models.summary import describe_model
from musae_jax.places import open_place
from musae_jax.sae.formats import is_sae, load_sae
from musae_jax.sae.hooks import describe_hook


def describe(path: str) -> str:
    """A few lines about a run folder, an activation store, an SAE, a MusicGen, a tagger or a CLAP."""
    folder = Path(path)
    if (folder / "run.json").exists():
        record = read_json(folder / "run.json")
        stages = ", ".join(f"{name} {row['seconds']:.0f} s" for name, row in record["stages"].items())
        return f"run of {record['config']['model']}, {record['state']}: {stages}"
    if is_store(path) or open_place(path).system is not None:  # behind a URL there are only stores
        return _describe_store(open_store(path))
    if is_sae(folder):
        c = load_sae(folder).config
        active = f", k = {c.k}" if c.k else ""
        return f"{c.architecture} SAE: {c.d_in} → {c.d_sae}{active}, at {describe_hook(c.hook)}"
    if kind := _model_type(folder):
        return kind
    if path != "pocket" and folder.exists() and not is_audiocraft(folder) and not (folder / "config.json").exists():
        raise MusaeError(
            f"{path} holds no run.json, metadata.json, cfg.json, config.json or state_dict.bin; give a folder that"
            " musae wrote, or a model's"
        )
    return describe_model(path)


def _model_type(folder: Path) -> str:
    """A line about a tagger or a CLAP, "" for anything else."""
    kind = read_json(folder / "config.json").get("model_type") if (folder / "config.json").is_file() else None
    if kind == "audio-spectrogram-transformer":
        c = load_tagger(folder).config
        return (
            f"audio classifier (AST): {len(c.labels)} classes such as {c.labels[0]!r}, {c.num_hidden_layers} blocks of "
            f"width {c.hidden_size}, windows of {c.max_length} frames of {c.num_mel_bins} bands"
        )
    if kind == "clap":
        c = read_clap_config(folder)
        return (
            f"CLAP: sound of {c.sampling_rate} Hz in windows of {c.mel.max_length_s} s, HTS-AT of {c.audio.depths} "
            f"blocks, RoBERTa of {c.text.num_hidden_layers} blocks of width {c.text.hidden_size}, joint space of "
            f"{c.projection_dim}"
        )
    return ""


def _describe_store(store: Store) -> str:
    about = store.description
    clips, size = len(store.clip_ids), sum(row["bytes"] for row in store.rows)
    lines = [
        f"activations at {store.hook}: {clips} clips × {store.positions} positions × {store.d_in}, {about['dtype']},"
        f" {len(store)} shards, {size / 2**20:.1f} MiB"
    ]
    if "model" in about:
        lines.append(f"model {about['model'] or '(no name)'}, weights {about.get('revision', 'unknown')[:12]}")
    if "codec" in about:
        codec = about["codec"]
        lines.append(
            f"codes of {codec['codebooks']} codebooks from {codec['sampling_rate']} Hz sound, codec"
            f" {codec['revision'][:12]}, {about['frame_rate']:g} Hz frames, {about['seconds']:g} s a clip,"
            f" {'delayed' if about['delayed'] else 'not delayed'}, text {about['text']}"
        )
    if store.split:
        halves = collections.Counter(store.split.values())
        shares = ", ".join(f"{count} {half}" for half, count in sorted(halves.items()))
        lines.append(f"{len(set(store.tracks.values()))} tracks, split by track into {shares} clips")
    return "\n".join([*lines, f"content {store.content_sha256[:12]}"])


def doctor() -> str:
    """Versions and devices, and how to get what is missing."""
    names = ("jax", "flax", "optax", "orbax-checkpoint", "transformers", "librosa", "numpy")
    lines = [f"python {platform.python_version()}", *(f"{name} {importlib.metadata.version(name)}" for name in names)]
    lines += [f"device {device.platform} {device.device_kind}" for device in jax.devices()]
    font = find_soundfont()
    lines.append(f"soundfont {font.name}" if font else "no soundfont: `pip install pretty_midi` brings one")
    if importlib.util.find_spec("libtpu") is None:
        lines.append("libtpu (optional, for `musae bench pod`) is missing: `pip install libtpu`")
    if importlib.util.find_spec("onnxruntime") is None:
        lines.append("onnxruntime (optional, for Discogs-EffNet taggers) is missing: `pip install onnxruntime`")
    if importlib.util.find_spec("tinysoundfont") is None:
        lines.append("tinysoundfont (optional) is missing: `pip install --no-deps tinysoundfont`")
    return "\n".join(lines)
