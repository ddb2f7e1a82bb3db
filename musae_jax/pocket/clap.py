"""Training the pocket's CLAP: small towers of the same architecture, on composed music and its captions."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tokenizers import processors

from musae_jax.audio.clap_mel import ClapMelConfig
from musae_jax.batching import in_batches
from musae_jax.compose.captions import PHRASES, write_phrases
from musae_jax.compose.concepts import CONCEPT_INDEX, VOCABULARY
from musae_jax.labels.auroc import auroc
from musae_jax.models.clap import Clap, ClapConfig, audio_embeddings, embed_text, random_clap, text_embeddings
from musae_jax.models.htsat import HTSATConfig
from musae_jax.models.roberta import RobertaConfig
from musae_jax.models.tokens import tokenize
from musae_jax.pocket.corpus import caption, composition
from musae_jax.pocket.ears import EarBank
from musae_jax.pocket.loop import train_loop
from musae_jax.pocket.schedule import kernels_by_muon
from musae_jax.pocket.tokenizer import END, VOCABULARY_SIZE, build_tokenizer

START = "<s>"
MEL = ClapMelConfig(sampling_rate=16_000, hop_length=640, frequency_max=8000.0)
CLAP = ClapConfig(
    audio=HTSATConfig(
        spec_size=128,  # two pieces of 128 frames of 40 ms, 64 bands each
        patch_size=8,
        patch_stride=8,
        depths=(2, 4),
        num_attention_heads=(4, 8),
        patch_embeds_hidden_size=96,
        hidden_size=192,
    ),
    text=RobertaConfig(
        vocab_size=VOCABULARY_SIZE + 1,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=66,
        pad_token_id=0,
        bos_token_id=VOCABULARY_SIZE,
        eos_token_id=1,
    ),
    mel=MEL,
    projection_dim=128,
)
TEXTS = 12  # of each clip: a third are captions, the rest a few phrases each
CAPTIONS = 4


@dataclasses.dataclass(frozen=True)
class ClapTraining:
    """How CLAP is trained."""

    steps: int = 2000
    batch_size: int = 64  # clips with a text each; every other pair counts as wrong
    learning_rate: float = 2e-3
    warmup: int = 100
    decay: float = 0.6  # last share of the steps, over which the learning rate falls to nothing
    weight_decay: float = 0.05
    seed: int = 0


def clap_tokenizer() -> Any:
    """The pocket's words between a start and an end token, as the text tower expects."""
    tokenizer = build_tokenizer()
    words = tokenizer.get_vocab_size()
    tokenizer.add_tokens([f"<spare {i}>" for i in range(words, VOCABULARY_SIZE)])
    tokenizer.add_special_tokens([START])
    numbers = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=numbers)
    return tokenizer


def optimiser(training: ClapTraining) -> optax.GradientTransformation:
    """See `kernels_by_muon`."""
    return kernels_by_muon(
        training.learning_rate, training.warmup, training.steps, training.decay, training.weight_decay
    )


@partial(jax.jit, static_argnames=("config", "training"), donate_argnames=("state",))
def clap_step(state, mel, ids, mask, config: ClapConfig, training: ClapTraining):
    """One step on spectrograms [B, T, M] and their texts [B, L]; returns (state, figures): the mean of both directions'
    cross-entropies in nats, and the share of sounds whose own text is the nearest."""

    def loss(params):
        heard = audio_embeddings(config, params, mel)
        said = text_embeddings(config, params, ids, mask)
        alike = heard @ said.T
        scales = [jnp.exp(jnp.minimum(params["logit_scale"][name], jnp.log(100.0))) for name in ("audio", "text")]
        own = jnp.arange(len(mel))
        nats = [
            optax.softmax_cross_entropy_with_integer_labels(logits, own).mean()
            for logits in (scales[0] * alike, scales[1] * alike.T)
        ]
        return (nats[0] + nats[1]) / 2, (alike.argmax(1) == own).mean()

    (nats, right), grads = jax.value_and_grad(loss, has_aux=True)(state["params"])
    updates, opt = optimiser(training).update(grads, state["opt"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "opt": opt}, {"nats": nats, "right": right}


def clap_texts(tokenizer: Any, seed: int, truth: np.ndarray, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask int32 [n, TEXTS, L] of the clips of corpus `seed`, whose truth is bool [n, T, C]."""
    texts = []
    for index, active in enumerate(truth):
        style = composition(seed, index, seconds).style
        holds = [concept.name for concept, share in zip(VOCABULARY, active.mean(0)) if share > 0.5]
        texts += [caption(seed, index, variant, style) for variant in range(CAPTIONS)]
        texts += [write_phrases(holds, np.random.default_rng([seed, index, 3, v])) for v in range(TEXTS - CAPTIONS)]
    ids, mask = tokenize(tokenizer, texts, CLAP.text.pad_token_id)
    return ids.reshape(len(truth), TEXTS, -1), mask.reshape(len(truth), TEXTS, -1)


def measure_clap(config: ClapConfig, params: dict, tokenizer: Any, bank: EarBank) -> dict[str, float]:
    """Mean AUROC with which the phrases of a concept tell the held-out clips that have it."""
    clap = Clap(config=config, params=params, tokenizer=tokenizer)
    heard = in_batches(lambda mel: audio_embeddings(config, params, mel), np.asarray(bank.clap, np.float32), 16)
    scores = []
    for name, phrases in PHRASES.items():
        told = bank.truth[:, :, CONCEPT_INDEX[name]].mean(1) > 0.5
        said = embed_text(clap, phrases).mean(0)
        scores.append(auroc((heard @ said)[:, None], told[:, None])[0, 0])
    return {"auroc": float(np.nanmean(scores))}


def train_clap(
    training: ClapTraining,
    bank: EarBank,
    held_out: EarBank,
    seed: int,
    seconds: float,
    folder: str | Path,
    log: Callable[[dict], None],
    progress: Callable[[int, int, str], None] | None = None,
    config: ClapConfig = CLAP,
    save_every: int = 250,
) -> Clap:
    """Trains from random parameters on the clips of corpus `seed`; a killed run goes on from its last checkpoint."""
    tokenizer = clap_tokenizer()
    clap = random_clap(config, jax.random.key(training.seed), tokenizer)
    ids, mask = clap_texts(tokenizer, seed, bank.truth, seconds)
    sample = np.asarray(bank.clap[:: max(1, len(bank.clap) // 256)], np.float32).reshape(-1, config.mel.feature_size)
    params = {**clap.params, "audio": dict(clap.params["audio"])}
    params["audio"]["batch_norm"] = {
        **params["audio"]["batch_norm"], "mean": jnp.asarray(sample.mean(0)), "var": jnp.asarray(sample.var(0))
    }  # fmt: skip

    def step(state, number):
        rng = np.random.default_rng([training.seed, 3, number])
        clips = rng.permutation(len(bank.clap))[: training.batch_size]
        texts = rng.integers(TEXTS, size=len(clips))
        mel = np.stack([np.asarray(bank.clap[c], np.float32) for c in clips])
        return clap_step(state, mel, ids[clips, texts], mask[clips, texts], config, training)

    state = {"params": params, "opt": optimiser(training).init(params)}
    measure = lambda state: measure_clap(config, state["params"], tokenizer, held_out)  # noqa: E731
    state = train_loop(folder, state, training.steps, step, measure, log, progress, save_every, 500)
    return clap.replace(params=state["params"])
