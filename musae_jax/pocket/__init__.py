"""The bundled miniature: a small MusicGen trained here on composed music, and the code that trained it.

`weights/` holds the model in the Hugging Face layout with its card; `train.py` makes it again from a config:
a corpus (`corpus.py`), a codec (`codec.py`), a tokenizer (`tokenizer.py`) and a language model (`lm.py`).
`bench/pocket.py` measures what it learned. Beside it lie its ears, two taggers and a CLAP (`train_ears.py`). `verbs.py`
holds the commands that train them.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
TAGGERS, CLAP = (WEIGHTS / "tagger", WEIGHTS / "strokes"), WEIGHTS / "clap"  # the ears that name features offline
JUDGE = WEIGHTS / "judge.safetensors"  # hears the composer's clip-level concepts
