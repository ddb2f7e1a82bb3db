"""The audio-LLM source of names against a server on this machine that speaks both wires and misbehaves."""

import dataclasses
import email.utils
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_run import FEATURES, RATE, clip, config_of, features, hurried, label
from llm_server import KEY, LLMServer, mode_of

from musae_jax.config import from_record, to_record
from musae_jax.errors import MusaeError
from musae_jax.features.spans import active_spans
from musae_jax.labels.llm import presentation
from musae_jax.labels.llm.cache import hashed, question
from musae_jax.labels.llm.client import LLMClient
from musae_jax.labels.llm.config import LLMConfig
from musae_jax.labels.llm.labeller import detect, label_features
from musae_jax.labels.llm.messages import Text, Turn, Usage, wav
from musae_jax.labels.llm.pace import Pace
from musae_jax.labels.llm.schema import misfit, read_object
from musae_jax.labels.llm.transport import LONGEST_PAUSE, pause_asked

LABEL = presentation.read_prompt("label", "label")[1]
WIRES = ("openai", "gemini")
TRANSIENT = ("429 0", "429", "500", "503", "529", "408", "hang up", "cut", "garbage", "chatty")
SORTS = (*TRANSIENT, "wrong once", "not json once", "refuse", "no schema")


@pytest.fixture
def server():
    with LLMServer().running() as one:
        yield one
    assert not one.faults


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self):
        self.now, self.slept = 1000.0, []

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


def ask(server, cache, clips=None, retry_failures=False, sleep=hurried, clock=time.monotonic, **other):
    """One question, of the names' kind."""
    llm = LLMClient(config_of(server.url, **other), cache, KEY, retry_failures, clock, sleep)
    return llm.complete(*presentation.ask_many(clips or [clip(440)]))


def files_of(cache):
    return sorted(path for path in Path(cache).rglob("*") if path.is_file())


def holds_key(folder):
    return any(KEY.encode() in path.read_bytes() for path in files_of(folder))


def unpaid_once(server):
    return {content: count for content, count in server.paid.items() if count != 1}


@pytest.mark.parametrize("provider", WIRES)
@pytest.mark.parametrize("way", ["many", "joined", "captions"])
def test_every_presentation_names_features_over_both_wires(server, tmp_path, provider, way):
    done = []
    found = label(server.url, tmp_path, 3, provider=provider, presentation=way, progress=lambda *a: done.append(a))
    assert [row["feature"] for row in found.rows] == [0, 1, 2] and not found.failures
    names = [int(row["name"].split()[0]) for row in found.rows]
    assert np.abs(np.subtract(names, [100, 110, 120])).max() <= 1  # the joined sound is no whole number of periods
    first = found.rows[0]
    assert first["confidence"] == 0.75 and first["evidence"]["clips"] == ["100-0", "100-1"]
    assert first["evidence"]["concepts"][1] == {"name": "a sine", "confidence": 0.25}
    assert first["evidence"]["prompt"] == "label-1" and first["evidence"]["presentation"] == way
    requests, sounds = {"many": (3, 0.6), "joined": (3, 3.6), "captions": (9, 0.6)}[way]
    usage = found.usage
    assert (usage.requests, usage.cached) == (requests, 0) and usage.audio_seconds == pytest.approx(sounds)
    assert (usage.input_tokens, usage.output_tokens) == (100 * requests, 10 * requests)
    assert usage.audio_tokens == 64 * requests and done[-1] == (3, 3, "features") and len(done) == 3
    assert (first["evidence"].get("captions") or [None])[0] == ("A sine of 100 hertz." if way == "captions" else None)

    again = label(server.url, tmp_path, 3, provider=provider, presentation=way)
    assert again.rows == found.rows and again.usage == Usage(cached=requests) and not unpaid_once(server)


@pytest.mark.parametrize("provider", WIRES)
def test_detection_gives_probabilities(server, tmp_path, provider):
    config = config_of(server.url, provider=provider)
    llm = LLMClient(config, tmp_path, KEY)
    asked = [(1, clip(440)), (1, clip(500)), (2, clip(440)), (2, clip(500)), (3, clip(440))]
    found = detect(llm, {1: "440 hertz", 2: "500 hertz", 3: "440 hertz"}, iter(asked), config, len(asked))
    assert [row["probability"] for row in found.rows] == pytest.approx([0.9, 0.1, 0.1, 0.9, 0.9])
    assert [(row["feature"], row["clip"]) for row in found.rows] == [(f, one.id) for f, one in asked]
    assert (found.usage.requests, found.usage.cached) == (4, 1)  # features of one name share the question
    server.behave = lambda *_: "refuse"
    found = detect(llm, {1: "660 hertz"}, [(1, clip(440))], config)
    assert found.rows == [{"feature": 1, "clip": "440-0", "probability": None, "failure": "refused"}]
    assert found.failures == {"refused": 1}


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


def test_a_request_that_no_mode_suits_is_one_sentence_and_does_not_lower_the_ladder(server, tmp_path):
    llm = LLMClient(config_of(server.url), tmp_path, KEY)
    server.behave = lambda *_: "400"
    with pytest.raises(MusaeError, match=r"does not take the request \(status 400 for key \[key\]\); check model"):
        llm.complete(*presentation.ask_many([clip(440)]))
    server.behave = lambda *_: ""
    assert llm.complete(*presentation.ask_many([clip(440)])).object and mode_of(server.bodies[-1]) == "json_schema"


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


def test_a_wrong_key_is_never_shown(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "another-key-987")
    with pytest.raises(MusaeError, match=r"Incorrect API key provided: \[key\]") as caught:
        LLMClient(config_of(server.url), tmp_path).complete(*presentation.ask_many([clip(440)]))
    assert "another-key-987" not in "".join(traceback.format_exception(caught.value))
    for bad in ("a key", "a\nkey", "schlüssel"):
        with pytest.raises(MusaeError, match="copy it again") as caught:
            LLMClient(config_of(server.url), tmp_path, bad)
        assert bad not in str(caught.value)


def test_a_server_that_echoes_the_key_gets_it_into_no_file(server, tmp_path):
    server.behave = lambda *_: "echo"
    reply = ask(server, tmp_path)
    assert "[key]" in reply.object["name"] and files_of(tmp_path) and not holds_key(tmp_path)


def test_keys_come_from_the_environment(server, tmp_path, monkeypatch):
    for name in ("OPENAI_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for provider, name in (("openai", "OPENAI_API_KEY"), ("gemini", "GEMINI_API_KEY or GOOGLE_API_KEY")):
        with pytest.raises(MusaeError, match=f"no key for {provider}; set {name}"):
            LLMClient(LLMConfig(model="m", provider=provider), tmp_path)
    monkeypatch.setenv("GOOGLE_API_KEY", f" {KEY}\n")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # not for servers on this machine
    llm = LLMClient(config_of(server.url, provider="gemini"), tmp_path)
    assert llm.complete(*presentation.ask_many([clip(440)])).object
    with LLMServer(key="").running() as open_server:  # a local server needs none
        assert LLMClient(config_of(open_server.url), tmp_path / "b").complete("s", [Text("1 hertz")], LABEL).object


@pytest.mark.parametrize("wrong, words", [
    ({"model": ""}, "no model is named"), ({"concurrency": 0}, "concurrency is 0"), ({"timeout": -1}, "timeout is -1"),
    ({"requests_per_minute": 0}, "requests_per_minute is 0"), ({"base_url": "localhost:8000"}, "base_url"),
    ({"base_url": "http://me:secret@host/v1"}, "base_url"), ({"base_url": "http://host/v1?key=secret"}, "base_url"),
])  # fmt: skip
def test_a_config_that_cannot_work_is_refused(tmp_path, wrong, words):
    config = LLMConfig(**{"model": "m", "base_url": "http://localhost/v1", **wrong})
    with pytest.raises(MusaeError, match=words) as caught:
        LLMClient(config, tmp_path, KEY)
    assert "secret" not in str(caught.value)


def test_a_server_that_is_gone_ends_a_run_and_one_lost_question_does_not(server, tmp_path):
    with pytest.raises(MusaeError, match=r"did not answer in 2 attempts .* what was paid is kept"):
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


def test_captions_go_on_without_a_refused_one_and_wait_for_an_unanswered_one(server, tmp_path):
    seen = {}
    server.behave = lambda task, attempt, content: "refuse" if seen.setdefault(content, len(seen)) == 0 else ""
    found = label(server.url, tmp_path / "a", 1, presentation="captions")
    assert found.rows[0]["name"] == "100 hertz" and found.failures == {"caption refused": 1}
    assert found.rows[0]["evidence"]["captions"] == [None, "A sine of 100 hertz."]
    server.behave = lambda task, attempt, content: "500" if seen.setdefault(content, len(seen)) == 1 else ""
    seen.clear()
    found = label(server.url, tmp_path / "b", 1, presentation="captions", attempts=2)
    assert found.failures == {"caption unanswered": 1, "unanswered": 1} and found.usage.requests == 1
    server.behave = lambda *_: "refuse"
    found = label(server.url, tmp_path / "c", 1, presentation="captions")
    assert found.failures == {"caption refused": 2, "refused": 1} and found.rows[0]["name"] is None


def mischief(task, attempt, content):
    """One of many sorts for each question; most pass, a few stay."""
    how = (*SORTS, "", "")[int(content[:8], 16) % (len(SORTS) + 2)]
    return how if attempt == 1 or how not in TRANSIENT else ""


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


def test_a_killed_run_goes_on_and_pays_for_nothing_that_it_has(tmp_path):
    concurrency = LLMConfig.concurrency
    with LLMServer(mischief, delay=0.01).running() as server:
        whole = label(server.url, tmp_path / "whole")
        server.attempts.clear(), server.paid.clear()
        command = [sys.executable, str(Path(__file__).parents[1] / "llm_run.py"), server.url, str(tmp_path / "killed")]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        while server.paid.total() < 70:
            assert process.poll() is None
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        server.settle()
        # the whole files; one that was being written has another name, which is never read
        kept = [path for path in files_of(tmp_path / "killed") if not path.name.startswith(".")]
        ids = {json.loads(path.read_text())["reply"].get("id") for path in kept}
        lost = set(server.paid) - ids  # paid, but on the way when the process died
        assert len(kept) > 50 and len(lost) <= concurrency
        rest = label(server.url, tmp_path / "killed")
    assert rest.rows == whole.rows and rest.failures == whole.failures
    assert set(unpaid_once(server)) <= lost and rest.usage.cached == len(kept) < FEATURES
    assert not holds_key(tmp_path)


def test_the_same_question_at_once_is_paid_once(server, tmp_path):
    server.delay = 0.05
    llm = LLMClient(config_of(server.url), tmp_path, KEY)
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: llm.complete(*presentation.ask_many([clip(440)])), range(16)))
    assert server.seen.total() == 1 and len({json.dumps(reply.object) for reply in replies}) == 1
    assert sum(reply.usage.cached for reply in replies) == 15


def test_no_more_requests_in_flight_than_allowed(server, tmp_path):
    server.delay = 0.02
    llm = LLMClient(config_of(server.url, concurrency=3), tmp_path, KEY)
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda n: llm.complete(*presentation.ask_many([clip(440, n)])), range(24)))
    assert server.most == 3 and server.seen.total() == 24


def test_few_features_are_in_memory_at_a_time(server, tmp_path):
    taken, rows = [], []

    def counted():
        for one in features(40):
            taken.append(one)
            assert len(taken) - len(rows) <= 2 * 2 + 1
            yield one

    config = config_of(server.url, concurrency=2)
    llm = LLMClient(config, tmp_path, KEY)
    label_features(llm, counted(), config, 40, lambda done, total, unit: rows.append(done))
    assert rows == list(range(1, 41))


def test_features_without_clips_and_names_of_nothing(server, tmp_path):
    class Unsure:
        def complete(self, system, parts, schema):
            found = {"name": " None.", "confidence": 0.4, "description": "no pattern", "concepts": []}
            return dataclasses.replace(reply, object=found)

    reply, config = ask(server, tmp_path), config_of(server.url)
    found = label_features(Unsure(), [(7, [clip(100)]), (9, [])], config)
    assert found.failures == {"no clips": 1} and [row["name"] for row in found.rows] == [None, None]
    assert found.rows[0]["confidence"] == 0 and found.rows[0]["evidence"]["description"] == "no pattern"
    assert "failure" not in found.rows[0]["evidence"] and found.rows[1]["evidence"]["failure"] == "no clips"


@pytest.mark.parametrize("how, least, most", [("429 7", 7, 7), ("429 100000", LONGEST_PAUSE, LONGEST_PAUSE),
                                              ("429", 0.3, 0.5), ("429 date", 20, 30)])  # fmt: skip
def test_pauses_that_a_server_asks_for(server, tmp_path, how, least, most):
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    server.behave = lambda task, attempt, content: how.replace("date", date) if attempt == 1 else ""
    fake = FakeTime()
    assert ask(server, tmp_path, sleep=fake.sleep, clock=fake.clock).object
    assert len(fake.slept) == 1 and least <= fake.slept[0] <= most


def test_backoff_doubles_up_to_a_bound(server, tmp_path):
    server.behave = lambda task, attempt, content: "500" if attempt < 8 else ""
    fake = FakeTime()
    assert ask(server, tmp_path, sleep=fake.sleep, clock=fake.clock, attempts=8).object
    steps = np.asarray([0.5, 1, 2, 4, 8, 8, 8])
    assert len(fake.slept) == 7 and (fake.slept <= steps).all() and (fake.slept >= 0.75 * steps).all()


def test_how_servers_say_when_to_come_back():
    now = 1_700_000_000.0
    assert pause_asked("2.5", "", now) == 2.5 and pause_asked("-3", "", now) == 0
    assert pause_asked(email.utils.formatdate(now + 40, usegmt=True), "", now) == pytest.approx(40)
    assert pause_asked(email.utils.formatdate(now - 40, usegmt=True), "", now) == 0
    assert pause_asked(None, '{"error": {"details": [{"retryDelay": "34.07s"}]}}', now) == 34.07
    assert pause_asked("soon", "", now) is None and pause_asked("nan", "", now) is None
    assert pause_asked(None, '"retryDelay": "..s"', now) is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 40), st.floats(0, 30)), min_size=1, max_size=60), st.integers(1, 9),
       st.floats(5, 60))  # fmt: skip
def test_no_minute_exceeds_its_budget(steps, requests, sound):
    fake = FakeTime()
    pace = Pace((requests, sound), fake.clock, fake.sleep)
    sent = []
    for gap, seconds in steps:
        fake.now += gap
        pace.wait(1, seconds)
        sent.append((fake.now, seconds))
    for at, _ in sent:
        window = [seconds for time, seconds in sent if at - 60 + 1e-6 < time <= at]
        assert len(window) <= requests
        assert sum(window) <= sound + 1e-6 or sum(one > 0 for one in window) == 1


def test_a_budget_is_used_up_and_waits_no_longer_than_it_must():
    fake = FakeTime()
    pace = Pace((3, None), fake.clock, fake.sleep)
    times = []
    for _ in range(7):
        pace.wait(1, 1e9)
        times.append(fake.now - 1000)
    assert times == [0, 0, 0, 60, 60, 60, 120]
    pace.pause(10)
    pace.wait(1, 0)
    assert fake.now - 1000 == 130


def test_requests_keep_to_the_budget(server, tmp_path):
    fake = FakeTime()
    config = config_of(server.url, concurrency=1, requests_per_minute=5, audio_seconds_per_minute=0.4)
    label_features(LLMClient(config, tmp_path, KEY, clock=fake.clock, sleep=fake.sleep), features(6), config)
    assert fake.now - 1000 == pytest.approx(120)  # two features of 0.2 s a minute


def test_the_key_of_a_question():
    def key(wire="openai", model="m", clips=None, schema=LABEL, **parameters):
        system, parts, _ = presentation.ask_many(clips or [clip(440)])
        return hashed(question(wire, model, system, [Turn("user", parts)], schema, parameters))

    quieter = dataclasses.replace(clip(440), audio=clip(440).audio * 0.999)
    others = [quieter], [clip(440, spans=())], [clip(440), clip(440)]
    keys = [key(), key("gemini"), key(model="n"), key(temperature=0.5), *(key(clips=clips) for clips in others)]
    keys.append(key(schema={**LABEL, "version": "label-2"}))
    assert len(set(keys)) == len(keys) and key() == keys[0]


def test_a_raised_version_is_asked_anew(server, tmp_path):
    llm = LLMClient(config_of(server.url), tmp_path, KEY)
    system, parts, schema = presentation.ask_many([clip(440)])
    for version, requests in (("label-1", 1), ("label-1", 1), ("label-2", 2)):
        assert llm.complete(system, parts, {**schema, "version": version}).object and server.seen.total() == requests
    assert "label-2" not in json.dumps(server.bodies) and "maxWords" not in json.dumps(server.bodies)


def test_joined_clips_are_where_the_table_says():
    clips = [clip(400, spans=((0.02, 0.05),)), clip(800), clip(1200, spans=())]
    _, (sound, table, _), _ = presentation.ask_joined(clips)
    assert "Clip 1: 0.00–0.10 s. Active at 0.02–0.05 s." in table.text
    assert "Clip 2: 1.10–1.20 s. Active at 1.12–1.18 s." in table.text
    assert "Clip 3: 2.20–2.30 s. Take the whole clip." in table.text
    samples = np.frombuffer(sound.data[44:], "<i2") / 32767
    assert sound.seconds == pytest.approx(2.3) and len(samples) == round(2.3 * RATE)
    for number, one in enumerate(clips):
        place = round(1.1 * RATE * number)
        np.testing.assert_allclose(samples[place:][: len(one.audio)], one.audio, atol=1e-4)
        assert not samples[place + len(one.audio) :][: RATE if number < 2 else 0].any()
    with pytest.raises(ValueError, match="one rate"):
        presentation.ask_joined([clip(400), dataclasses.replace(clip(400), sampling_rate=16000)])


def test_wav_is_refused_for_what_is_no_sound():
    assert wav(np.asarray([2.0, -2.0]), RATE).data[-4:] == b"\xff\x7f\x01\x80"
    for audio in (np.zeros(0), np.asarray([0.0, np.nan])):
        with pytest.raises(MusaeError, match="replace it"):
            wav(audio, RATE)
    with pytest.raises(ValueError, match="expected"):
        wav(np.zeros((2, 5)), RATE)


def test_active_spans():
    curve = np.zeros(100)
    assert active_spans(curve) == () and active_spans(curve[:0]) == ()
    curve[[10, 11, 17, 23, 40]] = [1.0, 0.31, 0.3, 0.29, 0.5]
    assert active_spans(curve) == ((0.2, 0.36), (0.8, 0.82))  # frames 12 to 16 are a gap of 100 ms
    curve[99] = 1
    assert active_spans(curve)[-1] == (1.98, 2.0) and active_spans(np.ones(50)) == ((0.0, 1.0),)


GOOD = {"concepts": [{"name": "a", "confidence": 1}], "description": "d", "name": "piano", "confidence": 0.5}


@pytest.mark.parametrize("change, words", [
    ({"confidence": 1.01}, "'confidence' in the reply must be from 0 to 1"), ({"confidence": True}, "type number"),
    ({"confidence": "0.5"}, "type number"), ({"confidence": float("nan")}, "from 0 to 1"),
    ({"confidence": 10**400}, "from 0 to 1"), ({"name": "a b c d e f g h i"}, "at most 8 words"),
    ({"name": None}, "type string"), ({"name": "\ud800"}, "half a character"), ({"concepts": {}}, "type array"),
    ({"concepts": [{"name": "a"}]}, "item 1 of 'concepts' in the reply lacks the field 'confidence'"),
])  # fmt: skip
def test_what_does_not_fit_is_told(change, words):
    assert misfit(GOOD, LABEL) == "" and misfit({**GOOD, "more": 1}, LABEL) == ""
    assert words in misfit({**GOOD, **change}, LABEL) and "lacks" in misfit({}, LABEL)


def test_objects_are_found_among_words():
    good = json.dumps(GOOD)
    for text in (good, f"```json\n{good}\n```", f"<think>{{}} {{x</think>{good}", f'{{"a": {{}}}} {good} {{}}'):
        assert read_object(text, LABEL) == (GOOD, "")
    assert read_object("{" * 5000, LABEL)[0] is None and read_object(f'{{"a": {"9" * 5000}}}', LABEL)[0] is None
    assert read_object('{"a": ' * 3000, LABEL) == (None, "it holds no complete JSON object")


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet='{}[]":,ae19.- \\n\\', max_size=60))
def test_no_text_breaks_the_reader(text):
    found, error = read_object(text, LABEL)
    assert found is None and error


def test_prompts_name_every_field_and_the_config_is_a_record():
    for words, schema in (("label", "label"), ("merge", "label"), ("caption", "caption"), ("detect", "detect")):
        text, fields = presentation.read_prompt(words, schema)
        assert all(name in text for name in fields["properties"]) and fields["version"].startswith(schema)
    config = LLMConfig(model="m", temperature=None, requests_per_minute=10)
    assert from_record(LLMConfig, to_record(config), "here") == config
    assert presentation.presentation_of(config) == "many"
    assert presentation.presentation_of(dataclasses.replace(config, base_url="http://localhost")) == "captions"


def test_threads_end_with_the_run(server, tmp_path):
    server.behave = lambda *_: "401"
    with pytest.raises(MusaeError):
        label(server.url, tmp_path)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("audio-llm")]
