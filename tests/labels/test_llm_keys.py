"""Keys come from the environment, get into no file and no message; configs that cannot work are refused."""

import traceback

import pytest
from llm_run import LABEL, ask, clip, config_of, files_of, holds_key
from llm_server import KEY, LLMServer

from musae_jax.errors import MusaeError
from musae_jax.labels.llm import presentation
from musae_jax.labels.llm.client import LLMClient
from musae_jax.labels.llm.config import LLMConfig
from musae_jax.labels.llm.messages import Text


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
