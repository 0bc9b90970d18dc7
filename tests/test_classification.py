"""Labels: the objective against a float64 reference, and the evaluator with known logits."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.evaluators import metrics
from mmrl.evaluators.classification import Classification
from mmrl.objectives.base import Context
from mmrl.objectives.label_classification import LabelClassification, label_loss
from mmrl.types import InputError
from tests import fakes

# --- the objective


def loss_by_hand(logits, values, mask):
    """Mean of -log p over the known labels, in float64."""
    logits, values = logits.astype(np.float64), values.astype(np.float64)
    p = 1 / (1 + np.exp(-logits))
    return -np.log(np.where(values > 0.5, p, 1 - p))[mask].mean()


def drawn(seed=0, rows=7, labels=4):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (rows, labels)).astype(np.float32)
    values = rng.integers(0, 2, (rows, labels)).astype(np.float32)
    return logits, values, rng.random((rows, labels)) < 0.7


def context(present=None):
    return Context(step=jnp.int32(0), present=present)


@pytest.mark.parametrize("seed", range(3))
def test_loss_equals_the_float64_reference(seed):
    logits, values, mask = drawn(seed)
    expected = loss_by_hand(logits, values, mask)
    np.testing.assert_allclose(label_loss(logits, values, mask), expected, rtol=1e-6)
    loss = LabelClassification()(context=context(), logits=logits, values=values, mask=mask)
    np.testing.assert_allclose(loss.value, expected, rtol=1e-6)
    total, count = loss.metrics["loss"]
    assert count == mask.sum() and total / count == pytest.approx(expected, rel=1e-6)
    right = ((logits > 0) == (values > 0.5))[mask].sum()
    assert tuple(loss.metrics["accuracy"]) == (right, mask.sum())


def test_gradient_is_probability_minus_label_over_the_known_ones():
    logits, values, mask = drawn()
    slope = jax.grad(label_loss)(jnp.asarray(logits), values, mask)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    np.testing.assert_allclose(slope, (p - values) * mask / mask.sum(), rtol=1e-5, atol=1e-7)


def test_rows_that_are_not_present_do_not_count_whatever_their_logits():
    logits, values, mask = drawn()
    present = np.array([True, False, True, True, False, True, True])
    expected = loss_by_hand(logits[present], values[present], mask[present])
    spoiled = jnp.asarray(np.where(present[:, None], logits, np.nan))
    objective = LabelClassification()

    def value(logits):
        given = {"logits": logits, "values": values, "mask": jnp.asarray(mask)}
        return objective(context=context(jnp.asarray(present)), **given)

    loss = value(spoiled)
    np.testing.assert_allclose(loss.value, expected, rtol=1e-6)
    assert float(loss.metrics["loss"][1]) == mask[present].sum()
    slope = np.asarray(jax.grad(lambda x: value(x).value)(spoiled))
    assert np.isfinite(slope).all() and not slope[~present].any() and slope[present].any()


def test_uncertain_labels_count_as_unknown_and_nothing_known_costs_nothing():
    logits, values, mask = drawn()
    uncertain = np.where(np.arange(4) == 1, 2, values).astype(np.float32)
    known = mask & (np.arange(4) != 1)
    expected = loss_by_hand(logits, values, known)
    np.testing.assert_allclose(label_loss(logits, uncertain, mask), expected, rtol=1e-6)
    nothing = label_loss(jnp.asarray(logits), values, np.zeros_like(mask))
    assert nothing == 0
    huge = np.array([[1e4, -1e4]], np.float32)
    wrong = label_loss(huge, np.array([[0, 1]], np.float32), np.ones((1, 2), bool))
    assert wrong == pytest.approx(1e4)


def test_another_number_of_logits_than_of_labels_is_refused():
    logits, values, mask = drawn()
    with pytest.raises(
        ValueError, match=r"logits \(7, 3\), values \(7, 4\) and mask \(7, 4\) must"
    ):
        label_loss(logits[:, :3], values, mask)


# --- the evaluator


class FakeInput:
    def __init__(self, names):
        self.label_names = names


class FakeData(fakes.FakeData):
    """Studies with labels f[N, C] and a mask of the known ones."""

    def __init__(self, values, mask, names=None, **options):
        super().__init__(["Report."] * len(values), **options)
        self.labels, self.mask = np.asarray(values, np.float32), np.asarray(mask, bool)
        self.names = names or [f"label {column}" for column in range(self.labels.shape[1])]

    def input(self, name, tower=""):
        assert (name, tower) == ("labels", "")
        return FakeInput(self.names)

    def arrays(self, names, rows, tower=""):
        assert (*names, tower) == ("labels", "")
        return {"labels.values": self.labels[rows], "labels.mask": self.mask[rows]}


def studies(count=300, labels=3, **options):
    """Labels of which three quarters are known, and logits that know a little."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2, (count, labels))
    mask = rng.random((count, labels)) < 0.75
    logits = values + rng.normal(0, 1.5, (count, labels))
    patients = [f"p{i // 2}" for i in range(count)]
    return FakeData(values, mask, patients=patients, **options), logits


def predict(data, logits):
    of = dict(zip(data.ids, logits, strict=True))
    return fakes.FakePredict(lambda i: of[i], None)


def test_auroc_is_that_of_the_known_labels():
    data, logits = studies()
    # An unknown label may have any value.
    data.labels[~data.mask] = 1
    results = Classification(predict(data, logits), data).run(None)
    areas = []
    for column, name in enumerate(data.names):
        known = data.mask[:, column]
        area = metrics.auroc(logits[known, column], data.labels[known, column] > 0.5)
        estimate = results.values[f"label/{name}/auroc"]
        assert estimate.value == pytest.approx(area, abs=1e-12) and estimate.n == known.sum()
        assert estimate.low < area < estimate.high and estimate.chance == 0.5
        areas.append(area)
    macro = results.values["macro_auroc"]
    assert macro.value == pytest.approx(np.mean(areas), abs=1e-12)
    assert macro.n == data.mask.any(axis=1).sum()
    assert next(iter(results.values)) == "macro_auroc"
    blind = results.values["macro_auroc_images_permuted"]
    assert abs(blind.value - 0.5) < 0.07 and blind.low < 0.5 < blind.high
    assert results.protocol == "classification@1" and results.n == 300 and not results.excluded
    json.dumps(results.to_dict(), allow_nan=False)


def test_perfect_and_constant_logits():
    data, _ = studies()
    values = Classification(predict(data, data.labels - 0.5), data).run(None).values
    assert values["macro_auroc"].value == values["macro_auroc"].low == 1
    constant = Classification(predict(data, np.zeros((300, 3))), data).run(None).values
    assert constant["macro_auroc"].value == constant["macro_auroc_constant"].value == 0.5
    assert constant["macro_auprc"].value == constant["macro_auprc_constant"].value
    assert constant["macro_auroc_images_permuted"].value == 0.5
    inverted = Classification(predict(data, 0.5 - data.labels), data).run(None).values
    assert inverted["macro_auroc"].value == 0


def test_intervals_are_those_of_the_bootstrap_over_patients():
    data, logits = studies()
    values = Classification(predict(data, logits), data, seed=3).run(None).values
    tasks = [
        metrics.Ranked(rows, logits[None, rows, column], data.labels[rows, column] > 0.5)
        for column in range(3)
        for rows in (np.flatnonzero(data.mask[:, column]),)
    ]
    each, macro = metrics.intervals(tasks, data.patients, seed=3)
    for name, interval in zip(data.names, each, strict=True):
        found = values[f"label/{name}/auroc"]
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert values["macro_auroc"].low == pytest.approx(macro.low, abs=1e-12)


def test_what_is_stated_beside_the_values():
    data, logits = studies()
    results = Classification(predict(data, logits), data).run(None)
    assert results.details["calibration"]["bins"] == 15
    assert results.details["prevalence"]["label 0"]["n"] == data.mask[:, 0].sum()
    gain = results.values["macro_auroc_gain_over_images_permuted"]
    own, blind = (results.values[f"macro_auroc{row}"] for row in ("", "_images_permuted"))
    assert gain.value == pytest.approx(own.value - blind.value) and gain.low > 0
    assert 0 < results.values["calibration_error"].value < 1


def test_exclusive_classes():
    data, _ = studies()
    data.mask[:] = True
    truth = np.random.default_rng(4).integers(0, 3, 300)
    data.labels[:] = np.eye(3)[truth]
    data.labels[:10] = 0  # none of the classes
    data.labels[10:15] = 1  # several
    logits = 3 * np.eye(3)[truth] + np.random.default_rng(5).normal(0, 2, (300, 3))
    results = Classification(predict(data, logits), data, kind="classes").run(None)
    right = logits[15:].argmax(axis=1) == truth[15:]
    assert results.values["accuracy"].value == pytest.approx(right.mean())
    assert results.values["accuracy"].n == results.n == 285
    assert results.excluded == {"not exactly one class": 15}
    perfect = Classification(predict(data, np.eye(3)[truth]), data, kind="classes").run(None)
    assert perfect.values["macro_f1"].value == perfect.values["accuracy"].low == 1
    data.labels[:] = [1, 0, 0]
    with pytest.raises(InputError, match=r"300 of 300 examples .* of 1 classes; classification"):
        Classification(predict(data, logits), data, kind="classes")
    with pytest.raises(InputError, match="unknown kind of classification 'class'"):
        Classification(predict(data, logits), data, kind="class")


def test_labels_of_one_class_are_excluded_and_counted():
    data, logits = studies(labels=5)
    data.labels[:, 1] = 1
    data.mask[:, 3] = False
    data.labels[:, 4] = np.where(data.labels[:, 4] > 0.5, 2, 0)  # 2: uncertain, neither class
    results = Classification(predict(data, logits), data).run(None)
    assert results.excluded == {"labels of one class only": 3}
    assert results.details["labels"] == ["label 0", "label 2"]
    assert [name for name in results.values if name.endswith("/auroc")] == [
        "label/label 0/auroc",
        "label/label 2/auroc",
    ]
    data.mask[:, [0, 2]] = False
    with pytest.raises(InputError, match="no label of fake/test has both classes among 300 exam"):
        Classification(predict(data, logits), data)


def test_uncertain_labels_are_left_out_study_by_study():
    data, logits = studies(labels=1)
    data.labels[::3] = 2
    results = Classification(predict(data, logits), data).run(None)
    known = data.mask[:, 0] & (np.arange(300) % 3 != 0)
    area = metrics.auroc(logits[known, 0], data.labels[known, 0] > 0.5)
    assert results.values["macro_auroc"].value == pytest.approx(area, abs=1e-12)


def test_studies_without_the_input_are_excluded_and_counted():
    data, logits = studies()
    absent = np.arange(300) % 5 == 0
    encoder = predict(data, np.where(absent[:, None], np.nan, logits))
    encoder.absent = tuple(np.asarray(data.ids)[absent])
    results = Classification(encoder, data, reads={"logits": "image@second.labels"}).run(None)
    assert encoder.asked == ["image@second.labels"]
    assert results.n == 240 and results.excluded == {"an input is missing": 60}
    kept = FakeData(data.labels[~absent], data.mask[~absent])
    kept.ids = [name for name in data.ids if name not in encoder.absent]
    kept.patients = [p for p, out in zip(data.patients, absent, strict=True) if not out]
    whole = Classification(predict(kept, logits[~absent]), kept).run(None)
    for name, estimate in whole.values.items():
        assert results.values[name].value == pytest.approx(estimate.value, abs=1e-12), name
        assert results.values[name].n == estimate.n


def test_what_cannot_be_judged_is_refused():
    data, logits = studies()
    with pytest.raises(
        InputError, match=r"shape \(300, 2\), the labels \(300, 3\); the head needs 3"
    ):
        Classification(predict(data, logits[:, :2]), data).run(None)
    logits[7, 1] = np.inf
    with pytest.raises(FloatingPointError, match=r"image\.labels is not finite, first fake:7"):
        Classification(predict(data, logits), data).run(None)
    with pytest.raises(InputError, match="bootstrap is -1"):
        Classification(predict(data, logits), data, bootstrap=-1)
