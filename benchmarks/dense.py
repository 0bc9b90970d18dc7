"""Dense layers on [B, L, width] and on [B*L, width]: time of forward and backward pass of an MLP.

    python -m benchmarks.dense --width=96 --tokens=8192 --rounds=20

Both forms compute the same result. They run in turn in one process; the figure to look at is the
ratio of the medians. It is the reason why `mmrl.models.layers` flattens inputs.
"""

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks import commands


def loss(x: jax.Array, wide: jax.Array, out: jax.Array) -> jax.Array:
    """Sum of the squared outputs of an MLP; x f32[..., width]."""
    return jnp.sum((jax.nn.gelu(x @ wide, approximate=False) @ out) ** 2)


def main() -> None:
    """Measures both forms and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (args.tokens // 64, 64, args.width))
    wide = jax.random.normal(keys[1], (args.width, 4 * args.width))
    out = jax.random.normal(keys[2], (4 * args.width, args.width))
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    forms: dict[str, Callable[[], object]] = {
        "[B, L, width]": lambda: gradient(x, wide, out),
        "[B*L, width]": lambda: gradient(x.reshape(-1, args.width), wide, out),
    }
    first, second = seconds = commands.median_seconds(list(forms.values()), args.rounds)
    flops = 12 * args.tokens * 4 * args.width**2
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {args}")
    for name, value in zip(forms, seconds, strict=True):
        print(f"{name:14s} {value * 1e3:8.1f} ms  {flops / value / 1e9:6.1f} GFLOP/s")
    print(f"ratio {first / second:.2f}")


if __name__ == "__main__":
    main()
