"""The `musae` command: one verb per stage. Parses flags, calls one function, prints one result.

A `MusaeError` is printed as its one sentence and the exit code is 2; so is a full disk.
"""

import errno
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from musae_jax.bench.verbs import BENCHES
from musae_jax.compilation import keep_compiled
from musae_jax.config import ComposeConfig, GenerateConfig, RunConfig, SteerConfig, read_yaml
from musae_jax.errors import MusaeError
from musae_jax.labels.llm.config import LLMConfig
from musae_jax.pocket.verbs import TRAININGS
from musae_jax.verb import Verb, console


@dataclass(frozen=True)
class ComposeFlags:
    """Renders labelled music: audio, truth at 50 Hz and captions, in a manifest that other verbs read."""

    out: Path
    """The folder to write."""
    sampling_rate: int = 16_000
    """Hz."""
    music: tyro.conf.OmitArgPrefixes[ComposeConfig] = field(default_factory=ComposeConfig)


@dataclass(frozen=True)
class StageFlags:
    """Runs one stage on a run folder that `musae run` has begun."""

    run: Path
    """The run folder."""


@dataclass(frozen=True)
class HarvestFlags:
    """From music to the activation stores of a run that `musae run` has begun, on all devices of one process or of
    several, which share the shards."""

    run: Path
    """The run folder; with several processes on a disk that all of them see."""
    coordinator: str = ""
    """Several processes, each started with this same command: "auto" on TPU pods, Slurm and Open MPI, where the numbers
    are found; needless where they are given."""
    processes: int | None = None
    """How many they are."""
    process: int | None = None
    """Which of them this is, from 0. One that was lost is started again, or the others make its shards."""


@dataclass(frozen=True)
class TrainFlags:
    """Trains the SAEs of a run that `musae run` has begun, on all devices of one process or of several."""

    run: Path
    """The run folder; with several processes on a disk that all of them see."""
    coordinator: str = ""
    """Several processes, each started with this same command: HOST:PORT of the first, or "auto" on TPU pods, Slurm and
    Open MPI, where the rest is found too."""
    processes: int | None = None
    """How many they are, with HOST:PORT."""
    process: int | None = None
    """Which of them this is, from 0, with HOST:PORT."""


@dataclass(frozen=True)
class LabelFlags:
    """Names the features of a run that `musae run` has begun, by all its sources. What is given here replaces what the
    run was begun with, and is remembered.

    musae label --run runs/pocket

    musae label --run runs/mine --tagger MIT/ast-finetuned-audioset-10-10-0.4593 --clap laion/larger_clap_music

    musae label --run runs/mine --llm.model Qwen/Qwen3-Omni-30B-A3B-Instruct --llm.base-url http://localhost:8000/v1
    """

    run: Path
    """The run folder."""
    sources: tuple[Literal["truth", "descriptors", "tagger", "clap", "llm"], ...] = ()
    """Who names; none given: those of the run, and llm where a model is named."""
    tagger: str | None = None
    """"pocket", or a folder or a hub id of an AST."""
    clap: str | None = None
    """"pocket", or a folder or a hub id of a CLAP."""
    llm: LLMConfig = field(default_factory=LLMConfig)
    """The audio LLM. Its key is read from OPENAI_API_KEY, GEMINI_API_KEY or GOOGLE_API_KEY."""


@dataclass(frozen=True)
class ValidateFlags:
    """Judges the names of a run that `musae run` has begun, each by another source than gave it.

    musae validate --run runs/pocket

    musae validate --run runs/mine --judge-llm --llm.model Qwen/Qwen3-Omni-30B-A3B-Instruct
    --llm.base-url http://localhost:8000/v1
    """

    run: Path
    """The run folder."""
    judge_llm: bool = False
    """Let an audio LLM hear and judge the names of the surest features too. It is paid; what it has answered once is on
    disk. Without this flag its judgements are left out again, but where `musae run` was told of it."""
    llm: LLMConfig = field(default_factory=LLMConfig)
    """The audio LLM, as `musae label` has it; remembered."""


@dataclass(frozen=True)
class SteerFlags:
    """Steers features of a run that `musae run` has begun, and measures it against every control. What is given here
    replaces what the run was begun with, and is remembered. A report that the run has is written anew.

    musae steer --run runs/pocket

    musae steer --run runs/pocket --features 8 --strengths -1 0.5 1 2 --prompt "slow piano"

    musae steer --run runs/pocket --preset paper --features 100
    """

    run: Path
    """The run folder."""
    steer: tyro.conf.OmitArgPrefixes[SteerConfig] = field(
        default_factory=lambda: SteerConfig(
            features=20, strengths=(-0.5, 0.125, 0.25, 0.5, 1.0, 2.0), clips=16, calibration=8
        )
    )
    preset: Literal["controls", "paper"] = "controls"
    """paper: the protocol of arXiv 2505.18186, Table 2: features that the filter keeps, the prompt "Simple melody",
    strength 1, towards their exemplars by CLAP, or not; of the other flags only features, clips and seconds count."""


@dataclass(frozen=True)
class ExportFlags:
    """Writes the report of a run anew, or the run for Neuronpedia."""

    run: Path
    """The run folder."""
    neuronpedia: Path | None = None
    """A folder to write MODEL/SOURCE into, in the shape of Neuronpedia's exports, instead of the report: features,
    activations of their exemplars, and their names with scores."""


@dataclass(frozen=True)
class InfoFlags:
    """What a checkpoint, activation store, SAE or run folder is."""

    path: tyro.conf.Positional[str]
    """A folder, or a model's name."""


@dataclass(frozen=True)
class PushFlags:
    """Puts SAEs on the Hugging Face hub, each with a card of what it is and how good it is beside its control."""

    repo: str
    """Where to: ORG/NAME, created where it does not exist."""
    run: Path | None = None
    """A run folder: every SAE of it but the controls, each in the subfolder HOOK/NAME."""
    sae: Path | None = None
    """One SAE's folder, in any layout that can be read."""
    subfolder: str | None = None
    """With --sae: where in the repository; HOOK/NAME by default."""
    revision: str | None = None
    """A branch that exists; the main one by default."""
    private: bool = False
    """Create the repository as a private one."""
    license: str | None = None
    """The licence in the card; by default MusicGen's own for an SAE of one of Meta's models."""


@dataclass(frozen=True)
class DoctorFlags:
    """Versions, devices, what is missing and how to get it."""


def run_verb(config: RunConfig) -> str:
    from musae_jax.llm_stage import check_llm, told
    from musae_jax.progress import progress_bar
    from musae_jax.run import STAGES, begin_run, is_done, run_stage

    run = begin_run(config)
    stages = list(STAGES)
    asked = stages[: stages.index(config.until) + 1]
    for stage in asked:
        if not is_done(run, stage):
            check_llm(run, stage)  # what would end it after hours
    for stage in asked:
        if is_done(run, stage):
            console.print(f"{stage:<10} done before")
            continue
        with progress_bar(stage, console) as progress:
            seconds = run_stage(run, stage, progress)
        console.print(f"{stage:<10} {seconds:.1f} s")
        if paid := told(run, stage):
            console.print(f"{'':<10} {paid}", markup=False, soft_wrap=True)
        if stage == "harvest" and config.audio is not None:
            console.print(run.clips.summary(), markup=False, soft_wrap=True)
    if config.until != stages[-1]:
        return f"{run.folder} is done up to {config.until}"
    return f"The report: {(run.folder / 'report' / 'index.html').absolute()}"


def stage_verb(stage: str) -> Callable[[StageFlags], str]:
    def verb(flags: StageFlags) -> str:
        from musae_jax.progress import progress_bar
        from musae_jax.run import open_run, run_stage

        with progress_bar(stage, console) as progress:
            seconds = run_stage(open_run(flags.run), stage, progress)
        return f"{stage} of {flags.run}: {seconds:.1f} s"

    return verb


def harvest_verb(flags: HarvestFlags) -> str:
    from musae_jax.mesh import share_of_work
    from musae_jax.progress import progress_bar
    from musae_jax.run import open_run, run_stage

    run = open_run(flags.run, *share_of_work(flags.coordinator, flags.processes, flags.process))
    with progress_bar("harvest", console) as progress:
        seconds = run_stage(run, "harvest", progress)
    return f"harvest of {flags.run}: {seconds:.1f} s"


def train_verb(flags: TrainFlags) -> str:
    from musae_jax.mesh import join_processes

    join_processes(flags.coordinator, flags.processes, flags.process)
    return stage_verb("train")(StageFlags(flags.run))


def label_verb(flags: LabelFlags) -> str:
    from musae_jax.llm_stage import told
    from musae_jax.progress import progress_bar
    from musae_jax.run import open_run, reconfigure, run_stage

    run = open_run(flags.run)
    label = run.config.label
    sources = flags.sources or label.sources
    if flags.llm != LLMConfig():
        label = replace(label, llm=given_llm(label.llm, flags.llm))
        sources = (*sources, *(() if "llm" in sources else ("llm",)))
    label = replace(
        label,
        sources=sources,
        tagger=label.tagger if flags.tagger is None else flags.tagger,
        clap=label.clap if flags.clap is None else flags.clap,
    )
    if label != run.config.label:
        run = reconfigure(run, label=label)
    with progress_bar("label", console) as progress:
        seconds = run_stage(run, "label", progress)
    return "\n".join(filter(None, (f"label of {flags.run}: {seconds:.1f} s", told(run, "label"))))


def given_llm(known: LLMConfig, flags: LLMConfig) -> LLMConfig:
    """The audio LLM of a run, with what the flags give; what they do not stays as the run has it."""
    if not (flags.model or known.model):
        raise MusaeError("the audio LLM needs a model; give --llm.model")
    return replace(known, **{name: value for name, value in vars(flags).items() if value != getattr(LLMConfig(), name)})


def validate_verb(flags: ValidateFlags) -> str:
    from musae_jax.llm_stage import told
    from musae_jax.progress import progress_bar
    from musae_jax.run import open_run, reconfigure, run_stage

    run = open_run(flags.run)
    if flags.llm != LLMConfig():
        llm = given_llm(run.config.label.llm, flags.llm)
        run = reconfigure(run, label=replace(run.config.label, llm=llm))
    if flags.judge_llm:
        validate = replace(run.config.validate, judge_llm=True)
        run = replace(run, config=replace(run.config, validate=validate))
    with progress_bar("validate", console) as progress:
        seconds = run_stage(run, "validate", progress)
    return "\n".join(filter(None, (f"validate of {flags.run}: {seconds:.1f} s", told(run, "validate"))))


def steer_verb(flags: SteerFlags) -> str:
    from musae_jax.progress import progress_bar
    from musae_jax.run import open_run, reconfigure, run_stage
    from musae_jax.steered import effects_config, steer_like_the_paper
    from musae_jax.steering.tables import effects_text, paper_text

    run = open_run(flags.run)
    if flags.preset == "paper":
        with progress_bar("steer", console) as progress:
            return paper_text(steer_like_the_paper(run, flags.steer, progress))
    effects_config(flags.steer, run.config.seed)  # what cannot be is not remembered
    if flags.steer != run.config.steer:
        run = reconfigure(run, steer=flags.steer)
    reported = (run.folder / "report").exists()
    with progress_bar("steer", console) as progress:
        seconds = run_stage(run, "steer", progress)
        if reported:  # so that its page of steering is of these effects
            run_stage(run, "report", progress)
    return f"{effects_text(flags.run)}\nsteer of {flags.run}: {seconds:.1f} s"


def compose_verb(flags: ComposeFlags) -> str:
    from musae_jax.compose.dataset import write_dataset
    from musae_jax.progress import progress_bar

    m = flags.music
    with progress_bar("compose", console) as progress:
        write_dataset(flags.out, m.clips, m.seed, m.seconds, flags.sampling_rate, progress)
    return f"{m.clips} clips in {flags.out}"


def generate_verb(flags: GenerateConfig) -> str:
    from musae_jax.progress import progress_bar
    from musae_jax.sounds import write_sounds

    with progress_bar("generate", console) as progress:
        summary, to_stdout = write_sounds(flags, progress)
    if not to_stdout:
        return summary
    console.print(summary, markup=False, soft_wrap=True)
    return ""


def export_verb(flags: ExportFlags) -> str:
    from musae_jax.explorer.neuronpedia import write_neuronpedia
    from musae_jax.progress import progress_bar

    if flags.neuronpedia is None:
        return stage_verb("report")(StageFlags(flags.run))
    with progress_bar("export", console) as progress:
        return "\n".join(map(str, write_neuronpedia(flags.run, flags.neuronpedia, progress)))


def info_verb(flags: InfoFlags) -> str:
    from musae_jax.info import describe

    return describe(flags.path)


def push_verb(flags: PushFlags) -> str:
    from musae_jax.sae.hub import push_sae, run_saes, usual_subfolder

    if (flags.run is None) == (flags.sae is None):
        raise MusaeError("musae push needs either --run or --sae; give the folder of a run or that of an SAE")
    if flags.run is not None and flags.subfolder is not None:
        raise MusaeError("--subfolder goes with --sae; the SAEs of a run each have their own")
    addresses = []
    for folder in [flags.sae] if flags.sae else run_saes(flags.run):
        subfolder = usual_subfolder(folder) if flags.subfolder is None else flags.subfolder
        addresses.append(
            push_sae(folder, flags.repo, subfolder, flags.revision, private=flags.private, license=flags.license)
        )
    return "\n".join(addresses)


def doctor_verb(flags: DoctorFlags) -> str:
    from musae_jax.info import doctor

    return doctor()


VERBS = {
    "run": Verb(RunConfig, run_verb, "the whole road; alone: the pocket model on composed music"),
    "compose": Verb(ComposeFlags, compose_verb, "render labelled music"),
    "harvest": Verb(HarvestFlags, harvest_verb, "music to activation store"),
    "train": Verb(TrainFlags, train_verb, "store to sparse autoencoder"),
    "features": Verb(StageFlags, stage_verb("features"), "statistics, exemplars and what steering adds"),
    "label": Verb(LabelFlags, label_verb, "names for features"),
    "validate": Verb(ValidateFlags, validate_verb, "evidence for the names, by other sources than gave them"),
    "steer": Verb(SteerFlags, steer_verb, "steer the best-named features, measured against every control"),
    "export": Verb(ExportFlags, export_verb, "the report as a static folder, or the run for Neuronpedia"),
    "generate": Verb(GenerateConfig, generate_verb, "prompt to sound"),
    "push": Verb(PushFlags, push_verb, "SAEs to the Hugging Face hub, with a card"),
    "info": Verb(InfoFlags, info_verb, "what a checkpoint, store, SAE or run is"),
    "doctor": Verb(DoctorFlags, doctor_verb, "versions, devices, what is missing"),
    **TRAININGS,
    **{f"bench {name}": verb for name, verb in BENCHES.items()},
}


def usage(of: str = "") -> str:
    """The verbs that begin with `of`, each in a line."""
    lines = [f"  musae {name:<17} {verb.help}" for name, verb in VERBS.items() if name.startswith(of)]
    return "Finds, names, proves and steers the concepts a music generator has learned.\n\n" + "\n".join(
        [*lines, "", "`musae VERB --help` explains every flag; `--config FILE.yaml` reads them from a file."]
    )


def parse(name: str, arguments: list[str]) -> Any:
    """The config of a verb: defaults, then `--config FILE`, then flags."""
    verb, default = VERBS[name], None
    if "--config" in arguments:
        at = arguments.index("--config")
        if at + 1 == len(arguments):
            raise MusaeError("--config needs a file; give it a YAML file")
        default = read_yaml(verb.flags, arguments[at + 1])
        arguments = arguments[:at] + arguments[at + 2 :]
    options = {} if default is None else {"default": default}
    return tyro.cli(verb.flags, args=arguments, prog=f"musae {name}", **options)


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    group = " ".join(arguments[:1]) if arguments[:1] == ["bench"] else ""
    words = 2 if group else 1
    if len(arguments) < words or arguments[words - 1] in ("-h", "--help"):
        print(usage(group))
        return 0 if "-h" in arguments or "--help" in arguments else 2
    name = " ".join(arguments[:words])
    try:
        if name not in VERBS:
            raise MusaeError(f"{name!r} is not a verb of musae; the verbs are {', '.join(VERBS)}")
        config = parse(name, arguments[words:])
        keep_compiled()
        if answer := VERBS[name].call(config):
            print(answer)
    except MusaeError as error:
        console.print(f"musae: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EFBIG):
            raise
        where = error.filename or "the output folder"
        console.print(
            f"musae: cannot write {where} ({error.strerror}); make room or choose another folder",
            style="red",
            markup=False,
            soft_wrap=True,
        )
        return 2
    except KeyboardInterrupt:
        console.print("musae: stopped; the same command goes on from here", style="red")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
