"""What an audio LLM is asked about a run: names for its features, and whether the names of others hold. It is paid, so
it is asked last, about few, and every answer is kept under RUN/labels/llm."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from musae_jax.activations.harvest import hook_name
from musae_jax.errors import MusaeError
from musae_jax.features.activity import Activity
from musae_jax.features.exemplars import Exemplar, find_exemplars
from musae_jax.features.spans import active_spans
from musae_jax.features.statistics import load_statistics
from musae_jax.files import read_json, write_json
from musae_jax.labels.llm.client import LLMClient
from musae_jax.labels.llm.labeller import Answers, detect, label_features
from musae_jax.labels.llm.messages import Usage
from musae_jax.labels.llm.presentation import Clip
from musae_jax.validation.detections import Exam
from musae_jax.validation.listening import clips_to_hear, exact_auroc

if TYPE_CHECKING:
    from musae_jax.run import Run

Progress = Callable[[int, int, str], None]
FOLDERS = {"label": "labels", "validate": "validation"}  # of a run, where each stage says what was asked


def name_by_llm(run: "Run", layer: int, activity: Activity, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Rows of labels.jsonl for the features whose clips, of the half that names, are strongest: of those that are kept
    at most `max_features`. What it cost and what failed goes to RUN/labels/llm-<hook>.json."""
    c, hook = run.config.label.llm, hook_name(layer)
    kept = np.flatnonzero(load_statistics(run.features_folder(layer)).kept)
    by_feature: dict[int, list[Exemplar]] = {int(feature): [] for feature in kept}
    for exemplar in find_exemplars(activity, run.halves, kept, c.max_clips, 0, run.tracks):
        by_feature[exemplar.feature].append(exemplar)
    # an activation is how far a feature moves the residual, so that those of different features can be compared
    strongest = sorted(by_feature, key=lambda feature: -sum(e.mean for e in by_feature[feature]))[: c.max_features]
    rate = run.model.config.sampling_rate

    def features() -> Iterator[tuple[int, Sequence[Clip]]]:
        for feature in sorted(strongest):
            yield feature, [Clip(e.clip, run.audio(e.clip), rate, active_spans(e.curve)) for e in by_feature[feature]]

    answers = _ask(
        run, "label", hook, len(strongest), lambda llm: label_features(llm, features(), c, len(strongest), progress)
    )
    about = {"hook": hook, "sae": run.name}
    return [
        {**about, "feature": row["feature"], "source": "llm", **{k: row[k] for k in ("name", "confidence", "evidence")}}
        for row in answers.rows
        if row["name"]
    ]


def judge_by_llm(
    run: "Run", hook: str, exam: Exam, rows: Sequence[dict[str, Any]], progress: Progress | None = None
) -> None:
    """Adds to rows of names.jsonl `others["llm"]`: AUROC, exact p, and the clips heard (n), of the surest features, at
    most `max_features`. Neither its own names are put before it nor the composer's. What it cost and what failed goes
    to RUN/validation/llm-<hook>.json."""
    c = run.config.label.llm
    rows = sorted(
        (row for row in rows if row["source"] not in ("llm", "truth")),
        key=lambda row: (not row["passed"], -row["detection"], row["feature"]),
    )
    surest = set(list(dict.fromkeys(row["feature"] for row in rows))[: c.max_features])
    rows = [row for row in rows if row["feature"] in surest]
    firing, place = exam.firing, {feature: n for n, feature in enumerate(exam.firing.features)}
    order = np.random.default_rng(run.config.seed).permutation(len(firing.clip_ids))
    heard = {}
    for feature in surest:
        fires, near = firing.clips[:, place[feature]], exam.near[:, place[feature]]
        heard[feature] = clips_to_hear(fires, near, exam.tracks, order)
    asked = list(dict.fromkeys((row["name"], firing.clip_ids[n]) for row in rows for n in heard[row["feature"]]))
    rate = run.model.config.sampling_rate
    clips = ((name, Clip(clip, run.audio(clip), rate)) for name, clip in asked)
    answers = _ask(run, "validate", hook, len(surest), lambda llm: detect(llm, clips, c, len(asked), progress))
    said = {(row["name"], row["clip"]): row["probability"] for row in answers.rows}
    for row in rows:
        answered = [n for n in heard[row["feature"]] if said[row["name"], firing.clip_ids[n]] is not None]
        found = exact_auroc(
            np.asarray([said[row["name"], firing.clip_ids[n]] for n in answered], float),
            firing.clips[answered, place[row["feature"]]],
        )
        if found:
            row["others"]["llm"] = {"auroc": round(found[0], 4), "p": round(found[1], 5), "n": len(answered)}


def asks(run: "Run", stage: str) -> bool:
    """Whether a stage asks an audio LLM."""
    named, judged = "llm" in run.config.label.sources, run.config.validate.judge_llm
    return {"label": named, "validate": judged}.get(stage, False)


def check_llm(run: "Run", stage: str) -> None:
    """Raises, where a stage is to ask an audio LLM, for what would end it at the first question: no model, no key."""
    if not asks(run, stage):
        return
    if not run.config.label.llm.model:
        raise MusaeError("an audio LLM that names or judges needs a model; give --label.llm.model, or do without it")
    LLMClient(run.config.label.llm, run.folder / "labels" / "llm")


def _ask(run: "Run", stage: str, hook: str, features: int, questions: Callable[[LLMClient], Answers]) -> Answers:
    """The answers to `questions`; what they cost is written whether or not they are all answered."""
    llm = LLMClient(run.config.label.llm, run.folder / "labels" / "llm")
    failures: dict[str, int] = {}
    try:
        answers = questions(llm)
        failures = answers.failures
        llm.check()
    except MusaeError as error:
        raise MusaeError(
            f"{error}; what the other sources gave is in {run.folder / FOLDERS[stage]}, and the {llm.usage.requests} "
            "answers paid now are taken from disk when the same command is given again"
        ) from None
    finally:
        about = {"features": features, "failures": failures, "usage": vars(llm.usage)}
        write_json(run.folder / FOLDERS[stage] / f"llm-{hook}.json", about)
    return answers


def told(run: "Run", stage: str) -> str:
    """In a line, what an audio LLM was asked in a stage and what it cost; empty where none was asked."""
    if not asks(run, stage):
        return ""
    usage, failures = Usage(), 0
    for layer in run.layers:
        row = read_json(run.folder / FOLDERS[stage] / f"llm-{hook_name(layer)}.json")
        usage += Usage(**row["usage"])
        failures += sum(row["failures"].values())
    return f"the audio LLM: {usage.told()}; {failures} failures"
