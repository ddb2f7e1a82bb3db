"""Every answer of an audio LLM is paid once."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llm_run import (
    FEATURES,
    LABEL,
    clip,
    config_of,
    files_of,
    holds_key,
    label,
    mischief,
    unpaid_once,
)
from llm_server import KEY, LLMServer

from musae_jax.labels.llm import presentation
from musae_jax.labels.llm.cache import hashed, question
from musae_jax.labels.llm.client import LLMClient
from musae_jax.labels.llm.config import LLMConfig
from musae_jax.labels.llm.messages import Turn


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
