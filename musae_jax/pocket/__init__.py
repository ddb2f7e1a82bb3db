"""The bundled miniature: a small MusicGen trained here on composed music, and the code that trained it.

`weights/` holds the model in the Hugging Face layout with its card; `train.py` makes it again from a config:
a corpus (`corpus.py`), a codec (`codec.py`), a tokenizer (`tokenizer.py`), a language model (`lm.py`), and the
measures of what it learned (`measure.py`).
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
JUDGE = WEIGHTS / "judge.safetensors"  # hears the composer's clip-level concepts
