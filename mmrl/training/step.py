"""The train step: one jitted function from state to state, with donated input.

The state is a nested dict, which keeps dispatch cheap and checkpoints readable:

    step           i32[], number of updates done
    params         trainable and frozen parameters
    variables      other state of the modules, such as batch statistics
    opt_state      state of the optax transformation
    metrics        name -> (sum, weight) since the last log step, f32[] each
    nonfinite_step i32[], first step whose loss or gradient was not finite; -1 if none
    average        moving average of params, where the run keeps it, see config.average; float32
                   where params have less precision, which would round small changes away
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx
from jax.sharding import Mesh

from mmrl import build, schedules, streams, wiring
from mmrl.devices import flops, sharding
from mmrl.training import learner, optim, scalars
from mmrl.types import Batch

State = dict[str, Any]


class TrainStep:
    """The compiled functions of training, for one config on one mesh.

    Args:
      config: validated, with the true `vocab_size` of every text tower.
      mesh: from `sharding.make_mesh`.
      example: one batch, of arrays or ShapeDtypeStruct, with the *global* shapes.

    Raises:
      InputError: an objective lacks an input, a parameter has no optimizer rule, the mesh cannot
        divide the batch, or gradient caching is set for encoders with batch statistics.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        mesh: Mesh,
        example: Mapping[str, Any],
    ) -> None:
        sharding.check_batch(mesh, config.batch_size, config.accumulation)
        self.config, self.mesh = config, mesh
        self.layout = learner.layout(config, mesh)
        if config.gradient_cache > 1:
            learner.check_gradient_cache(
                self.layout, config.batch_size, config.gradient_cache, mesh
            )
        pure = self.layout.params
        rules = optim.rules(config)
        self.optimizer, self.schedule = optim.make(
            {**config.optimizer, "rules": rules}, config.total_steps, pure, self.layout.layers
        )
        self._trainable = optim.trainable(pure, rules)
        self._decay = schedules.parse("config.average.decay", config.average.decay)
        batch = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in example.items()}
        self._batch = batch
        self._metric_shapes = jax.eval_shape(
            self._metrics_of_a_step,
            pure,
            self.layout.variables,
            batch,
        )
        self.abstract = jax.eval_shape(self._init, jax.random.key(0))
        self.shardings = self._state_shardings()
        self._jit_init = jax.jit(self._init, out_shardings=self.shardings)
        self._jit_loss_and_gradients = jax.jit(self._loss_and_gradients)
        self._jit_step = jax.jit(
            self._step,
            donate_argnums=0,
            in_shardings=(
                self.shardings,
                sharding.batch_sharding(mesh),
                sharding.replicated(mesh),
            ),
            out_shardings=self.shardings,
        )

    def init(self) -> State:
        """Creates a new state, with every array placed on the mesh from the start."""
        return self._jit_init(streams.key(self.config.seed, "init"))

    def __call__(self, state: State, batch: Mapping[str, jax.Array]) -> State:
        """Makes one update; `state` is donated and must not be used again."""
        return self.compiled(state, batch, self._key)

    def target(self) -> Any:
        """The state as ShapeDtypeStructs with shardings, to restore a checkpoint to this mesh."""
        return jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
            self.abstract,
            self.shardings,
        )

    @functools.cached_property
    def traced(self) -> jax.stages.Traced:
        """The traced step, for counting FLOPs and compiling; the devices need not be present."""
        spread = sharding.batch_sharding(self.mesh)
        batch = {
            name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=spread)
            for name, array in self._batch.items()
        }
        key = jax.eval_shape(self._random_key)
        return self._jit_step.trace(self.target(), batch, key)

    @functools.cached_property
    def compiled(self) -> jax.stages.Compiled:
        """The compiled step."""
        _ = self._key  # placed here, as steps are taken where no transfer is allowed
        # Calling the jitted function would trace the step a second time.
        return self.traced.lower().compile()

    def counts(self) -> dict[str, str]:
        """Numbers of parameters of each tower, and of the objectives, in words."""
        return optim.counts(self.layout.params, self._trainable)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the loss and of the metrics of the objectives."""
        return tuple(self._metric_shapes)

    def model_flops(self) -> int:
        """FLOPs of one step on all devices together, see `model_flops`."""
        jaxpr = self.traced.jaxpr.jaxpr
        if all(jax.tree.leaves(self._trainable)) and not flops.may_repeat(jaxpr):
            return flops.of_jaxpr(jaxpr, arm=min)  # nothing is computed twice
        return model_flops(self.config, self.mesh, self._batch)

    def loss_and_gradients(
        self, state: State, batch: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, Any]:
        """Returns the loss and gradients of one batch, for tests and notebooks."""
        return self._jit_loss_and_gradients(state, dict(batch), self._random_key())

    def _init(self, key: jax.Array) -> State:
        _, params, variables = learner.split(learner.make(self.config, key))
        names = {**self._metric_shapes, "grad_norm": (jnp.float32(0), jnp.float32(0))}
        state = {
            "step": jnp.int32(0),
            "params": params,
            "variables": variables,
            "opt_state": self.optimizer.init(params),
            "metrics": scalars.zeros(names),
            "nonfinite_step": jnp.int32(-1),
        }
        if self.layout.averages:
            state["average"] = jax.tree.map(_average_start, params)
        return state

    def _state_shardings(self) -> Any:
        everywhere = sharding.replicated(self.mesh)
        params, variables = (
            jax.tree.map(lambda leaf: leaf.sharding, part)
            for part in (self.layout.params, self.layout.variables)
        )
        layout = jax.tree.map(lambda _: everywhere, self.abstract)
        layout |= {"params": params, "variables": variables}
        layout["opt_state"] = optax.tree_map_params(
            self.optimizer,
            lambda leaf, s: leaf if isinstance(leaf, optax.MaskedNode) else s,
            self.abstract["opt_state"],
            params,
            transform_non_params=lambda _: everywhere,
            # Where a rule freezes a parameter, the optimizer keeps a placeholder.
            is_leaf=lambda node: isinstance(node, optax.MaskedNode),
        )
        if "average" in layout:
            layout["average"] = params
        return layout

    def _random_key(self) -> jax.Array:
        """The key of all that is random in training, dropout above all; of a step when folded in.

        It is an argument of the compiled programs, so that runs which differ in their seed alone
        share one, and find it in the cache.
        """
        return streams.key(self.config.seed, "dropout")

    @functools.cached_property
    def _key(self) -> jax.Array:
        """`_random_key` on all devices of the mesh."""
        everywhere = sharding.replicated(self.mesh)
        return jax.jit(lambda key: key, out_shardings=everywhere)(self._random_key())

    def _average_of(self, params: Any) -> Any:
        """What stands for the averaged parameters where only shapes matter; None without them."""
        return params if self.layout.averages else None

    def _metrics_of_a_step(self, params: Any, variables: Any, batch: Mapping[str, Any]) -> Any:
        """The metrics of the objectives; with a key, as evaluation may have further ones."""
        step = jnp.int32(0)
        average = self._average_of(params)
        return self._loss(params, average, variables, batch, step, self._random_key())[1][0]

    def _loss(
        self,
        params: Any,
        average: Any,
        variables: Any,
        batch: Mapping[str, Any],
        step: jax.Array,
        key: jax.Array | None,
    ) -> tuple[jax.Array, tuple[Any, Any]]:
        """(loss, (metrics, new variables)); without a key there is no dropout."""
        params = self.layout.effective(params)
        module = nnx.merge(self.layout.graphdef, params, variables)
        teacher = self.layout.merge_average(average, variables)
        if self.config.gradient_cache > 1:
            encode_key, score_key = learner.split_key(key)
            encoded = self._encoded(params, average, variables, batch, step, encode_key)
            encoded = module.coupled(
                encoded, batch, step=step, train=True, key=encode_key, average=teacher
            )
            loss, values = module.score(encoded, batch, step=step, key=score_key, average=teacher)
        else:
            loss, values = module(batch, step=step, train=True, key=key, average=teacher)
        return loss, (values, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.Param))))

    def _encoded(
        self,
        params: Any,
        average: Any,
        variables: Any,
        batch: Mapping[str, Any],
        step: jax.Array,
        drawn: jax.Array | None,
    ) -> dict[str, jax.Array]:
        """Encodes the global batch with effective parameters, one micro-batch after the other."""

        def encode(weights: Any, part: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
            params, average = weights
            module = nnx.merge(self.layout.graphdef, params, variables)
            return module.independent(
                part,
                step=step,
                train=True,
                key=key,
                drawn=drawn,
                average=self.layout.merge_average(average, variables),
            )

        count = self.config.gradient_cache
        return learner.encode_by_parts(
            encode, (params, average), batch, drawn, count=count, mesh=self.mesh
        )

    def _loss_and_gradients(
        self, state: State, batch: Mapping[str, Any], key: jax.Array
    ) -> tuple[jax.Array, Any]:
        step, variables, average = state["step"], state["variables"], state.get("average")
        key = jax.random.fold_in(key, step)
        return jax.value_and_grad(lambda p: self._loss(p, average, variables, batch, step, key)[0])(
            state["params"]
        )

    def _gradients(
        self, state: State, batch: Mapping[str, Any], key: jax.Array
    ) -> tuple[Any, Any, Any]:
        """(gradients, metrics, variables), averaged over the micro-batches."""
        count, step = self.config.accumulation, state["step"]
        average = state.get("average")
        grad = jax.grad(self._loss, has_aux=True)
        key = jax.random.fold_in(key, step)
        if count == 1:
            gradients, (values, variables) = grad(
                state["params"], average, state["variables"], batch, step, key
            )
            return gradients, values, variables
        micro = learner.deal(batch, count, self.mesh)

        def body(carry: Any, item: Any) -> tuple[Any, None]:
            gradients, values, variables = carry
            number, part = item
            new, (more, variables) = grad(
                state["params"],
                average,
                variables,
                part,
                step,
                jax.random.fold_in(key, number),
            )
            added = jax.tree.map(lambda a, b: a + b / count, gradients, new)
            return (added, scalars.add(values, more), variables), None

        start = (
            jax.tree.map(jnp.zeros_like, state["params"]),
            scalars.zeros(self._metric_shapes),
            state["variables"],
        )
        result, _ = jax.lax.scan(body, start, (jnp.arange(count), micro))
        return result

    def _step(self, state: State, batch: Mapping[str, Any], key: jax.Array) -> State:
        gradients, values, variables = self._gradients(state, batch, key)
        gradients = jax.tree.map(
            lambda g, t: g if t else jnp.zeros_like(g), gradients, self._trainable
        )
        norm = optax.tree.norm(gradients)
        updates, opt_state = self.optimizer.update(gradients, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        module = nnx.merge(self.layout.graphdef, params, variables)
        module.post_update(state["step"])
        _, params, variables = learner.split(module)

        step = state["step"] + 1
        values = {**values, "grad_norm": (norm, jnp.float32(1))}
        # The accumulator restarts after each log step. It is part of the state, and so of the
        # checkpoint, so that a resumed run logs the same values.
        fresh = state["step"] % self.config.log_every == 0
        total = jax.tree.map(lambda a: jnp.where(fresh, 0.0, a), state["metrics"])
        finite = jnp.isfinite(norm) & jnp.isfinite(values["loss"][0])
        first = (state["nonfinite_step"] < 0) & ~finite
        new = {
            "step": step,
            "params": params,
            "variables": variables,
            "opt_state": opt_state,
            "metrics": scalars.add(total, values),
            "nonfinite_step": jnp.where(first, step, state["nonfinite_step"]),
        }
        if "average" in state:
            decay = jnp.float32(self._decay(state["step"]))
            if self.config.average.warm_up:
                count = step.astype(jnp.float32)
                decay = jnp.minimum(decay, (1.0 + count) / (10.0 + count))
            new["average"] = _average(state["average"], params, self._trainable, decay)
        return new


# Options with which nothing is computed twice.
_AT_ONCE = {"remat": "none", "chunk": 0}
_UNTILED = {"implementation": "dense", "tile": "xla", "chunk": 2**31 - 1}


def model_flops(config: ml_collections.ConfigDict, mesh: Mesh, example: Mapping[str, Any]) -> int:
    """FLOPs that one step needs on all devices together, however it is computed.

    Techniques that save memory add arithmetic that the result does not need: rematerialisation,
    gradient caching, and tiles of a table of pairs count as if everything were computed once.
    Gradients of frozen parameters do not count. Of packed texts, the rows within the budget count,
    but the overflow rows do not.

    Args:
      config: validated, as of TrainStep. mesh, example: as of TrainStep.
    """
    plain = config.copy_and_resolve_references()
    plain.unlock()
    plain.gradient_cache = plain.accumulation = 1
    for part in (*plain.towers.values(), *plain.fusions.values()):
        part.update({option: value for option, value in _AT_ONCE.items() if option in part})
    for name, options in plain.objectives.items():
        target = build.find("objective", wiring.chosen_module(name, options))
        for option, value in _UNTILED.items():
            if option in build.options(target):
                options[option] = value
    layout = learner.layout(plain, mesh)
    leaves, tree = jax.tree.flatten(layout.params)
    changes = jax.tree.leaves(optim.trainable(layout.params, optim.rules(config)))

    def loss(trained: list[Any], others: list[Any], variables: Any, batch: Any) -> jax.Array:
        own, rest = iter(trained), iter(others)
        params = jax.tree.unflatten(tree, [next(own if change else rest) for change in changes])
        module = layout.merge(params, variables)
        key = streams.key(config.seed, "dropout")
        average = layout.merge_average(params if layout.averages else None, variables)
        return module(batch, step=jnp.int32(0), train=True, key=key, average=average)[0]

    trained = [leaf for leaf, change in zip(leaves, changes, strict=True) if change]
    others = [leaf for leaf, change in zip(leaves, changes, strict=True) if not change]
    batch = {name: jax.ShapeDtypeStruct(v.shape, v.dtype) for name, v in example.items()}
    return flops.count(jax.grad(loss), trained, others, layout.variables, batch, arm=min)


def _average_start(param: jax.Array) -> jax.Array:
    return jnp.copy(param).astype(jnp.promote_types(param.dtype, jnp.float32))


def _average(average: Any, params: Any, trainable: Any, decay: jax.Array) -> Any:
    """Moving average: decay * average + (1 - decay) * params.

    That of a frozen parameter is the parameter itself, without rounding.
    """

    def one(average: jax.Array, param: jax.Array, trains: bool) -> jax.Array:
        param = param.astype(average.dtype)
        if not trains:
            return param
        return (decay * average + (1.0 - decay) * param).astype(average.dtype)

    return jax.tree.map(one, average, params, trainable)
