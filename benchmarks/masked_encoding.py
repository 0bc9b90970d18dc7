"""Cost of encoding some of the patches against all of them: FLOPs, and time of a training step.

    python -m benchmarks.masked_encoding --sizes=128,160,224 --share=0.25 --rounds=5

The step is the forward and backward pass of a vision transformer. For each size both run in turn in
one process; the figures to look at are the ratios.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import commands
from mmrl.devices import flops
from mmrl.models.image.vit import Vit


def main() -> None:
    """Measures all sizes and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sizes", type=commands.numbers, default=(128, 160, 224))
    parser.add_argument("--share", type=float, default=0.25, help="of the patches that are kept")
    parser.add_argument("--variant", default="S")
    parser.add_argument("--stem", default="patch")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {vars(args)}")
    print("| pixels | patches | kept | GFLOPs, all | kept | ratio | s, all | kept | ratio |")
    print("|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for size in args.sizes:
        model = Vit(image_size=size, variant=args.variant, stem=args.stem, rngs=nnx.Rngs(0))
        graphdef, params = nnx.split(model)
        patches = model.grid[0] * model.grid[1]
        drawn = np.random.default_rng(0)
        image = jnp.asarray(drawn.normal(size=(args.batch, size, size, 1)), jnp.float32)
        places = drawn.permuted(np.tile(np.arange(patches), (args.batch, 1)), axis=1)
        kept = jnp.asarray(places[:, : round(args.share * patches)], jnp.int32)

        def loss(
            params: nnx.State,
            image: jax.Array,
            kept: jax.Array | None,
            graphdef: nnx.GraphDef[Vit] = graphdef,
        ) -> jax.Array:
            return jnp.sum(nnx.merge(graphdef, params)(image, kept=kept).pooled ** 2)

        step = jax.jit(jax.grad(loss))
        forms = [(params, image, None), (params, image, kept)]
        every, some = (flops.count(jax.grad(loss), *form) / 1e9 for form in forms)
        calls = [lambda form=form, step=step: step(*form) for form in forms]
        slow, fast = commands.median_seconds(calls, args.rounds)
        print(
            f"| {size} | {patches} | {kept.shape[1]} | {every:.1f} | {some:.1f} | "
            f"{some / every:.3f} | {slow:.3f} | {fast:.3f} | {fast / slow:.3f} |"
        )


if __name__ == "__main__":
    main()
