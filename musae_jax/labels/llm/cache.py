"""Every paid reply on disk, under the hash of what was asked."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from musae_jax.files import read_json, write_json
from musae_jax.labels.llm.messages import Audio, Part, Turn


def question(
    wire: str, model: str, system: str, turns: Sequence[Turn], schema: dict[str, Any], parameters: dict[str, Any]
) -> dict[str, Any]:
    """All that an answer depends on, sounds by their hash; the schema brings the prompt's version. Where the server is,
    how it is held to the schema and the key have no part in it."""
    said = [{"role": turn.role, "parts": [_part(part) for part in turn.parts]} for turn in turns]
    return {
        "wire": wire, "model": model, "system": system, "turns": said, "schema": schema, "parameters": parameters
    }  # fmt: skip


def hashed(asked: dict[str, Any]) -> str:
    """SHA-256 of a question, in hexadecimal digits."""
    return sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


class ReplyCache:
    """`folder/ab/abcd….json`, each with the question ("asked") and the reply as it came ("reply")."""

    def __init__(self, folder: str | Path):
        self._folder = Path(folder)

    def get(self, asked: dict[str, Any]) -> dict[str, Any] | None:
        """The reply to a question, if it was paid before."""
        path = self._path(asked)
        return read_json(path)["reply"] if path.exists() else None

    def put(self, asked: dict[str, Any], reply: dict[str, Any]) -> None:
        """Keeps a reply; once this returns, a killed process does not lose it."""
        write_json(self._path(asked), {"asked": asked, "reply": reply})

    def _path(self, asked: dict[str, Any]) -> Path:
        name = hashed(asked)
        return self._folder / name[:2] / f"{name}.json"


def _part(part: Part) -> dict[str, str]:
    return {"audio": part.digest, "format": part.format} if isinstance(part, Audio) else {"text": part.text}
