"""Six prompts, what the model plays, and what the composer would have written: sounds to hear and one picture."""

from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from musae_jax.audio.io import write_audio
from musae_jax.batching import in_batches
from musae_jax.compose.captions import write_caption
from musae_jax.compose.render import render
from musae_jax.explorer.pictures import HOP, MELS, mel_picture, palette
from musae_jax.files import atomic_path
from musae_jax.models.generate import generate
from musae_jax.models.musicgen import MusicGen, decode_codes, encode_audio, encode_text
from musae_jax.pocket.corpus import HELD_OUT_SEED, composition

COUNT = 6
SECONDS = 10.0
PICTURE = "spectrograms.png"
HEADS = ("played by the model", "composed, through the codec", "composed")
SCALE, GAP, LINE = 2, 12, 22  # a level is drawn twice as high; pixels
PAPER, INK = (250, 248, 244), (20, 22, 46)


def write_examples(mg: MusicGen, folder: str | Path, seed: int = 0) -> Path:
    """Writes 1.ogg … 6.ogg, spectrograms.png and README.md into `folder`; returns it.

    The prompts are complete captions of the first held-out clips; nothing is picked by ear. The picture has a row a
    prompt: the model's sound, the clip that has the caption through the codec, and the clip itself.
    """
    folder = Path(folder)
    config = mg.config
    written = [composition(HELD_OUT_SEED, index, SECONDS) for index in range(COUNT)]
    prompts = [
        write_caption(one.style, np.random.default_rng([HELD_OUT_SEED, n]), complete=True)
        for n, one in enumerate(written)
    ]
    text = encode_text(mg, prompts)
    played = np.asarray(generate(config, mg.params, text, jax.random.key(seed), seconds=SECONDS).audio)
    composed = np.stack([render(one.score, config.sampling_rate) for one in written])
    through = in_batches(lambda x: decode_codes(config, mg.params, encode_audio(config, mg.params, x)), composed)
    for number, audio in enumerate(played, start=1):
        write_audio(folder / f"{number}.ogg", audio, config.sampling_rate)
    picture = _picture(prompts, (played, through, composed))
    with atomic_path(folder / PICTURE) as temporary:
        picture.save(temporary, "PNG", optimize=True)
    lines = [f"{n}. [{prompt}]({n}.ogg)" for n, prompt in enumerate(prompts, start=1)]
    with atomic_path(folder / "README.md") as temporary:
        Path(temporary).write_text(
            "# Six examples\n\nThe captions of the first six held-out clips as prompts, guidance"
            f" {config.sampling.guidance_scale:g}, top-p {config.sampling.top_p:g}, one seed, nothing picked by ear."
            f"\n\n{chr(10).join(lines)}\n\n"
            f"![What was played beside what was composed]({PICTURE})\n",
            encoding="utf-8",
        )
    return folder


def _picture(prompts: list[str], columns: tuple[np.ndarray, ...]) -> Image.Image:
    """Log-mel pictures of columns [COUNT, S] side by side, a row a prompt under its words."""
    width, height = columns[0].shape[1] // HOP, MELS * SCALE
    size = (len(columns) * (width + GAP) + GAP, LINE + len(prompts) * (height + LINE + GAP))
    sheet = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, head in enumerate(HEADS):
        draw.text((GAP + number * (width + GAP), 4), head, INK, font)
    for row, prompt in enumerate(prompts):
        y = LINE + row * (height + LINE + GAP)
        draw.text((GAP, y + 3), f"{row + 1}. {prompt}", INK, font)
        for number, sounds in enumerate(columns):
            levels = mel_picture(sounds[row], width)
            panel = Image.frombytes("P", levels.shape[::-1], levels.tobytes())
            panel.putpalette(palette())
            sheet.paste(panel.convert("RGB").resize((width, height)), (GAP + number * (width + GAP), y + LINE))
    return sheet.quantize(32, dither=Image.Dither.NONE)  # a quarter of the bytes
