"""Posting JSON until it is answered: retries, pauses that servers ask for, errors in a sentence.

On the standard library alone: the SDKs of OpenAI and Google bring a hundred megabytes for two requests whose form is
fixed, and hide the retries, pauses and raw replies that a run of thousands of paid requests has to control.
"""

import contextlib
import email.utils
import http.client
import ipaddress
import json
import math
import random
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

from musae_jax.errors import MusaeError
from musae_jax.labels.llm.messages import Answer
from musae_jax.labels.llm.pace import Pace

LONGEST_PAUSE = 120.0  # seconds; whatever a server asks for, it is asked again after so long (as OpenAI's SDK has it)
BACKOFF = (0.5, 8.0)  # seconds after the first failure, doubled with each, and the most (as OpenAI's SDK has it)
_AGAIN = (408, 409, 425, 429)
_UNREADABLE = (LookupError, TypeError, AttributeError, ValueError)
_PAID_OUT = "insufficient_quota"  # a 429 that no patience helps


class Unanswered(Exception):
    """The attempts are used up; the text says what came of the last one."""


class Declined(Exception):
    """The server has understood the request and does not take it (400, 422); the text says why."""


def checked_url(base_url: str) -> str:
    """The URL without its last slash; one that is no web address, or holds a password or a query, is a `MusaeError`."""
    try:
        parts = urllib.parse.urlsplit(base_url)
        plain = parts.hostname and parts.username is None and not parts.query and not re.search(r"\s", base_url)
    except ValueError:
        plain = False
    if not plain or parts.scheme not in ("http", "https"):
        raise MusaeError(
            "base_url is not a plain http or https address; give one such as http://localhost:8000/v1, "
            "and the key in its environment variable"
        )
    return base_url.rstrip("/")


def checked_key(key: str) -> str:
    """The key without spaces around it; one that no header can carry is a `MusaeError`, which does not show it."""
    key = key.strip()
    if not re.fullmatch(r"[!-~]*", key):
        raise MusaeError("the key holds spaces or signs that no key has; copy it again")
    return key


def pause_asked(retry_after: str | None, body: str, now: float) -> float | None:
    """Seconds that a server asks to wait: Retry-After as seconds or as a date (`now` is the time since 1970), or the
    retryDelay that Google writes into its error. None where it does not say."""
    if retry_after:
        with contextlib.suppress(ValueError):
            seconds = float(retry_after)
            return max(0.0, seconds) if math.isfinite(seconds) else None
        with contextlib.suppress(ValueError):
            return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - now)
    found = re.search(r'"retryDelay":\s*"([\d.]{1,9})s"', body)
    return float(found[1]) if found and found[1].count(".") < 2 and found[1] != "." else None


class Transport:
    """Sends requests to one server from many threads, at most `concurrency` at a time.

    Args:
      url: where to; in errors only its host is named.
      headers: of every request.
      key: is removed from whatever the server says.
      key_advice: what to do where the server does not take the key.
      timeout: seconds without a sign of the server.
      attempts: how often a request is sent at most.
      clock, sleep: as in `Pace`, which they belong to.
    """

    def __init__(
        self,
        url: str,
        headers: dict[str, str],
        key: str,
        key_advice: str,
        concurrency: int,
        timeout: float,
        attempts: int,
        pace: Pace,
        sleep: Callable[[float], None],
    ):
        self._url, self._key, self._key_advice = url, key, key_advice
        self._headers = {**headers, "Content-Type": "application/json", "User-Agent": "musae-jax"}
        self._timeout, self._attempts = timeout, attempts
        self._pace, self._sleep = pace, sleep
        self._free = threading.BoundedSemaphore(concurrency)
        self.host = urllib.parse.urlsplit(url).netloc
        self._opener = urllib.request.build_opener(*_handlers(url))

    def post(
        self, body: dict[str, Any], seconds: float, read: Callable[[dict[str, Any]], Answer]
    ) -> tuple[dict[str, Any], Answer]:
        """The reply as it came and as `read` understood it. `seconds` is the sound in the request.

        Tried again: replies that cannot be read, 408, 409, 425, 429, 5xx, silence, connections that cannot be made or
        are cut.

        Raises:
          Unanswered: nothing came of any attempt.
          Declined: 400 or 422.
          MusaeError: a key, an address or an account that will not do, and any other refusal.
        """
        data = json.dumps(body).encode()
        reason = ""
        for attempt in range(self._attempts):
            with self._free:
                self._pace.wait(1, seconds)
                status, text, retry_after, reason = self._send(data)
            if 200 <= status < 300 or status == 400:  # OpenAI-like servers refuse what they filter with a 400
                with contextlib.suppress(*_UNREADABLE):
                    reply = self._without_key(json.loads(text))
                    return reply, read(reply)
                reason = _message(text) if status == 400 else "a reply that is no answer"
            self._give_up(status, text, reason)
            if attempt + 1 < self._attempts:
                self._wait(status, pause_asked(retry_after, text, time.time()), attempt)
        raise Unanswered(reason)

    def _send(self, data: bytes) -> tuple[int, str, str | None, str]:
        """Status (0: no whole reply), body, Retry-After, and what went wrong."""
        request = urllib.request.Request(self._url, data, self._headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._timeout) as reply:
                return reply.status, reply.read().decode("utf-8", "replace"), None, ""
        except urllib.error.HTTPError as error:
            with error:
                try:
                    text = error.read().decode("utf-8", "replace")
                except (OSError, http.client.HTTPException):
                    text = ""
            return error.code, text, error.headers.get("Retry-After"), self._clean(_message(text) or str(error.reason))
        except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
            cause = getattr(error, "reason", error)
            silent = isinstance(cause, TimeoutError)
            words = f"silence for {self._timeout:g} s" if silent else str(cause) or type(cause).__name__
            return 0, "", None, self._clean(words)

    def _give_up(self, status: int, text: str, reason: str) -> None:
        """Raises for what no further attempt would mend."""
        reason = self._clean(reason)
        if status in (401, 403) or (status == 400 and re.search(r"api.?key", text, re.IGNORECASE)):
            raise MusaeError(f"{self.host} does not accept the key ({reason}); {self._key_advice}")
        if status in (400, 422):
            raise Declined(reason)
        if status == 404:
            raise MusaeError(f"{self.host} has no such model or address ({reason}); check model, provider and base_url")
        if status == 402 or _PAID_OUT in text:
            raise MusaeError(f"the account at {self.host} is used up ({reason}); fill it, then run it again")
        if status == 413:
            raise MusaeError(
                f"{self.host} finds a request too large ({reason}); lower max_clips, or choose another presentation"
            )
        if 300 <= status < 500 and status not in _AGAIN:
            raise MusaeError(f"{self.host} refused a request with status {status} ({reason}); check base_url and model")

    def _wait(self, status: int, asked: float | None, attempt: int) -> None:
        first, most = BACKOFF
        backoff = min(most, first * 2**attempt) * random.uniform(0.75, 1.0)  # or all would come back at once
        seconds = backoff if asked is None else min(asked, LONGEST_PAUSE)
        if status == 429:
            self._pace.pause(seconds)  # the limit is the account's, not this request's
        else:
            self._sleep(seconds)

    def _clean(self, words: str) -> str:
        """One line of what the server said, without the key."""
        words = " ".join(words.split())
        words = words.replace(self._key, "[key]") if self._key else words
        return (words[:300] + " …" if len(words) > 300 else words).rstrip(".;")

    def _without_key(self, reply: Any) -> Any:
        # Shorter ones, such as vLLM's EMPTY, are no secrets and may be words.
        if len(self._key) < 8:
            return reply
        return json.loads(json.dumps(reply).replace(json.dumps(self._key)[1:-1], "[key]"))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to wherever it points."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _handlers(url: str) -> list[Any]:
    """Proxies are those of the environment, but none lies between us and this machine."""
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = host == "localhost"
    return [_NoRedirect(), *([urllib.request.ProxyHandler({})] if here else [])]


def _message(text: str) -> str:
    """What an error's body says, in any of the usual shapes."""
    with contextlib.suppress(*_UNREADABLE):
        found = json.loads(text)
        found = found[0] if isinstance(found, list) else found
        found = found.get("error") or found.get("message") or found.get("detail")
        found = found.get("message") if isinstance(found, dict) else found
        return found if isinstance(found, str) else json.dumps(found)
    return text
