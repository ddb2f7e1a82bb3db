"""How fast an audio LLM is asked: budgets, pauses, requests in flight."""

import email.utils
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_run import FakeTime, ask, clip, config_of, features
from llm_server import KEY

from musae_jax.labels.llm import presentation
from musae_jax.labels.llm.client import LLMClient
from musae_jax.labels.llm.labeller import label_features
from musae_jax.labels.llm.pace import Pace
from musae_jax.labels.llm.transport import LONGEST_PAUSE, pause_asked


def test_no_more_requests_in_flight_than_allowed(server, tmp_path):
    server.delay = 0.02
    llm = LLMClient(config_of(server.url, concurrency=3), tmp_path, KEY)
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda n: llm.complete(*presentation.ask_many([clip(440, n)])), range(24)))
    assert server.most == 3 and server.seen.total() == 24


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
