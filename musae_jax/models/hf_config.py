"""Reading a Hugging Face `config.json` strictly: what we do not know, we refuse by name."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

# Attributes that transformers writes into any config (`PreTrainedConfig`, in versions 4.31 to 5) and that do not change
# what a MusicGen computes.
_GENERIC = """
    _attn_implementation_autoset _commit_hash _name_or_path add_cross_attention architectures bad_words_ids
    begin_suppress_tokens bos_token_id chunk_size_feed_forward cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size
    eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    gradient_checkpointing id2label is_decoder is_encoder_decoder label2id length_penalty max_length min_length
    model_type no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions
    output_hidden_states output_scores pad_token_id prefix problem_type pruned_heads remove_invalid_values
    repetition_penalty return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params
    temperature tf_legacy_loss tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype
    torchscript transformers_version typical_p use_bfloat16 use_cache
"""
GENERIC = frozenset(_GENERIC.split())
# More layers, heads or codebooks than any model has, and wider: a damaged or hostile file, that would otherwise be
# refused only after hours of building what it describes.
MANY, LARGE = 1024, 2**24


def read_fields(
    cls: type,
    values: Mapping[str, Any],
    where: str,
    ignored: Iterable[str] = (),
    fixed: Mapping[str, tuple] = {},
) -> tuple[dict[str, Any], list[str]]:
    """The values for the fields of the dataclass `cls`, and the problems found, each naming the attribute.

    `ignored` are further attributes that do not matter, `fixed` maps an attribute to the values we can run.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    known, problems = {}, []
    for name, value in values.items():
        if name in fixed:
            if value not in fixed[name]:
                allowed = " or ".join(map(repr, fixed[name]))
                problems.append(f"{where}.{name} is {value!r} and only {allowed} is supported")
        elif name in fields:
            # JSON writes a whole number where a float is meant, and the other way round.
            kind = type(fields[name].default)
            number = kind in (int, float) and type(value) in (int, float) and math.isfinite(value)
            if number and kind(value) == value:
                if kind is int and value < (0 if name.endswith("_id") else 1):
                    problems.append(f"{where}.{name} is {value!r}, which is too small")
                elif value > (MANY if name.startswith("num_") else LARGE):
                    problems.append(f"{where}.{name} is {value!r}, which is too large")
                else:
                    known[name] = kind(value)
            elif isinstance(value, kind) and isinstance(value, bool) == (kind is bool):
                known[name] = value
            elif value is not None or name not in GENERIC:  # null is how transformers writes an unset token id
                problems.append(f"{where}.{name} is {value!r}, not a value of type {kind.__name__}")
        elif name not in ignored and name not in GENERIC:
            problems.append(f"{where}.{name} is an attribute that musae_jax does not know")
    return known, problems
