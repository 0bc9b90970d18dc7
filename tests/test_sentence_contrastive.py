"""The contrast of sentences with regions, against a loop in float64 that follows its docstring."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.devices import sharding
from mmrl.objectives import sentence_contrastive as module
from mmrl.objectives.base import Context
from mmrl.objectives.sentence_contrastive import (
    AGGREGATES,
    SentenceContrastive,
    sentence_contrastive_loss,
    sentence_scores,
)
from mmrl.types import InputError
from tests import references, stubs
from tests import test_gradient_cache as caching
from tests.arrays import assert_close

B, S, R, D = 6, 3, 4, 5
VALID = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 0], [1, 0, 0]], bool)
# Reports 0, 1 and 4 hold sentence 7; that of report 5 is not valid. Report 0 holds 8 twice.
KEY = np.array([[7, 8, 8], [1, 7, 7], [2, 7, 7], [3, 8, 4], [5, 7, 6], [9, 7, 7]], np.int32)
GROUP = np.array([0, 1, 2, 0, 3, 4], np.int32)
# What else holds for the reports: for report 2, what report 0 says of 7.
KNOWN = np.array([[7, 8], [1, 7], [2, 7], [3, 8], [5, 7], [9, 9]], np.int32)
PRESENT = np.array([1, 1, 1, 1, 1, 0], bool)
MASKS = {
    "nothing": {},
    "key": {"key": KEY},
    "known": {"key": KEY, "known": KNOWN},
    "group": {"group": GROUP},
    "present": {"present": PRESENT},
    "all": {"key": KEY, "group": GROUP, "present": PRESENT},
    "all_known": {"key": KEY, "known": KNOWN, "group": GROUP, "present": PRESENT},
}


def features(size: int = B, regions: int = R, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = (size, regions, D), (size, S, D)
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def score(regions: Any, sentence: Any, scale: float, sharpness: float, aggregate: str) -> float:
    """The score of one sentence f64[D] with one image f64[R, D]."""
    regions = regions / np.linalg.norm(regions, axis=1, keepdims=True)
    sentence = sentence / np.linalg.norm(sentence)
    cosines = regions @ sentence
    if aggregate == "max":
        return scale * cosines.max()
    if aggregate == "logsumexp":
        soft = references.logsumexp(sharpness * cosines) - np.log(len(cosines))
        return scale / sharpness * soft
    context = references.softmax(sharpness * cosines, axis=0) @ regions
    return scale * (context @ sentence) / np.linalg.norm(context)


def by_hand(
    regions: Any,
    sentences: Any,
    valid: Any,
    *,
    key: Any = None,
    known: Any = None,
    group: Any = None,
    present: Any = None,
    scale: float = 20.0,
    sharpness: float = 20.0,
    aggregate: str = "logsumexp",
) -> float:
    """One sentence after another: which image is it of, and which sentence is of that image?"""
    size, count, _ = sentences.shape
    present = np.ones(size, bool) if present is None else present
    group = np.arange(size) if group is None else group
    key = np.arange(size * count).reshape(size, count) if key is None else key
    regions, sentences = np.asarray(regions, np.float64), np.asarray(sentences, np.float64)
    held = [(j, t) for j in range(size) for t in range(count) if present[j] and valid[j, t]]
    scores = {
        (i, j, t): score(regions[i], sentences[j, t], scale, sharpness, aggregate)
        for i in range(size)
        for j, t in held
        if present[i]
    }

    def holds(report: int, which: int) -> bool:
        if known is not None:
            return which in known[report]
        return any(key[report, t] == which for j, t in held if j == report)

    def apart(i: int, j: int) -> bool:
        return i != j and group[i] != group[j]

    losses = []
    for i, s in held:
        positive = scores[i, i, s]
        images = [
            scores[j, i, s]
            for j in range(size)
            if present[j] and apart(i, j) and not holds(j, key[i, s])
        ]
        others = [scores[i, j, t] for j, t in held if apart(i, j) and not holds(i, key[j, t])]
        for negatives in (images, others):
            losses.append(references.logsumexp(np.array([positive, *negatives])) - positive)
    return float(np.mean(losses)) if losses else 0.0


@functools.lru_cache
def compiled(names: tuple[str, ...], options: tuple[tuple[str, Any], ...]) -> Any:
    """(features, valid, masks) -> value and gradients."""

    @jax.jit
    def call(features: Any, valid: Any, masks: Any, temperatures: Any) -> Any:
        def loss(features: Any) -> Any:
            given = {**masks, **temperatures, **dict(options)}
            return sentence_contrastive_loss(*features, valid, **given)

        return jax.value_and_grad(loss)(features)

    return call


def both(features: Any, valid: Any = VALID, masks: Any = None, **options: Any) -> Any:
    masks = masks or {}
    temperatures = {n: np.float32(options.pop(n, 20.0)) for n in ("scale", "sharpness")}
    call = compiled(tuple(sorted(masks)), tuple(sorted(options.items())))
    return jax.device_get(call(tuple(features), valid, masks, temperatures))


@pytest.mark.default_cases(3)
@pytest.mark.parametrize(
    ("masks", "aggregate"),
    [
        *((masks, aggregate) for masks in ("nothing", "all") for aggregate in AGGREGATES),
        *((masks, "logsumexp") for masks in ("key", "known", "group", "present", "all_known")),
    ],
)
def test_the_loss_equals_the_loop(masks, aggregate):
    for scale, sharpness in ((20.0, 20.0), (3.0, 5.0)):
        options = {"scale": scale, "sharpness": sharpness, "aggregate": aggregate}
        found, _ = both(features(), masks=MASKS[masks], **options)
        assert found.dtype == np.float32 and found.shape == ()
        expected = by_hand(*features(), VALID, **MASKS[masks], **options)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_the_gradients_equal_those_of_the_loop(aggregate):
    options = {"scale": 3.0, "sharpness": 5.0, "aggregate": aggregate}
    _, found = both(features(), masks=MASKS["all"], **options)
    regions, sentences = (x.astype(np.float64) for x in features())
    masks = MASKS["all"]
    expected = (
        references.gradient(lambda x: by_hand(x, sentences, VALID, **masks, **options), regions),
        references.gradient(lambda x: by_hand(regions, x, VALID, **masks, **options), sentences),
    )
    assert_close(found, expected)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_what_is_absent_or_invalid_neither_counts_nor_learns(aggregate):
    """NaN there would spoil the loss and, by way of 0 * NaN, the gradients."""
    regions, sentences = features()
    kept = VALID & PRESENT[:, None]
    poisoned = (
        np.where(PRESENT[:, None, None], regions, np.float32(np.nan)),
        np.where(kept[..., None], sentences, np.float32(np.nan)),
    )
    plain = both((regions, sentences), masks=MASKS["all"], aggregate=aggregate)
    found = both(poisoned, masks=MASKS["all"], aggregate=aggregate)
    assert_close(found, plain, 0.0)
    assert not found[1][0][~PRESENT].any() and not found[1][1][~kept].any()
    assert np.abs(found[1][0][PRESENT]).max(axis=(1, 2)).min() > 0
    # Keys of what does not count make no two reports alike.
    other = np.where(kept, KEY, np.int32(8))
    again = both(poisoned, masks={**MASKS["all"], "key": other}, aggregate=aggregate)
    assert_close(again, plain, 0.0)


def test_absent_rows_are_as_if_the_batch_were_without_them():
    regions, sentences = features()
    found, slopes = both((regions, sentences), masks=MASKS["all"])
    masks = {"key": KEY[PRESENT], "group": GROUP[PRESENT]}
    rest, slopes_of_rest = both((regions[PRESENT], sentences[PRESENT]), VALID[PRESENT], masks)
    np.testing.assert_allclose(found, rest, rtol=1e-6)
    assert_close(tuple(x[PRESENT] for x in slopes), slopes_of_rest)


@pytest.mark.parametrize(
    ("valid", "masks"),
    [
        (np.zeros((B, S), bool), {}),
        (VALID, {"present": np.zeros(B, bool)}),
    ],
)
def test_without_a_valid_sentence_the_loss_is_zero(valid, masks):
    value, slopes = both(features(), valid, masks)
    assert value == 0
    assert not any(slope.any() for slope in slopes) and all(map(np.isfinite, np.ravel(slopes[0])))


@pytest.mark.parametrize(
    "changes",
    [
        {"group": np.zeros(B, np.int32)},  # all are one group
        {"key": np.full((B, S), 3, np.int32)},  # all say the same
        {"present": np.arange(B) == 1},
    ],
)
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_without_negatives_there_is_nothing_to_learn(changes, aggregate):
    valid = np.ones((B, S), bool)  # an image without sentences would be a negative of all
    plain = {"key": np.arange(B * S, dtype=np.int32).reshape(B, S), "group": np.arange(B)}
    masks = {**plain, "present": np.ones(B, bool), **changes}
    value, slopes = both(features(), valid, masks, aggregate=aggregate)
    np.testing.assert_allclose(value, 0, atol=1e-5)
    for slope in slopes:
        np.testing.assert_allclose(slope, 0, atol=1e-5)


def test_an_image_without_negatives_among_others_is_defined():
    """Report 0 holds all sentences that the others have; they still tell images apart."""
    key = np.array([[1, 2, 3], [1, 1, 1], [2, 2, 2], [3, 3, 3], [1, 1, 1], [2, 2, 2]], np.int32)
    value, slopes = both(features(), np.ones((B, S), bool), {"key": key})
    assert all(np.isfinite(slope).all() for slope in slopes)
    expected = by_hand(*features(), np.ones((B, S), bool), key=key)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_constant_features_give_the_logarithm_of_the_choices():
    same = np.ones((4, R, D), np.float32), np.ones((4, S, D), np.float32)
    valid = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]], bool)
    # Each of 6 sentences among 4 images; each of their images with it among sentences of others.
    of_sentences = (3 * np.log(1 + 3) + np.log(1 + 5) + 2 * np.log(1 + 4)) / 6
    expected = 0.5 * (np.log(4) + of_sentences)
    for aggregate in AGGREGATES:
        found, _ = both(same, valid, aggregate=aggregate)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_sentence_that_some_region_shows_is_found():
    """One region of each image is its sentence; by its mean, the image would not be told."""
    rng = np.random.default_rng(0)
    sentences = np.eye(8, dtype=np.float32)[:, None]
    regions = np.tile(rng.normal(size=(1, 16, 8)).astype(np.float32), (8, 1, 1))
    regions[np.arange(8), rng.integers(0, 16, 8)] = 5 * np.eye(8)
    valid = np.ones((8, 1), bool)
    found = {a: float(both((regions, sentences), valid, aggregate=a)[0]) for a in AGGREGATES}
    assert max(found.values()) < 0.15
    exchanged = both((regions[::-1], sentences), valid)[0]
    assert exchanged > 5


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("aggregate", "chunk_size"),
    [("logsumexp", 1), ("logsumexp", 4), ("logsumexp", 100), ("attention", 4), ("max", 5)],
)
def test_chunks_change_nothing(aggregate, chunk_size):
    """4 leaves a rest of 2."""
    plain = both(features(), masks=MASKS["all"], aggregate=aggregate)
    found = both(features(), masks=MASKS["all"], aggregate=aggregate, chunk_size=chunk_size)
    assert_close(found, plain, 1e-6, floor=0.1)


def test_without_a_chunk_size_memory_is_bounded(monkeypatch):
    size, regions = 64, 49
    given = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((size, regions, 32), (4 * size, 32))]

    def temporaries() -> int:
        def loss(regions: Any, sentences: Any) -> Any:
            return jnp.sum(sentence_scores(regions, sentences) ** 2)

        step = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*given).compile()
        return step.memory_analysis().temp_size_in_bytes

    whole = temporaries()
    monkeypatch.setattr(module, "_SCORES_AT_ONCE", 2 * regions * 4 * size)  # two images
    assert whole > 4 * size * regions * 4 * size  # all cosines
    assert temporaries() < 0.25 * whole


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_one_vector_is_an_image_of_one_region(aggregate):
    regions, sentences = features(regions=1)
    plain = both((regions, sentences), masks=MASKS["all"], aggregate=aggregate)
    value, (of_vectors, of_sentences) = both(
        (regions[:, 0], sentences), masks=MASKS["all"], aggregate=aggregate
    )
    assert_close((value, (of_vectors[:, None], of_sentences)), plain, 1e-6)
    # All aggregates of one number are that number.
    cosine = sentence_scores(regions, sentences[:, 0], aggregate=aggregate)
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (regions[:, 0], sentences[:, 0])]
    assert_close(cosine, 20 * unit[0] @ unit[1].T)


def test_the_order_of_rows_sentences_and_regions_does_not_matter():
    regions, sentences = features()
    value, slopes = both((regions, sentences), masks=MASKS["all"])
    rng = np.random.default_rng(3)
    rows, places, parts = rng.permutation(B), rng.permutation(S), rng.permutation(R)
    masks = {"key": KEY[rows][:, places], "group": GROUP[rows], "present": PRESENT[rows]}
    found, moved = both(
        (regions[rows][:, parts], sentences[rows][:, places]), VALID[rows][:, places], masks
    )
    np.testing.assert_allclose(found, value, rtol=1e-6)
    assert_close(moved, (slopes[0][rows][:, parts], slopes[1][rows][:, places]))


def test_the_soft_maximum_lies_between_mean_and_maximum():
    regions, sentences = features()
    flat = sentences.reshape(-1, D)
    scores = functools.partial(sentence_scores, regions, flat)
    greatest = np.asarray(scores(aggregate="max"))
    gentle, sharp = (np.asarray(scores(sharpness=s)) for s in (1e-2, 500.0))
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (regions, flat)]
    mean = 20 * np.einsum("nrd,md->nmr", *unit).mean(axis=2)
    np.testing.assert_allclose(gentle, mean, atol=0.2)
    assert (sharp <= greatest + 1e-4).all()
    np.testing.assert_allclose(sharp, greatest, atol=20 * np.log(R) / 500 + 1e-3)


@pytest.mark.exhaustive
def test_bfloat16_is_multiplied_as_such_and_added_in_float32():
    narrow = tuple(jnp.asarray(x, jnp.bfloat16) for x in features())
    for aggregate in ("logsumexp", "attention"):
        value, slopes = both(narrow, masks=MASKS["all"], aggregate=aggregate)
        assert value.dtype == np.float32
        assert all(slope.dtype == jnp.bfloat16 for slope in slopes)
        expected, _ = both(features(), masks=MASKS["all"], aggregate=aggregate)
        np.testing.assert_allclose(value, expected, rtol=0.03)
        products = str(jax.make_jaxpr(lambda *x: sentence_contrastive_loss(*x, VALID))(*narrow))
        assert "preferred_element_type=float32" in products and "bf16" in products


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("axes", "chunk_size"),
    [
        ((2, 1, 1), 3),
        ((8, 1, 1), 0),
        pytest.param((2, 1, 1), 0, marks=pytest.mark.exhaustive),
        pytest.param((8, 1, 1), 3, marks=pytest.mark.exhaustive),
    ],
)
def test_every_mesh_computes_the_same(axes, chunk_size):
    rng = np.random.default_rng(5)
    arrays = features(8)
    valid = rng.random((8, S)) < 0.7
    masks = {
        "key": rng.integers(0, 9, (8, S)).astype(np.int32),
        "group": np.maximum(np.arange(8, dtype=np.int32), 1),
        "present": np.arange(8) != 5,
    }
    expected = both(arrays, valid, masks)
    named = dict(zip(sharding.MESH_AXES, axes, strict=True))
    mesh = sharding.make_mesh(named, devices=jax.devices()[: axes[0]])
    placed = jax.device_put((arrays, valid, masks), sharding.batch_sharding(mesh))
    found = both(*placed, chunk_size=chunk_size)
    assert_close(found, expected, floor=0.1)


# --- the objective


def test_the_objective_is_the_loss_and_its_metric_weighs_sentences():
    regions, sentences = features()
    objective = SentenceContrastive(scale=3.0, sharpness=5.0, aggregate="max", chunk_size=2)
    options = {"scale": 3.0, "sharpness": 5.0, "aggregate": "max"}
    arrays = {"regions": regions, "sentences": sentences, "valid": VALID, "key": KEY}
    arrays["known"] = KNOWN
    for present, count in ((None, VALID.sum()), (PRESENT, VALID[PRESENT].sum())):
        context = Context(jnp.int32(0), None, present)
        loss = jax.jit(lambda c=context: objective(context=c, **arrays, group=GROUP))()
        masks = {"key": KEY, "known": KNOWN, "group": GROUP, "present": present}
        expected = by_hand(regions, sentences, VALID, **masks, **options)
        np.testing.assert_allclose(loss.value, expected, rtol=1e-5)
        total, weight = loss.metrics["loss"]
        assert float(weight) == count
        np.testing.assert_allclose(total / weight, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregate": "mean"}, "unknown aggregate 'mean' of sentence scores; choices: logsumexp,"),
        ({"scale": 0.0}, "scale 0.0, sharpness 20.0, chunk_size 0; expected numbers above 0"),
        ({"sharpness": -1.0}, "sharpness -1.0, chunk_size 0; expected numbers above 0"),
        ({"chunk_size": -1}, "chunk_size -1; expected numbers above 0, and at least 0"),
        ({"scale": float("nan")}, "scale nan, sharpness 20.0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        SentenceContrastive(**options)


def test_shapes_that_do_not_fit_are_refused():
    regions, sentences = features()
    with pytest.raises(ValueError, match=r"valid \[B, S\], got \(6, 4, 5\), \(6, 3, 5\), \(6, 2\)"):
        sentence_contrastive_loss(regions, sentences, VALID[:, :2])
    with pytest.raises(ValueError, match=r"got \(6, 4, 4\), \(6, 3, 5\), \(6, 3\)"):
        sentence_contrastive_loss(regions[..., :4], sentences, VALID)
    with pytest.raises(ValueError, match=r"key must be i32\[6, 3\], got \(6, 2\)"):
        sentence_contrastive_loss(regions, sentences, VALID, key=KEY[:, :2])
    with pytest.raises(ValueError, match=r"group must be i32\[6\]"):
        sentence_contrastive_loss(regions, sentences, VALID, group=GROUP[:2])
    with pytest.raises(ValueError, match=r"sentences \[M, D\], got \(6, 4, 5\), \(6, 3, 5\)"):
        sentence_scores(regions, sentences)
    with pytest.raises(InputError, match="unknown aggregate 'sum'"):
        sentence_scores(regions, sentences[0], aggregate="sum")


# --- in the training step


@pytest.fixture(scope="module")
def registered():
    with stubs.registered():
        yield


def config(count: int) -> Any:
    chosen = caching.config(count)
    chosen.objectives = {"global_contrastive": {}, "sentence_contrastive": {"weight": 0.3}}
    chosen.towers.text.heads.sentence = 32
    chosen.data.num_sentences = 3
    chosen.inputs = {"sentences": {"max_tokens": 7}}
    return chosen


def gradients(count: int, axes: tuple[int, int, int]) -> Any:
    chosen = config(count)
    rng = np.random.default_rng(1)
    shape = (chosen.batch_size, 3)
    batch = {
        **{k: x for k, x in caching.batch_of(chosen).items() if not k.startswith("perturbed")},
        "sentences.tokens": rng.integers(1, caching.PIECES, (*shape, 7), np.int32),
        "sentences.mask": np.arange(7) < rng.integers(2, 8, (*shape, 1)),
        "sentences.affirmed": rng.random(shape) < 0.6,
        "sentences.key": rng.integers(0, 40, shape, np.int32),
        "sentences.known": rng.integers(0, 40, (chosen.batch_size, 5), np.int32),
    }
    named = dict(zip(sharding.MESH_AXES, axes, strict=True))
    mesh = sharding.make_mesh(named, devices=jax.devices()[: int(np.prod(axes))])
    step = caching.TrainStep(chosen, mesh, batch)
    return jax.device_get(step.loss_and_gradients(stubs.start(step), caching.place(step, batch)))


@pytest.mark.default_cases(1)
@pytest.mark.optax
@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(("count", "axes"), [(1, (2, 2, 2)), (4, (2, 1, 1))])
def test_gradient_cache_and_mesh_change_nothing(count, axes):
    loss, expected = gradients(1, (1, 1, 1))
    found = gradients(count, axes)
    np.testing.assert_allclose(found[0], loss, rtol=1e-5)
    assert_close(found[1], expected, floor=1e-3)
    assert np.abs(expected["towers"]["text"]["heads"]["sentence"]["out"]["kernel"]).max() > 1e-3
