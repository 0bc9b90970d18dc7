"""What packing texts into rows saves: fill rates of a corpus, then seconds per text pass.

    python -m benchmarks.packing --length=128 --copies=9
    python -m benchmarks.packing --reports=16 --width=96 --depth=4 --rounds=9   # the timing

First table: for groups of reports drawn as training draws them, with perturbed copies, the share
of slots that hold tokens when padded and when packed, and how many rows per text a group takes:
its mean and its quantiles. `model.text.packing` is that budget; groups above it spill, which is
exact but slow, so take one that next to no group exceeds. Second table: forward and backward of
the text encoder over the same texts, padded and packed at that budget, interleaved in one process.
"""

import argparse
import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.corpora import TextRows, texts
from mmrl.data import perturb
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.models.text.packing import first_fit_decreasing
from mmrl.models.text.transformer import Transformer


def draw(
    reports: list[str], tokenizer: Tokenizer, count: int, copies: int, length: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens i32[count, 1 + copies, length] and mask of random reports with their copies."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(reports), count, replace=count > len(reports))
    rows = TextRows(tokenizer, length, perturb.PAPER_KINDS, copies)
    made = rows([reports[index] for index in chosen], seed)
    tokens, mask = made["tokens"][:, None], made["token_mask"][:, None]
    if copies:
        tokens = np.concatenate([tokens, made["perturbed_tokens"]], axis=1)
        mask = np.concatenate([mask, made["perturbed_mask"]], axis=1)
    return tokens, mask


def rows_taken(mask: np.ndarray, group: int, seats: int, seed: int, groups: int) -> np.ndarray:
    """Rows per text, f[groups], of random groups of `group` reports from mask bool[N, C, L]."""
    rng = np.random.default_rng(seed)
    lengths = mask.sum(axis=2, dtype=np.int32)
    chosen = np.stack([rng.choice(len(mask), group, replace=False) for _ in range(groups)])
    lengths = lengths[chosen].reshape(groups, -1)
    plan = functools.partial(first_fit_decreasing, slots=mask.shape[2], seats=seats)
    row = jax.jit(jax.vmap(lambda lengths: plan(lengths)[0]))(lengths)
    return (np.asarray(row).max(axis=1) + 1) / lengths.shape[1]


def fill_table(mask: np.ndarray, groups: int) -> None:
    """Prints the fill rates and the budgets for several sizes of groups."""
    padded = mask.mean()
    print(f"padded: {padded:.1%} of the slots hold tokens")
    print("group   filled when packed   rows per text: mean   99 %   99.9 %   most")
    for group in (8, 16, 32, 64):
        if group <= len(mask):
            taken = rows_taken(mask, group, 8, 0, groups)
            of = [taken.mean(), *np.quantile(taken, [0.99, 0.999]), taken.max()]
            values = "".join(f"{value:8.3f}" for value in of)
            print(f"{group:5d}   {padded / taken.mean():18.1%}   {'':13s}{values}")


def passes(
    tokens: np.ndarray, mask: np.ndarray, options: dict[str, Any], packing: float
) -> dict[str, Any]:
    """The compiled gradient of each form: (parameters, tokens, mask) -> gradients."""
    made = {}
    for name, fraction in (("padded", 0.0), ("packed", packing)):
        text = Transformer(**options, packing=fraction, rngs=nnx.Rngs(0))
        graphdef, params = nnx.split(text)
        pure = nnx.to_pure_dict(params)

        def loss(params: Any, tokens: jax.Array, mask: jax.Array, graphdef: Any) -> jax.Array:
            text = nnx.merge(graphdef, params)
            pooled, words = text.candidates(tokens, mask, words=True, train=True)
            real = jnp.where(mask[:, 0, :, None], words, 0)
            return jnp.sum(pooled.astype(jnp.float32) ** 2) + jnp.sum(real.astype(jnp.float32) ** 2)

        gradient = jax.grad(functools.partial(loss, graphdef=graphdef))
        made[name] = pure, jax.jit(gradient).lower(pure, tokens, mask).compile()
    return made


def timing(tokens: np.ndarray, mask: np.ndarray, options: dict[str, Any], given: Any) -> None:
    """Prints seconds, temporary bytes and FLOPs of both forms, and their ratio."""
    made = passes(tokens, mask, options, given.packing)
    forms: dict[str, Callable[[], Any]] = {
        name: functools.partial(compiled, pure, tokens, mask)
        for name, (pure, compiled) in made.items()
    }
    gradients = {name: jax.block_until_ready(call()) for name, call in forms.items()}
    leaves = [jax.tree.leaves(value) for value in gradients.values()]
    largest = max(float(np.abs(leaf).max()) for leaf in leaves[0])
    error = max(float(np.abs(a - b).max()) for a, b in zip(*leaves, strict=True)) / largest
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(given.rounds):
        for name, call in forms.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - began)
    for name, (_, compiled) in made.items():
        temporary = compiled.memory_analysis().temp_size_in_bytes / 2**20
        print(f"{name}: {statistics.median(seconds[name]):.3f} s, {temporary:,.0f} MiB temporary")
    first, second = (statistics.median(values) for values in seconds.values())
    print(f"padded / packed: {first / second:.2f}; gradients differ by {error:.1e} of the largest")


def main() -> None:
    """Measures and prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--copies", type=int, default=9)
    parser.add_argument("--phantom", action="store_true", help="phantom reports, not Open-i")
    parser.add_argument("--groups", type=int, default=2000, help="drawn for the fill rates")
    parser.add_argument("--group", type=int, default=16, help="reports per group when timed")
    parser.add_argument("--packing", type=float, default=0.0, help="budget; 0: the 99.9 % quantile")
    parser.add_argument("--reports", type=int, default=0, help="timed batch; 0: fill rates only")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    name, reports = texts(real=not given.phantom)
    tokenizer = Tokenizer.train(reports, vocab_size=2000)
    tokens, mask = draw(reports, tokenizer, 1000, given.copies, given.length, seed=0)
    print(f"{name}: {len(reports):,} reports, L = {given.length}, K = {given.copies}")
    fill_table(mask, given.groups)
    if not given.reports:
        return
    if not given.packing:
        taken = rows_taken(mask, given.group, 8, 0, given.groups)
        given.packing = math.ceil(np.quantile(taken, 0.999) * 100) / 100
    options = {
        "vocab_size": tokenizer.vocab_size,
        "length": given.length,
        "width": given.width,
        "depth": given.depth,
        "num_heads": max(1, given.width // 64),
        "scan_layers": True,
        "packing_group": given.group,
    }
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {given}")
    timing(tokens[: given.reports], mask[: given.reports], options, given)


if __name__ == "__main__":
    main()
