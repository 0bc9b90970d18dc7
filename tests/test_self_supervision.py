"""Objectives that predict codes, patches and tokens: their state, metrics, and a short run."""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

from mmrl import config as configs
from mmrl.devices import sharding
from mmrl.models.derived.base import Derived
from mmrl.models.fusion.patch_decoder import PatchDecoder
from mmrl.objectives.base import Context
from mmrl.objectives.distillation import Distillation, distillation_loss
from mmrl.objectives.entities import Entities, entity_loss
from mmrl.objectives.koleo import Koleo
from mmrl.objectives.masked_image import (
    MaskedImage,
    fourier_loss,
    masked_image_loss,
    masked_region_loss,
    patchify,
)
from mmrl.objectives.masked_patches import MaskedPatches
from mmrl.objectives.masked_regions import MaskedRegions
from mmrl.objectives.masked_text import MaskedText, masked_text_loss
from mmrl.objectives.mil_nce import MilNce, mil_nce_loss
from mmrl.objectives.prototypes import Prototypes, code_metrics, prototype_alignment_loss
from mmrl.objectives.self_distillation import (
    SelfDistillation,
    dino_loss,
    koleo_loss,
    masked_patch_loss,
    teacher_codes,
)
from mmrl.objectives.swapped_prediction import SwappedPrediction, swapped_prediction_loss
from mmrl.objectives.token_alignment import TokenAlignment, token_alignment_loss
from mmrl.training.step import TrainStep
from mmrl.types import InputError
from tests import stubs, toys
from tests.arrays import assert_close, randomized, unit

B, S, V, P, K, D = 4, 2, 3, 4, 5, 6
PRESENT = np.array([1, 0, 1, 1], bool)
SOME = pytest.mark.parametrize("present", [None, PRESENT], ids=["all", "some"])


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def context(step=0, present=None, *, train=True, average=None):
    key = jax.random.key(0) if train else None
    present = None if present is None else jnp.asarray(present)
    return Context(jnp.int32(step), key, present, average)


@functools.partial(jax.jit, static_argnums=0)
def _call(graphdef, state, told, arrays):
    module = nnx.merge(graphdef, state)
    loss = module(context=told, **arrays)
    return loss, nnx.state(module)


def run(module, told, **arrays):
    """The loss, the metrics as numbers, and the module with the state that the call left."""
    graphdef, state = nnx.split(module)
    (value, metrics), state = _call(graphdef, state, told, arrays)
    numbers = {name: float(total / weight) for name, (total, weight) in metrics.items()}
    return float(value), numbers, nnx.merge(graphdef, state)


def of(function, *arrays, **options):
    """What a function returns, compiled, because that takes less time."""
    return jax.device_get(jax.jit(functools.partial(function, **options))(*arrays))


def rows_of(present):
    return slice(None) if present is None else present


def dirty(present, array):
    """The array with what is not a number in the rows that are absent."""
    array = array.copy()
    if present is not None:
        array[~present] = np.nan
    return jnp.asarray(array)


def widths(*names, size):
    return dict.fromkeys(names, size)


@SOME
@pytest.mark.default_cases(1)
@pytest.mark.parametrize("method", ["sinkhorn", "centre"])
def test_self_distillation_compares_all_crops(method, present):
    wide, local, teacher = drawn(B, S, K), drawn(B, V, K, seed=1), drawn(B, S, K, seed=2)
    sizes = widths("wide", "local", "teacher", size=K)
    module = SelfDistillation(method=method, teacher_temperature=0.1, widths=sizes)
    given = {"wide": wide, "local": local, "teacher": teacher}
    dirtied = {name: dirty(present, x) for name, x in given.items()}
    value, metrics, after = run(module, context(present=present), **dirtied)
    rows = rows_of(present)
    scores = np.swapaxes(teacher[rows], 0, 1).reshape(-1, K)
    options = {"centre": np.zeros(K, np.float32)} if method == "centre" else {}
    codes = of(teacher_codes, scores, temperature=0.1, method=method, **options)
    views = np.swapaxes(np.concatenate([wide, local], axis=1)[rows], 0, 1)
    expected = of(dino_loss, views, codes.reshape(S, -1, K))
    assert value == pytest.approx(float(expected), rel=1e-5)
    assert metrics["loss"] == pytest.approx(value, rel=1e-6)
    entropy = -(codes * np.log(codes)).sum(axis=1).mean() / np.log(K)
    assert metrics["code_entropy"] == pytest.approx(float(entropy), rel=1e-5)
    assert metrics["prototypes_used"] == len(np.unique(codes.argmax(axis=1)))
    if method == "centre":
        assert_close(after.codes.centre[...], 0.1 * scores.mean(axis=0), 1e-5)
    alone = SelfDistillation(method=method, teacher_temperature=0.1, local=False, widths=sizes)
    value, *_ = run(alone, context(), **{**given, "local": np.full_like(local, np.nan)})
    assert np.isfinite(value)


def test_a_centre_counts_from_the_next_step_on_and_not_in_evaluation():
    sizes = widths("wide", "local", "teacher", size=K)
    module = SelfDistillation(momentum=0.5, teacher_temperature=0.5, widths=sizes)
    given = {"wide": drawn(B, S, K), "local": drawn(B, V, K), "teacher": drawn(B, S, K) + 1}
    mean = given["teacher"].mean(axis=(0, 1))
    first, _, once = run(module, context(), **given)
    assert_close(once.codes.centre[...], 0.5 * mean)
    second, _, twice = run(once, context(1), **given)
    assert_close(twice.codes.centre[...], 0.75 * mean)
    assert first != pytest.approx(second, rel=1e-3)
    _, _, evaluated = run(once, context(1, train=False), **given)
    assert_close(evaluated.codes.centre[...], once.codes.centre[...], 0.0)
    _, _, empty = run(once, context(1, np.zeros(B, bool)), **given)
    assert_close(empty.codes.centre[...], once.codes.centre[...], 0.0)


def test_the_temperature_of_the_teacher_follows_its_schedule():
    sizes = widths("wide", "local", "teacher", size=K)
    rising = {"kind": "linear", "start": 0.1, "end": 0.5, "steps": 10}
    given = {"wide": drawn(B, S, K), "local": drawn(B, V, K), "teacher": drawn(B, S, K)}
    module = SelfDistillation(teacher_temperature=rising, widths=sizes)
    for step, temperature in ((0, 0.1), (10, 0.5)):
        fixed = SelfDistillation(teacher_temperature=temperature, widths=sizes)
        expected, *_ = run(fixed, context(), **given)
        assert run(module, context(step), **given)[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.default_cases(1)
@SOME
def test_masked_patches_of_crops_are_those_of_as_many_images(present):
    student, teacher = drawn(B, S, P, K), drawn(B, S, P, K, seed=1)
    mask = np.random.default_rng(2).random((B, S, P)) < 0.5
    module = MaskedPatches(
        method="sinkhorn", teacher_temperature=0.2, widths=widths("student", "teacher", size=K)
    )
    given = {"student": dirty(present, student), "teacher": dirty(present, teacher)}
    value, metrics, _ = run(module, context(present=present), **given, mask=mask)
    rows = rows_of(present)
    hidden = mask[rows].reshape(-1, P)
    codes = of(teacher_codes, teacher[rows].reshape(-1, P, K)[hidden], temperature=0.2)
    targets = np.zeros((len(hidden), P, K), np.float32)
    targets[hidden] = codes
    logits = student[rows].reshape(-1, P, K)
    assert value == pytest.approx(float(of(masked_patch_loss, logits, targets, hidden)), rel=1e-5)
    right = logits[hidden].argmax(axis=1) == codes.argmax(axis=1)
    assert metrics["accuracy"] == pytest.approx(right.mean())
    assert {"code_entropy", "prototypes_used", "loss"} < set(metrics)


def test_koleo_adds_up_the_crops():
    features = drawn(B, S, D)
    value, *_ = run(Koleo(), context(), features=features)
    expected = sum(float(of(koleo_loss, features[:, s])) for s in range(S))
    assert value == pytest.approx(expected, rel=1e-6)
    one, *_ = run(Koleo(), context(), features=features[:, 0])
    assert one == pytest.approx(float(of(koleo_loss, features[:, 0])), rel=1e-6)


def make_prototypes(kind, **options):
    names = ("image", "text") if kind is Prototypes else ("wide", "local")
    return kind(prototypes=K, widths=widths(*names, size=D), rngs=nnx.Rngs(0), **options)


@pytest.mark.default_cases(1)
@SOME
def test_prototypes_align_images_and_reports(present):
    image, text = drawn(B, D), drawn(B, D, seed=1)
    module = make_prototypes(Prototypes, temperature=0.3)
    rows, held = rows_of(present), module.prototypes[...]
    np.testing.assert_allclose(np.linalg.norm(held, axis=1), 1.0, rtol=1e-5)
    value, metrics, _ = run(
        module, context(present=present), image=dirty(present, image), text=dirty(present, text)
    )
    expected = of(prototype_alignment_loss, image[rows], text[rows], held, temperature=0.3)
    assert value == pytest.approx(float(expected), rel=1e-5)
    assert 0 < metrics["code_entropy"] <= 1 and 1 <= metrics["prototypes_used"] <= K


def test_a_collapse_shows_in_the_metrics():
    same = code_metrics(jnp.full((7, K), 1 / K))
    one = code_metrics(jnp.eye(K)[jnp.zeros(7, int)])
    spread = code_metrics(jnp.eye(K))
    assert float(same["code_entropy"][0] / 7) == pytest.approx(1.0)
    assert float(one["code_entropy"][0]) == pytest.approx(0.0, abs=1e-6)
    used = [float(x["prototypes_used"][0]) for x in (same, one, spread)]
    assert used == [1, 1, K]


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("kind", [Prototypes, SwappedPrediction])
def test_prototypes_are_frozen_at_first_and_keep_their_length(kind):
    module = make_prototypes(kind, frozen_steps=3)
    names = {"image": drawn(B, D), "text": drawn(B, D, seed=1)}
    if kind is SwappedPrediction:
        names = {"wide": drawn(B, S, D), "local": drawn(B, V, D, seed=1)}
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)

    @jax.jit
    def slope(step):
        def loss(params):
            return nnx.merge(graphdef, params, rest)(context=context(step), **names).value

        return jax.grad(loss)(params)

    for step, moves in ((2, False), (3, True)):
        (found,) = jax.tree.leaves(slope(jnp.int32(step)))
        assert bool(np.abs(found).max() > 0) == moves
    module.prototypes[...] = 3 * module.prototypes[...]
    module.post_update(context())
    np.testing.assert_allclose(np.linalg.norm(module.prototypes[...], axis=1), 1.0, rtol=1e-5)


@pytest.mark.default_cases(1)
@SOME
def test_crops_predict_each_other_with_a_queue_that_fills(present):
    module = make_prototypes(SwappedPrediction, queue=2 * B + 1, queue_from=1)
    held, rows = module.prototypes[...], rows_of(present)
    queue = np.zeros((S, 0, D), np.float32)
    for step in range(4):
        wide, local = drawn(B, S, D, seed=step), drawn(B, V, D, seed=9 + step)
        views = np.swapaxes(np.concatenate([wide, local], axis=1)[rows], 0, 1)
        used = queue if queue.shape[1] and step >= 1 else None
        expected = of(swapped_prediction_loss, views, held, queue=used)
        value, metrics, module = run(
            module,
            context(step, present),
            wide=dirty(present, wide),
            local=dirty(present, local),
        )
        assert value == pytest.approx(float(expected), rel=1e-4)
        assert set(metrics) == {"loss", "code_entropy", "prototypes_used"}
        newest = np.swapaxes(wide / np.linalg.norm(wide, axis=2, keepdims=True), 0, 1)
        if present is not None:  # absent rows leave places that do not count
            newest = newest * present[:, None]
        queue = np.concatenate([newest, queue], axis=1)[:, : 2 * B + 1]
        assert_close(module.queue[...][:, : queue.shape[1]], queue, 1e-5)
    before = module.queue[...]
    _, _, after = run(module, context(4, train=False), wide=wide, local=local)
    assert_close(after.queue[...], before, 0.0)


def test_a_teacher_has_its_averaged_scale_or_a_fixed_one():
    arrays = {name: unit(B, D, seed=i) for i, name in enumerate(Distillation.reads)}
    module, average = Distillation(temperature=0.1), Distillation(temperature=0.5)
    ordered = list(arrays.values())

    def expected(scale):
        return float(of(distillation_loss, *ordered[:2], 10.0, *ordered[2:], scale))

    for given, told, scale in (
        (module, context(average=average), 2.0),
        (module, context(), 10.0),
        (Distillation(temperature=0.1, teacher_temperature=0.25), context(average=average), 4.0),
    ):
        loss = given(context=told, **{name: jnp.asarray(x) for name, x in arrays.items()})
        assert float(loss.value) == pytest.approx(expected(scale), rel=1e-5)


@SOME
def test_entities_are_judged_in_both_modalities(present):
    rng = np.random.default_rng(0)
    image, text = drawn(B, K), drawn(B, K, seed=1)
    values = rng.integers(0, 3, (B, K)).astype(np.float32)  # 2: uncertain
    mask = rng.random((B, K)) < 0.8
    told = context(present=present)
    given = {"image": dirty(present, image), "text": dirty(present, text)}
    value, metrics, _ = run(Entities(), told, **given, values=values, mask=mask)
    known = mask & (values < 2) & (True if present is None else present[:, None])
    expected = [float(of(entity_loss, x, values, known)) for x in (image, text)]
    assert value == pytest.approx(sum(expected), rel=1e-5)
    assert [metrics["image"], metrics["text"]] == pytest.approx(expected, rel=1e-5)
    right = ((image > 0) == (values > 0.5))[known].mean()
    assert metrics["image_accuracy"] == pytest.approx(right)


@SOME
@pytest.mark.default_cases(1)
@pytest.mark.parametrize("chunk", [0, 3])
def test_masked_text_is_the_loss_of_its_logits(present, chunk):
    words, length = drawn(B, 7, D), 7
    targets = np.where(np.random.default_rng(1).random((B, length)) < 0.4, 3, -1).astype(np.int32)
    targets[0, 0], targets[2, 5] = 10, 0
    module = MaskedText(
        chunk=chunk, control=True, vocab_size=11, widths={"words": D}, rngs=nnx.Rngs(0)
    )
    module.bias[...] = jnp.asarray(drawn(11, seed=5))
    rows = rows_of(present)
    other = drawn(B, length, D, seed=2)
    given = {"words": dirty(present, words), "control": dirty(present, other), "targets": targets}
    given["control_targets"] = swapped = targets[::-1].copy()
    value, metrics, _ = run(module, context(present=present), **given)
    assert set(metrics) == {"loss", "accuracy"}
    logits = words[rows] @ np.asarray(module.kernel[...]) + np.asarray(module.bias[...])
    hidden = targets[rows] >= 0
    expected = of(masked_text_loss, logits, targets[rows], hidden)
    assert value == pytest.approx(float(expected), rel=1e-5)
    right = (logits.argmax(axis=2) == targets[rows])[hidden].mean()
    assert metrics["accuracy"] == pytest.approx(right)
    _, metrics, _ = run(module, context(present=present, train=False), **given)
    logits = other[rows] @ np.asarray(module.kernel[...]) + np.asarray(module.bias[...])
    control = (logits.argmax(axis=2) == swapped[rows])[swapped[rows] >= 0].mean()
    assert (metrics["accuracy"], metrics["control_accuracy"]) == pytest.approx((right, control))
    _, times = np.unique(targets[rows][hidden], return_counts=True)
    assert metrics["most_frequent_accuracy"] == pytest.approx(times.max() / hidden.sum())
    with pytest.raises(InputError, match="no text tower"):
        MaskedText(vocab_size=None, widths={"words": D}, rngs=nnx.Rngs(0))


@pytest.mark.default_cases(1)
@SOME
def test_masked_regions_are_found_among_all(present):
    prediction, target = drawn(B, P, D), drawn(B, P, D, seed=1)
    prediction[:, :3] += 2 * target[:, :3]
    mask = np.random.default_rng(2).random((B, P)) < 0.7
    sizes = widths("prediction", "target", "control", size=D)
    module = MaskedRegions(temperature=0.25, control=True, widths=sizes)
    rows = rows_of(present)
    given = {"prediction": prediction, "target": target, "control": drawn(B, P, D, seed=3)}
    given = {name: dirty(present, x) for name, x in given.items()} | {"mask": mask}
    value, metrics, _ = run(module, context(present=present), **given)
    expected = of(masked_region_loss, prediction[rows], target[rows], mask[rows], scale=4.0)
    assert value == pytest.approx(float(expected), rel=1e-5)
    flat = [np.reshape(x[rows], (-1, D)).astype(np.float64) for x in (prediction, target)]
    one, two = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in flat)
    hidden = mask[rows].reshape(-1)
    right = ((one @ two.T).argmax(axis=1) == np.arange(len(one)))[hidden].mean()
    assert set(metrics) == {"loss", "accuracy"} and metrics["accuracy"] == pytest.approx(right)
    _, metrics, _ = run(module, context(present=present, train=False), **given)
    assert metrics["control_accuracy"] < metrics["accuracy"] == pytest.approx(right)
    loss = functools.partial(masked_region_loss, target=target[rows], mask=mask[rows], scale=4.0)
    slope = np.asarray(jax.jit(jax.grad(loss))(prediction[rows]))
    harder = float(loss(prediction[rows] + np.float32(0.1) * np.sign(slope)))
    module = MaskedRegions(temperature=0.25, epsilon=0.1, widths=sizes)
    found, metrics, _ = run(module, context(present=present), **given)
    assert metrics["adversarial"] == pytest.approx(harder, rel=1e-5) and harder > 1.01 * value
    assert found == metrics["loss"] == pytest.approx((value + harder) / 2, rel=1e-5)
    with pytest.raises(InputError, match="expected as many"):
        MaskedRegions(widths={"prediction": 3, "target": 4})


@pytest.mark.default_cases(1)
@SOME
def test_masked_images_weigh_pixels_and_spectrum(present):
    side, patch = 6, 3
    image = np.random.default_rng(0).integers(0, 256, (B, side, side, 1), np.uint8)
    prediction, mask = drawn(B, P, patch * patch), np.arange(P) != np.arange(B)[:, None]
    module = MaskedImage(patch_size=patch, pixels=0.5, fourier=2.0, radius=0.2, high=3.0)
    told, rows = context(present=present), rows_of(present)
    value, metrics, _ = run(module, told, prediction=prediction, image=image, mask=mask)
    arrays = (prediction[rows], image[rows].astype(np.float32) / 255, mask[rows])
    one = float(of(masked_image_loss, *arrays, patch_size=patch))
    two = float(of(fourier_loss, *arrays, patch_size=patch, radius=0.2, high=3.0))
    assert value == pytest.approx(0.5 * one + 2 * two, rel=1e-5)
    assert (metrics["pixels"], metrics["fourier"]) == pytest.approx((one, two), rel=1e-5)


def test_the_mean_patch_explains_nothing_and_the_truth_all():
    image = np.random.default_rng(0).integers(0, 256, (B, 6, 6, 1), np.uint8)
    patches = np.asarray(patchify(image.astype(np.float32) / 255, 3))
    mask = np.arange(P) != np.arange(B)[:, None]
    module = MaskedImage(patch_size=3, normalise=False)
    mean = np.broadcast_to(patches[mask].mean(axis=0), patches.shape)
    for prediction, expected in ((mean, 0.0), (patches, 1.0)):
        _, metrics, _ = run(module, context(), prediction=prediction, image=image, mask=mask)
        assert metrics["explained"] == pytest.approx(expected, abs=1e-5)


def decoder():
    def make(rngs):
        return PatchDecoder(
            widths={"kept_patches": D},
            patch_size=2,
            width=8,
            depth=1,
            num_heads=2,
            make_rngs=lambda name: rngs,
        )

    return randomized(make)


def test_a_decoder_puts_kept_patches_in_their_places():
    module = decoder()
    kept = np.array([[0, 3], [1, 2]], np.int32)
    mask = np.ones((2, 4), bool)
    mask[np.arange(2)[:, None], kept] = False
    features = drawn(2, 2, D)
    call = jax.jit(functools.partial(module, ("patches",)))
    found = call(kept_patches=features, kept=kept, mask=mask)["patches"]
    assert found.shape == (2, 4, 4) and found.dtype == jnp.float32
    assert module.width_of("patches") == 4
    # The order in which the kept patches come does not matter, but their places do.
    turned = call(kept_patches=features[:, ::-1], kept=kept[:, ::-1], mask=mask)["patches"]
    assert_close(turned, found)
    moved = call(kept_patches=features[:, ::-1], kept=kept, mask=mask)["patches"]
    assert np.abs(moved - found).max() > 1e-2
    # Removed patches differ by their places alone, and depend on the kept ones.
    assert np.abs(found[0, 1] - found[0, 2]).max() > 1e-3
    other = call(kept_patches=2 * features, kept=kept, mask=mask)["patches"]
    assert np.abs(other[0, 1] - found[0, 1]).max() > 1e-3
    with pytest.raises(ValueError, match="where P is a square"):
        module(("patches",), kept_patches=features, kept=kept, mask=mask[:, :3])


@pytest.mark.default_cases(1)
@SOME
def test_words_and_sentences_are_aligned_as_by_their_functions(present):
    rows = rows_of(present)
    words, regions = drawn(B, V, D), drawn(B, P, D, seed=1)
    mask = np.arange(V) < np.array([[3], [1], [2], [3]])
    given = {"words": dirty(present, words), "regions": dirty(present, regions)}
    value, metrics, _ = run(TokenAlignment(), context(present=present), **given, word_mask=mask)
    both = of(token_alignment_loss, words[rows], mask[rows], regions[rows], padding=False)
    assert [metrics["words"], metrics["regions"]] == pytest.approx(
        [float(x) for x in both], rel=1e-5
    )
    assert value == pytest.approx(float(both[0] + both[1]), rel=1e-5)
    query, texts = unit(B, D), unit(B, V, D, seed=1)
    given = {"query": dirty(present, query), "candidates": dirty(present, texts)}
    module = MilNce(temperature=0.25)
    value, metrics, _ = run(module, context(present=present), **given, valid=mask)
    expected = of(mil_nce_loss, 2 * query[rows], 2 * texts[rows], valid=mask[rows])
    assert value == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: SelfDistillation(widths={"wide": 3, "local": 4}), "features wide 3, local 4"),
        (
            lambda: SelfDistillation(teacher_temperature=0.0, widths={"wide": 3}),
            "teacher_temperature 0.0",
        ),
        (lambda: MaskedPatches(momentum=1.0, widths={"student": 3}), "momentum 1.0"),
        (
            lambda: Prototypes(widths={"image": 3, "text": 4}, rngs=nnx.Rngs(0)),
            "image of 3 features, text of 4",
        ),
        (lambda: make_prototypes(Prototypes, epsilon=0.0), "epsilon 0.0"),
        (lambda: make_prototypes(Prototypes, frozen_steps=-1), "frozen_steps -1"),
        (lambda: make_prototypes(SwappedPrediction, queue=-1), "queue -1"),
        (lambda: Distillation(teacher_temperature=-1.0), "teacher_temperature -1.0"),
        (lambda: MaskedImage(patch_size=4, pixels=0.0), "pixels or fourier above 0"),
        (lambda: TokenAlignment(temperature=0.0), "temperature 0.0"),
        (lambda: MilNce(temperature=0.0), "temperature 0.0"),
    ],
)
def test_options_that_cannot_be_are_refused(make, text):
    with pytest.raises(InputError) as error:
        make()
    assert text in str(error.value)


class Hidden(Derived):
    """Hides every third token."""

    of: ClassVar = "text"

    def __call__(self, *, context, given):
        tokens = given["tokens"]
        hidden = given["mask"] & (jnp.arange(tokens.shape[1]) % 3 == 1)
        return {"tokens": jnp.where(hidden, 4, tokens), "target": jnp.where(hidden, tokens, -1)}


def step_of(count=1, devices=8):
    """Prototypes, the averaged teacher and masked tokens."""
    config = toys.config(batch_size=16, gradient_cache=count)
    config.objectives = ml_collections.ConfigDict(
        {
            "prototypes": {"prototypes": 16},
            "distillation": {"weight": 0.5},
            "masked_text": {"reads": {"words": "text@masked.words"}},
        }
    )
    stubs.use(config)
    config.optimizer.name, config.optimizer.warmup_steps = "sgd", 0
    config.derived = ml_collections.ConfigDict({"masked": {"name": "hidden"}})
    config.evaluators = ml_collections.ConfigDict()
    configs.validate(config)
    mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, devices=jax.devices()[:devices])
    return TrainStep(config, mesh, toys.batches(config)[0])


@pytest.mark.optax
def test_micro_batches_and_devices_change_no_loss_and_no_gradient():
    with stubs.registered(hidden=Hidden):
        compare(step_of(), step_of(2), step_of(devices=1))


def compare(*steps):
    """Losses and gradients of the first step, and of the others."""
    start = jax.device_get(stubs.start(steps[0]))
    start["average"] = jax.tree.map(lambda leaf: 0.5 * leaf, start["params"])
    batch = toys.batches(steps[0].config)[0]
    found = []
    for step in steps:
        placed = sharding.to_global(batch, sharding.batch_sharding(step.mesh))
        state = jax.device_put(start, step.shardings)
        found.append(jax.device_get(step.loss_and_gradients(state, placed)))
    for other in found[1:]:
        assert_close(other, found[0], floor=1e-1)
    objectives = found[0][1]["objectives"]
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(objectives["prototypes"]))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(objectives["masked_text"]))
