"""Features whose clips are sines of one frequency, and a run over them; as a process of its own, one to be killed."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from llm_server import KEY

from musae_jax.labels.llm.client import LLMClient
from musae_jax.labels.llm.config import LLMConfig
from musae_jax.labels.llm.labeller import label_features
from musae_jax.labels.llm.presentation import Clip, ask_many, read_prompt

RATE = 8000
FEATURES = 200
LABEL = read_prompt("label", "label")[1]
WIRES = ("openai", "gemini")
TRANSIENT = ("429 0", "429", "500", "503", "529", "408", "hang up", "cut", "garbage", "chatty")
SORTS = (*TRANSIENT, "wrong once", "not json once", "refuse", "no schema")


def clip(hertz, number=0, spans=((0.02, 0.08),)):
    audio = 0.3 * np.sin(2 * np.pi * hertz * np.arange(800) / RATE + number)  # 0.1 s: whole periods of multiples of 10
    return Clip(f"{hertz}-{number}", audio.astype(np.float32), RATE, spans)


def features(count=FEATURES, clips=2):
    for feature in range(count):
        yield feature, [clip(100 + 10 * feature, number) for number in range(clips)]


def config_of(url, **other):
    return LLMConfig(**{"model": "a-model", "base_url": url, "presentation": "many", "timeout": 60, **other})


def hurried(seconds):
    """For tests that wait for nothing but the server."""
    time.sleep(min(seconds, 0.02))


def label(url, cache, count=FEATURES, retry_failures=False, progress=None, **other):
    config = config_of(url, **other)
    llm = LLMClient(config, cache, KEY, retry_failures, sleep=hurried)
    answers = label_features(llm, features(count), config, count, progress)
    return SimpleNamespace(**vars(answers), usage=llm.usage)


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
    return llm.complete(*ask_many(clips or [clip(440)]))


def files_of(cache):
    return sorted(path for path in Path(cache).rglob("*") if path.is_file())


def holds_key(folder):
    return any(KEY.encode() in path.read_bytes() for path in files_of(folder))


def unpaid_once(server):
    return {content: count for content, count in server.paid.items() if count != 1}


def mischief(task, attempt, content):
    """One of many sorts for each question; most pass, a few stay."""
    how = (*SORTS, "", "")[int(content[:8], 16) % (len(SORTS) + 2)]
    return how if attempt == 1 or how not in TRANSIENT else ""


if __name__ == "__main__":
    print(json.dumps(label(sys.argv[1], sys.argv[2]).rows))
