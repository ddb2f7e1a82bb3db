"""Operations on features: against a dense reference through the whole SAE, and what `hold` promises, read again."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from some_saes import random_sae

import musae_jax as musae
from musae_jax.errors import MusaeError
from musae_jax.models import generate as module
from musae_jax.models.edits import CONDITIONAL, UNCONDITIONAL, Edits, apply_edits, prepare_edits
from musae_jax.sae.sae import ARCHITECTURES, pre_activations, sae_decode, sae_encode
from musae_jax.steering.combining import combine, during, on_branches, stack
from musae_jax.steering.directions import steer
from musae_jax.steering.operations import ablate, clamp, hold, scale

OWN_RULE = ("jumprelu", "standard", "gated")  # a feature's activation does not depend on the others
BRANCHES = (CONDITIONAL, UNCONDITIONAL)


def stream(seed=1, width=7):
    """[G·B, P, D] of two branches, three rows and five positions."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=(6, 5, width)), jnp.float32)


def applied(edits, h, layer=1):
    return apply_edits(prepare_edits(edits, layer + 1, h.shape[-1]), layer, h, jnp.arange(h.shape[1]), BRANCHES)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("apply_b_dec", [True, False])
def test_features_change_as_when_everything_is_encoded_and_decoded(architecture, apply_b_dec):
    sae, h = random_sae(architecture, apply_b_dec=apply_b_dec), stream()
    f = np.asarray(sae_encode(sae.config, sae.params, h))
    assert np.all((f[..., [3, 11]] > 0).any((0, 1))) and np.all((f[..., [3, 11]] == 0).any((0, 1)))
    maximum = np.asarray(sae.maximum)
    for edits, factor, target in (
        (clamp(sae, {11: -0.5, 3: 0.8}), [0, 0], [0.8 * maximum[3], -0.5 * maximum[11]]),
        (ablate(sae, [3, 11]), [0, 0], [0, 0]),
        (scale(sae, {3: 2.5, 11: -1}), [2.5, -1], [0, 0]),
    ):
        wanted = f.copy()
        wanted[..., [3, 11]] = f[..., [3, 11]] * factor + target
        change = sae_decode(sae.config, sae.params, wanted) - sae_decode(sae.config, sae.params, f)
        np.testing.assert_allclose(applied(edits, h), h + change, atol=2e-5)
        assert np.abs(change).max() > 0.1
    np.testing.assert_array_equal(applied(scale(sae, {3: 1.0}), h), h)


@pytest.mark.parametrize("architecture", OWN_RULE)
def test_held_features_are_read_again_within_their_bounds(architecture):
    sae, h = random_sae(architecture), stream()
    targets = {3: 0.3, 8: 0.6, 11: 0.4}
    goal = np.asarray([a * float(sae.maximum[j]) for j, a in targets.items()])

    def read(h):
        return np.asarray(sae_encode(sae.config, sae.params, h))[..., list(targets)]

    before, p = read(h), np.asarray(pre_activations(sae.config, sae.params, h))[..., list(targets)]
    assert (before > goal).any() and (before < goal).any()
    least = applied(hold(sae, targets), h)
    assert np.all(read(least) > goal - 1e-4)
    there = before >= goal
    after = np.asarray(pre_activations(sae.config, sae.params, least))[..., list(targets)]
    np.testing.assert_allclose(after[there], p[there], atol=1e-5)  # what was enough is left as it was
    np.testing.assert_allclose(read(least)[~there], np.broadcast_to(goal, there.shape)[~there], atol=1e-4)
    np.testing.assert_allclose(
        read(applied(hold(sae, targets, "exactly"), h)), np.broadcast_to(goal, p.shape), atol=1e-4
    )
    most = applied(hold(sae, targets, "at_most"), h)
    assert np.all(read(most) < goal + 1e-4)
    np.testing.assert_allclose(read(most)[~there], before[~there], atol=1e-4)
    assert np.all(read(applied(hold(sae, {3: 0.0, 8: 0, 11: 0}, "exactly"), h)) < 1e-4)
    # Everything moves along the decoder's rows only.
    rows = np.asarray(sae.params["W_dec"])[list(targets)]
    moved = np.asarray(least - h).reshape(-1, 7)
    np.testing.assert_allclose(moved @ np.linalg.pinv(rows) @ rows, moved, atol=1e-5)


@pytest.mark.parametrize("architecture", ["topk", "groupmax"])
def test_where_features_compete_their_pre_activation_is_held(architecture):
    sae, h = random_sae(architecture), stream()
    goal = 0.9 * np.asarray(sae.maximum)[[3, 8]]
    held = applied(hold(sae, {3: 0.9, 8: 0.9}), h)
    assert np.all(np.asarray(pre_activations(sae.config, sae.params, held))[..., [3, 8]] > goal - 1e-4)
    f = np.asarray(sae_encode(sae.config, sae.params, held))[..., [3, 8]]
    assert np.all((f == 0) | (f > goal - 1e-4)) and np.mean(f > 0) > 0.3


def test_a_target_below_the_threshold_holds_the_feature_above_it():
    sae, h = random_sae(), stream()
    share = 0.5 * float(sae.params["threshold"][3] / sae.maximum[3])
    f = np.asarray(sae_encode(sae.config, sae.params, applied(hold(sae, {3: share}), h)))[..., 3]
    assert np.all(f > sae.params["threshold"][3])
    with pytest.raises(MusaeError, match="feature 3 cannot be held at exactly"):
        hold(sae, {3: share}, "exactly")
    most = applied(hold(sae, {3: share}, "at_most"), h)
    assert np.all(np.asarray(sae_encode(sae.config, sae.params, most))[..., 3] == 0)


def test_what_cannot_be_done_is_one_sentence():
    sae = random_sae()
    for operation in (clamp, scale, hold, steer):
        for amount, words in (
            (np.nan, "nan; give a finite"),
            (np.inf, "inf; give a finite"),
            (101, "between -100 and"),
        ):
            with pytest.raises(MusaeError, match=words):
                operation(sae, {3: amount})
        with pytest.raises(MusaeError, match="feature 20 is not in this SAE"):
            operation(sae, {20: 1.0})
        assert operation(sae, {}) == Edits()
    with pytest.raises(MusaeError, match="feature -1 is not in this SAE"):
        ablate(sae, [-1])
    with pytest.raises(MusaeError, match="target below 0"):
        hold(sae, {3: -0.1})
    with pytest.raises(MusaeError, match="bound is 'above'"):
        hold(sae, {3: 0.1}, "above")
    turned = sae.replace(params={**sae.params, "W_dec": -sae.params["W_dec"]})
    with pytest.raises(MusaeError, match="feature 3 cannot be held, because adding its decoder row does not raise"):
        hold(turned, {3: 0.1})
    twins = {n: jnp.asarray(v).at[..., 4].set(v[..., 3]) for n, v in sae.params.items() if n not in ("W_dec", "b_dec")}
    twins |= {"W_dec": sae.params["W_dec"].at[4].set(sae.params["W_dec"][3]), "b_dec": sae.params["b_dec"]}
    with pytest.raises(MusaeError, match="features 3, 4 cannot be held together"):
        hold(sae.replace(params=twins), {3: 0.1, 4: 0.2})
    with pytest.raises(MusaeError, match="reads a stream 7 wide, but this model's residual stream is 6 wide"):
        applied(clamp(sae, {3: 1.0}), stream(width=6))


def test_combined_edits_follow_one_another():
    sae, other, h = random_sae(), random_sae("topk", seed=1), stream()
    added = applied(steer(sae, {5: -2.0}), h)
    both = combine(hold(sae, {3: 0.7}), steer(sae, {5: -2.0}))  # vectors come first
    np.testing.assert_allclose(applied(both, h), applied(hold(sae, {3: 0.7}), added), atol=1e-6)
    held = np.asarray(sae_encode(sae.config, sae.params, applied(both, h)))[..., 3]
    assert np.all(held > 0.7 * float(sae.maximum[3]) - 1e-4)
    three = combine(clamp(sae, {3: 0.5}), clamp(other, {3: 0.5}), ablate(sae, [5]))
    one_by_one = applied(ablate(sae, [5]), applied(clamp(other, {3: 0.5}), applied(clamp(sae, {3: 0.5}), h)))
    np.testing.assert_allclose(applied(three, h), one_by_one, atol=1e-6)
    ramp = jnp.asarray([0.0, 0.5, 1.0])
    summed = combine(steer(sae, {3: 1.0}), during(steer(sae, {5: 1.0}), ramp), during(steer(sae, {8: 1.0}), ramp[:2]))
    change = np.asarray(applied(summed, h) - h)
    rows = np.asarray(sae.maximum)[:, None] * np.asarray(sae.params["W_dec"])
    for p, (five, eight) in enumerate([(0, 0), (0.5, 0.5), (1, 0.5), (1, 0.5), (1, 0.5)]):
        np.testing.assert_allclose(change[:, p], np.tile(rows[3] + five * rows[5] + eight * rows[8], (6, 1)), atol=1e-5)
    assert sorted(combine(steer(random_sae(layer=0), {3: 1}), steer(sae, {3: 1})).vectors) == [0, 1]
    assert combine() == Edits()


@pytest.mark.parametrize("operation", [steer, clamp, scale, hold])
def test_schedules_and_branches_are_shares_of_the_change(operation):
    sae, h = random_sae(), stream()
    edits = operation(sae, {3: 0.7, 8: 0.5})
    whole = np.asarray(applied(edits, h) - h).reshape(2, 3, 5, 7)
    factors = np.random.default_rng(0).uniform(size=(3, 4)).astype(np.float32)
    for given in (factors[0], factors):
        got = np.asarray(applied(during(edits, given), h) - h).reshape(2, 3, 5, 7)
        held = np.concatenate([given, given[..., -1:]], -1)  # the last factor goes on
        np.testing.assert_allclose(got, whole * held[..., None], atol=1e-5)
    twice = applied(during(during(edits, factors[0]), factors[1, :3]), h)
    product = factors[0] * factors[1, [0, 1, 2, 2]]
    np.testing.assert_allclose(twice, applied(during(edits, product), h), atol=1e-5)
    for branches, shares in {"both": (1, 1), "conditional": (1, 0), "unconditional": (0, 1)}.items():
        got = np.asarray(applied(on_branches(edits, branches), h) - h).reshape(2, 3, 5, 7)
        np.testing.assert_allclose(got, whole * np.asarray(shares)[:, None, None, None], atol=1e-6)
    with pytest.raises(MusaeError, match="branches is 'left'"):
        on_branches(edits, "left")


def test_stacked_rows_are_what_each_is_alone(tiny_musicgen):
    mg = tiny_musicgen
    width = mg.config.decoder.hidden_size
    sae, other = random_sae(d_in=width, size=50.0), random_sae("topk", width, layer=0, size=50.0)
    rows = [
        Edits(),
        on_branches(during(clamp(sae, {8: 1.0, 5: 0.0}), np.linspace(0, 1, 4)), "conditional"),
        combine(
            hold(sae, {3: 0.9}), clamp(other, {1: 1.5, 2: 0.5}), during(steer(other, {4: 1.0}), np.linspace(0, 1, 9))
        ),
        combine(clamp(sae, {2: 1.0, 3: -0.5}), scale(sae, {5: 3.0, 8: 0.0})),
    ]
    stacked = stack(rows)
    first, second = stacked.functions[1], stacked.functions[0]
    assert len(first) == 3 and len(second) == 1  # two clamps are one function with two rows; hold, scale
    assert second[0].arrays["sae"]["W_enc"].shape == (width, 20)  # shared by all rows
    text = musae.encode_text(mg, ["flute", "drums"] * 2)
    keys = jax.random.split(jax.random.key(1), 4)

    def codes(edits, row=slice(None)):
        own = jax.tree.map(lambda x: x[row], text)
        settings = {"seconds": 0.4, "temperature": 0.1, "audio": False}  # at 1 the tiny model is undecided
        return np.asarray(musae.generate(mg.config, mg.params, own, keys[row], edits=edits, **settings).codes)

    batch, plain = codes(stacked), codes(None)
    for row, edits in enumerate(rows):
        np.testing.assert_array_equal(batch[row], codes(edits, slice(row, row + 1))[0])
    np.testing.assert_array_equal(batch[0], plain[0])
    assert all(np.mean(one != left) > 0.2 for one, left in zip(batch[1:], plain[1:]))
    with pytest.raises(MusaeError, match="edit has arrays for 4 rows, but the batch has 2 clips"):
        codes(Edits(functions={1: [f.replace(gate=1.0) for f in first]}), slice(2))
    with pytest.raises(MusaeError, match="rows already"):
        stack([Edits(functions=stacked.functions)])
    with pytest.raises(MusaeError, match="rows already"):
        stack([Edits(vectors=stacked.vectors)])
    with pytest.raises(MusaeError, match="no edits to stack"):
        stack([])


def test_nothing_compiles_again(tiny_musicgen):
    """Other strengths, features and schedules of the same number are the same program."""
    mg = tiny_musicgen
    width = mg.config.decoder.hidden_size
    sae, other = random_sae(d_in=width), random_sae("topk", width, layer=0)
    text = musae.encode_text(mg, ["flute"])

    def make(strength, features, schedule):
        one, two = ({f: strength * share for f in features} for share in (1.0, 0.5))
        parts = [steer(sae, one), clamp(sae, two), hold(sae, two), clamp(other, one)]
        edits = during(on_branches(combine(*parts), "conditional"), schedule)
        key = jax.random.key(0)
        musae.generate(mg.config, mg.params, text, key, seconds=0.1, edits=edits, audio=False)

    make(1.0, (3, 8), np.ones(5))
    compiled = module._advance._cache_size()
    make(0.25, (3, 8), np.ones(5))
    make(2, (7, 11), np.linspace(0, 1, 5))
    assert module._advance._cache_size() == compiled


def test_jit_equals_no_jit():
    sae, h = random_sae(), stream()
    edits = stack([combine(hold(sae, {3: a}), clamp(sae, {5: a}), steer(sae, {8: a})) for a in (0.2, 0.5, 0.9)])
    edits = prepare_edits(edits, 2, 7)
    apply = functools.partial(apply_edits, layer=1, branches=BRANCHES)
    with jax.disable_jit():
        slow = apply(edits, x=h, positions=jnp.arange(5))
    fast = jax.jit(lambda edits, h: apply(edits, x=h, positions=jnp.arange(5)))(edits, h)
    np.testing.assert_allclose(fast, slow, atol=1e-5)
    assert np.abs(fast - h).max() > 0.1
