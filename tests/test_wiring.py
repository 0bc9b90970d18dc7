"""Derived inputs, fusions, selections and averaged weights: their order, values and gradients."""

import functools
import types
from typing import ClassVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

from mmrl import config as configs
from mmrl import wiring
from mmrl.devices import sharding
from mmrl.exports import probes, weights
from mmrl.models.derived.base import Derived
from mmrl.models.fusion.base import Fusion
from mmrl.objectives.base import Objective
from mmrl.training import run
from mmrl.training.predict import Predict
from mmrl.training.step import TrainStep
from mmrl.types import InputError, Loss
from mmrl.wiring import Derive, Encode, Fuse, Select
from tests import stubs, toys

pytestmark = pytest.mark.optax
WIDTH = 128


class Marked(Derived):
    """Pixels plus noise of each row, times what the text says: depends on an encoding."""

    reads: ClassVar = {"text": "text.embedding"}
    batch: ClassVar = {"index": "index"}

    def __call__(self, *, context, given, text, index):
        noise = jax.vmap(jax.random.uniform)(context.row_keys(index))
        level = (100 * (noise + jnp.abs(text[:, 0]))).astype(jnp.uint8)
        return {"pixels": given["pixels"] ^ level[:, None, None, None], "level": level}


class Turned(Derived):
    """The next row of the batch: couples rows, and encodes nothing again."""

    of: ClassVar = "text"
    reads: ClassVar = {"image": "image.embedding"}
    couples: ClassVar = True
    selects: ClassVar = True

    def __call__(self, *, context, given, image):
        return {"rows": jnp.roll(jnp.arange(len(image), dtype=jnp.int32), 1)}


class Summed(Fusion):
    """A weighted sum of an image and a text."""

    reads: ClassVar = {"image": "image.embedding", "text": "text.embedding"}

    def __init__(self, *, widths, dtype, param_dtype, make_rngs):
        rngs = make_rngs("weight")
        self.width = widths["text"]
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (self.width,), param_dtype))

    @property
    def features(self):
        return ("pooled",)

    def width_of(self, feature):
        return self.width

    def __call__(self, wanted, *, train, key, image, text):
        return {"pooled": image + self.weight[...][None] * text}


class Shortened(Derived):
    """The first three tokens."""

    of: ClassVar = "text"

    def __call__(self, *, context, given):
        return {"mask": given["mask"] & (jnp.arange(given["mask"].shape[1]) < 3)[None]}


class Counted(Objective):
    """The sum of tokens, each times the number of its row."""

    batch: ClassVar = {"tokens": "far.tokens", "index": "index"}

    def __call__(self, *, context, tokens, index):
        value = (tokens.sum(axis=1) * jnp.arange(len(index))).sum().astype(jnp.float32)
        return Loss(value, {"loss": (value, jnp.float32(1))})


MODULES = {
    "marked": Marked,
    "turned": Turned,
    "summed": Summed,
    "shortened": Shortened,
    "counted": Counted,
}
OWN = (("image", "image"), ("text", "text"))
GRAPH = wiring.Graph(
    OWN,
    derived=(
        wiring.DerivedInput("marked", "image", (("text", wiring.Name("text", "text", "pooled")),)),
        wiring.DerivedInput(
            "turned",
            "text",
            (("image", wiring.Name("image", "image", "embedding")),),
            couples=True,
            selects=True,
        ),
    ),
    fusions=(
        wiring.Joined(
            "fused",
            (
                ("image", wiring.Name("image", "image", "local")),
                ("text", wiring.Name("text", "text", "local")),
            ),
        ),
    ),
    kinds=(("image", "image"), ("marked", "image"), ("text", "text"), ("turned", "text")),
)


@pytest.fixture(scope="module", autouse=True)
def registered():
    with stubs.registered(**MODULES):
        yield


# Order.


def test_each_step_comes_after_all_that_it_needs_and_what_couples_rows_comes_last():
    wired = wiring.Wiring.of(GRAPH, ["image@marked.pooled", "fused@turned.words", "text.words"])
    assert wired.steps == (
        Encode("image", (("image", ("embedding", "local")),), False),
        Encode("text", (("text", ("local", "pooled", "words")),), False),
        Derive("marked"),
        Encode("image", (("marked", ("pooled",)),), False),
    )
    assert wired.coupled == (
        Derive("turned"),
        Select(wiring.Name("text", "turned", "local")),
        Fuse("fused", "turned", ("words",), False),
    )
    first, last = wired.kept
    present = {"marked.present", "turned.present"}
    assert last == {"image@marked.pooled", "fused@turned.words", "text@text.words"} | present
    assert first >= last | {"image@image.embedding", "image@image.local", "text@text.local"}
    assert wired.readers() == {"image": "image", "text": "text"}
    assert hash(wired) == hash(wiring.Wiring.of(GRAPH, [*map(str, wired.encodings)]))


def test_inputs_of_one_level_share_a_pass_and_average_ones_take_another():
    names = ["text.pooled", "text@perturbed.embedding", "average/text.pooled"]
    assert wiring.Wiring.of(GRAPH, names).steps == (
        Encode("text", (("text", ("pooled",)), ("perturbed", ("embedding",))), False),
        Encode("text", (("text", ("pooled",)),), True),
    )


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["image@one.pooled"], "image@one.pooled -> one -> text@two.pooled -> two -> image@one"),
        (["joined.pooled"], "joined.words -> joined.words"),
    ],
)
def test_encodings_that_need_each_other_are_refused_by_name(names, expected):
    circular = wiring.Graph(
        OWN,
        derived=(
            wiring.DerivedInput("one", "image", (("t", wiring.Name("text", "two", "pooled")),)),
            wiring.DerivedInput("two", "text", (("i", wiring.Name("image", "one", "pooled")),)),
        ),
        fusions=(
            wiring.Joined(
                "joined",
                (
                    ("a", wiring.Name("joined", "", "words")),
                    ("b", wiring.Name("joined", "", "pooled")),
                ),
            ),
        ),
    )
    with pytest.raises(InputError, match=f"encodings need each other: {expected}"):
        wiring.Wiring.of(circular, names)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fused@labels.words", "exactly one of the kind of 'labels', which is unknown"),
        ("joined.words", r"unknown tower in 'joined.words' .*choices: fused, image, text"),
        ("mean/image.pooled", r"expected \[average/\]<tower>\[@<input>\].<feature>"),
    ],
)
def test_names_that_mean_nothing_are_refused(name, expected):
    with pytest.raises(InputError, match=expected):
        wiring.Wiring.of(GRAPH, [name])


# Values and gradients.


def contrast(image, text, weight=1.0):
    return {
        "name": "global_contrastive",
        "weight": weight,
        "reads": {"image": image, "text": text},
    }


def config(count=1, **objectives):
    chosen = toys.config(batch_size=16, gradient_cache=count)
    chosen.objectives = ml_collections.ConfigDict(objectives)
    stubs.use(chosen)
    chosen.optimizer.name, chosen.optimizer.warmup_steps = "sgd", 0
    far = {"name": "shortened", "of": "turned"}
    chosen.derived = ml_collections.ConfigDict({"marked": {}, "turned": {}, "far": far})
    chosen.fusions = ml_collections.ConfigDict({"summed": {}})
    chosen.evaluators = ml_collections.ConfigDict()
    configs.validate(chosen)
    return chosen


EVERY = {
    "plain": contrast("image.embedding", "text.embedding"),
    "marked": contrast("image@marked.embedding", "text.embedding", 0.5),
    "turned": contrast("image.embedding", "text@turned.embedding", 0.5),
    "fused": contrast("summed.pooled", "summed@turned.pooled", 0.3),
    "teacher": contrast("image.embedding", "average/text.embedding", 0.7),
}


def step_of(chosen, devices=1):
    mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, devices=jax.devices()[:devices])
    return TrainStep(chosen, mesh, toys.batches(chosen)[0])


def placed(step):
    batch = toys.batches(step.config)[0]
    return sharding.to_global(batch, sharding.batch_sharding(step.mesh))


def test_encodings_are_those_of_what_was_derived_selected_and_fused():
    step = step_of(config(**EVERY))
    state = stubs.start(step)
    module = step.layout.merge(state["params"], state["variables"])
    other = jax.tree.map(lambda leaf: leaf * 1.5, state["params"])
    average = step.layout.merge(other, state["variables"])
    batch = placed(step)
    key = jax.random.key(3)
    found = module.encode(batch, train=True, key=key, average=average)
    turned = jnp.roll(found["text@text.embedding"], 1, axis=0)
    np.testing.assert_array_equal(found["text@turned.embedding"], turned)
    weight = module.fusions["summed"].weight[...]
    np.testing.assert_allclose(
        found["summed@turned.pooled"],
        found["image@image.embedding"] + weight * turned,
        atol=1e-6,
    )
    teacher = average.encode(batch, train=False, wired=wiring.Wiring.of(GRAPH, ["text.embedding"]))
    np.testing.assert_array_equal(
        found["average/text@text.embedding"], teacher["text@text.embedding"]
    )
    half = {name: array[8:] for name, array in batch.items()}
    drawn = functools.partial(
        module.independent, step=0, train=True, key=None, drawn=key, average=average
    )
    np.testing.assert_allclose(
        drawn(half)["image@marked.embedding"], found["image@marked.embedding"][8:], atol=1e-6
    )
    assert np.ptp(np.asarray(found["image@marked.embedding"]), axis=0).max() > 0.01


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(("count", "devices"), [(1, 8), (4, 1), (2, 8)])
def test_micro_batches_and_devices_change_no_loss_and_no_gradient(count, devices):
    whole, parts = step_of(config(**EVERY)), step_of(config(count, **EVERY), devices)
    start = jax.device_get(stubs.start(whole))
    start["average"] = jax.tree.map(lambda leaf: 0.5 * leaf, start["params"])
    (loss, slopes), (again, other) = (
        step.loss_and_gradients(jax.device_put(start, step.shardings), placed(step))
        for step in (whole, parts)
    )
    np.testing.assert_allclose(loss, again, rtol=1e-5)
    for one, two in zip(jax.tree.leaves(slopes), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(one, two, atol=2e-6)


def test_a_coupled_or_unknown_input_is_refused_where_items_are_encoded_alone():
    step = step_of(config(**EVERY))
    predict = Predict(step.layout, toys.one_device())
    with pytest.raises(InputError, match=r"'summed@turned.pooled' depends on the other items"):
        predict.check(["summed@turned.pooled"])
    predict.check(["summed.pooled", "average/image.embedding"])
    assert "summed.pooled" in predict.provides


def test_an_export_holds_towers_and_objectives_and_no_fusion():
    step = step_of(config(**EVERY))
    trained = types.SimpleNamespace(
        config=step.config,
        predict=Predict(step.layout, toys.one_device()),
        state=stubs.start(step),
        step=1,
        tokenizers={"text": toys.tokenizer()},
    )
    held = {path.partition("/")[0] for path in weights.arrays(trained)}
    assert held == {"towers", "objectives"}
    assert set(weights.options(trained)) == {"image", "text"}
    assert {name.partition(".")[0] for name in probes.names(trained)} == {"image", "text"}


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "summed@turned.pooled",
            "config.evaluators.found: encoding 'summed@turned.pooled' depends",
        ),
        ("image.pooed", "config.evaluators.found: unknown encoding 'image.pooed' .did you mean"),
        ("imge.pooled", "config.evaluators.found: unknown tower in 'imge.pooled' 'imge' .did you"),
    ],
)
def test_evaluators_that_cannot_run_are_refused_before_training(name, expected):
    predict = Predict(step_of(config(**EVERY)).layout, toys.one_device())
    given = {"name": "retrieval", "reads": {"image": name}}
    with pytest.raises(InputError, match=expected):
        run.make_evaluators({"found": given}, predict, None)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"derived": {"text": {"name": "marked"}}}, "'text' is the name of an input of records"),
        ({"fusions": {"image": {"name": "summed"}}}, "'image' is the name of a tower"),
        ({"derived": {"marked": {"reads": {"txt": "a.b"}}}}, "did you mean 'text'"),
        ({"derived": {"marked": {"of": "vector"}}}, "tower 'image' is of kind image"),
        ({"derived": {"marked": {"of": "imge"}}}, "config.derived.marked.of 'imge' .did you mean"),
        ({"derived": {"marked": {"of": "marked"}}}, "each other on: marked -> marked; expected no"),
        ({"derived": {"summed": {"name": "marked"}}}, "'summed' is the name of a fusion"),
        ({"fusions": {"labels": {"name": "summed"}}}, "'labels' is the name of an input"),
        ({"average": {"decay": -0.1}}, r"config.average.decay=-0.1; expected 0 to 1"),
    ],
)
def test_configs_that_cannot_be_wired_are_refused(change, expected):
    chosen = config(**EVERY)
    for key, value in change.items():
        for name, one in value.items():
            chosen[key][name] = one
    with pytest.raises(InputError, match=expected):
        configs.validate(chosen)


def test_a_derived_input_carries_on_the_rows_that_another_selects():
    chosen = config(far=contrast("image.embedding", "text@far.embedding"))
    step = step_of(chosen)
    state, batch = stubs.start(step), placed(step)
    module = step.layout.merge(state["params"], state["variables"])
    wired = wiring.Wiring.of(module.wired.graph, ["text@far.embedding"], ["far.tokens", "far.mask"])
    found = module.encode(batch, train=True, wired=wired)
    mask = np.roll(batch["text.mask"], 1, axis=0) & (np.arange(batch["text.mask"].shape[1]) < 3)
    expected = module.towers["text"](
        {"text": {"tokens": np.roll(batch["text.tokens"], 1, axis=0), "mask": mask}},
        {"text": ("embedding",)},
    )
    np.testing.assert_allclose(
        found["text@far.embedding"], expected["text"]["embedding"], atol=1e-6
    )


@pytest.mark.parametrize("count", [1, 4])
def test_arrays_that_an_input_carries_on_are_read_under_its_name(count):
    chosen = config(count, plain=EVERY["plain"], counted={})
    step = step_of(chosen)
    batch = placed(step)
    read = step.layout.merge(*(stubs.start(step)[key] for key in ("params", "variables")))
    _, metrics = read(batch, step=jnp.int32(0), train=True)
    weights = np.arange(16) @ np.roll(batch["text.tokens"], 1, axis=0).sum(axis=1)
    np.testing.assert_allclose(metrics["counted/loss"][0], weights)
    assert {"far.tokens", "turned.rows"} <= step.layout.wired.kept[1]


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("module", "argument", "name", "expected"),
    [
        (
            "objectives.plain",
            "image",
            "image.local",
            r"image image@image.local \[16, 16, 32\]; expe",
        ),
        (
            "objectives.plain",
            "group",
            "text.tokens",
            r"group text.tokens \[16, .*\]; expected .* as g",
        ),
        (
            "objectives.plain",
            "group",
            "text.tokns",
            r"unknown array 'text.tokns' .did you mean 'tex",
        ),
        ("derived.turned", "imag", "image.local", "argument in config.derived.turned.reads"),
        (
            "fusions.summed",
            "image",
            "text.words",
            r"config.fusions.summed.reads: image text@text.words",
        ),
    ],
)
def test_names_of_other_shapes_and_unknown_arrays_are_refused(module, argument, name, expected):
    chosen = config(**EVERY)
    place, _, own = module.partition(".")
    chosen[place][own].reads = {**chosen[place][own].get("reads", {}), argument: name}
    with pytest.raises(InputError, match=expected):
        step_of(chosen)


def test_an_argument_follows_another_one_unless_it_is_redirected():
    defaults = {"words": "fused.words", "control": "words", "group": "group"}
    for given, control in (({}, "fused.words"), ({"words": "text.words"}, "text.words")):
        assert wiring.redirected("x", defaults, given)["control"] == control
    found = wiring.redirected("x", defaults, {"control": "text.words"})
    assert found == {"words": "fused.words", "control": "text.words", "group": "group"}


# Averaged weights.

TEACHER = {"teacher": contrast("image.embedding", "average/text.embedding")}


def averaged(decay, steps=3, **options):
    chosen = config(**TEACHER)
    chosen.average.update(decay=decay, **options)
    step = step_of(chosen)
    state = stubs.start(step)
    state["average"] = jax.tree.map(jnp.copy, state["params"])
    before = jax.device_get(state)
    for _ in range(steps):
        state = step(state, placed(step))
    return step, before, state


def test_with_decay_0_the_teacher_is_the_student_and_with_decay_1_the_first_weights():
    _, before, state = averaged(0.0)
    jax.tree.map(np.testing.assert_array_equal, state["average"], state["params"])
    _, before, state = averaged(1.0)
    jax.tree.map(np.testing.assert_array_equal, state["average"], before["params"])
    image = (part["params"]["towers"]["image"] for part in (state, before))
    assert any(np.any(one != two) for one, two in zip(*map(jax.tree.leaves, image), strict=True))


def test_an_average_of_bfloat16_parameters_follows_in_small_steps():
    chosen = config(**TEACHER)
    chosen.param_dtype = "bfloat16"
    chosen.average.decay = 0.999
    step = step_of(chosen)
    state = stubs.start(step)
    old = jax.device_get(jax.tree.leaves(state["average"]["towers"]))
    state = step(state, placed(step))
    new, params = (jax.tree.leaves(state[key]["towers"]) for key in ("average", "params"))
    for before, after, param in zip(old, new, params, strict=True):
        expected = 0.999 * before + 0.001 * np.asarray(param, np.float32)
        np.testing.assert_allclose(after, expected, rtol=1e-6, atol=1e-7)


def test_the_teacher_gets_no_gradient_and_reads_no_dropout():
    step, before, _ = averaged(0.5, steps=0)
    _, slopes = step.loss_and_gradients(jax.device_put(before, step.shardings), placed(step))
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(slopes["towers"]["text"]))
    assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(slopes["towers"]["image"]))


def test_the_decay_follows_its_schedule_and_its_warm_up():
    linear = {"kind": "linear", "start": 0.0, "end": 1.0, "from_step": 0, "steps": 2}
    _, before, state = averaged(linear, steps=1)  # decay 0
    jax.tree.map(np.testing.assert_array_equal, state["average"], state["params"])
    _, before, state = averaged(0.9, steps=1, warm_up=True)  # 2 / 11
    for average, start, end in zip(
        *map(jax.tree.leaves, (state["average"], before["params"], state["params"])), strict=True
    ):
        np.testing.assert_allclose(average, start * 2 / 11 + end * 9 / 11, atol=1e-6)


def test_weights_are_averaged_only_where_something_uses_them():
    step = step_of(config(plain=EVERY["plain"]))
    assert "average" not in step.abstract
    with pytest.raises(InputError, match=r"the run keeps no averaged weights"):
        Predict(step.layout, toys.one_device()).check(["average/image.embedding"])
    assert step_of(config(**TEACHER)).layout.weights_of(
        {"params": 1, "average": 2, "variables": 3}
    ) == {"params": 1, "average": 2, "variables": 3}
