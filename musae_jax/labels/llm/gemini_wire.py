"""Google's own generateContent, where Gemini is told its schema and counts the tokens of sound."""

import base64
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from musae_jax.labels.llm.messages import Answer, Audio, Part, Turn
from musae_jax.labels.llm.schema import Schema, in_words

BASE_URL = "https://generativelanguage.googleapis.com/v1beta"
KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
_REFUSED = ("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII")


def address(base_url: str, model: str) -> str:
    """Where requests for this model go."""
    return f"{base_url}/models/{quote(model.removeprefix('models/'))}:generateContent"


def headers(key: str) -> dict[str, str]:
    """What carries the key."""
    return {"x-goog-api-key": key} if key else {}


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
    generation: dict[str, Any] = {}
    if temperature is not None:
        generation["temperature"] = temperature
    if seed is not None:
        generation["seed"] = seed
    if mode != "prompt":
        generation["responseMimeType"] = "application/json"
    if mode == "json_schema":
        generation["responseSchema"] = _google(schema)
    roles = {"user": "user", "assistant": "model"}
    return {
        "contents": [{"role": roles[turn.role], "parts": [_part(part) for part in turn.parts]} for turn in turns],
        "systemInstruction": {"role": "user", "parts": [{"text": system}]},
        "generationConfig": generation,
    }


def read(reply: dict[str, Any]) -> Answer:
    """The answer in a reply; anything but an answer raises one of Python's lookup, type or value errors."""
    usage = reply.get("usageMetadata") or {}
    details = usage.get("promptTokensDetails") or []
    audio = sum(one.get("tokenCount") or 0 for one in details if one.get("modality") == "AUDIO")
    output = (usage.get("candidatesTokenCount") or 0) + (usage.get("thoughtsTokenCount") or 0)
    tokens = (usage.get("promptTokenCount") or 0, output, audio)
    if blocked := (reply.get("promptFeedback") or {}).get("blockReason"):
        return Answer("", str(blocked), tokens)
    candidate = reply["candidates"][0]
    parts = (candidate.get("content") or {}).get("parts") or []
    text = "".join(part.get("text") or "" for part in parts if not part.get("thought"))
    reason = candidate.get("finishReason")
    return Answer(text, reason if reason in _REFUSED else "", tokens)


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, Audio):
        return {"inlineData": {"data": base64.b64encode(part.data).decode(), "mime_type": f"audio/{part.format}"}}
    return {"text": part.text}


def _google(schema: Schema) -> dict[str, Any]:
    """Google's dialect of JSON Schema: types in capitals, the order of fields, nothing about other fields."""
    result: dict[str, Any] = {"type": schema["type"].upper()}
    if "description" in schema:
        result["description"] = schema["description"]
    if "properties" in schema:
        result["properties"] = {name: _google(one) for name, one in schema["properties"].items()}
        result["property_ordering"] = list(schema["properties"])
        result["required"] = schema["required"]
    if "items" in schema:
        result["items"] = _google(schema["items"])
    return result
