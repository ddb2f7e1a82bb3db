"""A word-level tokenizer for the pocket model's captions, in the `tokenizers` format that transformers reads too."""

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from musae_jax.compose.captions import write_caption
from musae_jax.compose.composer import sample_style

PADDING, END, UNKNOWN = "<pad>", "</s>", "<unk>"
VOCABULARY_SIZE = 192  # the words of the captions and room to spare


def build_tokenizer(samples: int = 20_000) -> Tokenizer:
    """One token a word, over the words that `samples` captions use, most frequent first."""
    words: dict[str, int] = {}
    shell = Tokenizer(models.WordLevel({UNKNOWN: 0}, unk_token=UNKNOWN))
    shell.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    shell.pre_tokenizer = pre_tokenizers.Whitespace()
    for seed in range(samples):
        rng = np.random.default_rng([seed, 77])
        text = shell.normalizer.normalize_str(write_caption(sample_style(rng), rng))
        for word, _ in shell.pre_tokenizer.pre_tokenize_str(text):
            words[word] = words.get(word, 0) + 1
    ordered = [PADDING, END, UNKNOWN, *sorted(words, key=lambda word: (-words[word], word))]
    if len(ordered) > VOCABULARY_SIZE:
        raise ValueError(f"the captions use {len(ordered)} words; raise VOCABULARY_SIZE above {VOCABULARY_SIZE}")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(ordered)}, unk_token=UNKNOWN))
    tokenizer.normalizer = shell.normalizer
    tokenizer.pre_tokenizer = shell.pre_tokenizer
    return tokenizer
