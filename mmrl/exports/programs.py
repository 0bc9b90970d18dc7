"""Encoders as functions of weights and inputs alone, which other runtimes can compile.

| name | inputs | result |
|---|---|---|
| `image.embedding` | pixels u8[B, S, S, C] | f32[B, D] |
| `image.regions` | the same | f32[B, P, D'], after the head of regions |
| `image.tokens` | the same | f32[B, P, W], before it: visual tokens for language models |
| `image.tokens.linear`, `image.tokens.mlp` | projector, pixels | f32[B, P, H], see `PROJECTORS` |
| `text.embedding` | tokens i32[B, L], mask bool[B, L] | f32[B, D] |
| `text.words` | the same | f32[B, L, D'] |

P is rows times columns of the grid, row by row; pixels are square and not normalised.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmrl import wiring
from mmrl.exports import weights
from mmrl.exports.plan import unscanned
from mmrl.training import learner, run

# Projector -> its parameters -> shape; D of the tokens, M hidden, H of the language model. They
# are those of LLaVA (Liu et al. 2023) and of LLaVA-1.5 (two layers with GELU between them).
PROJECTORS: dict[str, dict[str, str]] = {
    "linear": {"kernel": "d h", "bias": "h"},
    "mlp": {"wide/kernel": "d m", "wide/bias": "m", "out/kernel": "m h", "out/bias": "h"},
}
# What training and single devices want.
_PLAIN = {"dropout": 0.0, "attention": "xla", "packing": 0.0, "remat": "none"}
_LOCAL = {"image": "regions", "text": "words"}
TOKENS = "tokens"


@dataclasses.dataclass(frozen=True)
class Program:
    """An encoding as a function.

    Attributes:
      name: "<tower>.<feature>", with ".linear" or ".mlp" for those with a projector.
      encodes: the encoding of `mmrl.load` that it equals; "" for tokens.
      inputs: name -> dtype and shape without the batch axis.
      weights: paths of the parameters.
      projector: a key of PROJECTORS; "" without one. width: features of a token.
      call: (weights by path, inputs by name) -> array with the batch axis first. With a projector
        its parameters are inputs, too, by name.
    """

    name: str
    encodes: str
    inputs: Mapping[str, tuple[str, tuple[int, ...]]]
    weights: tuple[str, ...]
    call: Callable[[Mapping[str, Any], Mapping[str, Any]], jax.Array]
    projector: str = ""
    width: int = 0


def make(trained: run.Trained) -> tuple[tuple[Program, ...], dict[str, np.ndarray]]:
    """All programs of image and text towers, and their parameters by path."""
    arrays, towers = unscanned(weights.arrays(trained), weights.options(trained))
    made: list[Program] = []
    for name, given in towers.items():
        kind = wiring.kind_of(name, given)
        if kind in _LOCAL:
            made += _of_tower(trained, name, kind, given)
    used = {path for program in made for path in program.weights}
    return tuple(made), {path: arrays[path] for path in sorted(used)}


def projector_shapes(program: Program, sizes: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Parameter -> shape of the projector of a program.

    Args:
      sizes: "m" and "h", numbers or symbols.
    """
    known = {"d": program.width, **sizes}
    return {
        name: tuple(known[axis] for axis in axes.split())
        for name, axes in PROJECTORS.get(program.projector, {}).items()
    }


def _of_tower(
    trained: run.Trained, name: str, kind: str, given: Mapping[str, Any]
) -> Iterator[Program]:
    numbers = {"dtype": jnp.dtype(trained.config.dtype), "param_dtype": jnp.float32}
    heads = dict(given.get("heads") or {})
    wanted = [one for one in ("embedding", _LOCAL[kind]) if one in heads]
    options = {**given, **{key: one for key, one in _PLAIN.items() if key in given}}
    tower = _tower(name, options, numbers)
    inputs = _inputs(kind, given, tower)
    for feature in wanted or ("pooled",):
        call, paths = _function(name, tower, feature)
        yield Program(f"{name}.{feature}", f"{name}.{feature}", inputs, paths, call)
    if kind != "image":
        return
    width = int(tower.encoder.local_width)
    plain = {"regions": {"width": width, "kind": "identity"}}
    call, paths = _function(name, _tower(name, {**options, "heads": plain}, numbers), "regions")
    tokens = Program(f"{name}.{TOKENS}", "", inputs, paths, call, width=width)
    yield tokens
    for projector in PROJECTORS:
        yield dataclasses.replace(
            tokens,
            name=f"{tokens.name}.{projector}",
            call=functools.partial(_projected, call, projector),
            projector=projector,
        )


def _tower(name: str, given: Mapping[str, Any], numbers: Mapping[str, Any]) -> Any:
    """A tower without arrays."""
    return nnx.eval_shape(lambda: learner.make_tower(name, given, lambda _: nnx.Rngs(0), numbers))


def _inputs(
    kind: str, given: Mapping[str, Any], tower: Any
) -> dict[str, tuple[str, tuple[int, ...]]]:
    if kind == "image":
        size = int(given["size"])
        return {"pixels": ("uint8", (size, size, int(tower.channels)))}
    length = (int(given["length"]),)
    return {"tokens": ("int32", length), "mask": ("bool", length)}


def _function(
    name: str, tower: Any, feature: str
) -> tuple[Callable[[Mapping[str, Any], Mapping[str, Any]], jax.Array], tuple[str, ...]]:
    """(weights, inputs) -> a feature, and the paths of the weights that the tower has."""
    graphdef, state = nnx.split(tower)
    flat = dict(nnx.to_flat_state(state))
    paths = {keys: f"towers/{name}/{'/'.join(map(str, keys))}" for keys in flat}

    def call(given: Mapping[str, Any], inputs: Mapping[str, Any]) -> jax.Array:
        filled = {keys: one.replace(given[paths[keys]]) for keys, one in flat.items()}
        module = nnx.merge(graphdef, nnx.from_flat_state(filled))
        found = module({name: inputs}, {name: (feature,)}, train=False)
        return found[name][feature].astype(jnp.float32)

    return call, tuple(sorted(paths.values()))


def _projected(
    tokens: Callable[..., jax.Array],
    projector: str,
    given: Mapping[str, Any],
    inputs: Mapping[str, Any],
) -> jax.Array:
    """Tokens [B, P, D] -> [B, P, H]."""
    x = tokens(given, inputs)
    if projector == "linear":
        return x @ inputs["kernel"] + inputs["bias"]
    hidden = jax.nn.gelu(x @ inputs["wide/kernel"] + inputs["wide/bias"], approximate=False)
    return hidden @ inputs["out/kernel"] + inputs["out/bias"]
