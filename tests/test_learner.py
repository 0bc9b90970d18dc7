"""The learner: frozen towers, initial values, and objectives under free names."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmrl import streams, wiring
from mmrl.data.batches.pipeline import batch_shapes
from mmrl.data.inputs import base as inputs
from mmrl.devices import sharding
from mmrl.objectives.global_contrastive import contrastive_loss
from mmrl.training import checkpoint, learner, optim, scalars
from mmrl.training.step import TrainStep
from mmrl.types import InputError
from tests import stubs, toys
from tests.arrays import assert_close

pytestmark = pytest.mark.optax

GLOBAL = {"global_contrastive": {"weight": 1.0}}


@pytest.fixture(scope="module", autouse=True)
def registered():
    with stubs.registered():
        yield


def make(config):
    """A step, its state and batches of random numbers."""
    shapes = batch_shapes(inputs.make(config, wiring.wire(config)[0]), config.batch_size)
    step = TrainStep(config, toys.one_device(), shapes)
    state = stubs.start(step)
    if "average" in state:
        state["average"] = jax.tree.map(jnp.copy, state["params"])
    return step, state, functools.partial(batch_of, shapes)


def batch_of(shapes, seed=0):
    """Random pixels, ids below 64, and marks; no two rows of one group."""
    rng = np.random.default_rng(seed)

    def one(name, shape):
        if shape.dtype == np.bool_:
            return rng.random(shape.shape) < 0.6
        if name in ("group", "index"):
            return np.arange(shape.shape[0], dtype=np.int32)
        if shape.dtype == np.float32:
            return rng.normal(size=shape.shape).astype(np.float32)
        return rng.integers(0, 64, shape.shape).astype(shape.dtype)

    batch = {name: one(name, shape) for name, shape in shapes.items()}
    for name in batch:
        if name.endswith(".mask"):
            batch[name][..., :3] = True
    return batch


def train(step, state, batches, count=2):
    for seed in range(count):
        state = step(state, place(step, batches(seed)))
    return jax.device_get(state)


def place(step, batch):
    return sharding.to_global(batch, sharding.batch_sharding(step.mesh))


# Frozen towers.


def towers(image=False, text=False, **changes):
    """A ResNet with batch norm and a transformer with dropout, each frozen or not."""
    config = toys.config(objectives=GLOBAL, **changes)
    resnet = {"name": "resnet", "depth": 18, "width": 4, "small_stem": True, "size": 8}
    config.towers.image = {**resnet, "heads": {"embedding": 32}, "frozen": image}
    config.towers.text.update({"dropout": 0.5, "frozen": text})
    config.average.decay, config.average.evaluate = 0.5, True
    return config


def digest(state, part, path):
    """Of a part of the state below a path."""
    for name in path.split("/"):
        state, part = (state[part], None) if part else (state, None)
        state = state[name]
    return checkpoint.digest(state)


@pytest.mark.parametrize(
    ("image", "text", "changes"),
    [
        ("encoder", True, {}),
        pytest.param(True, "encoder", {"accumulation": 2}, marks=pytest.mark.exhaustive),
        # Batch statistics that do not move are no obstacle to gradient caching.
        pytest.param("encoder", "encoder", {"gradient_cache": 2}, marks=pytest.mark.exhaustive),
    ],
)
def test_nothing_of_a_frozen_tower_changes(image, text, changes):
    config = towers(image, text, **changes)
    step, state, batches = make(config)
    before = jax.device_get(state)
    _, gradients = step.loss_and_gradients(state, place(step, batches()))
    after = train(step, state, batches)
    kept = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(after["opt_state"])]
    for tower, frozen in {"image": image, "text": text}.items():
        encoder, heads = f"towers/{tower}/encoder", f"towers/{tower}/heads"
        for part in ("params", "average"):
            assert digest(before, "params", encoder) == digest(after, part, encoder)
            same = digest(before, "params", heads) == digest(after, part, heads)
            assert same == (frozen is True)
        assert not any(f"['{tower}']['encoder']" in path for path in kept)
        assert any(f"['{tower}']['heads']" in path for path in kept) == (frozen == "encoder")
        found = gradients["towers"][tower]
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(found["encoder"]))
        if frozen == "encoder":
            assert all(np.any(leaf) for leaf in jax.tree.leaves(found["heads"]["embedding"]))
    statistics = after["variables"]["towers"]["image"]
    assert jax.tree.leaves(statistics)
    assert checkpoint.digest(statistics) == checkpoint.digest(
        before["variables"]["towers"]["image"]
    )
    assert scalars.compute(after["metrics"])["grad_norm"] > 0


@functools.cache
def encodings(image, text, *patterns):
    """Training encodings with two keys, and those of evaluation; `patterns` are frozen too."""
    config = towers(image, text)
    rules = tuple({"match": pattern, "freeze": True} for pattern in patterns)
    config.optimizer.rules = (*rules, *config.optimizer.rules)
    step, state, batches = make(config)

    @functools.partial(jax.jit, static_argnames="train")
    def encode(params, variables, batch, key, train):
        module = nnx.merge(step.layout.graphdef, params, variables)
        encoded = module.encode(batch, train=train, key=key)
        return encoded, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

    def call(key, train):
        arguments = state["params"], state["variables"], batches()
        return jax.device_get(encode(*arguments, key, train=train))

    return call(jax.random.key(1), True), call(jax.random.key(2), True), call(None, False)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("frozen", [True, "encoder"])
def test_a_frozen_tower_encodes_in_training_as_in_evaluation(frozen):
    (first, stats), (second, _), (quiet, old) = encodings(frozen, frozen)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_array_equal(first[name], quiet[name])
    assert_close(stats, old, 0.0)


@pytest.mark.exhaustive
def test_towers_that_train_in_part_behave_as_in_training():
    part = (
        r"towers/text/encoder/(token|position|stack)/?.*",
        r"towers/image/encoder/(stem|stage_1).*",
    )
    for patterns in ((), part):
        (first, stats), (second, _), (quiet, old) = encodings(False, False, *patterns)
        text, image = "text@text.embedding", "image@image.embedding"
        assert np.abs(first[text] - second[text]).max() > 1e-2
        assert np.abs(first[image] - quiet[image]).max() > 1e-2
        moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), stats, old)
        assert all(jax.tree.leaves(moved))


def test_rules_that_freeze_an_encoder_are_the_same_as_the_option():
    for one, two in zip(
        jax.tree.leaves(encodings(False, False, r"towers/(image|text)/encoder/.*")),
        jax.tree.leaves(encodings("encoder", "encoder")),
        strict=True,
    ):
        np.testing.assert_array_equal(one, two)


def test_another_value_of_frozen_is_refused():
    config = towers(image="heads")
    with pytest.raises(InputError) as error:
        optim.rules(config)
    assert str(error.value) == ("config.towers.image.frozen='heads'; choices: False, True, encoder")


# Initial values.


def initial(config):
    key = streams.key(config.seed, "init")
    return jax.jit(lambda k: learner.split(learner.make(config, k))[1])(key)


def leaves(params):
    return {
        optim.path_of(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def added(what):
    """A config with something more than `toys.config()`."""
    config = toys.config()
    with config.unlocked():
        if what == "tower":
            config.towers.expression = {"name": "mlp", "size": 5, "heads": {"embedding": 32}}
            reads = {"text": "expression.embedding"}
            config.objectives.third = {"name": "global_contrastive", "reads": reads}
        elif what == "head":
            another = {"width": 7, "kind": "mlp"}
            config.towers.image.heads = {"another": another, **config.towers.image.heads.to_dict()}
        elif what == "objective":
            others = config.objectives.to_dict()
            config.objectives = {"siglip": {"weight": 1.0}, **others}
        else:  # the same in another order
            for key in ("towers", "objectives"):
                given = config[key].to_dict()
                config[key] = {name: given[name] for name in reversed(given)}
    return config


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("what", "more"),
    [
        ("tower", {"towers/expression/", "objectives/third/"}),
        ("head", {"towers/image/heads/another/"}),
        ("objective", {"objectives/siglip/"}),
        ("nothing", set()),
    ],
)
def test_what_is_added_changes_no_other_initial_value(what, more):
    before, after = leaves(initial(toys.config())), leaves(initial(added(what)))
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value, err_msg=path)
    new = set(after) - set(before)
    assert all(path.startswith(tuple(more)) for path in new) if more else not new
    assert all(any(path.startswith(start) for path in new) for start in more)


def test_parts_of_equal_shape_start_differently_and_follow_the_seed():
    config = stubs.use(toys.config())
    with config.unlocked():
        config.towers.twin = {**config.towers.text.to_dict(), "input": "text"}
        config.objectives.third = {
            "name": "global_contrastive",
            "reads": {"text": "twin.embedding"},
        }
    params, other = (
        initial(config),
        initial(toys.changed(config.copy_and_resolve_references(), seed=1)),
    )
    first, twin = params["towers"]["text"], params["towers"]["twin"]
    assert checkpoint.digest(first["encoder"]) != checkpoint.digest(twin["encoder"])
    heads = first["heads"]
    assert np.any(heads["embedding"]["out"]["kernel"] != heads["words"]["out"]["kernel"])
    assert checkpoint.digest(other["towers"]["text"]) != checkpoint.digest(first)


# Objectives under free names.


def two_of_one_class():
    rising = {"kind": "linear", "start": 0.0, "end": 0.5, "steps": 4}
    views = {"name": "global_contrastive", "weight": rising, "temperature": 0.2}
    views["reads"] = {"text": "image@second.embedding"}
    objectives = {"global_contrastive": {"weight": 0.7}, "views": views}
    return stubs.use(toys.config(objectives=objectives, optimizer__warmup_steps=0))


def test_two_objectives_of_one_class_read_and_weigh_for_themselves():
    step, state, batches = make(two_of_one_class())
    batch = batches()
    module = nnx.merge(step.layout.graphdef, state["params"], state["variables"])
    encoded = jax.jit(lambda batch: module.encode(batch, train=True))(batch)
    assert set(encoded) == {
        "image@image.embedding", "image@second.embedding", "text@text.embedding"
    }  # fmt: skip
    image, second, text = (
        encoded[name]
        for name in ("image@image.embedding", "image@second.embedding", "text@text.embedding")
    )
    scales = {
        name: module.objectives[name].logit_scale() for name in ("global_contrastive", "views")
    }
    assert scales["views"] != scales["global_contrastive"]
    present = batch["second.present"]
    assert 0 < present.sum() < len(present)
    group = batch["group"]
    expected = {
        "global_contrastive": contrastive_loss(
            image, text, scales["global_contrastive"], group=group
        ),
        "views": contrastive_loss(image, second, scales["views"], group=group, present=present),
    }
    for number, weight in ((0, 0.0), (2, 0.25), (9, 0.5)):
        total, values = module.score(encoded, batch, step=jnp.int32(number))
        metrics = scalars.compute(values)
        for name, loss in expected.items():
            assert metrics[f"{name}/loss"] == pytest.approx(float(loss), rel=1e-6)
        assert metrics["views/weight"] == pytest.approx(weight)
        assert "global_contrastive/weight" not in metrics
        whole = 0.7 * expected["global_contrastive"] + weight * expected["views"]
        assert float(total) == metrics["loss"] == pytest.approx(float(whole), rel=1e-6)


def test_two_objectives_of_one_class_train_parameters_of_their_own():
    step, state, batches = make(two_of_one_class())
    before = jax.device_get(state["params"])["objectives"]
    after = train(step, state, batches, 3)
    for name in ("global_contrastive", "views"):
        path = after["params"]["objectives"][name]["logit_scale"]["log"]
        assert path != before[name]["logit_scale"]["log"]
    logged = scalars.compute(after["metrics"])
    assert {"global_contrastive/loss", "views/loss", "views/weight"} <= set(logged)
