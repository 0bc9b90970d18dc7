"""Text packing: the plan, and that packing changes no result on any mesh."""

import functools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmrl.devices import sharding
from mmrl.models.text.packing import PackingPlan, first_fit_decreasing
from mmrl.models.text.transformer import Transformer
from mmrl.types import InputError
from tests.arrays import assert_close

B, C, L, GROUP = 4, 3, 12, 2
SIZE = {"width": 16, "depth": 1, "num_heads": 2, "vocab_size": 30, "length": L}


# The tensor axis of a mesh of 4 divides the heads of the queries but not those of the keys.
GROUPED = {"num_heads": 4, "causal": True, "block": {"kv_heads": 2, "rope_theta": 100.0}}
FIRST = (0,)  # words of the first text alone
LATENTS = {"pool": {"name": "latent_attention", "latents": 3, "num_heads": 2}}


def build(**options: Any) -> Transformer:
    """A text encoder with random parameters, equal for every test."""
    make = functools.partial(Transformer, **(SIZE | {"packing_group": GROUP} | options))
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    pure = nnx.to_pure_dict(shapes)
    stack = pure["stack"]
    if options.get("scan_layers"):
        blocks = nnx.to_pure_dict(nnx.state(build(**(options | {"scan_layers": False}))))["stack"]
        drawn = _drawn({key: pure[key] for key in pure if key != "stack"})
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *(blocks[k] for k in sorted(blocks)))
        return nnx.merge(graphdef, drawn | {"stack": {"blocks": stacked}})
    blocks = {name: _drawn(stack[name], int(name[-2:]) + 1) for name in stack}
    drawn = _drawn({key: pure[key] for key in pure if key != "stack"})
    return nnx.merge(graphdef, drawn | {"stack": blocks})


def _drawn(shapes: Any, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), shapes
    )


def texts(reports: int = B, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """tokens i32[reports, C, L] and mask; lengths 3 to L, one text of length L and one empty."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, L + 1, (reports, C))
    lengths[0, 1], lengths[1, 0] = L, 0
    tokens = rng.integers(4, 30, (reports, C, L)).astype(np.int32)
    return tokens, np.arange(L) < lengths[..., None]


def compiled(text: Transformer, tokens: Any, mask: Any, *, words: Sequence[int]) -> tuple[Any, Any]:
    """(parameters -> (gradient, (pooled, words where there are tokens)), parameters)."""
    graphdef, params = nnx.split(text)
    weights = np.random.default_rng(3).normal(size=(2, 16)).astype(np.float32)

    def loss(params: Any, tokens: Any, mask: Any) -> Any:
        module = nnx.merge(graphdef, params)
        pooled, of_words = module.candidates(tokens, mask, words=words, train=True)
        # What comes of a text without tokens has no meaning.
        pooled = jnp.where(mask.any(axis=2)[..., None], pooled, 0)
        total = jnp.sum(jnp.sin(pooled) @ weights[0])
        if of_words is not None:
            of_words = jnp.where(mask[:, list(words), :, None], of_words, 0)
            total += jnp.sum(jnp.sin(of_words) @ weights[1])
        return total, (pooled, of_words)

    pure = nnx.to_pure_dict(params)
    gradient = jax.jit(jax.grad(loss, has_aux=True))
    return gradient.lower(pure, tokens, mask).compile(), pure


def outputs(text: Transformer, tokens: Any, mask: Any, *, words: Sequence[int]) -> Any:
    """Gradient of a function of all features, and the features."""
    call, params = compiled(text, tokens, mask, words=words)
    return call(params, tokens, mask)


def by_hand(lengths: list[int], slots: int, seats: int) -> tuple[list[int], list[int]]:
    """First-fit decreasing, one text after another."""
    held: list[list[int]] = []
    row, start = [0] * len(lengths), [0] * len(lengths)
    for text in sorted(range(len(lengths)), key=lambda text: -lengths[text]):
        fits = (r for r, h in enumerate(held) if sum(h) + lengths[text] <= slots and len(h) < seats)
        row[text] = next(fits, len(held))
        if row[text] == len(held):
            held.append([])
        start[text] = sum(held[row[text]])
        held[row[text]].append(lengths[text])
    return row, start


@pytest.mark.parametrize(("slots", "seats"), [(12, 12), (12, 3), (40, 5)])
def test_the_plan_is_first_fit_decreasing(slots, seats):
    plan = jax.jit(functools.partial(first_fit_decreasing, slots=slots, seats=seats))
    for seed in range(20):
        lengths = np.random.default_rng(seed).integers(1, slots + 1, 25).astype(np.int32)
        if seed == 0:
            lengths[:] = slots  # nothing to be packed
        if seed == 1:
            lengths[:] = 1
        row, start = plan(lengths)
        assert (row.tolist(), start.tolist()) == by_hand(lengths.tolist(), slots, seats)


def test_rows_hold_every_token_once_and_keep_texts_apart():
    tokens, mask = texts()
    packing = PackingPlan(tokens.reshape(2, -1, L), mask.reshape(2, -1, L), seats=4)
    rows = jax.tree.map(np.asarray, packing.rows(0, GROUP * C, at_end=True))
    assert sorted(rows.tokens[rows.tokens > 0]) == sorted(tokens[mask])
    for row, seat in zip(*np.nonzero(rows.members.any(axis=2)), strict=True):
        slots = np.flatnonzero(rows.members[row, seat])
        np.testing.assert_array_equal(rows.position[row, slots], np.arange(len(slots)))
        assert slots[-1] == rows.query[row, seat]
        np.testing.assert_array_equal(np.flatnonzero(rows.mask[row, slots[0]]), slots)
    assert rows.members.sum() == mask.sum()


CASES = [
    # pool, word_layers, scan_layers, words, packing: 0.85 fits, 0.34 spills in uneven chunks
    ("eos", 2, True, FIRST, 0.34),
    ("mean", 1, False, (0, 2), 0.85),
    ("cls", 2, False, (1,), 0.85),
    ("eos", 2, False, (0, 1, 2), 0.34),  # more words than rows: these are completed
    # On a mesh below.
    pytest.param("cls", 1, False, FIRST, 0.34, marks=pytest.mark.exhaustive),
    pytest.param("cls", 2, True, (), 0.85, marks=pytest.mark.exhaustive),
    pytest.param("eos", 2, False, (), 1.0, marks=pytest.mark.exhaustive),
    pytest.param("mean", 2, True, (2, 1), 0.34, marks=pytest.mark.exhaustive),
]


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(("pool", "word_layers", "scan_layers", "words", "packing"), CASES)
def test_packing_changes_no_output_and_no_gradient(pool, word_layers, scan_layers, words, packing):
    options = {"pool": pool, "word_layers": word_layers, "scan_layers": scan_layers}
    options["depth"] = word_layers
    tokens, mask = texts()
    plain = outputs(build(**options), tokens, mask, words=words)
    packed = outputs(build(**options, packing=packing), tokens, mask, words=words)
    assert_close(packed, plain, floor=1.0)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("pool", "words", "scan_layers", "size"),
    [
        ("cls", (0, 1), False, 5),
        ("mean", FIRST, True, 3),
        ("eos", (), False, 5),
    ],
)
def test_packing_changes_nothing_for_a_convolution_over_tokens(pool, words, scan_layers, size):
    options = {"pool": pool, "scan_layers": scan_layers, "convolution": size}
    tokens, mask = texts()
    plain = outputs(build(**options), tokens, mask, words=words)
    packed = outputs(build(**options, packing=0.5), tokens, mask, words=words)
    assert np.abs(plain[0]["convolution"]["kernel"]).max() > 1e-2
    assert_close(packed, plain, floor=1.0)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("pool", ["cls", "eos", "mean"])
def test_candidates_are_the_texts_encoded_alone(pool):
    """Copies, for which the last block computes only one token, equal those of `__call__`."""
    text = build(pool=pool, word_layers=2, depth=2)
    tokens, mask = texts()
    mask[1, 0, :4] = True
    alone = jax.jit(lambda t, m: text(t, m))(tokens.reshape(-1, L), mask.reshape(-1, L))
    pooled, words = jax.jit(lambda t, m: text.candidates(t, m, words=(2, 0)))(tokens, mask)
    assert_close(pooled, alone.pooled.reshape(B, C, -1), floor=1.0)
    assert_close(words, alone.local.reshape(B, C, L, -1)[:, [2, 0]], floor=1.0)


def test_copies_cost_the_last_block_little_more_than_its_keys_and_values():
    """FLOPs: for copies, the last block computes queries, output and MLP of one token only."""
    text = build(depth=1, width=64, num_heads=1)
    tokens, mask = texts()

    def flops(call: Any) -> float:
        return jax.jit(call).lower(tokens, mask).compile().cost_analysis()["flops"]

    whole = flops(lambda t, m: text(t.reshape(-1, L), m.reshape(-1, L)).pooled)
    pooled = flops(lambda t, m: text.candidates(t, m, words=())[0])
    # Of 12 width^2 multiplications per token, keys and values are 2; one token in L pays 10 more.
    assert pooled / whole == pytest.approx((2 + 10 / L) / 12, abs=0.06)


def test_evaluation_is_not_packed():
    text = build(packing=0.3, packing_group=3)  # groups of 3 do not divide the reports
    tokens, mask = texts()
    pooled = jax.eval_shape(lambda: text.candidates(tokens, mask, words=()))[0]
    assert pooled.shape == (B, C, 16)
    with pytest.raises(InputError, match=r"packing_group=3 .* does not divide the 4 reports"):
        jax.eval_shape(lambda: text.candidates(tokens, mask, words=(), train=True))


@pytest.mark.parametrize("options", [{"packing": -0.1}, {"packing": 1.5}, {"packing_group": 0}])
def test_wrong_options_say_what_is_expected(options):
    with pytest.raises(InputError, match=r"expected a fraction of 0 \(off\) to 1, "):
        nnx.eval_shape(lambda: Transformer(**(SIZE | options), rngs=nnx.Rngs(0)))


@pytest.mark.exhaustive
def test_dropout_follows_the_key_and_hits_spilled_texts_too():
    text = build(depth=1, dropout=0.5, packing=0.34)
    tokens, mask = texts()

    @jax.jit
    def call(seed: jax.Array) -> Any:
        return text.candidates(tokens, mask, words=(), train=True, rngs=nnx.Rngs(seed))[0]

    first, again, other = (call(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (np.abs(first - other).max(axis=2) > 1e-2).all()


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("axes", "options"),
    [
        ((8, 1, 1), {}),
        ((1, 8, 1), {}),
        ((2, 2, 2), {}),
        ((8, 1, 1), LATENTS),
        ((2, 1, 4), GROUPED),
    ],
)
def test_every_mesh_computes_the_same_and_packs_on_the_spot(axes, options):
    """Equals the result of one device without packing."""
    tokens, mask = texts(reports=16)
    text = build(packing=0.34, **options)
    expected = outputs(build(**options), tokens, mask, words=FIRST)
    mesh = sharding.make_mesh(dict(zip(sharding.MESH_AXES, axes, strict=True)))
    graphdef, params = nnx.split(text)
    placed = jax.device_put(nnx.to_pure_dict(params), sharding.variable_shardings(params, mesh))
    inputs = jax.device_put((tokens, mask), sharding.batch_sharding(mesh))
    call, placed = compiled(nnx.merge(graphdef, placed), *inputs, words=FIRST)
    assert_close(call(placed, *inputs), expected, floor=1.0)
    if axes == (8, 1, 1):  # nothing but gradients and the decision to spill leaves a device
        moved = re.findall(r" (all-gather|all-to-all|collective-permute)\(", call.as_text())
        assert not moved
