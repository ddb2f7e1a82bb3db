"""One question, one checked answer, paid once: the cache, the ladder of schema modes and the turn that mends."""

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from musae_jax.errors import MusaeError
from musae_jax.labels.llm import gemini_wire, openai_wire
from musae_jax.labels.llm.cache import ReplyCache, hashed, question
from musae_jax.labels.llm.config import LLMConfig
from musae_jax.labels.llm.messages import Answer, Audio, Part, Text, Turn, Usage
from musae_jax.labels.llm.pace import Pace
from musae_jax.labels.llm.schema import Schema, read_object
from musae_jax.labels.llm.transport import Declined, Transport, Unanswered, checked_key, checked_url

MODES = ("json_schema", "json_object", "prompt")
REPAIR = "That cannot be used: {error}. Reply again, with the corrected JSON object only."
SILENCES = 3  # requests in a row that stay unanswered before a run is given up
DECLINES = 5  # questions that a server has declined before it took any, after which it is thought to take none
_WIRES = {"openai": openai_wire, "gemini": gemini_wire}


@dataclass(frozen=True)
class Reply:
    """What came of a question: the object that fits the schema, or `failure`: "refused" by the model, "unparseable"
    (after one turn to mend it), "declined" by the server (400, 422) or "unanswered"; the last two are not kept. `raw`
    is the last reply as it came."""

    object: dict[str, Any] | None
    usage: Usage
    raw: dict[str, Any] | None
    failure: str = ""


class AudioLLM(Protocol):
    """Whatever answers questions about sound."""

    def complete(self, system: str, parts: Sequence[Part], schema: Schema) -> Reply:
        """An object that fits `schema`, from instructions and a message of words and sounds. May be called from several
        threads. Raises `MusaeError` where no further question would be answered either."""
        ...


class LLMClient:
    """An audio LLM behind HTTP.

    Args:
      config: which one, how fast.
      cache: folder of the replies paid so far; what it holds is not asked again.
      key: by default that in the environment. It is neither saved nor shown.
      retry_failures: ask again, once, what was refused or unparseable in an earlier run.
      clock, sleep: for tests.

    `usage` is what all questions together have used so far.

    Raises:
      MusaeError: no model, no key where one is needed, a base_url that is none, a limit that lets nothing through.
    """

    def __init__(
        self,
        config: LLMConfig,
        cache: str | Path,
        key: str | None = None,
        retry_failures: bool = False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        _check(config)
        self._config, self._wire = config, _WIRES[config.provider]
        base = checked_url(config.base_url or self._wire.BASE_URL)
        # Gemini's endpoint in OpenAI's manner takes Gemini's keys
        names = gemini_wire.KEYS if base.startswith(gemini_wire.BASE_URL) else self._wire.KEYS
        key = checked_key(key if key is not None else next(filter(None, map(os.environ.get, names)), ""))
        advice = f"set {' or '.join(names)} to a valid one"
        if not key and not config.base_url:
            raise MusaeError(f"there is no key for {config.provider}; {advice}, or give the base_url of a local server")
        limits = (config.requests_per_minute, config.audio_seconds_per_minute)
        self._transport = Transport(
            self._wire.address(base, config.model),
            *(self._wire.headers(key), key, advice),
            *(config.concurrency, config.timeout, config.attempts),
            *(Pace(limits, clock, sleep), sleep),
        )
        self._cache, self._retry_failures = ReplyCache(cache), retry_failures
        self._lock = threading.Lock()
        self._asking: dict[str, threading.Lock] = {}
        self._waiting: Counter[str] = Counter()
        self._retried: set[str] = set()
        self._mode = 0  # of MODES: the best that the server is known to take
        self._heard, self._silences = False, 0
        self._taken, self._declines = False, 0  # now, or in an earlier run
        self.usage = Usage()

    def complete(self, system: str, parts: Sequence[Part], schema: Schema) -> Reply:
        """As `AudioLLM` has it. The same question, asked by several threads at once, is paid once."""
        turns = [Turn("user", tuple(parts))]
        name = hashed(self._question(system, turns, schema))
        with self._alone(name):
            reply = self._converse(system, turns, schema, fresh=False)
            kept = reply.failure in ("refused", "unparseable") and not reply.usage.requests
            if kept and self._retry_failures and name not in self._retried:
                self._retried.add(name)
                reply = self._converse(system, turns, schema, fresh=True)
            return reply

    def check(self) -> None:
        """Raises a `MusaeError` where every question so far was declined: none of them is to blame."""
        if self._declines and not self._taken:
            raise MusaeError(
                f"{self._transport.host} takes no request ({self._reason}); check model, temperature, seed and "
                "max_clips, or choose another presentation"
            )

    def _converse(self, system: str, turns: list[Turn], schema: Schema, fresh: bool) -> Reply:
        usage, raw = Usage(), None
        for _ in range(2):
            try:
                raw, answer, used = self._ask(system, turns, schema, fresh)
            except (Unanswered, Declined) as error:
                return Reply(None, usage, raw, "unanswered" if isinstance(error, Unanswered) else "declined")
            usage += used
            with self._lock:
                self.usage += used
            if answer.refusal:
                return Reply(None, usage, raw, "refused")
            found, error = read_object(answer.text, schema)
            if found is not None:
                return Reply(found, usage, raw)
            said = Turn("assistant", (Text(answer.text or "(nothing)"),))
            turns = [*turns, said, Turn("user", (Text(REPAIR.format(error=error)),))]
        return Reply(None, usage, raw, "unparseable")

    def _ask(self, system: str, turns: list[Turn], schema: Schema, fresh: bool) -> tuple[dict[str, Any], Answer, Usage]:
        """The reply to a conversation, from disk or paid and kept."""
        asked = self._question(system, turns, schema)
        if not fresh and (raw := self._cache.get(asked)) is not None:
            self._taken = True
            return raw, self._wire.read(raw), Usage(cached=1)
        seconds = sum(part.seconds for turn in turns for part in turn.parts if isinstance(part, Audio))
        raw, answer = self._climb_down(system, turns, schema, seconds)
        self._cache.put(asked, raw)
        return raw, answer, Usage(1, 0, *answer.tokens, seconds)

    def _climb_down(
        self, system: str, turns: list[Turn], schema: Schema, seconds: float
    ) -> tuple[dict[str, Any], Answer]:
        """Asks in the best mode that the server takes, and remembers which that is once it has taken it."""
        c = self._config
        for mode in range(self._mode, len(MODES)):
            body = self._wire.body(c.model, system, turns, schema, MODES[mode], c.temperature, c.seed)
            try:
                raw, answer = self._transport.post(body, seconds, self._wire.read)
            except Declined as error:
                declined = error
                continue
            except Unanswered as error:
                self._count_silence(error)
                raise
            with self._lock:
                self._mode = max(self._mode, mode)
                self._heard, self._silences, self._taken = True, 0, True
            return raw, answer
        self._count_decline(declined)
        raise declined

    def _count_decline(self, error: Declined) -> None:
        """What one question is declined for may be its own fault; what the first few are is everyone's."""
        with self._lock:
            self._declines, self._reason = self._declines + 1, str(error)
        if self._declines >= DECLINES:
            self.check()

    def _count_silence(self, error: Unanswered) -> None:
        with self._lock:
            self._silences += 1
            lost = not self._heard or self._silences >= SILENCES
        if lost:
            raise MusaeError(
                f"{self._transport.host} did not answer in {self._config.attempts} attempts ({error}); check base_url "
                "and the server, then run it again"
            ) from None

    def _question(self, system: str, turns: list[Turn], schema: Schema) -> dict[str, Any]:
        c = self._config
        parameters = {"temperature": c.temperature, "seed": c.seed}
        return question(c.provider, c.model, system, turns, schema, parameters)

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """One thread at a time per question; the next finds the answer on disk."""
        with self._lock:
            lock = self._asking.setdefault(name, threading.Lock())
            self._waiting[name] += 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                self._waiting[name] -= 1
                if not self._waiting[name]:
                    del self._asking[name], self._waiting[name]


def _check(config: LLMConfig) -> None:
    if not config.model:
        raise MusaeError("no model is named; give the audio LLM's name in model")
    for name in (
        "concurrency", "attempts", "max_clips", "max_features", "timeout", "requests_per_minute",
        "audio_seconds_per_minute",
    ):  # fmt: skip
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise MusaeError(f"{name} is {value}, but must be above 0")
