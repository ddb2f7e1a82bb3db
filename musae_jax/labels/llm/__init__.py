"""Names for features from an audio LLM that hears their exemplar clips: clients, prompts, cache, labeller.

`labeller.py` asks; `presentation.py` says how clips are put into messages and `prompts/` in what words; `client.py`
gets a checked answer, once, through `openai_wire.py` or `gemini_wire.py`, `transport.py` and `cache.py`.
"""
