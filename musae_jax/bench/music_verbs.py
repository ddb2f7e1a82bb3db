"""Benches of what is learned: the pocket model, planted features, seeds, known concepts, SynTheory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from musae_jax.bench.figures import table, write_figures
from musae_jax.verb import Verb, console


@dataclass(frozen=True)
class PocketFlags:
    """What the pocket model has learned, on held-out music."""

    model: str = "pocket"
    """The model to measure."""
    prompts: int = 640
    """How many prompts are asked of it; half of them are solos, whose instrument is judged."""
    seed: int = 0
    """Of what it plays."""
    examples: Path | None = None
    """Also write six examples into this folder: sounds, and a picture of them beside composed music."""
    json: Path | None = None
    """Also write the figures here."""


@dataclass(frozen=True)
class PlantedFlags:
    """Do SAEs find features that are known?"""

    seeds: int = 3
    """SAEs of each kind."""
    json: Path | None = None
    """Also write the rows here."""


@dataclass(frozen=True)
class StabilityFlags:
    """How many features of a run come back with another seed?"""

    run: Path
    """The run folder, with its activations."""
    seeds: int = 3
    """SAEs to train."""
    json: Path | None = None
    """Also write the rows here."""


@dataclass(frozen=True)
class ConceptsFlags:
    """Which known concepts does an SAE find, beside neurons, components, random directions and a probe?

    musae bench concepts --run runs/pocket --json concepts.json

    musae bench concepts --sae my/sae another/seed --model facebook/musicgen-small --work cache
    """

    run: Path | None = None
    """A run folder, with its SAE and its control's."""
    sae: tuple[Path, ...] = ()
    """Instead: folders of SAEs in any layout that can be read, seeds of one kind; their control is trained."""
    model: str | None = None
    """With --sae: the model it reads; by default what the SAE itself names."""
    layer: int | None = None
    """The block that is read, counted from 0; by default the first of the run's, or the SAE's own."""
    seeds: int = 1
    """With --run: SAEs and controls trained from so many seeds, the run's the first; 1: the run's own."""
    clips: int = 480
    """Composed clips, a multiple of four; half choose features, half judge them."""
    seconds: float = 10.0
    """Of each clip."""
    shuffles: int = 999
    """Exchanges of truth between clips that make each concept's null."""
    work: Path | None = None
    """Where the music and the residuals are kept for the next time; by default RUN/concepts, or nowhere."""
    picture: Path | None = None
    """Draw the concepts and dictionaries here (PNG); by default RUN/concepts/concepts.png, or nowhere."""
    json: Path | None = None
    """Also write the coverage and the rows here."""


@dataclass(frozen=True)
class SyntheoryFlags:
    """What a linear probe reads of SynTheory's seven concept sets in each layer, beside published figures."""

    model: str = "pocket"
    """The model to probe."""
    sets: tuple[str, ...] = ()
    """By default all: notes, intervals, scales, chords, "chord progressions", tempos, "time signatures"."""
    layers: tuple[int, ...] = ()
    """Blocks, counted from 0; by default all."""
    instruments: Literal["leads", "all"] = "leads"
    """The composer's eight, or all 92 of SynTheory."""
    examples: int | None = None
    """At most so many of each set, drawn at random."""
    seeds: int = 3
    """Splits into the examples that the probe is fitted on and those it is measured on."""
    peak: float = 1.0
    """Of each example's samples; 1 as published. The pocket has heard music with peaks near 0.2."""
    json: Path | None = None
    """Also write the rows here."""


def pocket_verb(flags: PocketFlags) -> str:
    from musae_jax.bench.examples import write_examples
    from musae_jax.bench.pocket import PocketBench, measure_pocket
    from musae_jax.bench.pocket_report import pocket_markdown
    from musae_jax.models.checkpoints import load_musicgen
    from musae_jax.progress import progress_bar

    bench, model = PocketBench(prompts=flags.prompts, seed=flags.seed), load_musicgen(flags.model)
    with progress_bar("pocket", console) as progress:
        figures = measure_pocket(model, bench, progress)
    write_figures(flags.json, figures)
    if flags.examples:
        write_examples(model, flags.examples, flags.seed)
    return pocket_markdown(figures)


def planted_verb(flags: PlantedFlags) -> str:
    from musae_jax.bench.planted import PlantedBench, bench_planted
    from musae_jax.progress import progress_bar

    with progress_bar("planted", console) as progress:
        return table(bench_planted(PlantedBench(seeds=flags.seeds), progress), flags.json)


def stability_verb(flags: StabilityFlags) -> str:
    from musae_jax.bench.stability import bench_stability
    from musae_jax.progress import progress_bar
    from musae_jax.run import open_run

    with progress_bar("stability", console) as progress:
        return table(bench_stability(open_run(flags.run), flags.seeds, progress), flags.json)


def concepts_verb(flags: ConceptsFlags) -> str:
    from musae_jax.bench.concepts import ConceptsBench, bench_run, bench_saes
    from musae_jax.errors import MusaeError
    from musae_jax.progress import progress_bar

    if (flags.run is None) == (not flags.sae):
        raise MusaeError("musae bench concepts needs either --run or --sae; give the folder of a run or of an SAE")
    bench = ConceptsBench(flags.clips, flags.seconds, flags.shuffles)
    with progress_bar("concepts", console) as progress:
        if flags.run is not None:
            if flags.model is not None:
                raise MusaeError("--model goes with --sae; a run knows its model")
            report = bench_run(flags.run, bench, flags.layer, flags.seeds, flags.work, progress)
        else:
            if flags.seeds != 1:
                raise MusaeError("--seeds goes with --run; give the folder of each seed to --sae")
            report = bench_saes(flags.sae, bench, flags.model, flags.layer, flags.work, progress)
    picture = flags.picture or (flags.run and (flags.work or flags.run / "concepts") / "concepts.png")
    if picture is not None:
        report.draw(picture)
    write_figures(flags.json, report.record())
    return report.lines() + (f"\n\nThe picture: {picture}" if picture else "")


def syntheory_verb(flags: SyntheoryFlags) -> str:
    from musae_jax.bench.syntheory import bench_syntheory, syntheory_lines
    from musae_jax.compose.syntheory import LEAD_PROGRAMS, PROGRAMS, SETS
    from musae_jax.models.checkpoints import load_musicgen
    from musae_jax.progress import progress_bar

    programs = LEAD_PROGRAMS if flags.instruments == "leads" else PROGRAMS
    options = (flags.sets or tuple(SETS), flags.layers, programs, flags.examples, flags.seeds, flags.peak)
    with progress_bar("syntheory", console) as progress:
        rows = bench_syntheory(load_musicgen(flags.model), flags.model, *options, progress)
    write_figures(flags.json, rows)
    return syntheory_lines(rows)


MUSIC = {
    "pocket": Verb(PocketFlags, pocket_verb, "what the pocket model has learned, on held-out music"),
    "planted": Verb(PlantedFlags, planted_verb, "do SAEs find features that are known?"),
    "stability": Verb(StabilityFlags, stability_verb, "how many features come back with another seed?"),
    "concepts": Verb(ConceptsFlags, concepts_verb, "which known concepts does an SAE find, beside its controls?"),
    "syntheory": Verb(SyntheoryFlags, syntheory_verb, "what a linear probe reads of SynTheory's concepts, by layer"),
}
