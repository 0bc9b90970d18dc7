"""Each objective against an independent float64 reference, closed forms and invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmrl.evaluators.pointing import word_region_attention
from mmrl.objectives import local_contrastive as local_module
from mmrl.objectives.base import Context
from mmrl.objectives.global_contrastive import GlobalContrastive, contrastive_loss
from mmrl.objectives.local_contrastive import (
    LocalContrastive,
    local_contrastive_loss,
    local_similarity,
)
from mmrl.objectives.perturbed_discrimination import (
    PerturbedDiscrimination,
    discrimination_loss,
)
from mmrl.objectives.siglip import Siglip, siglip_loss
from tests import references
from tests.arrays import assert_close, unit

B, K, W, R, D = 5, 3, 6, 7, 4
SCALE = np.float32(np.log(1 / 0.07))
GROUP = np.array([0, 1, 0, 3, 1], np.int32)


def local_inputs(seed=0):
    rng = np.random.default_rng(seed)
    words = rng.normal(size=(B, W, D)).astype(np.float32)
    mask = np.arange(W)[None] < np.array([6, 3, 1, 4, 5])[:, None]
    return words, mask, rng.normal(size=(B, R, D)).astype(np.float32)


def check(function, reference, arguments, numbers):
    """Compares value and gradients with respect to the arguments at positions `numbers`."""
    assert_close(function(*arguments), reference(*arguments))
    for number in numbers:
        got = jax.grad(function, argnums=number)(*map(jnp.asarray, arguments))
        wide = [a.astype(np.float64) if a.dtype == np.float32 else a for a in arguments]

        def of_one(x, number=number, wide=wide):
            return reference(*wide[:number], x, *wide[number + 1 :])

        assert_close(got, references.gradient(of_one, wide[number]))


@pytest.mark.parametrize("group", [None, GROUP])
def test_global_equals_reference(group):
    arguments = (unit(B, D), unit(B, D, seed=1), np.array(SCALE))
    check(
        lambda i, t, s: contrastive_loss(i, t, s, group=group),
        lambda i, t, s: references.contrastive(i, t, s, group),
        arguments,
        (0, 1, 2),
    )


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("group", "temperatures"), [(None, (4.0, 5.0, 10.0)), (GROUP, (1.0, 2.0, 3.0))]
)
def test_local_equals_reference(group, temperatures):
    words, mask, regions = local_inputs()
    assert_close(
        local_similarity(words, mask, regions, temperatures=temperatures),
        references.similarity(words.astype(float), mask, regions.astype(float), temperatures),
    )
    check(
        lambda w, r: local_contrastive_loss(w, mask, r, temperatures=temperatures, group=group),
        lambda w, r: references.local(w, mask, r, temperatures, group),
        (words, regions),
        (0, 1),
    )


def test_discrimination_equals_reference():
    valid = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 0]], bool)
    arguments = (unit(B, D), unit(B, 1 + K, D, seed=1), np.array(SCALE))
    check(
        lambda i, c, s: discrimination_loss(i, c, valid, s),
        lambda i, c, s: references.discrimination(i, c, valid, s),
        arguments,
        (0, 1, 2),
    )


def relative_discrimination(image, candidates, valid, scale, other):
    """The loss by loops in float64, from its docstring."""
    losses = []
    for row in range(len(image)):
        if not valid[row].any():
            continue
        scores = candidates[row] @ image[row]
        if other[row].any():
            scores = scores - np.mean(
                [candidates[row] @ image[j] for j in np.flatnonzero(other[row])], axis=0
            )
        kept = np.concatenate([[True], valid[row]])
        logits = np.exp(scale) * scores[kept]
        losses.append(references.logsumexp(logits) - logits[0])
    return np.mean(losses)


def test_relative_discrimination_equals_reference():
    valid = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 0]], bool)
    other = np.random.default_rng(4).random((B, B)) < 0.6
    other[1] = False
    arguments = (unit(B, D), unit(B, 1 + K, D, seed=1), np.array(SCALE))
    check(
        lambda i, c, s: discrimination_loss(i, c, valid, s, other=other),
        lambda i, c, s: relative_discrimination(i, c, valid, s, other),
        arguments,
        (0, 1, 2),
    )


def test_wording_alone_wins_nothing_from_relative_scores():
    """All images share a direction in which reports differ from copies, whatever the image."""
    rng = np.random.default_rng(0)
    image = np.concatenate([np.ones((B, 1)), 0.1 * rng.normal(size=(B, D - 1))], axis=1)
    candidates = np.zeros((B, 1 + K, D))
    candidates[:, 0, 0], candidates[:, 1:, 0] = 1.0, -1.0
    valid, other = np.ones((B, K), bool), ~np.eye(B, dtype=bool)
    arguments = tuple(x.astype(np.float32) for x in (image, candidates))
    assert discrimination_loss(*arguments, valid, SCALE) < 1e-3
    relative = discrimination_loss(*arguments, valid, SCALE, other=other)
    assert relative == pytest.approx(np.log(1 + K), rel=1e-5)


def test_relative_scores_leave_out_the_own_group_and_absent_rows():
    encoded, batch = encoded_and_batch()
    module = PerturbedDiscrimination(relative=True)
    whole = call(module, encoded, batch)
    assert whole.value != call(PerturbedDiscrimination(), encoded, batch).value
    one_group = {**batch, "group": jnp.zeros(B, jnp.int32)}
    # Without another image, the scores are those of the paper.
    assert call(module, encoded, one_group).value == pytest.approx(
        float(call(PerturbedDiscrimination(), encoded, batch).value), rel=1e-6
    )
    present = jnp.arange(B) != 2
    nothing = {**encoded, "image.embedding": encoded["image.embedding"].at[2].set(jnp.nan)}
    arrays = {argument: nothing[name] for argument, name in module.reads.items()}
    arrays |= {argument: batch[name] for argument, name in module.batch.items()}
    masked = module(context=Context(jnp.int32(0), None, present), **arrays).value
    kept = np.flatnonzero(present)
    fewer = module(
        context=Context(jnp.int32(0)), **{name: array[kept] for name, array in arrays.items()}
    )
    assert masked == pytest.approx(float(fewer.value), rel=1e-6)


@pytest.mark.parametrize("group", [None, GROUP])
def test_siglip_equals_reference(group):
    arguments = (unit(B, D), unit(B, D, seed=1), np.float32(2.3), np.float32(-10.0))
    check(
        lambda i, t, s, b: siglip_loss(i, t, s, b, group=group),
        lambda i, t, s, b: references.siglip(i, t, s, b, group),
        tuple(map(np.asarray, arguments)),
        (0, 1, 2, 3),
    )


def test_constant_embeddings_give_the_logarithm_of_the_choices():
    same = np.ones((B, D), np.float32) / 2
    assert contrastive_loss(same, same, SCALE) == pytest.approx(np.log(B), rel=1e-5)
    candidates = np.ones((B, 1 + K, D), np.float32) / 2
    valid = np.ones((B, K), bool)
    expected = pytest.approx(np.log(1 + K), rel=1e-5)
    assert discrimination_loss(same, candidates, valid, SCALE) == expected
    words, regions = np.ones((B, W, D), np.float32), np.ones((B, R, D), np.float32)
    loss = local_contrastive_loss(words, np.ones((B, W), bool), regions)
    assert loss == pytest.approx(np.log(B), rel=1e-5)


def test_group_removes_only_false_negatives():
    """Each pair occurs twice, in one group; the second is not a negative of the first."""
    image, text = unit(3, D), unit(3, D, seed=1)
    group = np.array([0, 1, 2, 0, 1, 2], np.int32)
    marked = contrastive_loss(np.tile(image, (2, 1)), np.tile(text, (2, 1)), SCALE, group=group)
    logits = np.exp(np.float64(SCALE)) * image.astype(float) @ text.T.astype(float)
    # Every other pair now appears twice among the negatives.
    expected = 0.0
    for i in range(3):
        for row in (logits[i], logits[:, i]):
            others = [row[j] for j in range(3) if j != i]
            expected += references.logsumexp(np.array([row[i], *others, *others])) - row[i]
    assert marked == pytest.approx(expected / 6, rel=1e-5)


def test_padding_words_and_invalid_copies_change_nothing():
    words, mask, regions = local_inputs()
    rng = np.random.default_rng(3)
    garbage = 100 * rng.normal(size=(B, 4, D)).astype(np.float32)
    longer = np.concatenate([words, garbage], axis=1)
    longer_mask = np.concatenate([mask, np.zeros((B, 4), bool)], axis=1)
    grad = jax.grad(local_contrastive_loss, argnums=(0, 2))
    short, long = grad(words, mask, regions), grad(longer, longer_mask, regions)
    np.testing.assert_allclose(
        local_similarity(longer, longer_mask, regions),
        local_similarity(words, mask, regions),
        rtol=1e-6,
    )
    np.testing.assert_allclose(long[0][:, :W], short[0], atol=1e-5)
    np.testing.assert_array_equal(long[0][:, W:], 0)
    np.testing.assert_allclose(long[1], short[1], atol=1e-5)

    image, candidates = unit(B, D), unit(B, 1 + K, D, seed=1)
    valid = np.ones((B, K), bool)
    more = np.concatenate([candidates, unit(B, 2, D, seed=2)], axis=1)
    more_valid = np.concatenate([valid, np.zeros((B, 2), bool)], axis=1)
    assert discrimination_loss(image, more, more_valid, SCALE) == discrimination_loss(
        image, candidates, valid, SCALE
    )


def test_rows_without_a_valid_copy_weigh_nothing():
    image, candidates = unit(B, D), unit(B, 1 + K, D, seed=1)
    valid = np.ones((B, K), bool)
    valid[2:] = False
    assert discrimination_loss(image, candidates, valid, SCALE) == pytest.approx(
        float(discrimination_loss(image[:2], candidates[:2], valid[:2], SCALE)), rel=1e-6
    )
    nothing = np.zeros((B, K), bool)
    value, gradient = jax.value_and_grad(discrimination_loss)(image, candidates, nothing, SCALE)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_valid_may_cover_the_original_too():
    image, candidates = unit(B, D), unit(B, 1 + K, D, seed=1)
    valid = np.random.default_rng(0).random((B, K)) < 0.6
    wide = np.concatenate([np.ones((B, 1), bool), valid], axis=1)
    assert discrimination_loss(image, candidates, valid, SCALE) == discrimination_loss(
        image, candidates, wide, SCALE
    )


def test_captions_without_words_and_zero_vectors_stay_finite():
    words, mask, regions = local_inputs()
    mask[1] = False
    words[2] = 0
    regions[3] = 0
    value, gradient = jax.value_and_grad(local_contrastive_loss, argnums=(0, 2))(
        words, mask, regions
    )
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradient)
    np.testing.assert_array_equal(local_similarity(words, mask, regions)[:, 1], 0)


@pytest.mark.exhaustive  # test_scale_losses.py compares all forms of the loss
def test_chunks_of_captions_change_nothing(monkeypatch):
    """Chunks of 1, 2 (uneven: 5 captions) and all: same similarity, same gradient."""
    words, mask, regions = local_inputs()
    weight = unit(B, B, seed=4)

    def weighted(words):
        return jnp.sum(weight * local_similarity(words, mask, regions))

    whole = jax.value_and_grad(weighted)(words)
    for captions in (1, 2, 3):
        monkeypatch.setattr(local_module, "_WEIGHTS_AT_ONCE", captions * B * R * W)
        chunked = jax.value_and_grad(weighted)(words)
        assert_close(chunked[0], whole[0])
        assert_close(chunked[1], whole[1])


def test_attention_rows_are_distributions_and_match_the_loss():
    words, mask, regions = local_inputs()
    attention = np.asarray(word_region_attention(words[1], mask[1], regions[0]))
    np.testing.assert_allclose(attention.sum(axis=1), 1, rtol=1e-6)
    context = attention @ regions[0]
    cosine = (context * words[1]).sum(axis=1) / (
        np.linalg.norm(context, axis=1) * np.linalg.norm(words[1], axis=1)
    )
    expected = 10 * references.logsumexp(5 * cosine[mask[1]])
    assert local_similarity(words, mask, regions)[0, 1] == pytest.approx(expected, rel=1e-5)


def test_bfloat16_features_are_computed_in_float32():
    image, text = (jnp.asarray(unit(B, D, seed=s), jnp.bfloat16) for s in (0, 1))
    loss = contrastive_loss(image, text, jnp.float32(SCALE))
    assert loss.dtype == jnp.float32
    exact = contrastive_loss(image.astype(jnp.float32), text.astype(jnp.float32), SCALE)
    assert loss == exact
    words, mask, regions = local_inputs()
    low = local_similarity(words.astype(jnp.bfloat16), mask, regions.astype(jnp.bfloat16))
    assert low.dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: contrastive_loss(unit(3, 4), unit(2, 4), SCALE), "both be [B, D]"),
        (lambda: siglip_loss(unit(3, 4), unit(3, 5), SCALE, SCALE), "both be [B, D]"),
        (
            lambda: local_similarity(unit(2, 3, 4), np.ones((2, 3), bool), unit(2, 3, 5)),
            "must share D",
        ),
        (
            lambda: local_similarity(unit(2, 3, 4), np.ones((2, 4), bool), unit(2, 3, 4)),
            "word_mask must be bool[2, 3]",
        ),
        (
            lambda: discrimination_loss(unit(2, 4), unit(2, 3, 4), np.ones((2, 4), bool), SCALE),
            "valid must be bool[2, 2]",
        ),
        (
            lambda: contrastive_loss(unit(3, 4), unit(3, 4), SCALE, group=np.zeros(2, np.int32)),
            "group must be i32[3]",
        ),
    ],
)
def test_wrong_shapes_are_refused_at_the_door(call, text):
    with pytest.raises(ValueError, match="must") as error:
        call()
    assert text in str(error.value)


def encoded_and_batch():
    words, mask, regions = local_inputs()
    encoded = {
        "image.embedding": unit(B, D),
        "text.embedding": unit(B, D, seed=1),
        "text@perturbed.embedding": unit(B, K, D, seed=2),
        "image.regions": regions,
        "text.words": words,
        "text.word_mask": mask,
    }
    batch = {
        "group": np.arange(B, dtype=np.int32),
        "perturbed.valid": np.ones((B, K), bool),
        "perturbed.kind": np.zeros((B, K), np.int8),
    }
    return {k: jnp.asarray(v) for k, v in encoded.items()}, batch


def call(module, encoded, batch):
    """Gives an objective the arguments that it states, and no others."""
    arrays = {argument: encoded[name] for argument, name in module.reads.items()}
    arrays |= {argument: batch[name] for argument, name in module.batch.items()}
    return module(context=Context(jnp.int32(0)), **arrays)


@pytest.mark.parametrize(
    "objective", [GlobalContrastive, LocalContrastive, PerturbedDiscrimination, Siglip]
)
def test_modules_read_only_what_they_say_they_need(objective):
    encoded, batch = encoded_and_batch()
    module = objective()
    loss = call(module, encoded, batch)
    assert np.isfinite(loss.value)
    value, weight = loss.metrics["loss"]
    assert value / weight == pytest.approx(float(loss.value), rel=1e-6)


@pytest.mark.parametrize("objective", [GlobalContrastive, PerturbedDiscrimination, Siglip])
def test_the_scale_is_clipped_at_100_after_the_update_and_keeps_its_gradient(objective):
    encoded, batch = encoded_and_batch()
    module = objective()
    module.logit_scale.log[...] = jnp.float32(7.0)
    module.post_update(Context(jnp.int32(0)))
    assert jnp.exp(module.logit_scale()) == pytest.approx(100, rel=1e-5)
    graphdef, params = nnx.split(module)
    gradient = jax.grad(lambda p: call(nnx.merge(graphdef, p), encoded, batch).value)(params)
    assert jax.tree.leaves(gradient.logit_scale)[0] != 0


def test_ties_count_as_wrong_in_the_accuracy():
    encoded, batch = encoded_and_batch()
    same = jnp.ones((B, D)) / 2
    encoded |= {
        "image.embedding": same,
        "text.embedding": same,
        "text@perturbed.embedding": jnp.ones((B, K, D)) / 2,
    }
    correct, weight = call(PerturbedDiscrimination(), encoded, batch).metrics["accuracy"]
    assert (correct, weight) == (0, B)
