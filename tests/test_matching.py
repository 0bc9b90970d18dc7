"""Image-text matching: a float64 reference, absent rows, metrics and hard negatives."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from mmrl import config as configs
from mmrl.context import Context
from mmrl.devices import sharding
from mmrl.models.derived.hard_negatives import HardNegatives
from mmrl.objectives.matching import Matching, matching_loss
from mmrl.training.step import TrainStep
from mmrl.types import InputError
from tests import stubs, toys
from tests.arrays import assert_close, on_mesh, unit

B, D = 8, 6
PRESENT = np.array([1, 1, 0, 1, 1, 1, 0, 1], bool)
GROUP = np.array([0, 1, 2, 3, 0, 5, 3, 3], np.int32)


def logits(size=B, seed=0):
    drawn = np.random.default_rng(seed).normal(size=(3, size, 2)).astype(np.float32)
    return dict(zip(("positive", "negative_text", "negative_image"), drawn, strict=True))


def reference(pairs):
    """Value, accuracies and gradients in float64."""
    size, value, right, slopes = len(pairs["positive"]), 0.0, {}, {}
    for name, one in pairs.items():
        one = one.astype(np.float64)
        chances = np.exp(one) / np.exp(one).sum(axis=1, keepdims=True)
        label = int(name == "positive")
        value -= np.log(chances[:, label]).sum() / (3 * size)
        slopes[name] = (chances - np.eye(2)[label]) / (3 * size)
        right[name] = (chances.argmax(axis=1) == label).mean()
    accuracy = sum(right.values()) / 3
    negative = (right["negative_text"] + right["negative_image"]) / 2
    return value, accuracy, (right["positive"] + negative) / 2, slopes


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("present", [None, PRESENT], ids=["all", "some"])
@pytest.mark.parametrize("mesh", [None, (2, 2, 2)], ids=["one device", "a mesh"])
def test_equals_the_reference_without_the_absent_rows(present, mesh):
    pairs = logits()
    value, accuracy, balanced, slopes = reference(
        {name: x if present is None else x[present] for name, x in pairs.items()}
    )
    if present is not None:
        for x in pairs.values():
            x[~present] = np.nan
    given = pairs
    if mesh:
        (given,) = on_mesh(mesh, pairs)

    @jax.jit
    def both(pairs):
        return jax.value_and_grad(lambda pairs: matching_loss(**pairs, present=present))(pairs)

    got, gradients = jax.device_get(both(given))
    assert_close(got, np.float64(value))
    for name, x in gradients.items():
        kept = x if present is None else x[present]
        assert_close(kept, slopes[name])
        assert present is None or not x[~present].any()
    loss = Matching()(context=Context(jnp.int32(0), None, present), **given)
    assert_close(loss.value, got)
    means = {name: float(total / weight) for name, (total, weight) in loss.metrics.items()}
    assert_close(means, {"loss": value, "accuracy": accuracy, "balanced_accuracy": balanced})


def test_constants():
    same = dict.fromkeys(logits(), np.zeros((B, 2), np.float32))
    assert np.isclose(matching_loss(**same), np.log(2))
    assert matching_loss(**logits(), present=np.zeros(B, bool)) == 0
    no = dict.fromkeys(logits(), np.tile(np.float32([3, 0]), (B, 1)))
    metrics = Matching()(context=Context(jnp.int32(0)), **no).metrics
    assert np.isclose(metrics["accuracy"][0] / B, 2 / 3)
    assert np.isclose(metrics["balanced_accuracy"][0] / B, 1 / 2)
    with pytest.raises(ValueError, match=r"logits must be \[B, 2\]"):
        matching_loss(**{**same, "positive": np.zeros((B, 3), np.float32)})


def select(seeds=1, present=PRESENT, group=GROUP, index=None, **options):
    """Rows and `present` that HardNegatives finds with several keys, as NumPy arrays [N, B]."""
    image, text = unit(B, D, seed=1), unit(B, D, seed=2)
    # Absent rows may hold anything.
    image[~PRESENT & (present is not None)] = np.nan
    chosen = HardNegatives(**options)

    @jax.jit
    @jax.vmap
    def found(key):
        return chosen(
            context=Context(jnp.int32(0), key, present),
            given={},
            image=image,
            text=text,
            group=jnp.asarray(group),
            index=jnp.arange(B, dtype=jnp.int32) if index is None else jnp.asarray(index),
        )

    keys = jax.random.split(jax.random.key(0), seeds)
    return {name: np.asarray(x) for name, x in found(keys).items()}


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("draw", ["sampled", "hardest", "uniform"])
@pytest.mark.parametrize("side", ["text", "image"])
def test_negatives_are_present_and_no_duplicates(draw, side):
    found = select(40, draw=draw, side=side)
    assert (found["present"] == PRESENT).all()
    rows = found["rows"][:, PRESENT]
    assert rows.dtype == np.int32 and PRESENT[rows].all()
    assert (GROUP[rows] != GROUP[PRESENT]).all()
    different = [len(set(column)) for column in rows.T.tolist()]
    assert max(different) == 1 if draw == "hardest" else max(different) > 2


ALL = {"present": None, "group": np.arange(B, dtype=np.int32)}


def scores():
    """Similarities of images with texts, f64[B, B], without those of pairs."""
    dot = np.asarray(unit(B, D, seed=1) @ unit(B, D, seed=2).T, np.float64)
    return np.where(np.eye(B, dtype=bool), -np.inf, dot)


def test_the_hardest_is_the_most_similar():
    found = select(draw="hardest", **ALL)["rows"][0]
    np.testing.assert_array_equal(found, scores().argmax(axis=1))
    found = select(draw="hardest", side="image", **ALL)["rows"][0]
    np.testing.assert_array_equal(found, scores().T.argmax(axis=1))


def test_draws_follow_the_softmax():
    chances = np.exp(scores() / 0.5)
    chances /= chances.sum(axis=1, keepdims=True)
    draws = select(400, temperature=0.5, **ALL)["rows"]
    shares = np.stack([(draws == column).mean(axis=0) for column in range(B)], axis=1)
    # Four standard deviations of a share of 400 draws.
    assert (np.abs(shares - chances) < 4 * np.sqrt(chances / 400) + 0.01).all()


def test_a_batch_of_one_group_has_no_negatives():
    assert not select(group=np.zeros(B, np.int32))["present"].any()


def test_a_row_draws_by_its_index():
    first, again = (select(**ALL)["rows"] for _ in range(2))
    other = select(**ALL, index=np.arange(B, dtype=np.int32) + 100)["rows"]
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": "both"}, "unknown side 'both'; choices: text, image"),
        ({"draw": "easy"}, "unknown draw 'easy'; choices: sampled, hardest, uniform"),
        ({"temperature": 0.0}, "temperature 0.0; expected more than 0"),
    ],
)
def test_wrong_options_name_the_choices(options, message):
    with pytest.raises(InputError, match=message):
        HardNegatives(**options)


def step_of(count=1, devices=1, **options):
    """A step of co-attention and matching with drawn negatives, on towers that compile fast."""
    chosen = toys.config(batch_size=16, gradient_cache=count)
    chosen.objectives = ml_collections.ConfigDict({"matching": {}})
    stubs.use(chosen)
    chosen.optimizer.name, chosen.optimizer.warmup_steps = "sgd", 0
    chosen.derived = ml_collections.ConfigDict(
        {
            f"negative_{side}": {"name": "hard_negatives", "of": side, "side": side}
            for side in ("text", "image")
        }
    )
    fused = {"name": "co_attention", "depth": 1, "num_heads": 2, "heads": {"match": 2}, **options}
    chosen.fusions = ml_collections.ConfigDict({"fused": fused})
    chosen.evaluators = ml_collections.ConfigDict()
    configs.validate(chosen)
    mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, devices=jax.devices()[:devices])
    return TrainStep(chosen, mesh, toys.batches(chosen)[0])


@pytest.mark.exhaustive
@pytest.mark.optax
def test_what_a_fusion_computes_again_counts_once():
    with stubs.registered():
        assert step_of(remat="full", chunk=5).model_flops() == step_of().model_flops()


@pytest.mark.parametrize(
    ("side", "of", "expected"),
    [
        ("text", "image", "side text with `of` an input of image towers; expected one of text"),
        ("image", "text", "side image with `of` an input of text towers; expected one of image"),
    ],
)
def test_what_is_selected_is_of_the_kind_of_its_side(side, of, expected):
    kinds = {"of": of, "image": "image", "text": "text"}
    with pytest.raises(InputError, match=expected):
        HardNegatives(side=side, kinds=kinds)
    HardNegatives(side=side, kinds={**kinds, "of": side})


@pytest.mark.exhaustive
@pytest.mark.optax
def test_micro_batches_and_devices_change_no_loss_and_no_gradient():
    with stubs.registered():
        whole, parts = step_of(), step_of(2, 8)
        start = jax.device_get(stubs.start(whole))
        found = []
        for step in (whole, parts):
            batch = sharding.to_global(
                toys.batches(step.config)[0], sharding.batch_sharding(step.mesh)
            )
            state = jax.device_put(start, step.shardings)
            found.append(jax.device_get(step.loss_and_gradients(state, batch)))
    (loss, slopes), (again, other) = found
    assert_close(again, loss)
    assert_close(other, slopes, floor=1.0)
    assert np.abs(slopes["fusions"]["fused"]["words_00"]["mlp"]["out"]["kernel"]).max() > 1e-4
    assert np.abs(slopes["towers"]["image"]["encoder"]["first"]["kernel"]).max() > 1e-5
