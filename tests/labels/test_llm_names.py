"""Names by an audio LLM, from clips put before it in every way, and whether it hears them in others."""

import dataclasses
import threading

import numpy as np
import pytest
from llm_run import (
    RATE,
    WIRES,
    ask,
    clip,
    config_of,
    features,
    label,
    unpaid_once,
)
from llm_server import KEY

from musae_jax.errors import MusaeError
from musae_jax.features.spans import active_spans
from musae_jax.labels.llm import presentation
from musae_jax.labels.llm.client import LLMClient
from musae_jax.labels.llm.labeller import detect, label_features
from musae_jax.labels.llm.messages import Usage, wav


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
    asked = [(name, clip(hertz)) for name in ("440 hertz", "500 hertz") for hertz in (440, 500)]
    found = detect(llm, iter([*asked, asked[0]]), config, 5)
    assert [row["probability"] for row in found.rows] == pytest.approx([0.9, 0.1, 0.1, 0.9, 0.9])
    assert [(row["name"], row["clip"]) for row in found.rows[:4]] == [(name, one.id) for name, one in asked]
    assert (llm.usage.requests, llm.usage.cached) == (4, 1)
    server.behave = lambda *_: "refuse"
    found = detect(llm, [("660 hertz", clip(440))], config)
    assert found.rows == [{"name": "660 hertz", "clip": "440-0", "probability": None, "failure": "refused"}]
    assert found.failures == {"refused": 1}


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


def test_threads_end_with_the_run(server, tmp_path):
    server.behave = lambda *_: "401"
    with pytest.raises(MusaeError):
        label(server.url, tmp_path)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("audio-llm")]
