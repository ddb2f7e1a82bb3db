"""Chat completions, as OpenAI, vLLM, SGLang, llama.cpp, OpenRouter and Gemini's compatible endpoint take them."""

import base64
from collections.abc import Sequence
from typing import Any

from musae_jax.labels.llm.messages import Answer, Audio, Part, Turn
from musae_jax.labels.llm.schema import Schema, in_words, sent

BASE_URL = "https://api.openai.com/v1"
KEYS = ("OPENAI_API_KEY",)
_FILTERED = ("content_filter", "content_policy_violation")


def address(base_url: str, model: str) -> str:
    """Where requests go."""
    return f"{base_url}/chat/completions"


def headers(key: str) -> dict[str, str]:
    """What carries the key; servers of one's own need none."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def body(
    model: str,
    system: str,
    turns: Sequence[Turn],
    schema: Schema,
    mode: str,
    temperature: float | None,
    seed: int | None,
) -> dict[str, Any]:
    """The request, with the schema as the server can take it: mode "json_schema", "json_object" or "prompt"."""
    if mode != "json_schema":
        system = f"{system}\n\n{in_words(schema)}"
    messages = [{"role": "system", "content": system}]
    messages += [{"role": turn.role, "content": _content(turn)} for turn in turns]
    request = {"model": model, "stream": False, "messages": messages}
    if temperature is not None:
        request["temperature"] = temperature
    if seed is not None:
        request["seed"] = seed
    if mode == "json_schema":
        named = {"name": schema["title"], "strict": True, "schema": sent(schema)}
        request["response_format"] = {"type": "json_schema", "json_schema": named}
    elif mode == "json_object":
        request["response_format"] = {"type": "json_object"}
    return request


def read(reply: dict[str, Any]) -> Answer:
    """The answer in a reply; anything but a completion raises one of Python's lookup, type or value errors."""
    if "choices" not in reply and reply["error"].get("code") in _FILTERED:
        return Answer("", refusal=reply["error"].get("message") or "filtered")
    choice = reply["choices"][0]
    message = choice["message"]
    refusal = message.get("refusal") or ""
    if choice.get("finish_reason") == "content_filter":
        refusal = refusal or "filtered"
    text = message.get("content") or ""
    if not isinstance(text, str):
        raise ValueError("content is not text")
    usage = reply.get("usage") or {}
    audio = (usage.get("prompt_tokens_details") or {}).get("audio_tokens")
    return Answer(text, refusal, (usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0, audio or 0))


def _content(turn: Turn) -> Any:
    if turn.role == "assistant":  # whose words are plain text
        return "".join(part.text for part in turn.parts if not isinstance(part, Audio))
    return [_part(part) for part in turn.parts]


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, Audio):
        data = base64.b64encode(part.data).decode()
        return {"type": "input_audio", "input_audio": {"data": data, "format": part.format}}
    return {"type": "text", "text": part.text}
