"""The objects that an audio LLM is asked for."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_run import (
    LABEL,
)

from musae_jax.config import from_record, to_record
from musae_jax.labels.llm import presentation
from musae_jax.labels.llm.config import LLMConfig
from musae_jax.labels.llm.schema import misfit, read_object

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
