"""Encoders and objectives as one module, whose tree holds everything that training changes."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mmrl import build
from mmrl.data import perturb
from mmrl.data.perturb.mix import Mix
from mmrl.devices import sharding
from mmrl.devices.axes import BATCH_AXES
from mmrl.models.dual_encoder import DualEncoder
from mmrl.objectives.base import Objective
from mmrl.types import Batch, Encoded, InputError, Metrics


def needs_perturbed(objectives: Iterable[str]) -> bool:
    """Whether any objective of these names reads perturbed reports; builds none of them."""
    classes = (build.find("objective", name) for name in objectives)
    return any("perturbed.embedding" in cls.needs for cls in classes)  # type: ignore[attr-defined]


class Learner(nnx.Module):
    """The weighted sum of objectives over one pair of encoders.

    Parameter paths read "model/image/...", "objectives/global_contrastive/logit_scale/log".

    Args:
      model: the pair of encoders.
      objectives: name -> module.
      weights: name -> factor of its loss in the sum.

    Raises:
      InputError: an objective needs an encoding that the model does not provide.
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
        """Returns (total loss f32[], metrics); an objective's metrics are "{name}/{metric}"."""
        return self.score(self.encode(batch, train=train, rngs=rngs), batch)

    def encode(
        self, batch: Batch, *, train: bool, rngs: nnx.Rngs | None = None
    ) -> dict[str, jax.Array]:
        """Returns the encodings that the objectives read, each with the batch axis first."""
        return self.model(batch, needs=self.needs, train=train, rngs=rngs)

    def score(self, encoded: Encoded, batch: Batch) -> tuple[jax.Array, Metrics]:
        """Returns the same as `__call__`, from encodings of the global batch."""
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
    mix = Mix.from_config(data.perturbations, data.perturbation_curriculum)
    for name, given in config.objectives.items():
        options = {key: given[key] for key in given if key != "weight"}
        target = build.find("objective", name)
        if "kinds" in build.options(target):
            options["kinds"] = {kind: perturb.KINDS.index(kind) for kind in mix.kinds}
        objectives[name] = target(**options)
        weights[name] = given.get("weight", 1.0)
    return Learner(dual, objectives, weights)


def split(module: Learner) -> tuple[nnx.GraphDef[Learner], dict[str, Any], dict[str, Any]]:
    """Returns (graphdef, parameters, all other variables); the last two are nested dicts."""
    parts: Any = nnx.split(module, nnx.Param, ...)
    return parts[0], nnx.to_pure_dict(parts[1]), nnx.to_pure_dict(parts[2])


@dataclasses.dataclass(frozen=True)
class Layout:
    """The structure of a learner and the shapes and shardings of its arrays, without the arrays.

    Attributes:
      graphdef: to merge with parameters and variables.
      provides: encodings that its model provides. grid: rows and columns of the image regions.
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


def deal(batch: Batch, count: int, mesh: Mesh) -> dict[str, Any]:
    """Splits a batch into micro-batches: [B, ...] -> [count, B / count, ...].

    Rows are assigned round-robin, so that each micro-batch stays spread over the devices.

    Raises:
      ValueError: first axes differ, or `count` does not divide them.
    """
    sizes = {array.shape[0] for array in batch.values()}
    if len(sizes) != 1 or min(sizes) % count:
        raise ValueError(
            f"first axes of the batch: {sorted(sizes)}; expected one multiple of {count}"
        )
    spread = NamedSharding(mesh, P(None, BATCH_AXES))

    def one(array: jax.Array) -> jax.Array:
        parts = array.reshape(array.shape[0] // count, count, *array.shape[1:])
        return jax.lax.with_sharding_constraint(jnp.swapaxes(parts, 0, 1), spread)

    return {name: one(array) for name, array in batch.items()}


def encode_by_parts(
    encode: Callable[[Any, Batch, jax.Array | None], dict[str, jax.Array]],
    params: Any,
    batch: Batch,
    key: jax.Array | None,
    *,
    count: int,
    mesh: Mesh,
) -> dict[str, jax.Array]:
    """`encode(params, batch, key)`, holding the activations of one micro-batch at a time.

    Implements gradient caching (Gao et al. 2021, section 3.2) as a scan with a rematerialised
    body. The forward pass keeps only the encodings. The loss is computed from the encodings of
    the whole batch, so its value and cotangents equal those without caching. The backward pass
    encodes each micro-batch again, with the same key, and sums the parameter gradients. The
    encoders must be stateless and must encode each row independently of the others.

    Args:
      encode: (params, batch, dropout key) -> arrays with the batch axis first.
      key: micro-batch i uses fold_in(key, i); None for no dropout.
      count: number of micro-batches; it divides B, and data * fsdp of `mesh` divides B / count.

    Returns:
      Arrays [B, ...] in the order of the batch's rows.
    """

    # XLA cannot merge the two encodings across the scan, so preventing that would only cost.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(params: Any, number: jax.Array, part: Batch) -> dict[str, jax.Array]:
        return encode(params, part, None if key is None else jax.random.fold_in(key, number))

    def body(_: None, item: tuple[jax.Array, Batch]) -> tuple[None, dict[str, jax.Array]]:
        return None, one(params, *item)

    _, parts = jax.lax.scan(body, None, (jnp.arange(count), deal(batch, count, mesh)))

    def collect(array: jax.Array) -> jax.Array:
        rows = jnp.swapaxes(array, 0, 1).reshape(-1, *array.shape[2:])
        return jax.lax.with_sharding_constraint(rows, sharding.batch_sharding(mesh))

    return jax.tree.map(collect, parts)


def check_gradient_cache(layout: Layout, batch_size: int, count: int, mesh: Mesh) -> None:
    """Checks that a step with gradient caching can equal the step without it.

    Raises:
      InputError: the mesh cannot divide the micro-batches, or an encoder has state, such as the
        statistics of batch norm, which would be those of a micro-batch.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (count * shards):
        raise InputError(
            f"config.batch_size={batch_size} must be a multiple of {count * shards}: "
            f"config.gradient_cache={count} micro-batches, each spread over {shards} devices "
            "(mesh axes data x fsdp)"
        )
    state = jax.tree_util.tree_leaves_with_path(layout.variables.get("model", {}))
    if state:
        name = "model/" + jax.tree_util.keystr(state[0][0], simple=True, separator="/")
        raise InputError(
            f"config.gradient_cache={count} needs encoders without batch statistics, got {name!r}; "
            "choose config.model.image.norm='group', or config.accumulation, whose statistics and "
            "negatives are those of a micro-batch"
        )


def _dtype(name: str) -> Any:
    offered = ("float32", "bfloat16", "float16")
    if name not in offered:
        raise InputError(build.unknown("dtype in config.model", name, offered))
    return jnp.dtype(name)
