"""Rows that lack an input: each pairwise loss is that of the batch without these rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.objectives.base import Context, negatives, two_way_cross_entropy
from mmrl.objectives.global_contrastive import GlobalContrastive, contrastive_loss
from mmrl.objectives.local_contrastive import LocalContrastive, local_contrastive_loss
from mmrl.objectives.siglip import Siglip, siglip_loss
from tests import references
from tests.arrays import assert_close, on_mesh, unit

B, W, R, D = 24, 10, 5, 6
MESH = (2, 2, 2)
# (implementation, chunk size, on the mesh): chunks of 5 of 24 pairs, and of 2 of the 3 of a device.
FORMS = {
    "dense": ("dense", 0, False),
    "dense on a mesh": ("dense", 0, True),
    "chunked": ("chunked", 5, False),
    "ring": ("ring", 2, True),
}
# The first device has no present row; the last has all three of its rows.
PRESENT = np.array([0, 0, 0, 1, 0, 1, 1, 1, 0, 0, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 1, 1, 1, 1], bool)


def make_inputs(present=PRESENT):
    """Features and marks of B pairs; absent rows hold zeros or huge numbers."""
    rng = np.random.default_rng(0)
    features = {
        "image": unit(B, D, seed=1),
        "text": unit(B, D, seed=2),
        "words": rng.normal(size=(B, W, D)).astype(np.float32),
        "regions": rng.normal(size=(B, R, D)).astype(np.float32),
    }
    for x in features.values():
        x[~present] = np.float32(1e30)
        x[::2][~present[::2]] = 0.0
    mask = np.arange(W)[None] < rng.integers(1, W + 1, size=B)[:, None]
    mask[3], mask[4] = False, True
    # Groups of present rows, of absent rows and of both.
    group = rng.integers(0, B // 2, size=B).astype(np.int32)
    return features, {"mask": mask, "group": group}


def losses(features, marks, present, **options):
    """Global, sigmoid and local loss of the same pairs."""
    options |= {"group": marks["group"], "present": present}
    image, text, scale = features["image"], features["text"], features["scale"]
    return {
        "global": contrastive_loss(image, text, scale, **options),
        "siglip": siglip_loss(image, text, scale, features["bias"], **options),
        "local": local_contrastive_loss(
            features["words"], marks["mask"], features["regions"], **options
        ),
    }


def value_and_gradients(features, marks, present, form="dense"):
    """All losses, and the gradients of their sum with different weights."""
    implementation, chunk_size, spread = FORMS[form]
    if spread:
        features, marks = on_mesh(MESH, features, marks)
        (present,) = on_mesh(MESH, present)
    features = {**features, "scale": jnp.float32(2.3), "bias": jnp.float32(-3.0)}

    @jax.jit
    def both(features, marks, present):
        def weighted(features):
            values = losses(
                features, marks, present, implementation=implementation, chunk_size=chunk_size
            )
            return values["global"] + 2.0 * values["siglip"] + 3.0 * values["local"], values

        return jax.grad(weighted, has_aux=True)(features)

    return jax.device_get(both(features, marks, present))


def rows_of(present, tree):
    """The rows of each array that are present; scalars as they are."""
    return jax.tree.map(lambda x: x[present] if np.ndim(x) else x, tree)


@pytest.fixture(scope="module")
def without():
    """Losses and gradients of the batch from which the absent rows were deleted."""
    with jax.numpy_dtype_promotion("strict"):
        return value_and_gradients(*rows_of(PRESENT, make_inputs()), None)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("form", FORMS)
def test_absent_rows_might_as_well_be_deleted(without, form):
    gradients, values = value_and_gradients(*make_inputs(), PRESENT, form)
    assert_close(values, without[1])
    assert_close(rows_of(PRESENT, gradients), without[0])
    for name in make_inputs()[0]:
        np.testing.assert_array_equal(gradients[name][~PRESENT], 0)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("form", FORMS)
def test_a_batch_of_present_rows_is_as_before(form):
    everyone = np.ones(B, bool)
    inputs = make_inputs(everyone)
    got = value_and_gradients(*inputs, everyone, form)
    assert_close(got, value_and_gradients(*inputs, None, form), 1e-6)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("form", FORMS)
def test_a_batch_of_absent_rows_gives_zero(form):
    nobody = np.zeros(B, bool)
    for x in jax.tree.leaves(value_and_gradients(*make_inputs(nobody), nobody, form)):
        np.testing.assert_array_equal(x, 0)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("implementation", "spread"), [("chunked", False), ("ring", True)])
def test_the_kernel_leaves_absent_rows_out_too(implementation, spread):
    features, marks = make_inputs()

    def gradient(present, words, mask, regions, group, **options):
        def loss(words, regions):
            return local_contrastive_loss(
                words, mask, regions, group=group, present=present, **options
            )

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(words, regions)

    arrays = (features["words"], marks["mask"], features["regions"], marks["group"])
    expected = gradient(None, *rows_of(PRESENT, arrays))
    inputs = (PRESENT, *arrays)
    if spread:
        (inputs,) = on_mesh(MESH, inputs)
    value, slopes = gradient(*inputs, implementation=implementation, tile="kernel")
    assert_close((value, rows_of(PRESENT, slopes)), expected)
    for slope in slopes:
        np.testing.assert_array_equal(slope[~PRESENT], 0)


@pytest.mark.parametrize("group", [None, np.array([0, 1, 0, 2, 1, 0, 3], np.int32)])
def test_the_cross_entropy_equals_the_reference_on_the_present_rows(group):
    present = np.array([1, 0, 1, 1, 1, 0, 1], bool)
    logits = np.random.default_rng(0).normal(scale=4.0, size=(7, 7)).astype(np.float32)

    def reference(wide):
        kept = wide[present][:, present]
        return references.two_way(kept, None if group is None else group[present])

    value, slope = jax.value_and_grad(two_way_cross_entropy)(jnp.asarray(logits), group, present)
    assert_close(value, reference(logits.astype(np.float64)))
    assert_close(slope, references.gradient(reference, logits))
    np.testing.assert_array_equal(slope[~present], 0)
    np.testing.assert_array_equal(slope[:, ~present], 0)


def test_absent_rows_are_nobodys_negatives():
    group = np.array([0, 0, 1, 2], np.int32)
    got = negatives(group, 4, np.array([1, 1, 1, 0], bool))
    expected = [[1, 0, 1, 0], [0, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(got, np.array(expected, bool))


@pytest.mark.parametrize("wrong", [np.ones(2, bool), np.ones(3, np.float32)])
def test_a_mask_of_another_shape_or_type_is_refused(wrong):
    image, text = unit(3, D, seed=1), unit(3, D, seed=2)
    with pytest.raises(ValueError, match=r"present must be bool\[3\]"):
        contrastive_loss(image, text, jnp.float32(1.0), present=wrong)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("objective", [GlobalContrastive, Siglip, LocalContrastive])
def test_metrics_weigh_a_loss_by_its_present_rows(objective):
    features, marks = make_inputs()
    arrays = {**features, "word_mask": marks["mask"], "group": marks["group"]}
    names = (*objective.reads, *objective.batch)
    context = Context(step=jnp.int32(0), present=jnp.asarray(PRESENT))
    loss = objective()(context=context, **{name: jnp.asarray(arrays[name]) for name in names})
    total, weight = loss.metrics["loss"]
    assert float(weight) == PRESENT.sum()
    assert_close(total, loss.value * weight, 1e-6)
