"""A model's tokenizer: its files, read and written, and texts made into token ids."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from musae_jax.errors import MusaeError
from musae_jax.files import atomic_path, write_json


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder, or None where there are no tokenizer files."""
    if (folder / "tokenizer.json").is_file():
        import tokenizers

        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises bare Exception
            raise MusaeError(
                f"{folder / 'tokenizer.json'} cannot be read ({error}); fetch it again or remove it"
            ) from None
        tokenizer.no_truncation()
        return tokenizer
    if (folder / "spiece.model").is_file():
        try:
            from transformers import AutoTokenizer

            return AutoTokenizer.from_pretrained(str(folder))
        except Exception as error:  # missing sentencepiece, broken file
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise MusaeError(
                f"{folder / 'spiece.model'} cannot be read ({reason}); add tokenizer.json, or remove it "
                "and pass token ids"
            ) from None
    return None


def write_tokenizer(folder: Path, tokenizer: Any, config: Any) -> None:
    """Writes the files of a tokenizer, if there is one; `config` is the text encoder's, whose `pad_token_id` and
    `eos_token_id` transformers is told of."""
    if tokenizer is None:
        return
    if not hasattr(tokenizer, "encode_batch"):
        tokenizer.save_pretrained(str(folder))
        return
    with atomic_path(folder / "tokenizer.json") as temporary:
        tokenizer.save(str(temporary))
    names = {"pad_token": config.pad_token_id, "eos_token": config.eos_token_id}
    tokens = {name: tokenizer.id_to_token(number) for name, number in names.items()}
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", **{name: token for name, token in tokens.items() if token}},
    )


def tokenize(tokenizer: Any, texts: Sequence[str], padding: int, multiple: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask, int32 [B, L], from a `tokenizers.Tokenizer` or a transformers tokenizer."""
    texts = list(texts)
    if hasattr(tokenizer, "encode_batch"):
        tokenizer.no_padding()
        rows = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    else:
        rows = tokenizer(texts)["input_ids"]
    length = max(1, *map(len, rows))
    length += -length % multiple
    ids = np.full((len(rows), length), padding, np.int32)
    mask = np.zeros((len(rows), length), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask
