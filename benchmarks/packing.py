"""Savings of packing texts into rows: fill rates of a corpus, and time of the text encoder.

    python -m benchmarks.packing --length=128 --copies=9
    python -m benchmarks.packing --reports=16 --width=96 --depth=4 --rounds=9   # with timing

First table: for random groups of reports with their perturbed copies, the share of slots that hold
tokens with padding and with packing, and the number of rows per text that a group needs (mean and
quantiles). `towers.text.packing` is the budget of rows per text. The texts of a group above the
budget spill into extra rows, which changes no result but is slow, so choose a budget that hardly
any group exceeds.

Second table: time of the forward and backward pass of the text encoder over the same texts, padded
and packed, in turn in one process.
"""

import argparse
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import commands
from benchmarks.corpora import TextRows, texts
from mmrl.data import perturb
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.models.text.packing import first_fit_decreasing
from mmrl.models.text.transformer import Transformer


def draw(
    reports: list[str], tokenizer: Tokenizer, count: int, copies: int, length: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens i32[count, 1 + copies, length] and their mask, of random reports and their copies."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(reports), count, replace=count > len(reports))
    rows = TextRows(tokenizer, length, perturb.PAPER_KINDS, copies)
    arrays = rows([reports[index] for index in chosen], seed)
    tokens, mask = arrays["text.tokens"][:, None], arrays["text.mask"][:, None]
    if copies:
        tokens = np.concatenate([tokens, arrays["perturbed.tokens"]], axis=1)
        mask = np.concatenate([mask, arrays["perturbed.mask"]], axis=1)
    return tokens, mask


def rows_taken(mask: np.ndarray, group: int, seats: int, seed: int, groups: int) -> np.ndarray:
    """Rows per text, f[groups], that random groups of `group` reports need.

    Args:
      mask: bool[N, C, L], the texts of all reports.
    """
    rng = np.random.default_rng(seed)
    lengths = mask.sum(axis=2, dtype=np.int32)
    chosen = np.stack([rng.choice(len(mask), group, replace=False) for _ in range(groups)])
    lengths = lengths[chosen].reshape(groups, -1)
    plan = functools.partial(first_fit_decreasing, slots=mask.shape[2], seats=seats)
    row = jax.jit(jax.vmap(lambda lengths: plan(lengths)[0]))(lengths)
    return (np.asarray(row).max(axis=1) + 1) / lengths.shape[1]


def fill_table(mask: np.ndarray, groups: int) -> None:
    """Prints fill rates and rows per text for several group sizes."""
    padded = mask.mean()
    print(f"padded: {padded:.1%} of the slots hold tokens")
    print("group   filled when packed   rows per text: mean   99 %   99.9 %   most")
    for group in (8, 16, 32, 64):
        if group <= len(mask):
            taken = rows_taken(mask, group, 8, 0, groups)
            figures = [taken.mean(), *np.quantile(taken, [0.99, 0.999]), taken.max()]
            values = "".join(f"{value:8.3f}" for value in figures)
            print(f"{group:5d}   {padded / taken.mean():18.1%}   {'':13s}{values}")


def passes(
    tokens: np.ndarray, mask: np.ndarray, options: dict[str, Any], packing: float
) -> dict[str, Any]:
    """For each form, its parameters and compiled (parameters, tokens, mask) -> gradients."""
    programs = {}
    for name, fraction in (("padded", 0.0), ("packed", packing)):
        text = Transformer(**options, packing=fraction, rngs=nnx.Rngs(0))
        graphdef, params = nnx.split(text)
        pure = nnx.to_pure_dict(params)

        def loss(params: Any, tokens: jax.Array, mask: jax.Array, graphdef: Any) -> jax.Array:
            text = nnx.merge(graphdef, params)
            pooled, words = text.candidates(tokens, mask, words=(0,), train=True)
            real = jnp.where(mask[:, :1, :, None], words, 0)
            return jnp.sum(pooled.astype(jnp.float32) ** 2) + jnp.sum(real.astype(jnp.float32) ** 2)

        gradient = jax.grad(functools.partial(loss, graphdef=graphdef))
        programs[name] = pure, jax.jit(gradient).lower(pure, tokens, mask).compile()
    return programs


def timing(tokens: np.ndarray, mask: np.ndarray, options: dict[str, Any], args: Any) -> None:
    """Prints time and temporary bytes of both forms, and their ratio."""
    programs = passes(tokens, mask, options, args.packing)
    forms: dict[str, Callable[[], Any]] = {
        name: functools.partial(compiled, pure, tokens, mask)
        for name, (pure, compiled) in programs.items()
    }
    gradients = {name: jax.block_until_ready(call()) for name, call in forms.items()}
    leaves = [jax.tree.leaves(value) for value in gradients.values()]
    largest = max(float(np.abs(leaf).max()) for leaf in leaves[0])
    error = max(float(np.abs(a - b).max()) for a, b in zip(*leaves, strict=True)) / largest
    first, second = seconds = commands.median_seconds(list(forms.values()), args.rounds)
    for (name, (_, compiled)), median in zip(programs.items(), seconds, strict=True):
        temporary = compiled.memory_analysis().temp_size_in_bytes / 2**20
        print(f"{name}: {median:.3f} s, {temporary:,.0f} MiB of temporaries")
    print(
        f"padded / packed: {first / second:.2f}; gradients differ by {error:.1e}, relative to the "
        "largest"
    )


def main() -> None:
    """Measures and prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--copies", type=int, default=9)
    parser.add_argument("--phantom", action="store_true", help="phantom reports, not Open-i")
    parser.add_argument("--groups", type=int, default=2000, help="groups per fill rate")
    parser.add_argument("--group", type=int, default=16, help="reports per group, for timing")
    parser.add_argument("--packing", type=float, default=0.0, help="0: the 99.9 %% quantile")
    parser.add_argument("--reports", type=int, default=0, help="batch of the timing; 0: no timing")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    name, reports = texts(real=not args.phantom)
    tokenizer = Tokenizer.train(reports, vocab_size=2000)
    tokens, mask = draw(reports, tokenizer, 1000, args.copies, args.length, seed=0)
    print(f"{name}: {len(reports):,} reports, L = {args.length}, K = {args.copies}")
    fill_table(mask, args.groups)
    if not args.reports:
        return
    if not args.packing:
        taken = rows_taken(mask, args.group, 8, 0, args.groups)
        args.packing = math.ceil(np.quantile(taken, 0.999) * 100) / 100
    options = {
        "vocab_size": tokenizer.vocab_size,
        "length": args.length,
        "width": args.width,
        "depth": args.depth,
        "num_heads": max(1, args.width // 64),
        "scan_layers": True,
        "packing_group": args.group,
    }
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {args}")
    timing(tokens[: args.reports], mask[: args.reports], options, args)


if __name__ == "__main__":
    main()
