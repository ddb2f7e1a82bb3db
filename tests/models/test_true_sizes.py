"""The public checkpoints at their true sizes, with random weights written by transformers."""

import math
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from torch_models import torch_config
from true_sizes import FRAMES, IDS, SIZES, STEPS, some_codes, some_melody, some_sound, spec

from musae_jax.bench.trainers import held_memory
from musae_jax.models.checkpoints import load_musicgen, read_config
from musae_jax.models.generate import generate
from musae_jax.models.musicgen import decode_codes, encode_audio, encode_text, forward
from musae_jax.models.musicgen_table import AUDIO, IGNORED, hf_shapes

torch = pytest.importorskip("torch")


def largest_difference(ours, theirs):
    """Relative to the largest value."""
    assert ours.shape == theirs.shape
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("musicgen-small", None),
        # As wide as they are, but only so many blocks.
        ("musicgen-stereo-small", 3),
        ("musicgen-melody", 3),
        ("musicgen-stereo-melody", 2),
    ],
)
def test_converted_at_full_size_it_equals_transformers(name, layers):
    with tempfile.TemporaryDirectory() as folder:  # 2.3 GB, not to be kept for three runs
        program = Path(__file__).with_name("true_sizes.py")
        subprocess.run([sys.executable, program, name, folder, str(layers or 0)], check=True)
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        before = held_memory("VmRSS")
        mg = load_musicgen(folder)
        held = sum(leaf.nbytes for leaf in jax.tree.leaves(mg.params)) / 2**20
        assert held_memory("VmHWM") - before < 1.5 * held + 200  # never a second copy of all weights
        with np.load(Path(folder) / "reference.npz") as file:
            theirs = dict(file)
    c = mg.config
    sizes = spec(name, layers)
    assert c.decoder.hidden_size == sizes["decoder"]["hidden_size"]
    assert c.decoder.num_hidden_layers == (layers or 24)
    melody = some_melody() if c.melody else None
    text = encode_text(mg, IDS)
    taps = tuple(range(c.decoder.num_hidden_layers))
    out = forward(c, mg.params, some_codes(c.num_codebooks), text, taps=taps, melody=melody)
    assert largest_difference(out.logits, theirs["logits"]) < 1e-4
    for layer in taps:
        assert largest_difference(out.residuals[layer], theirs["residuals"][layer]) < 1e-4
    frames = STEPS - c.decoder.delays + 1
    made = generate(c, mg.params, text, jax.random.key(0), frames / 50, temperature=0.0, melody=melody, audio=False)
    np.testing.assert_array_equal(made.codes, theirs["codes"])
    assert len(np.unique(theirs["codes"])) > frames  # not a trivial agreement
    sound = np.repeat(some_sound()[:, None], c.audio_channels, axis=1)
    codes = encode_audio(c, mg.params, sound if c.audio_channels == 2 else sound[:, 0])
    for side in range(c.audio_channels):
        np.testing.assert_array_equal(codes[:, side :: c.audio_channels], theirs["encoded"])
    back = np.asarray(decode_codes(c, mg.params, codes)).reshape(-1, 640 * FRAMES)
    assert largest_difference(back[:1], theirs["decoded"]) < 1e-4
    np.testing.assert_array_equal(back[0], back[-1])


@pytest.mark.parametrize("name", SIZES)
def test_every_tensor_has_the_shape_that_transformers_gives_it(tmp_path, name):
    """All depths and widths, the largest too: nothing is computed on either side."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config, cls = torch_config(spec(name))
        config.save_pretrained(tmp_path)
        with torch.device("meta"):
            theirs = {key: tuple(value.shape) for key, value in cls(config).state_dict().items()}
    ours = {key: shape for key, (shape, *_) in hf_shapes(read_config(tmp_path)).items()}
    theirs = {
        key: shape
        for key, shape in theirs.items()
        if not key.startswith(AUDIO) and not any(pattern.fullmatch(key) for pattern in IGNORED)
    }
    assert ours == theirs
    size = sum(map(math.prod, ours.values()))
    assert size > {"small": 5e8, "medium": 1.4e9, "large": 3.2e9}[SIZES[name][0]] * (0.8 if "melody" in name else 1.0)
