"""Encoders and objectives as one module: everything that training changes lives in its tree."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jax.sharding import Mesh

from mmrl import build, sharding
from mmrl.models.dual_encoder import DualEncoder
from mmrl.objectives.base import Objective
from mmrl.types import Batch, InputError, Metrics


def needs(objectives: Iterable[str]) -> frozenset[str]:
    """What the objectives of these names read, before any of them is built."""
    classes = (build.find("objective", name) for name in objectives)
    return frozenset(need for cls in classes for need in cls.needs)  # type: ignore[attr-defined]


class Learner(nnx.Module):
    """The weighted sum of objectives over one pair of encoders.

    Parameter paths read "model/image/...", "objectives/global_contrastive/logit_scale/log".

    Args:
      model: the pair of encoders.
      objectives: name -> module.
      weights: name -> factor of its loss in the sum.

    Raises:
      InputError: an objective needs what the model does not provide.
    """

    def __init__(
        self, model: DualEncoder, objectives: dict[str, Objective], weights: Mapping[str, float]
    ) -> None:
        for name, objective in objectives.items():
            for need in objective.needs:
                if need not in model.provides:
                    raise InputError(
                        f"objective {name!r} needs {need!r}; the model provides: "
                        f"{', '.join(model.provides)} (model.local_dim=0 means no local features)"
                    )
        self.model = model
        self.objectives = nnx.Dict(objectives)
        self.weights = tuple((name, float(weights[name])) for name in objectives)
        self.needs = frozenset(need for o in objectives.values() for need in o.needs)

    def __call__(
        self, batch: Batch, *, train: bool, rngs: nnx.Rngs | None = None
    ) -> tuple[jax.Array, Metrics]:
        """(total loss f32[], metrics with each objective's under its name)."""
        encoded = self.model(batch, needs=self.needs, train=train, rngs=rngs)
        total = jnp.float32(0)
        metrics: Metrics = {}
        for name, weight in self.weights:
            loss = self.objectives[name](encoded, batch)
            total = total + weight * loss.value
            metrics |= {f"{name}/{key}": value for key, value in loss.metrics.items()}
        size = jnp.float32(batch["image"].shape[0])
        return total, {"loss": (total * size, size), **metrics}

    def post_update(self) -> None:
        """Lets each objective restore its invariants after the optimizer's update."""
        for name, _ in self.weights:
            self.objectives[name].post_update()


def make(config: ml_collections.ConfigDict, vocab_size: int, rngs: nnx.Rngs) -> Learner:
    """Builds encoders and objectives from a validated config."""
    model, data = config.model, config.data
    dtypes: dict[str, Any] = {
        "dtype": _dtype(model.dtype),
        "param_dtype": _dtype(model.param_dtype),
    }
    image_options, text_options = dict(model.image), dict(model.text)
    image = build.find("image encoder", image_options.pop("name"))(
        **image_options, image_size=data.image_size, rngs=rngs, **dtypes
    )
    text = build.find("text encoder", text_options.pop("name"))(
        **text_options, vocab_size=vocab_size, length=data.text_length, rngs=rngs, **dtypes
    )
    rest = {key: model[key] for key in model if key not in ("image", "text", *dtypes)}
    dual = DualEncoder(image=image, text=text, rngs=rngs, **rest, **dtypes)
    objectives, weights = {}, {}
    for name, given in config.objectives.items():
        options = {key: given[key] for key in given if key != "weight"}
        objectives[name] = build.find("objective", name)(**options)
        weights[name] = given.get("weight", 1.0)
    return Learner(dual, objectives, weights)


def split(module: Learner) -> tuple[nnx.GraphDef[Learner], dict[str, Any], dict[str, Any]]:
    """(graphdef, parameters, all other variables), the latter two as plain nested dicts."""
    parts: Any = nnx.split(module, nnx.Param, ...)
    return parts[0], nnx.to_pure_dict(parts[1]), nnx.to_pure_dict(parts[2])


@dataclasses.dataclass(frozen=True)
class Layout:
    """A learner that was never computed: its structure, and where its arrays will live.

    Attributes:
      graphdef: to merge with parameters and variables.
      provides: names that its model provides. grid: rows and columns of the image regions.
      params, variables: nested dicts of ShapeDtypeStruct with shardings.
    """

    graphdef: nnx.GraphDef[Learner]
    provides: tuple[str, ...]
    grid: tuple[int, int]
    params: dict[str, Any]
    variables: dict[str, Any]


def layout(config: ml_collections.ConfigDict, vocab_size: int, mesh: Mesh) -> Layout:
    """Lays a learner out on `mesh` without creating any of its arrays.

    Raises:
      InputError: encoders or objectives that cannot be built from this config.
    """
    abstract = nnx.eval_shape(lambda: make(config, vocab_size, nnx.Rngs(0)))
    parts: Any = nnx.split(abstract, nnx.Param, ...)

    def placed(part: nnx.State) -> dict[str, Any]:
        return jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
            nnx.to_pure_dict(part),
            sharding.variable_shardings(part, mesh),
        )

    model = abstract.model
    return Layout(parts[0], model.provides, model.image.grid, placed(parts[1]), placed(parts[2]))


def _dtype(name: str) -> Any:
    offered = ("float32", "bfloat16", "float16")
    if name not in offered:
        raise InputError(build.unknown("dtype in config.model", name, offered))
    return jnp.dtype(name)
