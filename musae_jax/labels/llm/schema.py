"""The objects that are asked for: a small part of JSON Schema, sent to servers that hold to it and checked here.

Beside the standard words that a schema here may use (type, properties, required, items, minimum, maximum), `maxWords`
counts the words of a text and `version` names the prompt; neither is sent, nor are bounds, which some servers refuse.
"""

import json
import math
from typing import Any

Schema = dict[str, Any]
_SENT = ("type", "description", "properties", "required", "items", "additionalProperties")
_TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "number": int | float}


def sent(schema: Schema) -> Schema:
    """The schema with what servers understand."""
    result = {name: schema[name] for name in _SENT if name in schema}
    if "properties" in result:
        result["properties"] = {name: sent(one) for name, one in result["properties"].items()}
    if "items" in result:
        result["items"] = sent(result["items"])
    return result


def in_words(schema: Schema) -> str:
    """What servers that cannot hold a model to a schema are told instead."""
    return f"Reply with one JSON object that fits this JSON schema, and with nothing else:\n{json.dumps(sent(schema))}"


def read_object(text: str, schema: Schema) -> tuple[dict[str, Any] | None, str]:
    """The first {…} in `text` that fits the schema, or None and what is wrong with the first one."""
    decoder = json.JSONDecoder()
    wrong = ""
    start = text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):  # also of numbers with thousands of digits
            end = start + 1
        else:
            error = misfit(value, schema)
            if not error:
                return value, ""
            wrong = wrong or error
        start = text.find("{", end)
    return None, wrong or "it holds no complete JSON object"


def misfit(value: Any, schema: Schema, where: str = "the reply") -> str:
    """Why `value` does not fit, in words that tell where; empty where it does. Unknown fields are let pass."""
    kind = schema["type"]
    if not isinstance(value, _TYPES[kind]) or (kind == "number" and isinstance(value, bool)):
        return f"{where} must be of type {kind}"
    if kind == "object":
        for name in schema["required"]:
            if name not in value:
                return f"{where} lacks the field {name!r}"
        fields = schema["properties"].items()
        return next(filter(None, (misfit(value[n], one, f"{n!r} in {where}") for n, one in fields if n in value)), "")
    if kind == "array":
        items = enumerate(value, start=1)
        return next(filter(None, (misfit(v, schema["items"], f"item {n} of {where}") for n, v in items)), "")
    if kind == "number":
        low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
        fits = -math.inf < value < math.inf and low <= value <= high
        return "" if fits else f"{where} must be from {low} to {high}"
    if kind == "string":
        if any("\ud800" <= sign <= "\udfff" for sign in value):
            return f"{where} holds half a character"
        most = schema.get("maxWords", math.inf)
        return "" if len(value.split()) <= most else f"{where} must have at most {most} words"
    return ""
