"""Which audio LLM is asked, how clips are put before it, and how fast."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LLMConfig:
    """An audio LLM. The key is no field: it comes from the environment and is never saved."""

    model: str = ""
    """The model's name as the server has it, such as gemini-3-flash-preview or Qwen/Qwen3-Omni-30B-A3B-Instruct."""
    provider: Literal["openai", "gemini"] = "openai"
    """What the server speaks: openai (OpenAI, vLLM, SGLang, llama.cpp, OpenRouter …; key in OPENAI_API_KEY) or gemini
    (generateContent; key in GEMINI_API_KEY or GOOGLE_API_KEY)."""
    base_url: str = ""
    """Where the server is, such as http://localhost:8000/v1; empty: the provider's own."""
    presentation: Literal["auto", "many", "joined", "captions"] = "auto"
    """many: all clips of a feature in one message. joined: one after the other in one sound. captions: each clip by
    itself, then a name from the captions, which every model can do. auto: captions with a base_url, many without."""
    max_clips: int = 10
    """Clips heard for each feature."""
    max_features: int | None = 100
    """Features of each layer that are asked about, those first whose clips are strongest; None (null in YAML): all that
    are kept. It bounds what is paid."""
    concurrency: int = 8
    """Requests in flight at a time."""
    requests_per_minute: int | None = None
    """At most so many requests in any minute."""
    audio_seconds_per_minute: float | None = None
    """At most so many seconds of sound sent in any minute; what is longer goes alone."""
    timeout: float = 120.0
    """Seconds without a sign of the server after which a request is given up and tried again."""
    attempts: int = 6
    """How often a request is tried."""
    temperature: float | None = 0.0
    """Of sampling; None (null in YAML) leaves it to the server, which some models insist on."""
    seed: int | None = 0
    """Of sampling, where the server takes one; None leaves it out."""
