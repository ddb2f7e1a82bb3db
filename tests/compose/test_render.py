"""What the composed music is trusted for: right pitches, exact onsets, the same sound every time, no clicks."""

import itertools
import shutil
import struct
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest

from musae_jax.compose import render as render_module
from musae_jax.compose.render import GAIN, RENDERERS, render
from musae_jax.compose.score import FRAME_RATE, Note, Score
from musae_jax.compose.sf2 import SoundFont
from musae_jax.compose.soundfont import find_soundfont, load_soundfont, render_note
from musae_jax.errors import MusaeError

RATE = 16000
HOP = RATE // FRAME_RATE
# The composer's programs and a spread of the other pitched ones (no bells, effects or percussion: no one pitch).
PROGRAMS = (0, 4, 6, 11, 12, 16, 19, 22, 24, 25, 32, 33, 38, 40, 42, 46, 48, 52, 56, 57, 61, 65, 68, 71, 73, 75, 80, 81)


@pytest.fixture(scope="module")
def font() -> SoundFont:
    return load_soundfont(find_soundfont())


def band(velocity: int = 80) -> Score:
    """Ten seconds of melody, triads, bass and drums."""
    notes = []
    for beat in range(20):
        start = 25 * beat
        notes.append(Note(start, 25, 67 + (0, 2, 4, 5, 7)[beat % 5], velocity, 73, "melody"))
        notes.append(Note(start, 25, 36 + (0, 9, 5, 7)[beat // 4 % 4], velocity, 33, "bass"))
        notes.append(Note(start, 5, 36 if beat % 2 == 0 else 38, velocity, 0, "drums"))
        notes += [Note(start + half, 5, 42, velocity, 0, "drums") for half in (0, 12)]
        if beat % 4 == 0:
            notes += [Note(start, 100, 48 + root, velocity, 48, "chords") for root in (0, 4, 7)]
    return Score(tuple(notes), 500)


def cents_off(wave: np.ndarray, pitch: int, rate: int) -> float:
    """Distance from `pitch` in cents of the strongest harmonic sum within an octave either side, octaves folded."""
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 1 << 17))
    spectrum /= spectrum.max()
    cents = np.arange(-1250, 1250, 2.0)
    hertz = 440 * 2 ** ((pitch - 69 + cents / 100) / 12)
    sums = np.zeros(len(hertz))
    for harmonic in range(1, 9):
        bins = np.rint(harmonic * hertz * (1 << 17) / rate).astype(int)
        inside = bins < len(spectrum)
        sums[inside] += np.sqrt(spectrum[bins[inside]]) * 0.85 ** (harmonic - 1)
    best = cents[np.argmax(sums)]
    return (best + 600) % 1200 - 600


def test_programs_sound_at_the_pitches_of_the_score(font):
    cases = [(program, pitch) for program in PROGRAMS for pitch in (45, 52, 60, 67, 76)]
    errors = {}
    for program, pitch in cases:
        wave = render_note(font, program, False, pitch, 90, 60, RATE)[1600 : 60 * HOP]
        errors[program, pitch] = cents_off(wave, pitch, RATE)
    off = {case: error for case, error in errors.items() if abs(error) > 50}
    assert len(off) <= 0.05 * len(cases), off
    assert np.median(np.abs(list(errors.values()))) < 12


def test_the_tuning_check_notices_a_wrong_pitch(font):
    wave = render_note(font, 73, False, 61, 90, 60, RATE)[1600 : 60 * HOP]
    assert abs(cents_off(wave, 60, RATE)) > 50


@pytest.mark.parametrize("renderer", RENDERERS)
def test_onset_is_exact(renderer):
    if renderer == "tinysoundfont":
        pytest.importorskip("tinysoundfont")
    for voice, program, pitch in (("melody", 0, 60), ("melody", 80, 72), ("bass", 33, 40), ("drums", 0, 38)):
        audio = render(Score((Note(37, 20, pitch, 100, program, voice),), 100), RATE, renderer)
        assert audio.shape == (100 * HOP,) and audio.dtype == np.float32
        start = 37 * HOP
        assert not audio[:start].any()
        assert np.abs(audio[start : start + RATE // 25]).max() > 0.005, (voice, program)
        first = np.flatnonzero(np.abs(audio) > 1e-4 * np.abs(audio).max())[0]
        assert first - start < 0.01 * RATE, (voice, program)


def test_a_note_is_the_same_samples_wherever_it_stands():
    one, other = (render(Score((Note(start, 30, 64, 90, 24, "melody"),), 200)) for start in (0, 83))
    assert np.array_equal(one[: 100 * HOP], other[83 * HOP : 183 * HOP])


def test_rendering_is_linear_in_the_notes():
    score = band()
    parts = [
        render(Score(tuple(n for n in score.notes if n.voice == voice), score.frames))
        for voice in ("melody", "chords", "bass", "drums")
    ]
    assert np.abs(render(score)).max() < 1
    np.testing.assert_allclose(sum(parts), render(score), atol=1e-5)


def test_same_samples_whatever_was_rendered_before(font):
    """The cache keeps waves of some length; a longer or shorter note from them must equal one made afresh."""
    from musae_jax.compose import soundfont

    def notes(lengths):
        return {n: render_note(font, program, False, 62, 70, n, RATE) for program in (0,) for n in lengths}

    results = []
    for lengths in ((5, 60, 200), (200, 60, 5)):
        soundfont._cache = soundfont._Cache(1 << 28)
        results.append(notes(lengths))
    for n in (5, 60, 200):
        assert np.array_equal(results[0][n], results[1][n])


def test_same_samples_in_another_process():
    code = (
        "import hashlib\nfrom musae_jax.compose.render import render\nfrom musae_jax.compose.score import Note, Score\n"
        "notes = tuple(Note(9 * i, 20, 50 + i, 80, p, 'melody') for i, p in enumerate((0, 19, 48, 56)))\n"
        "print(hashlib.sha256(render(Score(notes, 100)).tobytes()).hexdigest())"
    )
    sums = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)}
    assert len(sums) == 1 and len(sums.pop().strip()) == 64


@pytest.mark.parametrize("renderer", ["numpy", "additive"])
def test_harder_is_louder(renderer):
    for voice, program, pitch in (("melody", 0, 60), ("melody", 56, 67), ("chords", 48, 55), ("drums", 0, 36)):
        levels = []
        for velocity in (20, 45, 70, 95, 127):
            audio = render(Score((Note(0, 25, pitch, velocity, program, voice),), 50), RATE, renderer)
            levels.append(float(np.sqrt(np.mean(audio**2))))
        assert all(b > 1.2 * a for a, b in itertools.pairwise(levels)), (program, levels)


def test_a_held_note_loops_without_clicks(font):
    """Once the attack is over no sample jumps more than the wave's own steepest slope early in the note, by much."""
    for program in (16, 19, 48, 56, 71, 73, 80):
        wave = render_note(font, program, False, 57, 100, 300, RATE)
        jumps = np.abs(np.diff(wave))
        early, late = jumps[RATE // 10 : RATE], jumps[RATE : 300 * HOP]
        assert late.max() < 1.6 * early.max() + 0.01 * np.abs(wave).max(), program
        sound = np.sqrt(np.mean(wave[5 * RATE : 300 * HOP] ** 2))
        assert sound > 0.1 * np.sqrt(np.mean(wave[RATE // 2 : RATE] ** 2)), program


def test_a_note_ends_softly_within_half_a_second(font):
    for program in (0, 16, 19, 48, 73, 80):
        wave = render_note(font, program, False, 60, 100, 50, RATE)
        assert len(wave) <= 50 * HOP + RATE // 2
        release = np.abs(np.diff(wave[50 * HOP - 200 :], append=0))
        assert release.max() < 1.6 * np.abs(np.diff(wave[: 50 * HOP])).max(), program
        assert np.abs(wave[-16:]).max() < 2e-3 * np.abs(wave).max(), program


def test_high_notes_do_not_fold_back(font):
    """A flute at MIDI 96 (2093 Hz) and 16 kHz: what is not near one of its harmonics below 8 kHz stays small."""
    wave = render_note(font, 73, False, 96, 100, 60, RATE)[2000 : 60 * HOP]
    power = np.abs(np.fft.rfft(wave * np.hanning(len(wave)))) ** 2
    hertz = np.fft.rfftfreq(len(wave), 1 / RATE)
    f0 = 440 * 2 ** ((96 - 69) / 12)
    near = np.abs(hertz / f0 - np.rint(hertz / f0)) * f0 < 60
    assert power[~near & (hertz > 300)].sum() < 0.01 * power.sum()


def test_every_usual_rate_keeps_the_loudness():
    levels = [float(np.sqrt(np.mean(render(band(), rate) ** 2))) for rate in (16000, 24000, 32000)]
    assert max(levels) < 1.15 * min(levels)
    with pytest.raises(MusaeError, match="11025"):
        render(band(), 11025)


def test_a_whole_band_at_full_force_stays_below_one():
    chords = tuple(Note(0, 100, 48 + i, 127, p, "chords") for p in (48, 56, 80, 19) for i in (0, 4, 7, 12))
    audio = render(Score((*band(127).notes, *chords), 500))
    assert np.abs(audio).max() < 1
    assert np.abs(render(band(110))).max() < 0.99  # loud music is not scaled


def test_numpy_sounds_like_tinysoundfont():
    """The spectrum over time of each program is that of an independent player with the same font."""
    pytest.importorskip("tinysoundfont")
    programs = (0, 12, 19, 24, 48, 56, 73)
    scores = [Score((Note(10, 100, 60, 80, program, "melody"),), 150) for program in programs]
    ours, theirs = (
        [_bands(render(s, RATE, renderer)).ravel() for s in scores] for renderer in ("numpy", "tinysoundfont")
    )
    similarity = np.corrcoef(ours, theirs)[: len(programs), len(programs) :]
    same, other = np.diag(similarity), similarity[~np.eye(len(programs), dtype=bool)]
    assert same.min() > 0.85 and same.mean() > 0.95, same
    assert other.mean() < 0.85, other  # so the numbers above say something


def _bands(audio: np.ndarray) -> np.ndarray:
    """Log power in 32 bands, equally wide on a log scale from 60 Hz to 8 kHz, every 20 ms: [frames, 32]."""
    frames = np.lib.stride_tricks.sliding_window_view(audio, 1024)[::HOP] * np.hanning(1024)
    power = np.abs(np.fft.rfft(frames)) ** 2
    edges = np.unique(np.rint(np.geomspace(60, 8000, 33) * 1024 / RATE).astype(int))
    return np.log10(np.add.reduceat(power, edges[:-1], axis=1) + 1e-6)


def test_without_a_font_plain_tones_play_and_one_warning_is_given(monkeypatch):
    monkeypatch.setattr(render_module, "find_soundfont", lambda path=None: None)
    render_module._warn_once.cache_clear()
    score = Score((Note(10, 60, 69, 90, 73, "melody"),), 100)
    with pytest.warns(UserWarning, match="MUSAE_SOUNDFONT"):
        audio = render(score)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(audio, render(score))
    assert abs(cents_off(audio[12 * HOP : 68 * HOP], 69, RATE)) < 10
    drums = render(Score(tuple(Note(20 * i, 5, key, 90, 0, "drums") for i, key in enumerate((36, 38, 42))), 100))
    assert np.abs(drums).max() > 0.01 and np.abs(drums).max() < 1


def test_tones_differ_by_family():
    scores = [Score((Note(0, 50, 60, 90, program, "melody"),), 50) for program in (0, 19, 48, 56, 73, 80)]
    bands = [_bands(render(score, RATE, "additive")) for score in scores]
    decibels = [10 * np.abs(one - other).mean() for i, one in enumerate(bands) for other in bands[:i]]
    assert min(decibels) > 2, decibels


def test_choices_that_do_not_exist_are_refused(monkeypatch, tmp_path):
    score = Score((Note(0, 10, 60, 90, 0, "melody"),), 50)
    with pytest.raises(MusaeError, match="choose one of numpy"):
        render(score, renderer="fluidsynth")
    with pytest.raises(MusaeError, match="velocity 0"):
        render(Score((Note(0, 10, 60, 0, 0, "melody"),), 50))
    with pytest.raises(MusaeError, match="bank 128"):
        render(Score((Note(0, 10, 5, 90, 0, "drums"),), 50))
    with pytest.raises(MusaeError, match="missing"):
        render(score, font=tmp_path / "none.sf2")
    monkeypatch.setenv("MUSAE_SOUNDFONT", str(tmp_path / "none.sf2"))
    with pytest.raises(MusaeError, match="MUSAE_SOUNDFONT"):
        render(score)


def test_tinysoundfont_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(render_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MusaeError, match="pip install --no-deps tinysoundfont"):
        render_module._tinysoundfont()


def test_the_font_of_the_package_goes_before_the_systems(monkeypatch, tmp_path):
    monkeypatch.delenv("MUSAE_SOUNDFONT", raising=False)
    (tmp_path / "share/sounds/sf2").mkdir(parents=True)
    system = tmp_path / "share/sounds/sf2/a.sf2"
    system.write_bytes(b"")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert find_soundfont().name == "TimGM6mb.sf2" and "pretty_midi" in str(find_soundfont())
    monkeypatch.setenv("MUSAE_SOUNDFONT", str(system))
    assert find_soundfont() == system
    monkeypatch.delenv("MUSAE_SOUNDFONT")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert find_soundfont() == system


# -- a font written here, byte by byte ---------------------------------------------------------------------------------


def chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def small_font(
    bank=0, rate=22050, sample_end=2205, loop=(0, 2205), root=69, generators=(), sample=0, instrument=0, kind=1
):
    """A font of one preset and one looped sine of 440 Hz (44 periods in 2205 samples at 22050 Hz)."""
    wave = (12000 * np.sin(2 * np.pi * 440 * np.arange(2205) / 22050)).astype("<i2").tobytes() + bytes(92)
    gens = b"".join(struct.pack("<Hh", *g) for g in (*generators, (54, 1), (53, sample)))
    tables = {
        b"phdr": struct.pack("<20sHHHIII", b"P", 0, bank, 0, 0, 0, 0)
        + struct.pack("<20sHHHIII", b"E", 0, 0, 1, 0, 0, 0),
        b"pbag": struct.pack("<4H", 0, 0, 1, 0),
        b"pmod": bytes(10),
        b"pgen": struct.pack("<Hh", 41, instrument) + bytes(4),
        b"inst": struct.pack("<20sH", b"I", 0) + struct.pack("<20sH", b"E", 1),
        b"ibag": struct.pack("<4H", 0, 0, len(gens) // 4, 0),
        b"imod": bytes(10),
        b"igen": gens + bytes(4),
        b"shdr": struct.pack("<20s5IBbHH", b"S", 0, sample_end, *loop, rate, root, 0, 0, kind) + bytes(46),
    }
    lists = chunk(b"LIST", b"sdta" + chunk(b"smpl", wave))
    lists += chunk(b"LIST", b"pdta" + b"".join(chunk(name, body) for name, body in tables.items()))
    return chunk(b"RIFF", b"sfbk" + lists)


def written(tmp_path, content: bytes) -> SoundFont:
    path = tmp_path / "font.sf2"
    path.write_bytes(content)
    return SoundFont(path)


def test_a_written_font_plays_at_its_root_and_is_tuned(tmp_path):
    for generators, pitch, expected in (
        ((), 69, 69),
        ((), 81, 81),
        (((51, 3),), 60, 63),
        (((58, 57),), 57, 69),
        (((56, 0),), 40, 69),
    ):
        font = written(tmp_path, small_font(generators=generators))
        wave = render_note(font, 0, False, pitch, 100, 100, RATE)[800 : 100 * HOP]
        spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 1 << 17))
        hertz = np.argmax(spectrum) * RATE / (1 << 17)
        assert abs(1200 * np.log2(hertz / (440 * 2 ** ((expected - 69) / 12)))) < 3, generators


def test_attenuation_envelope_and_ranges_of_a_written_font(tmp_path):
    def level(*generators, at=1.0):
        wave = render_note(written(tmp_path, small_font(generators=generators)), 0, False, 69, 127, 100, RATE)
        part = wave[int(at * RATE) : int(at * RATE) + 1600]
        return 20 * np.log10(np.sqrt(np.mean(part**2)))

    assert level() == pytest.approx(20 * np.log10(12000 / 32768 / np.sqrt(2)), abs=0.1)
    assert level() - level((48, 250)) == pytest.approx(10, abs=0.1)
    assert level() - level((37, 200)) == pytest.approx(20, abs=0.1)  # sustain, in tenths of a decibel
    fall = level((36, 3986), (37, 1000), at=0.2) - level((36, 3986), (37, 1000), at=1.2)
    assert fall == pytest.approx(10, abs=0.2)  # 3986 timecents are ten seconds for 100 dB
    assert level() - level((8, 6900)) == pytest.approx(3, abs=0.5)  # the low-pass at its cutoff of 440 Hz
    font = written(tmp_path, small_font(generators=((43, 60 | 80 << 8), (44, 20 | 127 << 8))))
    with pytest.raises(MusaeError, match="velocity 19"):
        render_note(font, 0, False, 80, 19, 10, RATE)
    beyond = render_note(font, 0, False, 93, 100, 50, RATE)  # past the range: the nearest zone plays, two octaves up
    assert abs(cents_off(beyond[800:15000], 93, RATE)) < 5
    drums = written(tmp_path, small_font(bank=128, generators=((43, 60 | 80 << 8),)))
    assert len(render_note(drums, 0, True, 80, 100, 1, RATE)) == 1.5 * RATE  # drums ring whatever their length
    with pytest.raises(MusaeError, match="key 81"):  # another drum would be the wrong drum
        render_note(drums, 0, True, 81, 100, 10, RATE)


def test_the_loop_of_a_written_font_is_seamless(tmp_path):
    wave = render_note(written(tmp_path, small_font()), 0, False, 69, 127, 300, RATE)[400 : 300 * HOP]
    residue = wave - 2 * np.cos(2 * np.pi * 440 / RATE) * np.roll(wave, 1) + np.roll(wave, 2)  # zero for a pure 440 Hz
    assert np.abs(residue[2:]).max() < 2e-3


def test_a_tone_above_half_the_sampling_rate_is_silent(tmp_path):
    font = written(tmp_path, small_font())
    heard, unheard = (render_note(font, 0, False, key, 127, 50, RATE)[400:15000] for key in (117, 123))  # 7.0, 9.9 kHz
    assert np.sqrt(np.mean(unheard**2)) < 0.01 * np.sqrt(np.mean(heard**2))


def test_a_loop_that_lies_outside_its_sample_is_not_played(tmp_path):
    wave = render_note(written(tmp_path, small_font(loop=(0, 1 << 30))), 0, False, 69, 127, 50, RATE)
    assert np.abs(wave[400:1500]).max() > 0.3 and np.abs(wave[1700:]).max() == 0  # 2205 samples last 0.1 s


HOSTILE = {
    "empty": (b"", "begin"),
    "text": (b"RIFF but not a font at all", "begin"),
    "wave": (b"RIFF" + struct.pack("<I", 4) + b"WAVE", "begin"),
    "no tables": (chunk(b"RIFF", b"sfbk" + chunk(b"LIST", b"sdta" + chunk(b"smpl", bytes(100)))), "lacks"),
    "no samples": (chunk(b"RIFF", b"sfbk" + chunk(b"LIST", b"pdta")), "no samples"),
    "cut short": (small_font()[:3000], "cut short"),
    "sample outside": (small_font(sample_end=1 << 30), "places sample"),
    "sample unknown": (small_font(sample=77), "names sample 77"),
    "instrument unknown": (small_font(instrument=9), "names entry 9"),
    "no rate": (small_font(rate=0), "rate of 0"),
    "compressed": (small_font(kind=0x11), "compressed"),
    "far too fast": (small_font(generators=((56, 1200),), root=0), "too fast"),
    "odd table": (
        small_font().replace(b"pbag" + struct.pack("<I", 8), b"pbag" + struct.pack("<I", 6)),
        "lacks|multiple|cut",
    ),
    "wrong bag": (
        small_font().replace(struct.pack("<20sH", b"E", 1), struct.pack("<20sH", b"E", 999)),
        "points at zones",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_fonts_are_refused_in_one_sentence(name, tmp_path):
    content, words = HOSTILE[name]
    with pytest.raises(MusaeError, match=words) as error:
        render_note(written(tmp_path, content), 0, False, 60, 100, 10, RATE)
    assert "font.sf2" in str(error.value) and "\n" not in str(error.value)


def test_random_damage_never_escapes_as_another_error(tmp_path):
    whole, rng = small_font(), np.random.default_rng(0)
    head = whole.index(b"pdta")
    refused = 0
    for trial in range(300):
        content = bytearray(whole if trial % 3 else whole[: rng.integers(1, len(whole))])
        for place in rng.integers(min(head, len(content) - 1), len(content), 4):
            content[place] = rng.integers(256)
        try:
            note = render_note(written(tmp_path, bytes(content)), 0, False, 60, 100, 5, RATE)
            assert np.isfinite(note).all()
        except MusaeError:
            refused += 1
    assert 100 < refused < 300


def test_a_copied_font_sounds_the_same(tmp_path, font):
    copy = tmp_path / "copy.sf2"
    shutil.copy(font.path, copy)
    score = Score(band().notes[:8], 100)
    assert np.array_equal(render(score, font=copy), render(score, font=font))


def test_speed_is_printed():
    score = band()
    began = time.perf_counter()
    render(score)
    first = time.perf_counter() - began
    began = time.perf_counter()
    render(score)
    again = time.perf_counter() - began
    print(f"{10 / first:.0f} x real time at first, {10 / again:.0f} x again, gain {GAIN}")
