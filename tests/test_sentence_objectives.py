"""Losses of single sentences against float64 references, masks, devices, and short runs."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.evaluators.pointing_game import attention_entropy
from mmrl.evaluators.sentence_pointing import sentence_maps
from mmrl.objectives.base import Context
from mmrl.objectives.concept_alignment import (
    ConceptAlignment,
    concept_alignment_loss,
    concept_vector_loss,
)
from mmrl.objectives.sentence_contrastive import SentenceContrastive, sentence_negatives
from mmrl.objectives.sub_captions import SubCaptions, grouping_loss, multi_positive_loss
from mmrl.types import InputError
from tests import references
from tests.arrays import assert_close, on_mesh
from tests.commands import run_here, train_command
from tests.test_objectives import check

B, K, R, L, D = 8, 3, 4, 9, 4
SCALE, BIAS = np.array(np.float32(4.0)), np.array(np.float32(-2.0))
GROUPINGS = {
    "published": {},
    "softmax": {"weighting": "softmax", "threshold": -1.0},
    "share": {"threshold": -1.0},
    "report": {"negatives": "report", "threshold": -1.0},
}


def features(size=B):
    """Embeddings, sentences and regions that nothing has normalised, f32."""
    rng = np.random.default_rng(0)
    shapes = {"image": (size, D), "texts": (size, K, D), "regions": (size, R, D)}
    shapes |= {"words": (size, L, D)}
    return {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}


def marks():
    """Missing sentences, an empty report, equal sentences within and across reports, duplicates."""
    valid = np.random.default_rng(1).random((B, K)) < 0.7
    valid[0], valid[2], valid[3] = True, True, False
    key = np.arange(B * K, dtype=np.int32).reshape(B, K)
    key[2, 0], key[4, 1], key[0, 1] = key[0, 2], key[0, 2], key[0, 2]
    valid[2, 0] = valid[4, 1] = True
    group = np.array([0, 1, 2, 3, 1, 5, 6, 6], np.int32)
    present = np.array([1, 1, 1, 1, 1, 0, 1, 1], bool)
    return {"valid": valid, "key": key, "group": group, "present": present}


def concepts_of_sentences(regions, texts, scale, bias, *, valid, key, group, present):
    """`concept_vector_loss` with the sentences of each row, as the objective calls it."""
    valid = valid & present[:, None]
    negative = sentence_negatives(*map(jnp.asarray, (valid, key, group, present)))
    owner = jnp.where(valid, np.arange(B, dtype=np.int32)[:, None], -1)
    return concept_vector_loss(
        regions,
        texts.reshape(-1, D),
        owner.reshape(-1),
        scale,
        bias,
        negative=negative.reshape(B, -1),
        present=present,
    )


# name -> (loss, its reference, names of the features it takes, whether it takes a bias).
LOSSES = {
    "multi_positive": (multi_positive_loss, references.multi_positive, ("image", "texts"), False),
    **{
        f"grouping {name}": (
            functools.partial(grouping_loss, **options),
            functools.partial(references.grouping, **options),
            ("texts", "regions"),
            False,
        )
        for name, options in GROUPINGS.items()
    },
    "concepts": (
        concepts_of_sentences,
        references.concept_vectors,
        ("regions", "texts"),
        True,
    ),
}


def arguments_of(name, made):
    _, _, names, biased = LOSSES[name]
    return (*(made[n] for n in names), SCALE, *([BIAS] if biased else []))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "concepts"])
def test_published_losses_equal_the_reference(name):
    loss, reference, *_ = LOSSES[name]
    check(loss, reference, arguments_of(name, features(4)), (0, 1, 2))


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("name", LOSSES)
def test_losses_with_marks_equal_the_reference(name):
    loss, reference, *_ = LOSSES[name]
    arguments = arguments_of(name, features())
    check(
        functools.partial(loss, **marks()),
        functools.partial(reference, **marks()),
        arguments,
        range(len(arguments)),
    )


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("name", LOSSES)
def test_every_mark_matters(name):
    """Otherwise the comparison with the reference would not notice a mark that is ignored."""
    loss, *_ = LOSSES[name]
    arguments, given = arguments_of(name, features()), marks()
    blank = {
        "valid": np.ones((B, K), bool),
        "key": np.arange(B * K, dtype=np.int32).reshape(B, K),
        "group": np.arange(B, dtype=np.int32),
        "present": np.ones(B, bool),
    }
    if name == "grouping report":
        del blank["group"]  # all texts of a report are of one group
    value = float(loss(*arguments, **given))
    for mark, plain in blank.items():
        assert float(loss(*arguments, **{**given, mark: plain})) != pytest.approx(value, rel=1e-3)


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("name", LOSSES)
def test_masked_places_may_hold_anything(name):
    loss, _, names, _ = LOSSES[name]
    given, clean = marks(), features()
    dirty = {n: x.copy() for n, x in clean.items()}
    dirty["texts"][~given["valid"]] = np.nan
    for x in dirty.values():
        x[~given["present"]] = np.inf
    places = {"texts": given["valid"] & given["present"][:, None]}
    numbers = tuple(range(len(names)))
    gradient = jax.jit(jax.value_and_grad(functools.partial(loss, **given), argnums=numbers))
    got, expected = (gradient(*arguments_of(name, x)) for x in (dirty, clean))
    assert_close(got, expected, 1e-6)
    for argument, slope in zip(names, got[1], strict=True):
        kept = places.get(argument, given["present"])
        np.testing.assert_array_equal(slope[~kept], 0)
        assert np.abs(slope[kept]).max() > 0


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("name", LOSSES)
def test_nothing_valid_gives_zero(name):
    loss, _, names, _ = LOSSES[name]
    given = {**marks(), "valid": np.zeros((B, K), bool)}
    numbers = tuple(range(len(names)))
    gradient = jax.value_and_grad(functools.partial(loss, **given), argnums=numbers)
    for x in jax.tree.leaves(gradient(*arguments_of(name, features()))):
        np.testing.assert_array_equal(x, 0)


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("name", LOSSES)
def test_devices_change_nothing(name):
    loss, *_ = LOSSES[name]
    arguments, given = arguments_of(name, features()), marks()

    @jax.jit
    def gradient(arguments, given):
        return jax.value_and_grad(lambda a: loss(*a, **given))(arguments)

    def shared(axes):
        *spread, rest = on_mesh(axes, *(x for x in arguments if x.ndim), given)
        return gradient((*spread, *(x for x in arguments if not x.ndim)), rest)

    one = gradient(arguments, given)
    for axes in ((8, 1, 1), (2, 2, 2)):
        assert_close(jax.device_get(shared(axes)), jax.device_get(one))


@pytest.mark.parametrize("name", LOSSES)
def test_narrow_features_are_computed_in_float32(name):
    loss, *_ = LOSSES[name]
    given = arguments_of(name, features())
    narrow = [jnp.asarray(x, jnp.bfloat16) if x.ndim else x for x in given]
    wide = [x.astype(jnp.float32) for x in narrow]
    got = loss(*narrow, **marks())
    assert got.dtype == jnp.float32
    assert_close(got, loss(*wide, **marks()), 1e-6)


def test_spans_of_tokens_equal_the_reference():
    made = features(4)
    spans = np.array([[1, 3], [0, 1], [4, 9], [2, 3], [-1, -1], [1, 2], [0, 5]], np.int32)
    owner = np.array([0, 0, 1, 3, -1, 3, -1], np.int32)  # row 2 has no concept

    def loss(regions, words, scale, bias):
        return concept_alignment_loss(regions, words, spans, owner, scale, bias)

    def reference(regions, words, scale, bias):
        return references.concept_spans(regions, words, spans, owner, scale, bias)

    check(loss, reference, (made["regions"], made["words"], SCALE, BIAS), (0, 1, 2, 3))
    kept = np.zeros((4, L), bool)
    for (start, end), row in zip(spans, owner, strict=True):
        kept[row, start:end] |= row >= 0
    dirty = np.where(kept[..., None], made["words"], np.float32(np.nan))
    value, slope = jax.value_and_grad(loss, argnums=1)(made["regions"], dirty, SCALE, BIAS)
    assert_close(value, loss(made["regions"], made["words"], SCALE, BIAS), 1e-6)
    np.testing.assert_array_equal(slope[~kept], 0)
    # Padding is marked by the owner, by the span, or by a span without a token.
    for place, padding in (((-1, -1), 0), ((3, 3), 1)):
        longer = np.concatenate([spans, np.array([place], np.int32)])
        owners = np.concatenate([owner, np.array([padding], np.int32)])
        more = concept_alignment_loss(made["regions"], made["words"], longer, owners, SCALE, BIAS)
        assert_close(more, value, 1e-6)


def test_constant_features_give_the_logarithm_of_the_choices():
    same = {name: np.ones_like(x) for name, x in features().items()}
    both = (same["texts"], same["regions"], SCALE)
    assert multi_positive_loss(same["image"], same["texts"], SCALE) == pytest.approx(np.log(B))
    assert grouping_loss(*both) == pytest.approx(np.log(B * K), rel=1e-6)
    assert grouping_loss(*both, negatives="report") == pytest.approx(np.log(K), rel=1e-6)
    slopes = jax.grad(grouping_loss, argnums=(0, 1))(*both)
    assert all(np.isfinite(slope).all() for slope in slopes)


@pytest.mark.exhaustive
def test_a_group_holds_only_regions_like_the_text():
    """Regions along the axes, texts along one of them: only this region is left."""
    regions = np.tile(np.eye(D, dtype=np.float32), (2, 1, 1))
    arguments = (regions[:, :K], regions, SCALE)
    like, unlike = np.exp(4.0), 1.0

    def expected(copies, others):
        return pytest.approx(np.log((1 + copies) * like + others * unlike) - 4.0, rel=1e-4)

    # Both reports have the same sentences, so one negative is as like as the positive.
    assert grouping_loss(*arguments) == expected(1, 2 * (K - 1))
    key = np.tile(np.arange(K, dtype=np.int32), (2, 1))
    assert grouping_loss(*arguments, key=key) == expected(0, 2 * (K - 1))
    group = np.zeros(2, np.int32)
    assert grouping_loss(*arguments, group=group) == expected(0, K - 1)
    assert grouping_loss(*arguments, negatives="report") == expected(0, K - 1)


def arrays_of(module, *, present=None):
    """The arrays that an objective reads, by argument."""
    made, given = features(), marks()
    made |= {"sentences": made["texts"] + 1.0, "word_mask": np.arange(L) < np.arange(B)[:, None]}
    made |= {name: x for name, x in given.items() if name != "present"}
    made["known"] = np.concatenate([given["key"], given["key"][:, :1]], axis=1)
    if present is not None:
        for name in ("image", "texts", "sentences", "regions", "words"):
            made[name][~present] = np.nan
    return {name: jnp.asarray(made[name]) for name in (*module.reads, *module.batch)}


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("objective", [SubCaptions, ConceptAlignment, SentenceContrastive])
def test_metrics_weigh_a_loss_by_its_valid_sentences(objective):
    module, given = objective(), marks()
    for present in (None, given["present"]):
        there = np.ones(B, bool) if present is None else present
        context = Context(jnp.int32(0), None, present)
        loss = module(context=context, **arrays_of(module, present=present))
        total, weight = loss.metrics["loss"]
        assert float(weight) == (given["valid"] & there[:, None]).sum()
        assert np.isfinite(loss.value) and total / weight == pytest.approx(float(loss.value))


def test_sub_captions_add_their_terms_each_with_its_scale():
    module = SubCaptions(multi_positive=0.5, grouping=2.0, temperature=0.1, negatives="report")
    module.grouping_scale.log[...] = jnp.log(jnp.float32(3.0))
    arrays = arrays_of(module)
    given = {name: arrays[name] for name in ("valid", "key", "group")}
    loss = module(context=Context(jnp.int32(0)), **arrays)
    one = multi_positive_loss(arrays["image"], arrays["texts"], 10.0, **given)
    two = grouping_loss(arrays["sentences"], arrays["regions"], 3.0, negatives="report", **given)
    assert loss.value == pytest.approx(float(0.5 * one + 2.0 * two), rel=1e-5)
    for name, value in (("multi_positive", one), ("grouping", two)):
        total, weight = loss.metrics[name]
        assert total / weight == pytest.approx(float(value), rel=1e-5)
    alone = SubCaptions(multi_positive=0.0)(context=Context(jnp.int32(0)), **arrays)
    assert "multi_positive" not in alone.metrics
    assert alone.value == pytest.approx(
        float(grouping_loss(arrays["sentences"], arrays["regions"], 1 / 0.07, **given)), rel=1e-5
    )


def test_concept_alignment_takes_every_valid_sentence_as_a_concept():
    for published in (False, True):
        module = ConceptAlignment(equal_are_negatives=published)
        arrays = arrays_of(module)
        given = {name: np.asarray(arrays[name]) for name in ("valid", "key", "group")}
        if published:
            del given["key"]
        loss = module(context=Context(jnp.int32(0)), **arrays)
        regions, sentences = (np.asarray(arrays[n], float) for n in ("regions", "sentences"))
        expected = references.concept_vectors(regions, sentences, 10.0, -10.0, **given)
        assert_close(loss.value, expected)


@pytest.mark.parametrize("objective", [SubCaptions, ConceptAlignment])
def test_scales_are_clipped_at_100_after_the_update(objective):
    module = objective()
    scales = [x for name, x in vars(module).items() if name.endswith("_scale")]
    assert len(scales) == (2 if objective is SubCaptions else 1)
    for scale in scales:
        scale.log[...] = jnp.float32(7.0)
    module.post_update(Context(jnp.int32(0)))
    for scale in scales:
        assert jnp.exp(scale()) == pytest.approx(100, rel=1e-5)


@pytest.mark.parametrize("present", [None, marks()["present"]])
def test_attention_entropy_is_that_of_the_evaluators(present):
    there = np.ones(B, bool) if present is None else present
    context = Context(jnp.int32(0), None, present)
    module = SentenceContrastive(sharpness=3.0)
    arrays = arrays_of(module, present=present)
    plain = {name: np.asarray(x) for name, x in arrays.items()}
    rows, places = np.nonzero(plain["valid"] & there[:, None])
    maps = sentence_maps(plain["sentences"][rows, places], plain["regions"][rows], 3.0)
    total, weight = module(context=context, **arrays).metrics["attention_entropy"]
    assert total / weight == pytest.approx(attention_entropy([maps]).mean(), rel=1e-5)
    assert 0.1 < total / weight < 0.9


def test_entropy_is_not_stated_for_whole_images():
    module = SentenceContrastive()
    arrays = arrays_of(module) | {"regions": jnp.asarray(features()["image"])}
    assert set(module(context=Context(jnp.int32(0)), **arrays).metrics) == {"loss"}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"weighting": "sum"}, "weighting of sub_captions 'sum'; choices: minmax, softmax"),
        ({"negatives": "reports"}, "'reports' (did you mean 'report'?); choices: batch, report"),
        ({"multi_positive": 0.0, "grouping": 0.0}, "one of them above 0"),
        ({"grouping": -1.0}, "weights of at least 0"),
        ({"threshold": 1.0}, "threshold 1.0"),
        ({"temperature": 0.0}, "temperature 0.0"),
    ],
)
def test_options_that_cannot_be_are_refused(options, text):
    with pytest.raises(InputError) as error:
        SubCaptions(**options)
    assert text in str(error.value)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: multi_positive_loss(x["image"][:3], x["texts"], 1.0), "image [B, D] must match"),
        (lambda x: grouping_loss(x["texts"], x["image"], 1.0), "must match regions [B, R, D]"),
        (
            lambda x: grouping_loss(x["texts"], x["regions"], 1.0, valid=np.ones((B, 2), bool)),
            "valid must be [8, 3], got (8, 2)",
        ),
        (
            lambda x: concept_alignment_loss(
                x["regions"], x["words"], np.zeros((3, 2), int), np.zeros(2, int), 1.0, 0.0
            ),
            "must match owner i32[C]",
        ),
        (
            lambda x: concept_vector_loss(
                x["regions"],
                x["image"],
                np.zeros(B, np.int32),
                1.0,
                0.0,
                negative=np.ones((2, B), bool),
            ),
            "negative must be bool[8, 8], got (2, 8)",
        ),
    ],
)
def test_wrong_shapes_are_refused_at_the_door(call, text):
    with pytest.raises(ValueError, match="must") as error:
        call(features())
    assert text in str(error.value)


@pytest.mark.exhaustive
@pytest.mark.optax
@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("sub_captions", {"loss", "multi_positive", "grouping", "logit_scale", "grouping_scale"}),
        ("concept_alignment", {"loss", "logit_scale", "logit_bias"}),
        ("sentence_contrastive", {"loss", "attention_entropy"}),
    ],
)
def test_an_objective_is_one_line_on_the_command_line(name, metrics, tmp_path):
    run = tmp_path / "run"
    arguments = (
        f"--config.objectives.{name}.weight=1",
        "--config.towers.text.heads.sentence=32",
        "--config.objectives.global_contrastive=none",
        "--config.objectives.local_contrastive=none",
        "--config.objectives.perturbed_discrimination=none",
        "--config.total_steps=12",
        "--config.log_every=4",
        "--config.eval_every=12",
        "--config.optimizer.warmup_steps=2",
        *(f"--config.evaluators.{one}=none" for one in ("retrieval", "structure", "pointing")),
        "--nosummary",
    )
    assert run_here(*train_command(run, *arguments)) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = (line for line in lines if line["kind"] == "train")
    assert {f"{name}/{metric}" for metric in metrics} <= set(last)
    assert last[f"{name}/loss"] < first[f"{name}/loss"]
