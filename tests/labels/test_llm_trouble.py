"""What an audio LLM's server does wrong, and what comes of it."""

import json
import traceback

import pytest
from llm_run import (
    FEATURES,
    SORTS,
    TRANSIENT,
    WIRES,
    ask,
    clip,
    config_of,
    files_of,
    holds_key,
    label,
    mischief,
    unpaid_once,
)
from llm_server import KEY, LLMServer, mode_of

from musae_jax.errors import MusaeError
from musae_jax.labels.llm import presentation
from musae_jax.labels.llm.client import LLMClient


@pytest.mark.parametrize("provider", WIRES)
@pytest.mark.parametrize("how", TRANSIENT)
def test_passing_trouble_is_overcome(tmp_path, provider, how):
    with LLMServer(lambda task, attempt, content: how if attempt < 3 else "").running() as server:
        reply = ask(server, tmp_path, provider=provider)
    assert reply.object["name"].strip(" .") == "440 hertz" and not reply.failure
    assert reply.usage.requests == 1 and not unpaid_once(server)
    assert server.seen[how] == (1 if how == "chatty" else 2) and not server.faults


def test_a_silent_server_is_left_and_asked_again(tmp_path):
    with LLMServer(lambda task, attempt, content: "hang" if attempt == 1 else "").running() as server:
        reply = ask(server, tmp_path, timeout=0.5)
        assert reply.object and server.seen["hang"] == 1
        server.behave = lambda *_: "hang"
        with pytest.raises(MusaeError, match=r"did not answer in 2 attempts \(silence for 0.2 s\)"):
            ask(server, tmp_path, [clip(300)], timeout=0.2, attempts=2)


@pytest.mark.parametrize("provider", WIRES)
@pytest.mark.parametrize("how", ["wrong once", "not json once"])
def test_one_turn_mends_a_bad_reply(server, tmp_path, provider, how):
    server.behave = lambda *_: how
    reply = ask(server, tmp_path, provider=provider)
    assert reply.object and reply.usage.requests == 2
    mending = json.dumps(server.bodies[1])
    assert ("must be from 0 to 1" if how == "wrong once" else "holds no complete JSON object") in mending


@pytest.mark.parametrize("how, kind", [("refuse", "refused"), ("unsafe", "refused"), ("filtered", "refused"),
                                       ("wrong", "unparseable"), ("not json", "unparseable")])  # fmt: skip
def test_failures_are_kept_and_asked_again_on_request_only(server, tmp_path, how, kind):
    server.behave = lambda *_: how
    provider = "gemini" if how == "unsafe" else "openai"
    found = label(server.url, tmp_path, 2, provider=provider)
    assert found.failures == {kind: 2} and found.rows[0]["name"] is None and found.rows[0]["confidence"] == 0
    assert [row["evidence"]["failure"] for row in found.rows] == [kind, kind]
    paid = server.seen.total()
    server.behave = lambda *_: ""
    assert label(server.url, tmp_path, 2, provider=provider).failures == {kind: 2} and server.seen.total() == paid
    mended = label(server.url, tmp_path, 2, retry_failures=True, provider=provider)
    assert [row["name"] for row in mended.rows] == ["100 hertz", "110 hertz"] and not mended.failures
    paid = server.seen.total()
    assert label(server.url, tmp_path, 2, True, provider=provider).rows == mended.rows and server.seen.total() == paid


def test_a_failure_that_stays_is_retried_once_a_run(server, tmp_path):
    server.behave = lambda *_: "refuse"
    ask(server, tmp_path)
    llm = LLMClient(config_of(server.url), tmp_path, KEY, retry_failures=True)
    for _ in range(3):
        assert llm.complete(*presentation.ask_many([clip(440)])).failure == "refused"
    assert server.seen["refuse"] == 2


@pytest.mark.parametrize("provider", WIRES)
@pytest.mark.parametrize("how, mode", [("no schema", "json_object"), ("no format", "prompt")])
def test_the_ladder_is_climbed_down_once(server, tmp_path, provider, how, mode):
    server.behave = lambda *_: how
    found = label(server.url, tmp_path, 4, provider=provider, concurrency=1)
    assert not found.failures and found.usage.requests == 4
    modes = [mode_of(body) for body in server.bodies]
    above = ["json_schema", "json_object", "prompt"]
    assert modes == [*above[: above.index(mode)], *[mode] * 4]


def test_what_no_mode_suits_is_counted_and_does_not_lower_the_ladder(server, tmp_path):
    llm = LLMClient(config_of(server.url), tmp_path, KEY)
    server.behave = lambda *_: "400"
    assert llm.complete(*presentation.ask_many([clip(440)])).failure == "declined"
    with pytest.raises(MusaeError, match="takes no request"):
        llm.check()
    server.behave = lambda *_: ""
    assert llm.complete(*presentation.ask_many([clip(440)])).object and mode_of(server.bodies[-1]) == "json_schema"
    llm.check()


@pytest.mark.parametrize("status", ["400", "422"])
def test_a_server_that_takes_none_of_the_first_requests_is_given_up(server, tmp_path, status):
    server.behave = lambda *_: status
    words = rf"takes no request \(status {status} for key \[key\]\); check model"
    with pytest.raises(MusaeError, match=words):
        label(server.url, tmp_path, concurrency=1)
    assert 15 <= server.seen.total() <= 21 and not files_of(tmp_path)  # five questions, in every mode


@pytest.mark.parametrize("lost", [(3,), (0, 1), (1, 2, 3, 4, 5)])
@pytest.mark.parametrize("way", ["many", "captions"])
def test_clips_that_a_server_does_not_take_are_failures_of_their_features(server, tmp_path, lost, way):
    """In the order of asking, with one thread: also of many, once the server has taken another."""
    hertz = [f"{100 + 10 * feature} hertz" for feature in lost]
    server.behave = lambda task, attempt, content: "400" if any(one in server.said for one in hertz) else ""
    found = label(server.url, tmp_path, 6, concurrency=1, presentation=way)
    kinds = {"many": {"declined": len(lost)}, "captions": {"caption declined": 2 * len(lost), "declined": len(lost)}}
    assert found.failures == kinds[way]
    for feature, row in enumerate(found.rows):
        assert row["evidence"].get("failure") == ("declined" if feature in lost else None)
        assert row["name"] == (None if feature in lost else f"{100 + 10 * feature} hertz")
    kept = label(server.url, tmp_path, 6, presentation=way)  # the others are there, so it is still theirs alone
    assert kept.rows == found.rows and not kept.usage.requests
    server.behave = lambda *_: ""
    again = label(server.url, tmp_path, 6, presentation=way)  # it is asked again, and nothing else is
    assert not again.failures and again.usage.requests == len(lost) * (1 if way == "many" else 3)


@pytest.mark.parametrize("how, words", [
    ("401", "does not accept the key"), ("403", "set OPENAI_API_KEY to a valid one"), ("404", "no such model"),
    ("402", "used up"), ("paid out", "used up"), ("413", "lower max_clips"), ("418", "status 418"),
    ("302", "status 302"),
])  # fmt: skip
def test_what_patience_does_not_mend_ends_at_once(server, tmp_path, how, words):
    server.behave = lambda *_: how
    with pytest.raises(MusaeError, match=words) as caught:
        ask(server, tmp_path)
    assert server.seen.total() == 1 and not files_of(tmp_path)
    shown = "".join(traceback.format_exception(caught.value))
    assert KEY not in shown and ("[key]" in shown or how == "paid out")


def test_a_server_that_is_gone_ends_a_run_and_one_lost_question_does_not(server, tmp_path):
    with pytest.raises(MusaeError, match=r"did not answer in 2 attempts .* then run it again"):
        label("http://127.0.0.1:9/v1", tmp_path, attempts=2)
    bad = {}
    server.behave = lambda task, attempt, content: "500" if bad.setdefault(content, len(bad)) == 2 else ""
    found = label(server.url, tmp_path, 6, attempts=2, concurrency=1)
    assert found.failures == {"unanswered": 1} and found.rows[2]["evidence"]["failure"] == "unanswered"
    server.behave = lambda *_: ""
    found = label(server.url, tmp_path, 6)  # only what has an answer is kept
    assert not found.failures and (found.usage.requests, found.usage.cached) == (1, 5)
    server.behave = lambda task, attempt, content: "" if bad.setdefault(content, len(bad)) < 8 else "500"
    with pytest.raises(MusaeError, match="did not answer"):
        label(server.url, tmp_path, 20, attempts=2, concurrency=2)


def test_200_features_against_a_misbehaving_server(tmp_path):
    with LLMServer(mischief, delay=0.002).running() as server:
        fast = label(server.url, tmp_path / "fast", concurrency=8)
        assert server.most <= 8 and not unpaid_once(server)
        assert all(server.seen[how] for how in SORTS)
        server.attempts.clear(), server.paid.clear()
        slow = label(server.url, tmp_path / "slow", concurrency=1)
    assert fast == slow and not server.faults and not unpaid_once(server)
    assert [row["feature"] for row in fast.rows] == list(range(FEATURES))
    refused = fast.failures.pop("refused")
    assert not fast.failures and 0 < refused < FEATURES // 4
    for feature, row in enumerate(fast.rows):
        failed = row["evidence"].get("failure")
        assert row["name"] == (None if failed else f"{100 + 10 * feature} hertz")
    kept = [path.relative_to(tmp_path / "fast") for path in files_of(tmp_path / "fast")]
    assert kept == [path.relative_to(tmp_path / "slow") for path in files_of(tmp_path / "slow")]
    assert not holds_key(tmp_path)
