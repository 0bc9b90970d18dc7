"""Gradient caching gives the loss, gradients and state of the whole batch with less memory."""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmrl import config as configs
from mmrl import streams
from mmrl.devices import sharding
from mmrl.objectives.base import Objective, batch_mean
from mmrl.training import learner
from mmrl.training.step import TrainStep
from mmrl.types import InputError, Loss
from tests import stubs, toys
from tests.arrays import assert_close
from tests.test_step import ALL, GLOBAL

pytestmark = pytest.mark.optax

PIECES, BATCH = 64, 32


@pytest.fixture(scope="module", autouse=True)
def registered():
    with stubs.registered():
        yield


def config(count, *, stub=True, **options):
    chosen = toys.config(batch_size=BATCH, gradient_cache=count, objectives=ALL)
    chosen.towers.text.vocab_size = PIECES
    if stub:
        stubs.use(chosen, **options)
    # Adam would blow up the rounding of gradients that are mathematically zero.
    chosen.optimizer.name, chosen.optimizer.warmup_steps = "sgd", 0
    return chosen


def batch_of(config, seed=0):
    """Random pixels and ids; texts of 2 to L tokens, two of one group, some invalid copies."""
    size, copies, length = config.batch_size, config.data.num_perturbed, config.towers.text.length
    side = config.towers.image.size
    rng = np.random.default_rng(seed)
    texts = rng.integers(1, PIECES, (size, 1 + copies, length), np.int32)
    mask = np.arange(length) < rng.integers(2, length + 1, (size, 1 + copies, 1))
    return {
        "image.pixels": rng.integers(0, 256, (size, side, side, 1), np.uint8),
        "text.tokens": texts[:, 0],
        "text.mask": mask[:, 0],
        "perturbed.tokens": texts[:, 1:],
        "perturbed.mask": mask[:, 1:],
        "perturbed.valid": rng.random((size, copies)) < 0.7,
        "perturbed.kind": np.zeros((size, copies), np.int8),
        "group": np.maximum(np.arange(size, dtype=np.int32), 1),
        "index": np.arange(size, dtype=np.int32),
    }


def make(config, axes=(1, 1, 1)):
    named = dict(zip(sharding.MESH_AXES, axes, strict=True))
    mesh = sharding.make_mesh(named, devices=jax.devices()[: int(np.prod(axes))])
    return TrainStep(config, mesh, batch_of(config))


def place(step, batch):
    return sharding.to_global(batch, sharding.batch_sharding(step.mesh))


@functools.cache
def shipped_start():
    return jax.device_get(make(config(1, stub=False)).init())


def state_of(step):
    """The same initial state on every mesh, without compiling an initialiser for each."""
    if step.config.towers.image.name == "stub":
        return stubs.start(step)
    return jax.device_put(shipped_start(), step.shardings)


def gradients(config, axes=(1, 1, 1)):
    step = make(config, axes)
    return jax.device_get(step.loss_and_gradients(state_of(step), place(step, batch_of(config))))


@functools.cache
def one_shot(stub):
    return gradients(config(1, stub=stub))


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("count", "axes"),
    [
        (4, (1, 1, 1)),
        (16, (2, 1, 1)),
        pytest.param(4, (8, 1, 1), marks=pytest.mark.exhaustive),
        # Also in test_sharding_agreement.py.
        pytest.param(4, (1, 8, 1), marks=pytest.mark.exhaustive),
        (4, (2, 2, 2)),
    ],
)
def test_loss_and_gradients_equal_the_one_shot_step(count, axes):
    """All four objectives; float32, 1e-5 relative to the largest entry of each leaf."""
    loss, found = gradients(config(count), axes)
    np.testing.assert_allclose(loss, one_shot(stub=True)[0], rtol=1e-5)
    assert_close(found, one_shot(stub=True)[1], floor=1e-3)


@pytest.mark.exhaustive
def test_the_shipped_encoders_on_a_mesh_equal_one_shot_on_one_device():
    loss, found = gradients(config(4, stub=False), (2, 2, 2))
    np.testing.assert_allclose(loss, one_shot(stub=False)[0], rtol=1e-5)
    assert_close(found, one_shot(stub=False)[1], floor=1e-3)


class AllWords(Objective):
    """Of the words of reports and of all their copies."""

    reads: ClassVar[dict[str, str]] = {"words": "text.words", "copies": "text@perturbed.words"}

    def __call__(self, *, context, words, copies):
        value = jnp.mean(jnp.sin(words)) + jnp.mean(jnp.cos(copies) * words[:, None])
        return Loss(value, {"loss": batch_mean(value, len(words))})


def test_words_of_several_texts_go_through_the_cache():
    results = []
    with stubs.registered(all_words=AllWords):
        for count in (1, 4):
            chosen = config(count)
            chosen.objectives = {**GLOBAL, "all_words": {}}
            results.append(gradients(chosen))
    (loss, expected), (other, found) = results
    np.testing.assert_allclose(other, loss, rtol=1e-5)
    assert np.abs(expected["towers"]["text"]["heads"]["words"]["out"]["kernel"]).max() > 0
    assert_close(found, expected, floor=1e-3)


@pytest.mark.exhaustive
def test_both_encodings_of_a_micro_batch_drop_the_same_units():
    """Compared with autodiff of all micro-batches at once, with the same dropout keys."""
    chosen = config(4, dropout=0.8)
    chosen.objectives = GLOBAL
    step, batch = make(chosen), batch_of(chosen)
    state = state_of(step)
    key, _ = learner.split_key(jax.random.fold_in(streams.key(chosen.seed, "dropout"), 0))

    @jax.jit
    @jax.value_and_grad
    def reference(params):
        module = nnx.merge(step.layout.graphdef, params, state["variables"])
        parts = []
        for number in range(4):
            rows = {name: array[number::4] for name, array in batch.items()}
            parts.append(module.encode(rows, train=True, key=jax.random.fold_in(key, number)))
        joined = jax.tree.map(lambda *p: jnp.stack(p, 1).reshape(-1, *p[0].shape[1:]), *parts)
        return module.score(joined, batch, step=jnp.int32(0))[0]

    loss, expected = reference(state["params"])
    found = step.loss_and_gradients(state, place(step, batch))
    np.testing.assert_allclose(found[0], loss, rtol=1e-5)
    assert_close(found[1], expected, floor=1e-3)
    whole = config(1)
    whole.objectives = GLOBAL
    assert abs(float(loss) - float(gradients(whole)[0])) > 1e-3


@pytest.mark.exhaustive
def test_steps_leave_the_state_of_one_shot_steps():
    """Parameters, metrics, temperatures and the variables of an objective, after two updates."""
    results = {}
    for count in (1, 4):
        chosen = config(count)
        chosen.objectives = {**GLOBAL, "memory": {"weight": 0.3}}
        step = make(chosen, (2, 1, 1))
        state = step.init()
        for seed in (0, 1):
            state = step(state, place(step, batch_of(chosen, seed)))
        results[count] = jax.device_get(state)
    assert results[4].keys() == results[1].keys()
    for part in ("step", "params", "variables", "metrics", "nonfinite_step"):
        assert_close(results[4][part], results[1][part], floor=1e-3)
    memory = results[4]["variables"]["objectives"]["memory"]
    assert memory["updates"] == 2 and np.abs(memory["mean"]).max() > 0.01
    scale = results[4]["params"]["objectives"]["global_contrastive"]["logit_scale"]["log"]
    assert scale != np.log(np.float32(1 / 0.07))


@pytest.mark.exhaustive
def test_temporaries_fall_with_the_number_of_micro_batches():
    """With fixed B, the memory that the encoders keep for the backward pass shrinks."""
    temporaries = []
    for count in (1, 2, 8):
        chosen = config(count, depth=6)
        chosen.batch_size = 256
        chosen.objectives = {"global_contrastive": {}}
        step = make(chosen)
        rows = sharding.batch_sharding(step.mesh)
        batch = {
            name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=rows)
            for name, array in batch_of(chosen).items()
        }
        compiled = jax.jit(step.loss_and_gradients).lower(step.target(), batch).compile()
        temporaries.append(compiled.memory_analysis().temp_size_in_bytes)
    one, two, eight = temporaries
    assert two < 0.65 * one and eight < 0.3 * one


# Refusals.


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_batch_statistics_are_refused_and_group_norm_is_not(norm):
    chosen = config(4)
    image = {"name": "resnet", "depth": 18, "width": 8, "norm": norm, "size": 32}
    chosen.towers.image = {**image, "heads": {"embedding": 32, "regions": 32}}
    mesh = toys.one_device()
    layout = learner.layout(chosen, mesh)
    if norm == "group":
        learner.check_gradient_cache(layout, BATCH, 4, mesh)
        return
    with pytest.raises(InputError) as error:
        learner.check_gradient_cache(layout, BATCH, 4, mesh)
    assert str(error.value).startswith(
        "config.gradient_cache=4 needs encoders without batch statistics, got "
        "'towers/image/encoder/stage_1"
    )
    assert "norm='group'" in str(error.value) and "\n" not in str(error.value)


def test_micro_batches_that_the_mesh_cannot_divide_are_refused():
    with pytest.raises(InputError) as error:
        make(config(8), (2, 4, 1))
    assert str(error.value) == (
        "config.batch_size=32 must be a multiple of 64: config.gradient_cache=8 micro-batches, "
        "each spread over 8 devices (mesh axes data x fsdp)"
    )


def test_arrays_of_unequal_length_are_refused():
    mesh = make(config(4)).mesh
    with pytest.raises(ValueError, match=r"first axes of the batch: \[4, 8\]; expected one mul"):
        learner.deal({"a": np.zeros(8), "b": np.zeros(4)}, 4, mesh)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"gradient_cache": 0}, "config.gradient_cache=0 must be at least 1"),
        ({"gradient_cache": 3}, "batch_size=8 must be a multiple of config.gradient_cache=3"),
        (
            {"gradient_cache": 2, "accumulation": 4},
            "config.accumulation=4 and config.gradient_cache=2 exclude each other",
        ),
    ],
)
def test_settings_without_meaning_are_refused_in_one_line(changes, expected):
    with pytest.raises(InputError) as error:
        configs.validate(toys.config(**changes))
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_a_run_may_go_on_with_another_number_of_micro_batches():
    """The number of micro-batches is not part of the experiment, nor is the mesh."""
    old, new = configs.plain(toys.config()), configs.plain(toys.config(gradient_cache=4))
    assert configs.check_resumable(old, new) == {"gradient_cache": (1, 4)}
