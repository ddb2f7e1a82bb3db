"""The TopK trainers that `musae bench sae` times, behind one face: ours and those of three PyTorch libraries.

This file imports nothing at first, so that `python trainers.py NAME D_IN D_SAE K BATCH_SIZE` can say how much memory
one of them takes in a process of its own: the peak in MiB.
"""

import importlib.util
import sys
import types
from typing import Any, NamedTuple

LR, STEPS = 3e-4, 10**6  # of all; the schedules are constant


class Size(NamedTuple):
    d_in: int
    d_sae: int
    k: int
    batch_size: int


class Ours:
    """musae_jax with centring and scaling off, squared error per token as the loss, as in SAELens."""

    def __init__(self, size: Size, W: Any, architecture: str = "topk", sparse: bool | None = None):
        import jax

        from musae_jax.sae.recipes import RECIPES
        from musae_jax.sae.step import init_state, train_steps

        self.recipe = RECIPES[architecture](
            size.d_in, size.d_sae, k=size.k, batch_size=size.batch_size, steps=STEPS, lr=LR, lr_warm_up_steps=0,
            lr_decay_steps=0, loss="mse", center="none", scale=False, sparse=sparse,
        )  # fmt: skip
        self.state, self.call = init_state(self.recipe, jax.random.key(0)), train_steps
        for name in ("W_enc_t", "W_dec"):
            self.state.params[name] = jax.numpy.array(W)

    def steps(self, batches: Any) -> None:
        import jax

        self.state, metrics = self.call(self.recipe, self.state, batches)
        jax.block_until_ready(metrics)

    def params(self) -> dict[str, Any]:
        import numpy as np

        return {name: np.array(value) for name, value in self.state.params.items()}


class SAELens:
    def __init__(self, size: Size, W: Any):
        import torch
        from sae_lens.config import SAETrainerConfig
        from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.training.sae_trainer import SAETrainer

        self.torch, self.device = torch, "cuda" if torch.cuda.is_available() else "cpu"
        config = TopKTrainingSAEConfig(
            d_in=size.d_in, d_sae=size.d_sae, k=size.k, dtype="float32", device=self.device
        )  # fmt: skip
        self.sae = TopKTrainingSAE(config)
        with torch.no_grad():
            self.sae.W_dec.copy_(torch.from_numpy(W))
            self.sae.W_enc.copy_(torch.from_numpy(W).T)
        training = SAETrainerConfig(
            total_training_samples=STEPS * size.batch_size, train_batch_size_samples=size.batch_size, lr=LR, lr_end=LR,
            device=self.device,
        )  # fmt: skip
        self.trainer = SAETrainer(training, self.sae, iter(()))

    def steps(self, batches: Any) -> None:
        for batch in batches:
            self.trainer.step(self.torch.from_numpy(batch))
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def params(self) -> dict[str, Any]:
        arrays = {name: value.detach().cpu().numpy() for name, value in self.sae.named_parameters()}
        # Activations are multiplied by the decoder's norms before the k largest are chosen, and divided after.
        norm = self.torch.linalg.norm(self.sae.W_dec, dim=1).detach().cpu().numpy()
        return {
            "W_enc_t": arrays["W_enc"].T * norm[:, None],
            "b_enc": arrays["b_enc"] * norm,
            "W_dec": arrays["W_dec"] / norm[:, None],
            "b_dec": arrays["b_dec"],
        }


class DictionaryLearning:
    def __init__(self, size: Size, W: Any):
        import torch

        if importlib.util.find_spec("nnsight") is None:  # imported for its buffers alone
            sys.modules["nnsight"] = types.ModuleType("nnsight")
            sys.modules["nnsight"].LanguageModel = object
        from dictionary_learning.trainers.top_k import TopKTrainer

        self.torch, self.device = torch, "cuda" if torch.cuda.is_available() else "cpu"
        self.trainer = TopKTrainer(
            STEPS, size.d_in, size.d_sae, size.k, layer=0, lm_name="", lr=LR, warmup_steps=0, device=self.device
        )
        with torch.no_grad():
            self.trainer.ae.decoder.weight.copy_(torch.from_numpy(W).T)
            self.trainer.ae.encoder.weight.copy_(torch.from_numpy(W))
        self.step = 1  # step 0 would move b_dec to the batch's median

    def steps(self, batches: Any) -> None:
        for batch in batches:
            self.trainer.update(self.step, self.torch.from_numpy(batch))
            self.step += 1
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def params(self) -> dict[str, Any]:
        arrays = {name: value.detach().cpu().numpy() for name, value in self.trainer.ae.named_parameters()}
        return {
            "W_enc_t": arrays["encoder.weight"],
            "b_enc": arrays["encoder.bias"],
            "W_dec": arrays["decoder.weight"].T,
            "b_dec": arrays["b_dec"],
        }


class Sparsify:
    """sparsify's coder in its own step, with the Adam of the others; on CUDA its forward pass is bfloat16."""

    def __init__(self, size: Size, W: Any):
        import torch
        from sparsify import SparseCoder, SparseCoderConfig

        self.torch, self.device = torch, "cuda" if torch.cuda.is_available() else "cpu"
        self.coder = SparseCoder(size.d_in, SparseCoderConfig(num_latents=size.d_sae, k=size.k), self.device)
        with torch.no_grad():
            self.coder.encoder.weight.copy_(torch.from_numpy(W))
            self.coder.W_dec.copy_(torch.from_numpy(W))
        self.adam = torch.optim.Adam(self.coder.parameters(), lr=LR)

    def steps(self, batches: Any) -> None:
        for batch in batches:
            self.coder(self.torch.from_numpy(batch).to(self.device)).fvu.backward()
            self.coder.remove_gradient_parallel_to_decoder_directions()
            self.torch.nn.utils.clip_grad_norm_(self.coder.parameters(), 1.0)
            self.adam.step()
            self.adam.zero_grad()
            self.coder.set_decoder_norm_to_unit_norm()
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def params(self) -> dict[str, Any]:
        arrays = {name: value.detach().cpu().numpy() for name, value in self.coder.named_parameters()}
        return {
            "W_enc_t": arrays["encoder.weight"],
            "b_enc": arrays["encoder.bias"],
            "W_dec": arrays["W_dec"],
            "b_dec": arrays["b_dec"],
        }


TRAINERS = {
    "musae_jax": Ours,
    "sae-lens": SAELens,
    "dictionary-learning": DictionaryLearning,
    "eai-sparsify": Sparsify,
}


def some_weights(size: Size, seed: int = 0) -> Any:
    """Unit rows [F, D]: the decoder, and the encoder's transpose, that all start from."""
    import numpy as np

    W = np.random.default_rng(seed).standard_normal((size.d_sae, size.d_in), np.float32)
    return W / np.linalg.norm(W, axis=1, keepdims=True)


def peak_memory(name: str, size: Size) -> float:
    """What this process has held at most, in MiB, after twenty steps of a trainer; on CUDA what the device has held."""
    import numpy as np

    trainer = TRAINERS[name](size, some_weights(size))
    batches = np.random.default_rng(1).standard_normal((10, size.batch_size, size.d_in), np.float32)
    for _ in range(2):
        trainer.steps(batches)
    on_device = accelerator_peak(getattr(trainer, "torch", None))
    return held_memory("VmHWM") if on_device is None else on_device


def accelerator_peak(torch: Any) -> float | None:
    """The most MiB that a program of torch, or without it of jax, has held on an accelerator; None on CPUs."""
    if torch is not None:
        return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None
    import jax

    stats = jax.local_devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] / 2**20 if stats else None


def held_memory(what: str) -> float:
    """MiB that this process holds ("VmRSS") or has held at most ("VmHWM"); known on Linux."""
    # getrusage would tell the parent's peak where that is higher.
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(what)) / 2**10


if __name__ == "__main__":
    print(peak_memory(sys.argv[1], Size(*map(int, sys.argv[2:6]))))
