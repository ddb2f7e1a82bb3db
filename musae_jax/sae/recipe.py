"""What every architecture's training has in common: one documented, frozen record, and the places it can be changed.

An architecture is a subclass in a file of its own: its fields, and small pure functions of arrays (`activate`,
`penalty` and, where the defaults do not fit, the rest of the last section here). `step.py` does everything else.
"""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp

from musae_jax.errors import MusaeError
from musae_jax.sae.products import a_list_pays
from musae_jax.sae.shards import over_tokens

Params = dict[str, jax.Array]
Memory = dict[str, jax.Array]  # what an architecture remembers from step to step besides its parameters
Knobs = dict[str, Any]  # numbers that may differ between SAEs trained in one group
NEVER = 2**30  # a latent that has not fired for this many tokens has stopped being counted


class Tokens(NamedTuple):
    """A batch as the loss sees it.

    x [N, D]: centred and scaled; rows that are left out are 0.  keep [N]: bool, which tokens count; None: all.
    count []: how many count.  total []: what the squared error of the batch is divided by.
    """

    x: jax.Array
    keep: jax.Array | None
    count: Any
    total: Any


@dataclasses.dataclass(frozen=True)
class Recipe(abc.ABC):
    """How to train an SAE; numbers are those of the dictionary_learning library except where a field says otherwise.

    Attributes:
      d_in, d_sae: D and F.
      steps, batch_size: optimiser steps, and N tokens in each.
      lr: peak learning rate of Adam; None: 2e-4 / sqrt(F / 2^14) for 30,000 steps and more, and sqrt(30,000 / steps)
        times that for fewer, at most tenfold: a short run at the usual rate ends unfinished.
      lr_warm_up_steps: linear from 0; None: min(1000, steps / 20).
      lr_decay_steps: linear to 0 at the end; None: the last fifth.
      adam_b1, adam_b2, adam_eps: Adam's other numbers.
      grad_clip: largest global norm of a gradient.
      l1_coefficient: of Σ f in the loss, beside the squared error (before both are divided as `loss` says).
      sparsity_warm_up_steps: over which the coefficient of sparsity rises from 0; None: a twentieth of the run.
      auxk_alpha: weight of AuxK (Gao et al. 2024, section A.2).
      k_aux: dead latents per token in AuxK; None: d_in / 2.
      dead_after_tokens: a latent is dead after so many tokens without firing; None: a tenth of the run, at most 10M
        (the usual 10M would make nothing dead in a short run).
      group_fractions: Matryoshka: shares of d_sae, first group first, that add up to 1; the first group, the first two,
        … and all of them must each reconstruct alone, with equal weights (Bussmann et al. 2025). Empty: one group.
      center, scale: what is subtracted from activations, and whether they are divided by the root mean square of a
        coordinate. Both are estimated once and folded into the saved weights. A centre differs from a first value of
        b_dec by nothing but rounding, so "geometric_median" with scale False is the usual geometric-median start.
      loss: what the squared error is divided by: the batch's variance ("fvu"; coefficients then mean the same at any
        scale of activations) or its tokens ("mse").
      init: "tied": random unit decoder rows and the encoder their transpose; "kaiming": both uniform and independent,
        the decoder's rows then made unit.
      sparse: whether decoding and gradients walk a list of the active latents instead of multiplying by all of them;
        None: whichever is faster here. The numbers are the same but for rounding.
      max_norm: tokens whose norm exceeds this multiple of the batch's median norm take no part; None: all do.
      seed: of the weights.
    """

    architecture: ClassVar[str]
    rule: ClassVar[str]  # of `SAEConfig.architecture`
    traced: ClassVar[tuple[str, ...]] = ("lr", "auxk_alpha", "l1_coefficient")  # fields that are arrays in the step

    d_in: int
    d_sae: int
    _: dataclasses.KW_ONLY
    steps: int = 2000
    batch_size: int = 2048
    lr: float | None = None
    lr_warm_up_steps: int | None = None
    lr_decay_steps: int | None = None
    adam_b1: float = 0.9
    adam_b2: float = 0.999
    adam_eps: float = 1e-8
    grad_clip: float = 1.0
    l1_coefficient: float = 0.0
    sparsity_warm_up_steps: int | None = None
    auxk_alpha: float = 1 / 32
    k_aux: int | None = None
    dead_after_tokens: int | None = None
    group_fractions: tuple[float, ...] = ()
    center: Literal["mean", "geometric_median", "none"] = "mean"
    scale: bool = True
    loss: Literal["fvu", "mse"] = "fvu"
    init: Literal["tied", "kaiming"] = "tied"
    sparse: bool | None = None
    max_norm: float | None = None
    seed: int = 0

    def __post_init__(self):
        for name in ("d_in", "d_sae", "k", "steps", "batch_size"):
            if getattr(self, name, 1) < 1:
                raise MusaeError(f"{name} of the SAE is {getattr(self, name)}, but it must be at least 1")
        if getattr(self, "k", 1) > self.d_sae:
            raise MusaeError(f"k = {self.k} features per token were asked of an SAE with d_sae = {self.d_sae}; lower k")
        for name in ("auxk_alpha", "l1_coefficient"):
            if getattr(self, name) < 0:
                raise MusaeError(f"{name} of the SAE is {getattr(self, name)}, but it must not be negative")
        for name, known in (
            ("center", ("mean", "geometric_median", "none")),
            ("loss", ("fvu", "mse")),
            ("init", ("tied", "kaiming")),
        ):
            if getattr(self, name) not in known:
                raise MusaeError(f"{name} of the SAE is {getattr(self, name)!r}, but it must be {' or '.join(known)}")
        if self.sparse and self.choose is None:
            raise MusaeError(
                f"sparse is set, but a {self.architecture} SAE does not limit its active latents; leave it out"
            )
        if self.max_norm is not None and self.max_norm <= 1:
            raise MusaeError(f"max_norm of the SAE is {self.max_norm}, but it must be more than 1, the median norm")
        object.__setattr__(self, "group_fractions", tuple(self.group_fractions))
        if self.group_fractions:
            sizes = [b - a for a, b in zip((0, *self.group_ends), self.group_ends)]
            if abs(sum(self.group_fractions) - 1) > 1e-6 or min(sizes) < 1:
                raise MusaeError(
                    f"group_fractions of the SAE are {list(self.group_fractions)}, but they must add up to 1 and leave"
                    f" each group at least one of the {self.d_sae} latents"
                )

    @property
    def tokens(self) -> int:
        return self.steps * self.batch_size

    @property
    def k_aux_used(self) -> int:
        return min(self.d_sae, self.k_aux if self.k_aux is not None else max(1, self.d_in // 2))

    @property
    def sparse_used(self) -> bool:
        if self.sparse is not None:
            return self.sparse
        return self.choose is not None and a_list_pays(self.d_sae, self.k)

    @property
    def dead_after_used(self) -> int:
        if self.dead_after_tokens is not None:
            return min(self.dead_after_tokens, NEVER - 1)
        return min(10_000_000, self.tokens // 10)

    @property
    def lr_used(self) -> float:
        if self.lr is not None:
            return self.lr
        return 2e-4 / math.sqrt(self.d_sae / 2**14) * min(10.0, max(1.0, math.sqrt(30_000 / self.steps)))

    @property
    def group_ends(self) -> tuple[int, ...]:
        """Where the nested prefixes of the latents end; the last is F."""
        shares = self.group_fractions or (1.0,)
        return (*(round(self.d_sae * sum(shares[: i + 1])) for i in range(len(shares) - 1)), self.d_sae)

    def schedule(self, step: jax.Array) -> jax.Array:
        """The share of the peak learning rate at optimiser step 0, 1, …"""
        warm_up = self.lr_warm_up_steps if self.lr_warm_up_steps is not None else min(1000, self.steps // 20)
        decay = self.lr_decay_steps if self.lr_decay_steps is not None else self.steps // 5
        up = (step + 1) / max(warm_up, 1)
        down = (self.steps - step) / max(decay, 1)
        return jnp.clip(jnp.minimum(up, down), 0.0, 1.0)

    def sparsity_schedule(self, step: jax.Array) -> jax.Array:
        """The share of the coefficient of sparsity at optimiser step 0, 1, …"""
        rise = self.sparsity_warm_up_steps if self.sparsity_warm_up_steps is not None else self.steps // 20
        return jnp.minimum((step + 1) / max(rise, 1), 1.0)

    def knobs(self) -> dict[str, Any]:
        """The values of the `traced` fields, with what None stands for."""
        return {name: getattr(self, f"{name}_used", getattr(self, name)) for name in self.traced}

    def with_knobs(self, values: dict[str, Any]) -> Self:
        """This recipe with other values of the traced fields, and seed 0."""
        return dataclasses.replace(self, seed=0, **values)

    # --- what an architecture adds ------------------------------------------------------------------------------------

    def extra_params(self) -> Params:
        """Parameters besides W_enc_t, b_enc, W_dec and b_dec, at the start."""
        return {}

    def memory(self) -> Memory:
        """What `activate` remembers, at the start."""
        return {}

    @abc.abstractmethod
    def activate(self, params: Params, pre: jax.Array, knobs: Knobs, memory: Memory, count: Any) -> Any:
        """(f [N, F] >= 0, the new memory) from pre-activations p = (x' − b_dec) W_enc + b_enc [N, F] of `count` tokens.

        Where a token is left out, p is hugely negative.
        """

    # Where few latents are active: choose(pre, knobs, memory, count), as `activate`, gives what it keeps as a list
    # (`products.Active`) and the new memory.
    choose: ClassVar[Callable[..., Any] | None] = None

    def penalty(self, params: Params, tokens: Tokens, pre: jax.Array, f: jax.Array, knobs: Knobs) -> Any:
        """What the loss holds besides reconstruction and AuxK; the coefficients in `knobs` have been warmed up.

        Where there is a `choose`, pre may be None, and f the activations that are not 0.
        """
        return l1_penalty(self, f, tokens, knobs)

    def rate(self, name: str, knobs: Knobs) -> Any:
        """The peak learning rate of a parameter."""
        return knobs["lr"]

    def report(self, params: Params, memory: Memory) -> dict[str, jax.Array]:
        """More metrics [] of a step; of names that begin with `threshold` the log keeps the last, else the mean."""
        return {}

    def inference_params(self, params: Params, memory: Memory, scale: jax.Array) -> Params:
        """The SAE's parameters besides W_enc, W_dec and b_dec, in units of raw activations: `scale` times these."""
        return {"b_enc": params["b_enc"] * scale}


def l1_penalty(recipe: Recipe, f: jax.Array, tokens: Tokens, knobs: Knobs) -> Any:
    """l1_coefficient · Σ f, divided as the squared error is; decoder rows have norm 1."""
    return knobs["l1_coefficient"] * over_tokens(jnp.sum(f)) / tokens.total if recipe.l1_coefficient else 0.0


def without_auxk(recipe: Recipe) -> None:
    """Refuses AuxK where a latent is dead only when no token makes its p positive: there is nothing to revive it by."""
    if recipe.auxk_alpha:
        raise MusaeError(
            f"auxk_alpha of the SAE is {recipe.auxk_alpha}, but AuxK cannot revive the latents of a"
            f" {recipe.architecture} SAE, whose pre-activations are never positive once dead; set it to 0"
        )
