"""Towers and objectives as one module, whose tree holds everything that training changes."""

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

from mmrl import build, schedules, streams, wiring
from mmrl import config as configs
from mmrl.data.inputs import base as inputs
from mmrl.devices import sharding
from mmrl.devices.axes import BATCH_AXES
from mmrl.models.layers import Layers
from mmrl.models.towers.base import Tower
from mmrl.objectives.base import Context, Objective
from mmrl.schedules import Schedule
from mmrl.training import lora, optim
from mmrl.types import Batch, Encoded, InputError, Metrics
from mmrl.wiring import Name, Wiring

Reads = Mapping[str, Mapping[str, Any]]
"""Objective -> its argument -> the encoding or the array of the batch that it gets."""


ROWS = "rows"
"""bool[B] of a batch: the rows that are examples, where some only fill it up."""


class Learner(nnx.Module):
    """The weighted sum of objectives over named encodings.

    Parameter paths read "towers/image/encoder/...", "towers/text/heads/embedding/...",
    "objectives/global_contrastive/logit_scale/log", and those of low-rank updates, where there are
    any, "lora/towers/text/encoder/stack/block_00/attention/qkv/kernel/a". The towers compute with
    the parameters that `Layout.merge` gives them.

    Args:
      towers: name -> module.
      objectives: name -> module.
      weights: name -> factor of its loss in the sum.
      encodings, arrays: what the objectives read.
      wired: what is encoded. frozen: towers whose encoders do not change.
      updates: tower -> the low-rank updates of its encoder.

    Raises:
      InputError: an objective reads a feature that no tower provides.
    """

    def __init__(
        self,
        towers: Mapping[str, Tower],
        objectives: Mapping[str, Objective],
        *,
        weights: Mapping[str, Schedule],
        encodings: Reads,
        arrays: Reads,
        wired: Wiring,
        frozen: frozenset[str] = frozenset(),
        updates: Mapping[str, nnx.Dict[Any]] | None = None,
    ) -> None:
        self.towers = nnx.Dict(towers)
        self.objectives = nnx.Dict(objectives)
        if updates:
            self.lora = nnx.Dict({"towers": nnx.Dict(updates)})
        # Tuples, because a dict on a module would make its structure unhashable.
        self.weights = tuple(weights.items())
        self.encodings = tuple((name, tuple(encodings[name].items())) for name in objectives)
        self.arrays = tuple((name, tuple(arrays[name].items())) for name in objectives)
        self.wired = wired
        for name in frozen:
            towers[name].frozen = True
        for name, wanted in wired.wanted().items():
            towers[name].check(name, wanted)

    def __call__(
        self, batch: Batch, *, step: jax.Array, train: bool, key: jax.Array | None = None
    ) -> tuple[jax.Array, Metrics]:
        """(total loss f32[], metrics with each objective's under its name)."""
        encode_key, score_key = split_key(key)
        encoded = self.encode(batch, train=train, key=encode_key)
        return self.score(encoded, batch, step=step, key=score_key)

    def encode(
        self,
        batch: Batch,
        *,
        train: bool,
        key: jax.Array | None = None,
        wired: Wiring | None = None,
    ) -> dict[str, jax.Array]:
        """batch -> encodings by full name, each with the batch axis first.

        Each distinct (tower, input) is encoded once.

        Args:
          key: of dropout; None: no dropout.
          wired: what to encode; default: what the objectives read.
        """
        encoded: dict[str, jax.Array] = {}
        for tower, wanted in (wired or self.wired).wanted().items():
            arrays = {name: _arrays_of(batch, name) for name in wanted}
            own = None if key is None else streams.fold(key, tower)
            found = self.towers[tower](arrays, wanted, train=train, key=own)
            encoded |= {
                str(Name(tower, name, feature)): array
                for name, features in found.items()
                for feature, array in features.items()
            }
        return encoded

    def score(
        self,
        encoded: Encoded,
        batch: Batch,
        *,
        step: jax.Array,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """Encodings of the global batch -> what `__call__` returns."""
        total = jnp.float32(0)
        metrics: Metrics = {}
        encodings, arrays = dict(self.encodings), dict(self.arrays)
        for name, weight in self.weights:
            context = Context(
                step=step,
                key=None if key is None else streams.fold(key, name),
                present=_present(batch, encodings[name]),
            )
            loss = self.objectives[name](
                context=context,
                **{argument: encoded[str(of)] for argument, of in encodings[name]},
                **{argument: batch[of] for argument, of in arrays[name]},
            )
            total = total + weight(step) * loss.value
            metrics |= {f"{name}/{key}": value for key, value in loss.metrics.items()}
            if weight.constant is None:
                metrics[f"{name}/weight"] = (jnp.float32(weight(step)), jnp.float32(1))
        size = jnp.float32(batch["index"].shape[0])
        if ROWS in batch:
            size = batch[ROWS].sum().astype(jnp.float32)
        return total, {"loss": (total * size, size), **metrics}

    def post_update(self, step: jax.Array) -> None:
        """Calls each objective's `post_update`, to restore its invariants after an update."""
        for name, _ in self.weights:
            self.objectives[name].post_update(Context(step=step, key=None, present=None))


def split_key(key: jax.Array | None) -> tuple[jax.Array | None, jax.Array | None]:
    """Keys for encoding and for the objectives; None for None."""
    if key is None:
        return None, None
    first, second = jax.random.split(key)
    return first, second


def _arrays_of(batch: Batch, name: str) -> dict[str, jax.Array]:
    """The arrays of one input: "text.tokens" -> "tokens"."""
    start = f"{name}."
    return {key.removeprefix(start): value for key, value in batch.items() if key.startswith(start)}


def _present(batch: Batch, encodings: Iterable[tuple[str, Name]]) -> jax.Array | None:
    """bool[B]: rows with every input of these encodings; None where no row can lack one."""
    found = dict.fromkeys(name.input for _, name in encodings)
    names = (ROWS, *(f"{name}.present" for name in found))
    masks = [batch[name] for name in names if name in batch]
    return functools.reduce(jnp.logical_and, masks) if masks else None


def make(config: ml_collections.ConfigDict, key: jax.Array) -> Learner:
    """Builds towers and objectives from a validated config.

    The initial values of a part depend on the seed and on its path alone, so adding a tower, a head
    or an objective changes no other parameter.

    Args:
      config: with the true `vocab_size` of every text tower.
      key: of all initial values.
    """
    dtypes = {"dtype": _dtype(config.dtype), "param_dtype": _dtype(config.param_dtype)}

    def rngs(path: str) -> nnx.Rngs:
        return nnx.Rngs(params=streams.fold(key, path))

    wired, encodings, arrays = wiring.wire(config)
    towers = {name: make_tower(name, config.towers[name], rngs, dtypes) for name in wired.wanted()}
    named = inputs.make(config, wired)
    objectives, weights = {}, {}
    for name, given in config.objectives.items():
        options = {k: v for k, v in given.items() if k not in ("name", "weight", "reads")}
        target = build.find("objective", wiring.chosen_module(name, given))
        supplied = {
            "rngs": rngs(f"objectives/{name}"),
            "names": {key: _names(named, of) for key, of in arrays[name].items()},
        }
        options |= {key: supplied[key] for key in supplied if key in build.options(target)}
        objectives[name] = target(**options)
        weights[name] = schedules.parse(
            f"config.objectives.{name}.weight", given.get("weight", 1.0)
        )
    updates = {
        name: _updates(name, config.towers[name], tower, rngs, dtypes["param_dtype"])
        for name, tower in towers.items()
        if config.towers[name].get("lora")
    }
    frozen = frozenset(
        name
        for name, tower in towers.items()
        if name not in updates
        and optim.all_frozen(f"towers/{name}/encoder", tower.encoder, optim.rules(config))
    )
    return Learner(
        towers,
        objectives,
        weights=weights,
        encodings=encodings,
        arrays=arrays,
        wired=wired,
        frozen=frozen,
        updates=updates,
    )


def _names(named: Mapping[str, Any], array: str) -> Mapping[str, int]:
    """What the numbers in an array of the batch stand for: name -> number."""
    own, _, key = array.partition(".")
    return named[own].names().get(key, {}) if own in named else {}


def make_tower(
    name: str,
    given: Mapping[str, Any],
    rngs: Callable[[str], nnx.Rngs],
    dtypes: Mapping[str, Any],
) -> Tower:
    """A tower from config.towers.NAME; `rngs` maps paths of parts to their random streams."""
    path = f"towers/{name}"
    kind, own, of_encoder = wiring.tower_options(name, given)
    target: Any = build.find("tower", kind)
    told = target.encoder_options(own)
    encoder = build.find("encoder", given["name"])(
        **of_encoder, **told, **dtypes, rngs=rngs(f"{path}/encoder")
    )
    return target(
        encoder=encoder, **own, **dtypes, make_rngs=lambda name: rngs(f"{path}/heads/{name}")
    )


def _updates(
    name: str,
    given: Mapping[str, Any],
    tower: Tower,
    rngs: Callable[[str], nnx.Rngs],
    param_dtype: Any,
) -> nnx.Dict[Any]:
    """The low-rank updates of the encoder of a tower."""
    where = f"config.towers.{name}"
    return lora.create(
        where,
        tower.encoder,
        configs.lora_options(where, given),
        make_rngs=lambda path: rngs(f"lora/towers/{name}/{path}"),
        param_dtype=param_dtype,
    )


def split(module: Learner) -> tuple[nnx.GraphDef[Learner], dict[str, Any], dict[str, Any]]:
    """(graphdef, parameters, all other variables), the latter two as plain nested dicts."""
    parts: Any = nnx.split(module, nnx.Param, ...)
    return parts[0], nnx.to_pure_dict(parts[1]), nnx.to_pure_dict(parts[2])


@dataclasses.dataclass(frozen=True)
class Layout:
    """The structure of a learner, without arrays, and where its arrays will be placed.

    Attributes:
      graphdef: to merge with parameters and variables.
      wired: what the objectives read.
      features: tower -> features that it provides.
      grids: image tower -> rows and columns of its regions.
      frozen: towers whose encoders do not change.
      layers: tower -> layers of its encoder, empty where it states none.
      scales: tower -> alpha / rank of its low-rank updates, where it has any.
      params, variables: nested dicts of ShapeDtypeStruct with shardings.
    """

    graphdef: nnx.GraphDef[Learner]
    wired: Wiring
    features: Mapping[str, tuple[str, ...]]
    grids: Mapping[str, tuple[int, int]]
    frozen: frozenset[str]
    layers: Mapping[str, Layers]
    scales: Mapping[str, float]
    params: dict[str, Any]
    variables: dict[str, Any]

    def effective(self, params: Any) -> Any:
        """The parameters that the towers compute with: low-rank updates are added, see `lora`."""
        return lora.merged(params, self.scales)

    def merge(self, params: Any, variables: Any) -> Learner:
        """The learner that computes with these parameters."""
        return nnx.merge(self.graphdef, self.effective(params), variables)


def layout(config: ml_collections.ConfigDict, mesh: Mesh) -> Layout:
    """Lays a learner out on `mesh` without creating any of its arrays.

    Raises:
      InputError: towers or objectives that cannot be built from this config.
    """
    abstract = nnx.eval_shape(lambda: make(config, jax.random.key(0)))
    parts: Any = nnx.split(abstract, nnx.Param, ...)

    def placed(part: nnx.State) -> dict[str, Any]:
        return jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
            nnx.to_pure_dict(part),
            sharding.variable_shardings(part, mesh),
        )

    towers = dict(abstract.towers.items())
    return Layout(
        graphdef=parts[0],
        wired=abstract.wired,
        features={name: tower.features for name, tower in towers.items()},
        grids={name: t.grid for name, t in towers.items() if hasattr(t, "grid")},
        frozen=frozenset(name for name, tower in towers.items() if tower.frozen),
        layers={name: getattr(tower.encoder, "layers", ()) for name, tower in towers.items()},
        scales=lora.scales(config.towers),
        params=placed(parts[1]),
        variables=placed(parts[2]),
    )


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
    towers = layout.variables.get("towers", {})
    moving = {name: part for name, part in towers.items() if name not in layout.frozen}
    state = jax.tree_util.tree_leaves_with_path(moving)
    if state:
        name = jax.tree_util.keystr(state[0][0], simple=True, separator="/")
        raise InputError(
            f"config.gradient_cache={count} needs encoders without batch statistics, got "
            f"'towers/{name}'; choose config.towers.{name.partition('/')[0]}.norm='group', or "
            "config.accumulation, whose statistics and negatives are those of a micro-batch"
        )


def _dtype(name: str) -> Any:
    offered = ("float32", "bfloat16", "float16")
    if name not in offered:
        raise InputError(build.unknown("config.dtype", name, offered))
    return jnp.dtype(name)
