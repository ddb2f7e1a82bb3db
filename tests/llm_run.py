"""Features whose clips are sines of one frequency, and a run over them; as a process of its own, one to be killed."""

import json
import sys
import time

import numpy as np
from llm_server import KEY

from musae_jax.labels.llm.client import LLMClient
from musae_jax.labels.llm.config import LLMConfig
from musae_jax.labels.llm.labeller import label_features
from musae_jax.labels.llm.presentation import Clip

RATE = 8000
FEATURES = 200


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
    return label_features(llm, features(count), config, count, progress)


if __name__ == "__main__":
    print(json.dumps(label(sys.argv[1], sys.argv[2]).rows))
