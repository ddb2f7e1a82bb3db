"""Names for features by an audio LLM, and whether it hears a name in clips that it was not named from."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from musae_jax.labels.llm.client import AudioLLM, Reply
from musae_jax.labels.llm.config import LLMConfig
from musae_jax.labels.llm.presentation import (
    Clip,
    Question,
    ask_caption,
    ask_detect,
    ask_joined,
    ask_many,
    ask_merge,
    presentation_of,
)

NO_NAME = ("", "none", "n/a", "unsure", "unknown", "unclear")

Progress = Callable[[int, int, str], None]
_In, _Out = TypeVar("_In"), TypeVar("_Out")


@dataclass(frozen=True)
class Answers:
    """A row for each that was asked about, in that order; `failures` counts by kind the rows without an answer (and, as
    "caption …", the captions that are missing)."""

    rows: list[dict[str, Any]]
    failures: dict[str, int]


def label_features(
    llm: AudioLLM,
    features: Iterable[tuple[int, Sequence[Clip]]],
    config: LLMConfig,
    total: int | None = None,
    progress: Progress | None = None,
) -> Answers:
    """Names each feature from its clips, strongest first, of which the first `config.max_clips` are heard.

    `features` may be a generator: no more of them are in memory than can be asked at a time. A row holds "feature",
    "name" (None where the model hears nothing in common, and where it did not answer), "confidence" in 0…1 as the
    model puts it, and "evidence": its description and concepts, the clips, their captions, the model, the presentation
    and the prompt's version; and "failure" where there is one: "refused", "unparseable", "declined", "unanswered" or
    "no clips". The rows are the same whatever the concurrency. `total` is for the progress alone.

    Raises:
      MusaeError: no further question would be answered (a key, an address, a server that is gone). What was paid is in
        the client's cache, so the same call goes on from there.
    """
    rows, failures = [], Counter()
    total = len(features) if total is None and isinstance(features, Sequence) else total
    for row, lost in _in_order(lambda item: _label(llm, *item, config), features, config.concurrency):
        rows.append(row)
        failures.update(lost)
        if progress:
            progress(len(rows), max(total or 0, len(rows)), "features")
    return Answers(rows, dict(sorted(failures.items())))


def detect(
    llm: AudioLLM,
    asked: Iterable[tuple[str, Clip]],
    config: LLMConfig,
    total: int | None = None,
    progress: Progress | None = None,
) -> Answers:
    """Asks of each (name, clip) whether the name is heard in the clip, from which it must not have been made.

    A row holds "name", "clip" and "probability": ½ where the model guesses, up to 1 where it is certain that the name
    holds, down to 0 where it is certain that it does not; None, with a "failure", where it did not answer. Order,
    memory and errors as in `label_features`.
    """
    rows, failures = [], Counter()
    total = len(asked) if total is None and isinstance(asked, Sequence) else total

    def ask(item: tuple[str, Clip]) -> tuple[str, str, Reply]:
        name, clip = item
        return name, clip.id, llm.complete(*ask_detect(name, clip))

    for name, clip, reply in _in_order(ask, asked, config.concurrency):
        row = {"name": name, "clip": clip, "probability": _probability(reply)}
        rows.append(row if not reply.failure else {**row, "failure": reply.failure})
        failures.update([reply.failure] if reply.failure else [])
        if progress:
            progress(len(rows), max(total or 0, len(rows)), "clips judged")
    return Answers(rows, dict(sorted(failures.items())))


def _label(llm: AudioLLM, feature: int, clips: Sequence[Clip], config: LLMConfig) -> tuple[dict[str, Any], list[str]]:
    """A feature's row, and the failures in it."""
    clips, way = clips[: config.max_clips], presentation_of(config)
    evidence: dict[str, Any] = {"model": config.model, "presentation": way, "clips": [clip.id for clip in clips]}
    lost: list[str] = []
    question: Question | None = None
    failure = "no clips"
    if way == "captions":
        replies = [llm.complete(*ask_caption(clip)) for clip in clips]
        evidence["captions"] = [reply.object["caption"] if reply.object else None for reply in replies]
        lost = [reply.failure for reply in replies if reply.failure]
        failure = lost[0] if lost else failure
        heard = [caption for caption in evidence["captions"] if caption is not None]
        if "unanswered" in lost:  # may be answered in another run, and the name be paid then
            heard, failure = [], "unanswered"
        lost = [f"caption {kind}" for kind in lost]
        question = ask_merge(heard) if heard else None
    elif clips:
        question = ask_joined(clips) if way == "joined" else ask_many(clips)
    answer: dict[str, Any] | None = None
    if question:
        reply = llm.complete(*question)
        answer, failure = reply.object, reply.failure
        evidence["prompt"] = question.schema["version"]
    row = {"feature": int(feature), "name": None, "confidence": 0.0, "evidence": evidence}
    if answer is None:
        evidence["failure"] = failure
        return row, [*lost, failure]
    evidence["description"] = answer["description"].strip()
    evidence["concepts"] = [{"name": c["name"], "confidence": float(c["confidence"])} for c in answer["concepts"]]
    name = " ".join(answer["name"].split()).rstrip(".")
    if name.lower() not in NO_NAME:
        row |= {"name": name, "confidence": float(answer["confidence"])}
    return row, lost


def _probability(reply: Reply) -> float | None:
    if reply.object is None:
        return None
    certainty = float(reply.object["confidence"])
    return 0.5 + certainty / 2 if reply.object["present"] else 0.5 - certainty / 2


def _in_order(call: Callable[[_In], _Out], items: Iterable[_In], workers: int) -> Iterator[_Out]:
    """`call` of each item, by so many threads, in the order of the items; as many again wait at most."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="audio-llm")
    running: deque[Future[_Out]] = deque()
    try:
        for item in items:
            running.append(pool.submit(call, item))
            if len(running) >= 2 * workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
