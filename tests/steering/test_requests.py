"""`musae generate --steer`: what `musae.steer` does, asked for on the command line."""

import json

import jax
import numpy as np
import pytest
import some_saes
import soundfile

import musae_jax as musae
from musae_jax import cli
from musae_jax.errors import MusaeError
from musae_jax.sae.sae import SAEConfig
from musae_jax.steering.combining import combine, during, on_branches
from musae_jax.steering.operations import clamp, hold
from musae_jax.steering.requests import find_sae, read_schedules, read_strengths
from musae_jax.steering.schedules import ramp, sections

HOOK = "blocks.2.resid_post"


def random_sae(hook=HOOK, features=12, seed=0):
    """An SAE of the pocket model's stream, whose features have maxima as large as a residual's norm."""
    rng = np.random.default_rng(seed)
    shapes = {"W_enc": (192, features), "b_enc": features, "W_dec": (features, 192), "b_dec": 192}
    params = {name: rng.normal(size=shape).astype(np.float32) / 10 for name, shape in shapes.items()}
    maximum = np.linspace(10, 30, features, dtype=np.float32)
    return musae.SAE(SAEConfig(192, features, "standard", metadata={"hook_name": hook}), params, maximum)


@pytest.fixture
def run_folder(tmp_path):
    """What `musae run` leaves behind, as far as steering reads it: the control's SAE too."""
    folder = tmp_path / "run"
    for name, seed in (("one", 0), ("one-random-weights", 1)):
        musae.save_sae(folder / "sae" / HOOK / name, random_sae(seed=seed))
    (folder / "run.json").write_text(json.dumps({"config": {"model": "pocket"}, "stages": {}, "state": "finished"}))
    return folder


def generate(capsys, *arguments):
    code = cli.main(["generate", *map(str, arguments), "--seconds", "1"])
    told = capsys.readouterr()
    return code, " ".join(told.out.split()), " ".join(told.err.split())


def test_the_command_steers_as_the_library_does(tmp_path, run_folder, capsys):
    mg = musae.load_musicgen("pocket")
    text = musae.encode_text(mg, ["slow flute solo"])
    sae = musae.load_sae(run_folder / "sae" / HOOK / "one")
    key, files = jax.random.key(0), {}
    known = sae.replace(contrast=jax.random.normal(jax.random.key(5), (12, 192)))
    musae.save_sae(tmp_path / "known", known)
    for name, flags in {
        "plain": (),
        "run": ("--sae", run_folder, "--steer", "3=1", "7=-0.5"),
        "both": ("--sae", run_folder, "--steer", "3=1", "7=-0.5", "--branches", "both"),
        "contrast": ("--sae", tmp_path / "known", "--steer", "3=1", "7=-0.5", "--model", "pocket"),
        "decoder": ("--sae", tmp_path / "known", "--steer", "3=1,7=-0.5", "--model", "pocket", "--steer-how", "add"),
        "folder": ("--sae", run_folder / "sae" / HOOK / "one", "--steer", "7=-0.5", "3=1.0", "--model", "pocket"),
        "zero": ("--sae", run_folder, "--steer", "3=0"),
    }.items():
        code, out, err = generate(capsys, "slow flute solo", "--out", tmp_path / f"{name}.wav", *flags)
        assert code == 0, err
        where = "both branches" if name == "both" else "the conditional branch"
        assert (f"steered at {HOOK} in {where}: feature" in out) == bool(flags)
        assert ("along its contrast" in out) == (name == "contrast")
        files[name] = soundfile.read(tmp_path / f"{name}.wav", dtype="int16")[0]
    np.testing.assert_array_equal(files["run"], files["folder"])
    np.testing.assert_array_equal(files["zero"], files["plain"])
    np.testing.assert_array_equal(files["decoder"], files["run"])
    asked = {3: 1.0, 7: -0.5}
    wanted_edits = {
        "plain": None,
        "run": on_branches(musae.steer(sae, asked), "conditional"),
        "both": musae.steer(sae, asked),
        "contrast": on_branches(musae.steer_contrast(known, asked), "conditional"),
    }
    for name, edits in wanted_edits.items():
        made = musae.generate(mg.config, mg.params, text, key, seconds=1.0, edits=edits)
        wanted = np.rint(np.clip(np.asarray(made.audio[0]), -1, 1) * 32767)
        assert np.abs(files[name] - wanted).max() <= 1  # a stream's pieces differ in rounding
    assert np.abs(files["run"].astype(int) - files["plain"]).max() > 300


def test_the_model_is_that_of_the_run_unless_another_is_named(tmp_path, run_folder, tiny_folder, capsys):
    record = {"config": {"model": str(tmp_path / "gone")}}
    (run_folder / "run.json").write_text(json.dumps(record))
    flags = ("x", "--out", tmp_path / "a.wav", "--sae", run_folder, "--steer", "3=1")
    code, _, err = generate(capsys, *flags)
    assert code == 2 and f"there is no folder {tmp_path / 'gone'}" in err
    code, _, err = generate(capsys, *flags, "--model", tiny_folder)
    assert code == 2 and "model has layers 0 to 1" in err
    musae.save_sae(tmp_path / "early", random_sae("blocks.1.resid_post"))
    flags = (*flags[:3], "--sae", tmp_path / "early", "--steer", "3=1", "--model", tiny_folder)
    code, _, err = generate(capsys, *flags)
    assert code == 2 and "residual stream is 24 wide" in err
    code, _, err = generate(capsys, *flags[:-2], "--model", tiny_folder, "--steer-how", "clamp")
    assert code == 2 and "residual stream is 24 wide" in err
    code, _, err = generate(capsys, *flags[1:], "--branches", "conditional")
    assert code == 2 and "steers what hears the prompt, but there is none" in err
    assert not (tmp_path / "a.wav").exists()


def test_how_and_when_and_where_are_the_library_s(tmp_path, tiny_folder, capsys):
    mg, sae = musae.load_musicgen(tiny_folder), some_saes.random_sae(d_in=24, size=20.0)
    musae.save_sae(tmp_path / "sae", sae)
    text, key = musae.encode_text(mg, ["flute"]), jax.random.fold_in(jax.random.key(0), 0)
    clip = (1.0, mg.config.frame_rate)
    early = sections(*clip, [(0, 0.5)])
    asked = {
        ("3=1", "8=0.5", "--steer-how", "clamp", "--schedule", "sections:0-0.5", "--branches", "conditional"): (
            on_branches(during(clamp(sae, {3: 1.0, 8: 0.5}), early), "conditional"),
            "in the conditional branch: feature 3 at 1 × ",
        ),
        ("3=0.9,8=0.5", "--steer-how", "hold", "--schedule", "sections:0-0.5", "8:ramp:0-1"): (
            on_branches(
                combine(during(hold(sae, {8: 0.5}), ramp(*clip, 0, 1)), during(hold(sae, {3: 0.9}), early)),
                "conditional",
            ),
            "(sections:0-0.5), 8 at least 0.5 × ",
        ),
    }
    for number, (flags, (edits, words)) in enumerate(asked.items()):
        out = tmp_path / f"{number}.wav"
        flags = ("flute", "--out", out, "--model", tiny_folder, "--sae", tmp_path / "sae", "--steer", *flags)
        code, told, err = generate(capsys, *flags)
        assert code == 0 and words in told, err or told
        made = musae.generate(mg.config, mg.params, text, key[None], seconds=1.0, edits=edits)
        wanted = np.rint(np.clip(np.asarray(made.audio[0]), -1, 1) * 32767)
        assert np.abs(soundfile.read(out, dtype="int16")[0] - wanted).max() <= 1
        plain = musae.generate(mg.config, mg.params, text, key[None], seconds=1.0, audio=False)
        assert np.mean(np.asarray(plain.codes) != made.codes) > 0.05


def test_what_is_gone_on_from_is_read_as_the_schedule_begins(tmp_path, tiny_folder, capsys):
    """Times are counted from where the new music begins."""
    musae.save_sae(tmp_path / "sae", some_saes.random_sae(d_in=24, size=20.0))
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "song.wav", rng.normal(size=16_000) / 8, 16_000)
    files = {}
    for name, flags in {
        "plain": (),
        "off": ("--sae", tmp_path / "sae", "--steer", "3=1", "--schedule", "onsets:0.98"),
        "late": ("--sae", tmp_path / "sae", "--steer", "3=1", "--schedule", "sections:0.5-1"),
    }.items():
        flags = ("--continue-from", tmp_path / "song.wav", "--model", tiny_folder, *flags)
        code, _, err = generate(capsys, "flute", "--out", tmp_path / f"{name}.wav", *flags, "--no-keep-prompt")
        assert code == 0, err
        files[name] = soundfile.read(tmp_path / f"{name}.wav", dtype="int16")[0]
    assert np.abs(files["late"][:6000].astype(int) - files["plain"][:6000]).max() <= 1
    assert np.abs(files["late"][8000:].astype(int) - files["plain"][8000:]).max() > 10
    assert np.abs(files["off"][:14_000].astype(int) - files["plain"][:14_000]).max() <= 1


def test_a_run_with_several_saes_names_them(run_folder):
    musae.save_sae(run_folder / "sae" / "blocks.4.resid_post" / "one", random_sae("blocks.4.resid_post"))
    with pytest.raises(MusaeError, match=r"has 2 SAEs; give --sae one of \S+blocks.2.resid_post/one, \S+blocks.4"):
        find_sae(str(run_folder))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--steer", "3=1"), "go together"),
        (("--sae", "RUN"), "go together"),
        (("--sae", "RUN", "--steer", "3"), "was given '3'; write FEATURE=STRENGTH"),
        (("--sae", "RUN", "--steer", "3=loud"), "was given '3=loud'"),
        (("--sae", "RUN", "--steer", "3=1", "a prompt"), "was given 'a prompt'"),
        (("--sae", "RUN", "--steer", "3=1", "3=2"), "names feature 3 more than once"),
        (("--sae", "RUN", "--steer", "3=1,3=2"), "names feature 3 more than once"),
        (("--sae", "RUN", "--steer", "3=1,"), "was given ''"),
        (("--sae", "RUN", "--steer", "3=1e999"), "finite"),
        (("--sae", "RUN", "--steer", "3=nan"), "finite"),
        (("--sae", "RUN", "--steer", "3=-101"), "strength of feature 3 is -101; give one between -100 and 100"),
        (("--sae", "RUN", "--steer", "3=1", "--steer-how", "ablate"), "'3=1'; write FEATURE alone"),
        (("--sae", "RUN", "--steer", "3=-1", "--steer-how", "hold"), "target below 0"),
        (("--sae", "RUN", "--steer", "3=1", "--schedule", "ramp:0-4"), "after the music, which lasts 1 s"),
        (("--sae", "RUN", "--steer", "3=1", "--schedule", "swell:4"), "'swell:4' is not a schedule"),
        (
            ("--sae", "RUN", "--steer", "3=1", "--schedule", "decay:1", "decay:2"),
            "decay:1 and decay:2 for all",
        ),
        (("--sae", "RUN", "--steer", "3=1", "--schedule", "4:decay:1"), "feature 4, which --steer does not"),
        (("--sae", "RUN", "--steer", "3=1", "--schedule", "3:decay:1", "3:decay:2"), "feature 3 more than once"),
        (("--schedule", "decay:1"), "--schedule says how to steer; give --steer and --sae too"),
        (("--branches", "conditional"), "--branches says how to steer"),
        (("--steer-how", "hold"), "--steer-how says how to steer"),
        (
            ("--sae", "RUN", "--steer", "3=1", "--branches", "unconditional", "--guidance-scale", "1"),
            "leaves that branch out",
        ),
        (("--sae", "RUN", "--steer", "12=1"), "choose from 0 to 11"),
        (("--sae", "RUN", "--steer", "-1=1"), "choose from 0 to 11"),
        (("--sae", "gone", "--steer", "3=1"), "gone holds no SAE"),
    ],
)
def test_what_cannot_be_steered_is_one_sentence(tmp_path, run_folder, capsys, flags, words):
    flags = [str(run_folder) if flag == "RUN" else flag for flag in flags]
    code, _, err = generate(capsys, "x", "--out", tmp_path / "a.wav", *flags)
    assert code == 2 and words in err and "Traceback" not in err
    assert not (tmp_path / "a.wav").exists()


def test_strengths_are_read():
    assert read_strengths(["740=1", "367=-0.5", " 2 = 1e-1 "]) == {740: 1.0, 367: -0.5, 2: 0.1}
    assert read_strengths(["740=1,367=-0.5", "2=1"]) == {740: 1.0, 367: -0.5, 2: 1.0}
    assert read_strengths(["740,2"], "ablate") == {740: 0.0, 2: 0.0}


def test_schedules_are_read():
    assert read_schedules([], [3, 8]) == {3: "constant", 8: "constant"}
    assert read_schedules(["ramp:0-4", "8:beats:120"], [3, 8]) == {3: "ramp:0-4", 8: "beats:120"}
    assert read_schedules(["8:beats:120"], [3, 8]) == {3: "constant", 8: "beats:120"}
