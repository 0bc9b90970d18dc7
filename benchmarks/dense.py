"""Why dense layers multiply flattened rows: forward and backward of one MLP, both ways.

    python -m benchmarks.dense --width=96 --tokens=8192 --rounds=20

The two forms compute the same numbers; they run in turn within one process, and the ratio of the
medians is what counts.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp


def loss(x: jax.Array, wide: jax.Array, out: jax.Array) -> jax.Array:
    """Sum of squares of an MLP's output; x f32[..., width]."""
    return jnp.sum((jax.nn.gelu(x @ wide, approximate=False) @ out) ** 2)


def main() -> None:
    """Measures and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (given.tokens // 64, 64, given.width))
    wide = jax.random.normal(keys[1], (given.width, 4 * given.width))
    out = jax.random.normal(keys[2], (4 * given.width, given.width))
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    forms: dict[str, Callable[[], object]] = {
        "[B, L, width]": lambda: gradient(x, wide, out),
        "[B*L, width]": lambda: gradient(x.reshape(-1, given.width), wide, out),
    }
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for call in forms.values():
        jax.block_until_ready(call())
    for _ in range(given.rounds):
        for name, call in forms.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    flops = 12 * given.tokens * 4 * given.width**2
    print(f"{jax.devices()[0].device_kind}, {jax.__version__}, {given}")
    for name, value in medians.items():
        print(f"{name:14s} {value * 1e3:8.1f} ms  {flops / value / 1e9:6.1f} GFLOP/s")
    first, second = medians.values()
    print(f"ratio {first / second:.2f}")


if __name__ == "__main__":
    main()
