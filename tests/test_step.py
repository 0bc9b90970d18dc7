"""The training step: equal results on 1, 2 and 8 devices, parameter rules, metrics."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmrl.devices import sharding
from mmrl.models.layers import LOGICAL_AXES
from mmrl.training import checkpoint, optim
from mmrl.training import scalars as metrics
from mmrl.training.step import TrainStep
from mmrl.types import InputError
from tests import stubs, toys
from tests.arrays import assert_close

pytestmark = pytest.mark.optax

ALL = {
    "global_contrastive": {"weight": 1.0},
    "local_contrastive": {"weight": 0.1},
    "perturbed_discrimination": {"weight": 0.1},
    "siglip": {"weight": 0.5},
}
# Where the objective does not matter, the one that compiles fastest.
GLOBAL = {"global_contrastive": {"weight": 1.0}}


@pytest.fixture(scope="module", autouse=True)
def registered():
    with stubs.registered():
        yield


def small(**changes):
    """A config that compiles fast, for tests independent of encoders and objectives."""
    config = stubs.use(toys.config(objectives=GLOBAL))
    return toys.changed(config, **changes)


def build_anew(config, devices=1, axes=None):
    mesh = sharding.make_mesh(
        axes or {"data": -1, "fsdp": 1, "tensor": 1}, devices=jax.devices()[:devices]
    )
    return TrainStep(config, mesh, toys.batches(config)[0])


BUILT: dict[str, TrainStep] = {}


def build(*args, **kwargs):
    """As build_anew, cached: a step has no state except its compiled programs."""
    key = str((args, kwargs))
    if key not in BUILT:
        BUILT[key] = build_anew(*args, **kwargs)
    return BUILT[key]


def place(step, batch):
    return sharding.to_global(batch, sharding.batch_sharding(step.mesh))


def train(config, steps=3, build=build, **kwargs):
    step = build(config, **kwargs)
    state = step.init()
    for batch in toys.batches(config, steps):
        state = step(state, place(step, batch))
    return step, state


@functools.cache
def everything(devices):
    """Loss and gradients of the shipped encoders: all four objectives, dropout on."""
    config = toys.config(objectives=ALL, towers__text__dropout=0.1)
    step = build(config, devices=devices)
    state = stubs.start(step)
    # As training starts. At a scale near 1 this gradient is a sum that cancels to 2e-4, and the
    # rounding of its terms, which depends on the processor, is more than the tolerance.
    scale = state["params"]["objectives"]["global_contrastive"]["logit_scale"]
    started = np.full(scale["log"].shape, math.log(1 / 0.07), scale["log"].dtype)
    scale["log"] = jax.device_put(started, scale["log"].sharding)
    return step.loss_and_gradients(state, place(step, toys.batches(config)[0]))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.exhaustive), 8])
def test_several_devices_give_the_loss_and_gradients_of_one(devices):
    """float32 tolerance 1e-5 relative to each leaf's largest."""
    np.testing.assert_allclose(everything(devices)[0], everything(1)[0], rtol=1e-5)
    assert_close(everything(devices)[1], everything(1)[1], floor=1e-3)


@pytest.mark.exhaustive
def test_parameter_sharding_changes_no_result():
    axes = {"data": 2, "fsdp": 2, "tensor": 2}
    # SGD: Adam blows up the rounding of gradients that are mathematically zero (key biases).
    config = toys.config(objectives=GLOBAL, optimizer__name="sgd")
    _, plain = train(config)
    step, spread = train(config, devices=8, axes=axes)
    assert_close(spread["params"], plain["params"], floor=1e-3)
    kernel = spread["params"]["towers"]["text"]["encoder"]["stack"]["block_00"]["mlp"]["wide"][
        "kernel"
    ]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec("fsdp", "tensor")
    moments = [
        leaf
        for leaf in jax.tree.leaves(spread["opt_state"])
        if leaf.shape == kernel.shape and leaf.sharding == kernel.sharding
    ]
    assert moments  # the momentum lives where its parameter lives
    assert step.mesh.size == 8


def test_same_seed_same_bits_and_another_seed_another_start():
    _, one = train(small())
    _, two = train(small(), build=build_anew)
    assert checkpoint.digest(one["params"]) == checkpoint.digest(two["params"])
    other = build(small(seed=1)).init()
    assert checkpoint.digest(other["params"]) != checkpoint.digest(build(small()).init()["params"])


def test_seeds_share_one_program_and_draw_differently():
    """Runs that differ in their seed alone find the compiled step of the first in the cache."""
    steps = [build(small(seed=seed, towers__text__dropout=0.5)) for seed in (0, 1)]
    texts = {step.traced.lower().as_text() for step in steps}
    assert len(texts) == 1
    batch, losses = toys.batches(small())[0], set()
    for step in steps:
        state = jax.device_put(jax.device_get(stubs.start(steps[0])), step.shardings)
        losses.add(float(step.loss_and_gradients(state, place(step, batch))[0]))
    assert len(losses) == 2


def test_accumulation_equals_the_mean_over_its_micro_batches():
    config = small(accumulation=2, optimizer__name="sgd", optimizer__clip_norm=0.0)
    step = build(config)
    state = step.init()
    batch = toys.batches(config)[0]
    halves = [{k: v[part::2] for k, v in batch.items()} for part in (0, 1)]
    gradients = [step.loss_and_gradients(state, place(step, half))[1] for half in halves]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *gradients)
    new = step(step.init(), place(step, batch))
    norm = metrics.compute(new["metrics"])["grad_norm"]
    assert norm == pytest.approx(float(optax.tree.norm(mean)), rel=1e-5)


@pytest.mark.exhaustive
def test_batch_statistics_are_state_and_move():
    image = {"name": "resnet", "depth": 18, "width": 8, "small_stem": True, "size": 32}
    image["heads"] = {"embedding": 32}
    config = small(towers__image=image, optimizer__name="sgd")
    step = build(config)
    state = stubs.start(step)
    before = jax.device_get(state["variables"])
    (batch,) = toys.batches(config, 1)
    state = step(state, place(step, batch))
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, state["variables"])
    assert jax.tree.leaves(changed) and all(jax.tree.leaves(changed))


def test_metrics_add_up_and_start_anew_after_each_log_step():
    config = small(log_every=2)
    step = build(config)
    state, losses = step.init(), []
    for batch in toys.batches(config, 3):
        losses.append(step.loss_and_gradients(state, place(step, batch))[0])
        state = step(state, place(step, batch))
        if len(losses) == 2:
            both = metrics.compute(state["metrics"])["loss"]
    assert both == pytest.approx(float(np.mean(losses[:2])), rel=1e-5)
    assert metrics.compute(state["metrics"])["loss"] == pytest.approx(float(losses[2]), rel=1e-5)


def test_the_first_non_finite_step_is_remembered():
    config = small()
    step = build(config)
    state = step.init()
    first, second, third = toys.batches(config, 3)
    state = step(state, place(step, first))
    assert state["nonfinite_step"] == -1
    heads = state["params"]["towers"]["image"]["heads"]
    heads["embedding"] = jax.tree.map(lambda a: a * jnp.nan, heads["embedding"])
    state = step(state, place(step, second))
    state = step(state, place(step, third))
    assert state["nonfinite_step"] == 2


def test_frozen_parameters_stay_and_hold_no_optimizer_state():
    rules = ({"match": r"towers/text/encoder/.*", "freeze": True}, {"match": r".*"})
    config = small(optimizer__rules=rules)
    before = jax.device_get(build(config).init())
    _, after = train(config)
    first, last = before["params"]["towers"], after["params"]["towers"]
    digest = checkpoint.digest
    assert digest(first["text"]["encoder"]) == digest(last["text"]["encoder"])
    assert digest(first["image"]["encoder"]) != digest(last["image"]["encoder"])
    text = sum(leaf.size for leaf in jax.tree.leaves(first["text"]["encoder"]))
    everything = sum(leaf.size for leaf in jax.tree.leaves(before["params"]))
    moments = sum(leaf.size for leaf in jax.tree.leaves(after["opt_state"]) if leaf.ndim)
    scalars = 2 * len(jax.tree.leaves(before["params"]["objectives"]))
    assert moments == 2 * (everything - text) - scalars


def test_the_average_follows_the_parameters():
    _, state = train(small(average__decay=0.5, average__evaluate=True), steps=4)
    start = jax.device_get(
        build(small(average__decay=0.5, average__evaluate=True)).init()["params"]
    )
    to_average, to_start = (
        float(optax.tree.norm(jax.tree.map(jnp.subtract, other, state["params"])))
        for other in (state["average"], start)
    )
    assert 0 < to_average < to_start


def test_a_checkpoint_moves_between_meshes(tmp_path):
    _, state = train(small())
    saved = checkpoint.Checkpoints(tmp_path)
    saved.save(3, state, {"global_next_index": 24}, {"note": "x"})
    saved.wait()
    other = build(small(), devices=8, axes={"data": 2, "fsdp": 2, "tensor": 2})
    restored, position = saved.restore(other.target())
    saved.close()
    assert position == {"global_next_index": 24}
    assert checkpoint.digest(restored) == checkpoint.digest(state)
    with pytest.raises(InputError, match=r"no checkpoint of step 9 .*steps: \[3\]"):
        checkpoint.Checkpoints(tmp_path, read_only=True).meta(9)


# Optimizer rules.

PARAMS = {"model": {"dense": {"kernel": np.ones((2, 3)), "bias": np.ones(3)}}}


def optimizer(**changes):
    return {**toys.config().optimizer.to_dict(), **changes}


def test_a_parameter_without_a_rule_is_an_error_that_lists_it():
    with pytest.raises(InputError) as error:
        optim.make(optimizer(rules=({"match": r".*/kernel"},)), 10, PARAMS)
    assert "no rule for: model/dense/bias" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"rules": ({"match": "(", "freeze": True},)}, "has no valid match"),
        ({"rules": ({"match": ".*", "lr": 1.0},)}, "unknown key in config.optimizer.rules 'lr'"),
        ({"name": "lion"}, "unknown optimizer in config.optimizer.name 'lion'"),
        (
            {"warmup_steps": 10},
            "config.optimizer.warmup_steps=10 must be less than the 10 steps of the run "
            "(config.total_steps or config.epochs); lower it, "
            "for example --config.optimizer.warmup_steps=1",
        ),
    ],
)
def test_bad_optimizer_settings_are_refused(changes, text):
    with pytest.raises(InputError) as error:
        optim.make(optimizer(**changes), 10, PARAMS)
    assert text in str(error.value)


def test_factors_scale_learning_rate_and_decay():
    """SGD without momentum and gradients: only weight decay changes parameters."""
    rules = (
        {"match": r".*/bias", "weight_decay": 0.0},
        {"match": r".*", "learning_rate": 0.5},
    )
    settings = optimizer(
        name="sgd", momentum=0.0, weight_decay=0.1, learning_rate=1.0, warmup_steps=0, rules=rules
    )
    transform, schedule = optim.make(settings, 10, PARAMS)
    params = jax.tree.map(jnp.float32, PARAMS)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = transform.update(zero, transform.init(params), params)
    assert schedule(0) == 1.0
    np.testing.assert_allclose(updates["model"]["dense"]["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["model"]["dense"]["bias"], 0)


def test_sgd_is_that_of_torch():
    """torch.optim.SGD: decay joins the gradient before the momentum; the rate multiplies last."""
    settings = optimizer(
        name="sgd",
        momentum=0.9,
        weight_decay=0.1,
        learning_rate=0.5,
        warmup_steps=0,
        clip_norm=0.0,
        rules=({"match": ".*"},),
    )
    rng = np.random.default_rng(0)
    expected = rng.normal(size=3)
    params = {"scale": jnp.asarray(expected, jnp.float32)}
    transform, schedule = optim.make(settings, 8, params)
    state, buffer = transform.init(params), np.zeros(3)
    for step in range(8):
        gradient = rng.normal(size=3)
        buffer = 0.9 * buffer + (gradient + 0.1 * expected)
        expected = expected - 0.25 * (1 + np.cos(np.pi * step / 8)) * buffer
        updates, state = transform.update(
            {"scale": jnp.asarray(gradient, jnp.float32)}, state, params
        )
        params = optax.apply_updates(params, updates)
    assert_close(params["scale"], expected, 1e-6)
    assert float(schedule(8)) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_schedule_of_decay_counts_the_updates(name):
    """As in Oquab et al. 2024 (DINOv2), whose decay rises on a cosine."""
    given = {"kind": "cosine", "start": 0.04, "end": 0.4, "steps": 4}
    params = {"scale": jnp.ones(3, jnp.bfloat16)}

    def apply(decay, state=None):
        settings = optimizer(
            name=name, weight_decay=decay, learning_rate=1.0, warmup_steps=0, momentum=0.0
        ) | {"rules": ({"match": ".*"},), "end_fraction": 1.0}
        transform, _ = optim.make(settings, 8, params)
        zero = jax.tree.map(jnp.zeros_like, params)
        return transform.update(zero, transform.init(params) if state is None else state, params)

    state = None
    for step in range(6):
        expected = 0.22 - 0.18 * np.cos(np.pi * min(step / 4, 1))
        updates, state = apply(given, state)
        assert updates["scale"].dtype == jnp.bfloat16
        np.testing.assert_allclose(updates["scale"], -expected, rtol=1e-2)
    equal = [apply(decay) for decay in (0.04, {**given, "end": 0.04})]
    assert jax.tree.structure(equal[0][1]) == jax.tree.structure(equal[1][1])


def test_the_schedule_warms_up_and_ends_where_it_should():
    settings = optimizer(learning_rate=2.0, warmup_steps=4, end_fraction=0.1)
    _, schedule = optim.make(settings, 20, PARAMS)
    assert [float(schedule(s)) for s in (0, 2, 4)] == pytest.approx([0.0, 1.0, 2.0])
    assert float(schedule(12)) == pytest.approx((2.0 + 0.2) / 2)
    assert float(schedule(20)) == pytest.approx(0.2)


# Mesh.


def test_every_logical_axis_has_a_rule_and_the_other_way_round():
    assert {name for name, _ in sharding.LOGICAL_RULES} == set(LOGICAL_AXES)


@pytest.mark.parametrize(
    ("axes", "devices"),
    [
        ({"data": 3, "fsdp": 1, "tensor": 1}, 8),
        ({"data": -1, "fsdp": 3, "tensor": 1}, 8),
        ({"data": -1, "fsdp": -1, "tensor": 1}, 8),
        ({"data": 0, "fsdp": 1, "tensor": 1}, 8),
    ],
)
def test_meshes_that_do_not_fit_are_refused(axes, devices):
    with pytest.raises(InputError, match=f"does not cover {devices} devices"):
        sharding.make_mesh(axes, devices=jax.devices()[:devices])


def test_batches_that_do_not_divide_are_refused():
    mesh = sharding.make_mesh({"data": -1, "fsdp": 2, "tensor": 1}, devices=jax.devices())
    with pytest.raises(InputError, match="micro-batches of 6, not a multiple of the 8"):
        sharding.check_batch(mesh, 12, 2)


def test_objectives_without_their_inputs_are_refused():
    with pytest.raises(InputError) as error:
        build(toys.config(towers__image__heads={"embedding": 32}))
    assert "unknown feature image.regions; feature 'regions'" in str(error.value)
