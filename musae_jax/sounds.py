"""From prompts to sound files and streams: what `musae generate` does."""

import contextlib
import re
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from musae_jax.audio.io import QUIETEST, read_audio, read_end
from musae_jax.audio.sink import FORMATS, is_stream, sound_sink
from musae_jax.compilation import compiling_seconds
from musae_jax.config import GenerateConfig
from musae_jax.errors import MusaeError
from musae_jax.mesh import make_mesh, share_of_work
from musae_jax.models.checkpoints import load_musicgen
from musae_jax.models.chroma import LONGEST as LONGEST_MELODY
from musae_jax.models.edits import Edits
from musae_jax.models.generate import generate_stream
from musae_jax.models.layout import equal_rows, place_musicgen
from musae_jax.models.musicgen import MusicGen, MusicGenConfig, encode_prompts, refuse_melody
from musae_jax.sae.sae import SAE
from musae_jax.steering.requests import find_sae, read_schedules, read_strengths, requested_edits, run_model
from musae_jax.steering.schedules import read_schedule

LONGEST = 3600.0  # seconds


def write_sounds(config: GenerateConfig, progress: Callable[[int, int, str], None]) -> tuple[str, bool]:
    """Makes the sound of each prompt; a summary for people, and whether standard output has been given the sound.

    `progress` is told the seconds of music that are done.

    Raises:
      MusaeError: a setting out of range, a file that cannot be read or written.
    """
    if not 0.1 <= config.seconds <= LONGEST:
        raise MusaeError(f"--seconds is {config.seconds}; it must be between 0.1 and {LONGEST:g}")
    if not 0 <= config.seed < 1 << 32:
        raise MusaeError(f"--seed is {config.seed}; it must be between 0 and {(1 << 32) - 1}")
    if not 0 < config.stride_seconds < config.window_seconds:
        raise MusaeError(
            f"--stride-seconds is {config.stride_seconds} and --window-seconds {config.window_seconds}; the stride "
            "must be above 0 and smaller"
        )
    process, processes = share_of_work(config.coordinator, config.processes, config.process)
    prompts = config.prompt or ("",)
    places = sound_places(config.out, prompts, config.format)[process::processes]
    if not places:
        return f"nothing to do for process {process}: there are {len(prompts)} prompts", str(config.out) == "-"
    asked = _asked(config)
    model = config.model or (config.sae and run_model(config.sae)) or "pocket"
    mg = _on_devices(load_musicgen(model, config.dtype), config.model_parallel, len(places))
    numbers = range(len(prompts))[process::processes]
    # Devices get equal parts: the last prompt again, and again, where there are too few.
    numbers = [*numbers, *[numbers[-1]] * (equal_rows(mg.params, len(places)) - len(places))]
    prompts = [prompts[number] for number in numbers]
    c = mg.config
    heard = None if config.continue_from is None else _read_prompt(config, c)
    given = 0 if heard is None else heard.shape[-1]
    edits, steered = _steering(config, asked, c, given // c.hop_length)
    melody = None if config.melody is None else _read_melody(config, c, given / c.sampling_rate + config.seconds)
    started, compiled = time.perf_counter(), compiling_seconds()
    chunks = generate_stream(
        c,
        mg.params,
        encode_prompts(mg, prompts) if any(prompts) else None,
        jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(config.seed), np.array(numbers)),  # whoever makes it
        seconds=config.seconds,
        guidance_scale=config.guidance_scale,
        top_k=config.top_k,
        temperature=config.temperature,
        edits=edits,
        batch_size=len(prompts),
        chunk_seconds=config.chunk_seconds,
        top_p=config.top_p,
        prompt=heard,
        melody=melody,
        two_pass=config.two_pass,
        window_seconds=config.window_seconds,
        stride_seconds=config.stride_seconds,
    )
    skipped = 0 if config.keep_prompt else given
    total = given + c.frames(config.seconds) * c.hop_length
    done = clipped = 0
    with contextlib.ExitStack() as stack:
        sinks = [
            stack.enter_context(sound_sink(place, format, c.sampling_rate, c.audio_channels, total - skipped))
            for place, format in places
        ]
        for chunk in chunks:
            sound = chunk.audio[: len(places), ..., max(0, skipped - done) :]
            done += chunk.audio.shape[-1]
            if sound.shape[-1]:
                for sink, row in zip(sinks, sound):
                    sink(row)
                clipped += int((np.abs(sound) > 1).sum())
            progress(round(done / c.sampling_rate), max(1, round(total / c.sampling_rate)), "s of music")
    compiling = compiling_seconds() - compiled
    took = max(time.perf_counter() - started - compiling, 1e-9)
    made = (total - given) / c.sampling_rate * len(places)
    name = "standard output" if str(config.out) == "-" else str(places[0][0])
    where = name if len(places) == 1 else f"{len(places)} files in {config.out}"
    lines = [
        f"{where}: {made:g} s of music in {took:.1f} s ({made / took:.2f} × real time), {compiling:.1f} s compiling"
    ]
    lines += steered
    if clipped:
        lines.append(
            f"{clipped} samples were louder than full scale and clipped; another seed or a lower guidance helps"
        )
    return "\n".join(lines), str(config.out) == "-"


def _on_devices(mg: MusicGen, model_parallel: int, rows: int) -> MusicGen:
    """The model on as many of this process's devices as have something to do."""
    devices = jax.local_devices()
    groups = max(1, min(len(devices) // max(1, model_parallel), rows))
    return place_musicgen(mg, make_mesh(model_parallel, devices[: groups * model_parallel]))


def sound_places(out: Path, prompts: tuple[str, ...], format: str) -> list[tuple[Path, str]]:
    """Where the sound of each prompt goes, and as what."""
    if is_stream(out):
        if len(prompts) > 1:
            raise MusaeError(f"{out} is a stream, which takes the sound of one prompt and not of {len(prompts)}")
        return [(out, "wav" if format == "auto" else format)]
    if len(prompts) > 1 or out.is_dir():
        if out.is_file():
            raise MusaeError(f"{out} is a file, but {len(prompts)} prompts need a folder; give another --out")
        format = "wav" if format == "auto" else format
        digits = len(str(len(prompts) - 1))
        return [(out / f"{i:0{digits}}-{_slug(prompt)}.{format}", format) for i, prompt in enumerate(prompts)]
    suffix = out.suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise MusaeError(f"{out} ends in {out.suffix!r}, but sound is written as {', '.join(FORMATS)}; rename it")
    if format not in ("auto", suffix):
        raise MusaeError(f"{out} ends in {out.suffix!r}, but --format is {format}; leave one of them out")
    return [(out, suffix)]


def _prompted(config: GenerateConfig) -> bool:
    return any(config.prompt) or config.melody is not None


Asked = tuple[SAE, dict[int, float], dict[int, str]]  # whose features; each one's strength and schedule


def _asked(config: GenerateConfig) -> Asked | None:
    """What steering is asked for, if any, as far as it can be told without the model."""
    if bool(config.steer) != bool(config.sae):
        raise MusaeError("--steer FEATURE=STRENGTH and --sae go together; give both, or neither")
    if not config.steer:
        for name, default in (("steer_how", None), ("schedule", ()), ("branches", None)):
            if getattr(config, name) != default:
                raise MusaeError(f"--{name.replace('_', '-')} says how to steer; give --steer and --sae too")
        return None
    if config.branches == "conditional" and not _prompted(config):
        raise MusaeError(
            "--branches conditional steers what hears the prompt, but there is none; give a prompt, or steer both"
        )
    strengths = read_strengths(config.steer, config.steer_how)
    return find_sae(config.sae), strengths, read_schedules(config.schedule, strengths)


_TOLD = {  # of a feature: its strength and its largest activation
    "contrast": "{0} by {1:g} × {2:.3g} along its contrast",
    "add": "{0} by {1:g} × {2:.3g}",
    "clamp": "{0} at {1:g} × {2:.3g}",
    "scale": "{0} times {1:g}",
    "ablate": "{0} taken out",
    "hold": "{0} at least {1:g} × {2:.3g}",
}


def _steering(
    config: GenerateConfig, asked: Asked | None, c: MusicGenConfig, given: int
) -> tuple[Edits | None, list[str]]:
    """What is done to the model's stream, and a line about it. `given` frames of music come before the new."""
    if asked is None:
        return None, []
    sae, strengths, schedules = asked
    scale = c.sampling.guidance_scale if config.guidance_scale is None else config.guidance_scale
    if config.branches == "unconditional" and _prompted(config) and scale == 1:
        raise MusaeError("--branches unconditional steers nothing at --guidance-scale 1, which leaves that branch out")
    how = config.steer_how or ("add" if sae.contrast is None else "contrast")
    branches = config.branches or ("conditional" if _prompted(config) else "both")

    def factors(schedule: str) -> np.ndarray:
        """What comes before the new music is read as its first frame is."""
        return np.pad(read_schedule(schedule)(config.seconds, c.frame_rate), (given, 0), mode="edge")

    edits = requested_edits(sae, strengths, how, schedules, branches, c.decoder, factors)
    largest = sae.maximum if sae.maximum is not None else np.zeros(sae.config.d_sae)
    told = ", ".join(
        _TOLD[how].format(feature, strength, largest[feature]) + (f" ({schedules[feature]})" if config.schedule else "")
        for feature, strength in strengths.items()
    )
    where = sae.config.hook
    if _prompted(config):  # else there is but one branch
        where += " in both branches" if branches == "both" else f" in the {branches} branch"
    return edits, [f"steered at {where}: feature {told}"]


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-") or "unconditional"


def _read_melody(config: GenerateConfig, c: MusicGenConfig, seconds: float) -> np.ndarray:
    """The melody to follow for so long, float32 [1, S]; what comes after is not read."""
    refuse_melody(c)
    sound = read_audio(config.melody, c.sampling_rate, seconds=seconds + LONGEST_MELODY)
    if np.abs(sound).max() < QUIETEST:
        raise MusaeError(f"{config.melody} is silent, so there is no melody to follow; choose another file")
    return sound[None]


def _read_prompt(config: GenerateConfig, c: MusicGenConfig) -> np.ndarray:
    """The end of the file to go on from, in whole frames: float32 [1, S], in stereo [1, 2, S]."""
    room = config.window_seconds - min(config.seconds, config.stride_seconds)
    sound = read_end(config.continue_from, c.sampling_rate, c.audio_channels, room)
    frames = min(sound.shape[-1] // c.hop_length, c.frames(room))
    if not frames:
        raise MusaeError(
            f"{config.continue_from} lasts {sound.shape[-1] / c.sampling_rate:.3f} s, less than one frame of this "
            f"model ({1 / c.frame_rate:g} s); give a longer file"
        )
    sound = sound[:, sound.shape[-1] - frames * c.hop_length :]
    return sound if c.audio_channels == 1 else sound[None]
