"""Towers and objectives as one module, whose tree holds everything that training changes."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mmrl import build, schedules, streams, wiring
from mmrl import config as configs
from mmrl.context import Context
from mmrl.data.inputs import base as inputs
from mmrl.devices import sharding
from mmrl.devices.axes import BATCH_AXES
from mmrl.models.derived.base import Derived
from mmrl.models.fusion.base import Fusion
from mmrl.models.layers import Layers
from mmrl.models.towers.base import Tower
from mmrl.objectives.base import Objective
from mmrl.schedules import Schedule
from mmrl.training import lora, optim
from mmrl.training.arguments import fitting, read, taken
from mmrl.training.encoding import ROWS, Encoding, kept, present
from mmrl.types import Batch, Encoded, InputError, Metrics
from mmrl.wiring import Graph, Name, Wiring

Reads = Mapping[str, Mapping[str, Any]]
"""Objective -> its argument -> the encoding or the array of the batch that it gets."""


class Learner(nnx.Module):
    """The weighted sum of objectives over named encodings.

    Parameter paths read "towers/image/encoder/...", "towers/text/heads/embedding/...",
    "objectives/global_contrastive/logit_scale/log", "fusions/NAME/...", "derived/NAME/...", and
    those of low-rank updates, where there are any,
    "lora/towers/text/encoder/stack/block_00/attention/qkv/kernel/a". The towers compute with the
    parameters that `Layout.merge` gives them.

    Args:
      towers, objectives, derived, fusions: name -> module.
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
        derived: Mapping[str, Derived] | None = None,
        fusions: Mapping[str, Fusion] | None = None,
        frozen: frozenset[str] = frozenset(),
        updates: Mapping[str, nnx.Dict[Any]] | None = None,
    ) -> None:
        self.towers = nnx.Dict(towers)
        self.objectives = nnx.Dict(objectives)
        if derived:
            self.derived = nnx.Dict(derived)
        if fusions:
            self.fusions = nnx.Dict(fusions)
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
        self,
        batch: Batch,
        *,
        step: jax.Array,
        train: bool,
        key: jax.Array | None = None,
        average: "Learner | None" = None,
    ) -> tuple[jax.Array, Metrics]:
        """(total loss f32[], metrics with each objective's under its name)."""
        encode_key, score_key = split_key(key)
        encoded = self.encode(batch, step=step, train=train, key=encode_key, average=average)
        return self.score(encoded, batch, step=step, key=score_key, average=average)

    def encode(
        self,
        batch: Batch,
        *,
        step: jax.Array | int = 0,
        train: bool,
        key: jax.Array | None = None,
        wired: Wiring | None = None,
        average: "Learner | None" = None,
    ) -> dict[str, jax.Array]:
        """batch -> encodings by full name, each with the batch axis first.

        Each distinct (weights, tower, input) is encoded once.

        Args:
          step: updates done before.
          key: of dropout and other draws; None: no dropout.
          wired: what to encode; default: what the objectives read.
          average: the same learner with averaged weights.

        Returns:
          Also the arrays of derived inputs that are read, "<input>.<array>".
        """
        wired = wired or self.wired
        encoded = self.independent(
            batch, step=step, train=train, key=key, drawn=key, wired=wired, average=average
        )
        return self.coupled(
            encoded, batch, step=step, train=train, key=key, wired=wired, average=average
        )

    def independent(
        self,
        batch: Batch,
        *,
        step: jax.Array | int,
        train: bool,
        key: jax.Array | None,
        drawn: jax.Array | None,
        wired: Wiring | None = None,
        average: "Learner | None" = None,
    ) -> dict[str, jax.Array]:
        """The part of `encode` in which rows do not depend on each other.

        A batch may be encoded in parts, with another `key` and the same `drawn` for each.

        Args:
          drawn: key of the draws of derived inputs; None in evaluation.
        """
        wired = wired or self.wired
        making = Encoding(self, average, batch, wired, step=step, train=train)
        found = making.run(wired.steps, {}, key, drawn)
        return kept(found, wired.kept[0])

    def coupled(
        self,
        encoded: Encoded,
        batch: Batch,
        *,
        step: jax.Array | int,
        train: bool,
        key: jax.Array | None,
        wired: Wiring | None = None,
        average: "Learner | None" = None,
    ) -> dict[str, jax.Array]:
        """The rest of `encode`, from what `independent` returned of the whole batch."""
        wired = wired or self.wired
        if not wired.coupled:
            return dict(encoded)
        making = Encoding(self, average, batch, wired, step=step, train=train)
        found = making.run(wired.coupled, encoded, key, key)
        return kept(found, wired.kept[1])

    def score(
        self,
        encoded: Encoded,
        batch: Batch,
        *,
        step: jax.Array,
        key: jax.Array | None = None,
        average: "Learner | None" = None,
    ) -> tuple[jax.Array, Metrics]:
        """Encodings of the global batch -> what `__call__` returns."""
        total = jnp.float32(0)
        metrics: Metrics = {}
        encodings, arrays = dict(self.encodings), dict(self.arrays)
        given = {**batch, **encoded}
        for name, weight in self.weights:
            context = Context(
                step=step,
                key=None if key is None else streams.fold(key, name),
                present=present(self.wired, given, encodings[name]),
                average=None if average is None else average.objectives[name],
            )
            objective, reads = self.objectives[name], (*encodings[name], *arrays[name])
            values = read(encodings[name], encoded) | taken(self.wired.graph, arrays[name], given)
            with fitting("objective", name, objective, self.wired, reads, values):
                loss = objective(context=context, **values)
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
            self.objectives[name].post_update(Context(step=step))


def split_key(key: jax.Array | None) -> tuple[jax.Array | None, jax.Array | None]:
    """Keys for encoding and for the objectives; None for None."""
    if key is None:
        return None, None
    first, second = jax.random.split(key)
    return first, second


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
    fusions = _fusions(config, wired, towers, rngs, dtypes)
    derived = {
        name: _derived(name, config.derived[name], wired, _reader_of(name, wired, towers), rngs)
        for name in wired.derived
    }
    named = inputs.make(config, wired)
    objectives, weights = {}, {}
    for name, given in config.objectives.items():
        target, options = _chosen("objective", name, given)
        facts: dict[str, Callable[[], Any]] = {
            "rngs": functools.partial(rngs, f"objectives/{name}"),
            "names": functools.partial(_names, named, arrays[name]),
            "widths": functools.partial(_widths, {**towers, **fusions}, encodings[name]),
            "vocab_size": functools.partial(_vocab_size, arrays[name], wired, towers),
        }
        options |= {key: facts[key]() for key in facts if key in build.options(target)}
        widths = options.get("widths", {})
        with fitting("objective", name, target, wired, encodings[name].items(), widths):
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
        derived=derived,
        fusions=fusions,
        frozen=frozen,
        updates=updates,
    )


def _fusions(
    config: Mapping[str, Any],
    wired: Wiring,
    towers: Mapping[str, Tower],
    rngs: Callable[[str], nnx.Rngs],
    dtypes: Mapping[str, Any],
) -> dict[str, Fusion]:
    """The fusions that a wiring needs, each after those that it reads."""
    made: dict[str, Fusion] = {}
    for name in wired.fused:
        target, options = _chosen("fusion", name, config["fusions"][name])
        joined = wired.graph.fusion(name)
        assert joined is not None
        sources: Any = {**towers, **made}
        widths = _widths(sources, dict(joined.reads))
        path = f"fusions/{name}"
        make_rngs = functools.partial(_of_part, rngs, path)
        with fitting("fusion", name, target, wired, joined.reads, widths):
            made[name] = target(**options, **dtypes, widths=widths, make_rngs=make_rngs)
        wanted = {one.feature for one in wired.names if one.tower == name}
        made[name].check(f"config.fusions.{name}", tuple(sorted(wanted)))
    return made


def _widths(sources: Mapping[str, Any], reads: Mapping[str, Name]) -> dict[str, int]:
    """Argument -> size of the last axis of the encoding that it gets."""
    return {key: sources[one.tower].width_of(one.feature) for key, one in reads.items()}


def _vocab_size(
    arrays: Mapping[str, str], wired: Wiring, towers: Mapping[str, Tower]
) -> int | None:
    """Tokens that the first text tower knows that encodes an input of these arrays, if any does."""
    readers = (_reader_of(array.partition(".")[0], wired, towers) for array in arrays.values())
    sizes = (getattr(one, "vocab_size", None) for one in readers)
    return next((size for size in sizes if size), None)


def _of_part(rngs: Callable[[str], nnx.Rngs], path: str, part: str) -> nnx.Rngs:
    return rngs(f"{path}/{part}")


def _reader_of(name: str, wired: Wiring, towers: Mapping[str, Tower]) -> Tower | None:
    """The tower that encodes a derived input, or else the input that it carries on."""
    for one in (name, wired.graph.recorded(name)):
        for tower, wanted in wired.wanted().items():
            if one in wanted:
                return towers[tower]
    return None


def _derived(
    name: str,
    given: Mapping[str, Any],
    wired: Wiring,
    tower: Tower | None,
    rngs: Callable[[str], nnx.Rngs],
) -> Derived:
    """A derived input from config.derived.NAME; facts of its tower are supplied."""
    target, options = _chosen("derived", name, given)
    encoder = None if tower is None else tower.encoder
    for option in build.options(target).keys() & set(wiring.GIVEN_TO_DERIVED):
        if option == "rngs":
            options[option] = rngs(f"derived/{name}")
        elif option == "kinds":
            options[option] = _kinds(name, wired.graph)
        else:
            options[option] = getattr(tower, option, getattr(encoder, option, None))
    return target(**options)


def _kinds(name: str, graph: Graph) -> dict[str, str]:
    """Kinds of the towers that may encode what a derived input carries on, "of", and reads."""
    derived, kinds = graph.input(name), dict(graph.kinds)
    assert derived is not None
    inputs = {"of": derived.of, **{argument: one.input for argument, one in derived.reads}}
    return {argument: kinds.get(one, "") for argument, one in inputs.items()}


def _chosen(kind: str, name: str, given: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The module that a config chooses under a free name, and its own options."""
    target = build.find(kind, wiring.chosen_module(name, given))
    beside = configs.MODULES[wiring.PLACES[kind]].beside
    return target, {k: v for k, v in given.items() if k != "name" and k not in beside}


def _names(named: Mapping[str, Any], arrays: Mapping[str, str]) -> dict[str, Mapping[str, int]]:
    """Argument -> what the numbers in its array of the batch stand for: name -> number."""
    found = {}
    for argument, array in arrays.items():
        own, _, key = array.partition(".")
        found[argument] = named[own].names().get(key, {}) if own in named else {}
    return found


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
      features: tower or fusion -> features that it provides.
      grids: image tower -> rows and columns of its regions.
      frozen: towers whose encoders do not change.
      layers: tower -> layers of its encoder, empty where it states none.
      scales: tower -> alpha / rank of its low-rank updates, where it has any.
      restricts: the objective that chooses what training draws, and the updates after which it
        does, see `Objective.restricts_after`; None: there is none.
      averages: whether the averaged parameters are kept, see config.average.
      evaluates_average: whether they are those that evaluation and export use.
      params, variables: nested dicts of ShapeDtypeStruct with shardings.
    """

    graphdef: nnx.GraphDef[Learner]
    wired: Wiring
    features: Mapping[str, tuple[str, ...]]
    grids: Mapping[str, tuple[int, int]]
    frozen: frozenset[str]
    layers: Mapping[str, Layers]
    scales: Mapping[str, float]
    restricts: tuple[str, int] | None
    averages: bool
    evaluates_average: bool
    params: dict[str, Any]
    variables: dict[str, Any]

    def effective(self, params: Any) -> Any:
        """The parameters that the towers compute with: low-rank updates are added, see `lora`."""
        return lora.merged(params, self.scales)

    def merge(self, params: Any, variables: Any) -> Learner:
        """The learner that computes with these parameters."""
        return nnx.merge(self.graphdef, self.effective(params), variables)

    def merge_average(self, average: Any, variables: Any) -> Learner | None:
        """The learner that computes with averaged parameters; None for None.

        Its other state, such as batch statistics, is that of the learner itself.
        """
        if average is None:
            return None
        return self.merge(jax.lax.stop_gradient(self._as_params(average)), variables)

    def kept(self, state: Mapping[str, Any]) -> np.ndarray:
        """i64[n], ascending: the examples that the objective of `restricts` has kept."""
        assert self.restricts is not None
        module = nnx.merge(self.graphdef, state["params"], state["variables"])
        found = np.unique(jax.device_get(module.objectives[self.restricts[0]].kept()))
        return found[found >= 0].astype(np.int64)

    def _as_params(self, average: Any) -> Any:
        """An average in the dtypes of the parameters."""
        return jax.tree.map(lambda one, param: one.astype(param.dtype), average, self.params)

    def weights_of(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """What evaluation and export compute with, of a training state.

        Returns:
          "params", the averaged ones where config.average.evaluate says so, "variables", and
          "average", the averaged parameters if the run keeps them.
        """
        average = state.get("average")
        params = state["params"]
        if self.evaluates_average and average is not None:
            params = self._as_params(average)
        kept = {} if average is None else {"average": average}
        return {"params": params, "variables": state["variables"], **kept}


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
    fusions: dict[str, Any] = dict(abstract.fusions.items()) if abstract.wired.fused else {}
    return Layout(
        graphdef=parts[0],
        wired=abstract.wired,
        features={name: one.features for name, one in {**towers, **fusions}.items()},
        grids={name: t.grid for name, t in towers.items() if hasattr(t, "grid")},
        frozen=frozenset(name for name, tower in towers.items() if tower.frozen),
        layers={name: getattr(tower.encoder, "layers", ()) for name, tower in towers.items()},
        scales=lora.scales(config.towers),
        restricts=_restricts(abstract, config),
        averages=wiring.averages(config),
        evaluates_average=config.average.evaluate,
        params=placed(parts[1]),
        variables=placed(parts[2]),
    )


def _restricts(module: Learner, config: ml_collections.ConfigDict) -> tuple[str, int] | None:
    """See Layout."""
    found = {
        name: objective.restricts_after(config.batch_size)
        for name, objective in module.objectives.items()
    }
    chosen = [(name, after) for name, after in found.items() if after]
    if len(chosen) > 1:
        raise InputError(
            f"objectives {' and '.join(name for name, _ in chosen)} both choose the examples of "
            "training; expected one"
        )
    if chosen and config.epochs:
        raise InputError(
            f"config.epochs={config.epochs}, but the objective {chosen[0][0]} chooses the examples "
            "of an epoch; expected config.total_steps"
        )
    return chosen[0] if chosen else None


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
