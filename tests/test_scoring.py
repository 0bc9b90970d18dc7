"""Measures with intervals: scikit-learn as reference, weights as repetition, planted predictors."""

import numpy as np
import pytest
from sklearn import metrics as reference

from mmrl.evaluators import scoring, weighted
from mmrl.evaluators.scoring import UNKNOWN, Answers

RNG = np.random.default_rng(0)
PATIENTS = [f"p{i // 2}" for i in range(120)]


def binary(threshold=0.5, probabilities=True):
    truth = RNG.random(120) < 0.4
    scores = np.clip(0.35 * truth + np.round(RNG.random(120), 1) * 0.6, 0, 1)
    return Answers("binary", scores, truth, PATIENTS, ("a",), threshold, probabilities)


def classes():
    truth = RNG.integers(0, 3, 120)
    scores = RNG.random((120, 3)) + 0.5 * np.eye(3)[truth]
    scores /= scores.sum(axis=1, keepdims=True)
    return Answers("classes", scores, truth, PATIENTS, ("a", "b", "c"), probabilities=True)


def labels():
    truth = (RNG.random((120, 3)) < 0.4).astype(np.int8)
    scores = np.clip(0.3 * truth + RNG.random((120, 3)) * 0.7, 0, 1)
    truth[RNG.random((120, 3)) < 0.1] = UNKNOWN
    return Answers("labels", scores, truth, PATIENTS, ("a", "b", "c"), 0.5, True)


def number():
    truth = RNG.normal(size=120)
    return Answers("number", truth + RNG.normal(size=120), truth, PATIENTS, ("age",))


ALL = {"binary": binary, "classes": classes, "labels": labels, "number": number}


@pytest.mark.parametrize("kind", ALL)
def test_draws_repeat_the_measure_on_repeated_items(kind):
    """Weights 0, 1, 2 give what the measure gives on items left out, taken once, and twice."""
    answers = ALL[kind]()
    times = RNG.integers(0, 3, 120)
    repeated = answers.take(np.repeat(np.arange(120), times))
    found, direct = scoring._measures(answers), scoring._measures(repeated)
    for name, one in found.items():
        drawn = one.drawn(np.stack([np.ones(120), times.astype(float)]))
        np.testing.assert_allclose(drawn[0], one.value, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(drawn[1], direct[name].value, atol=1e-12, err_msg=name)


def test_values_are_those_of_scikit_learn():
    one, several, many, regression = binary(), classes(), labels(), number()
    chosen = one.scores > 0.5
    found = {k: e.value for k, e in scoring.estimates(one, samples=0).items()}
    assert found["auroc"] == reference.roc_auc_score(one.truth, one.scores)
    assert found["auprc"] == reference.average_precision_score(one.truth, one.scores)
    assert found["specificity"] == pytest.approx((~chosen)[~one.truth].mean())
    assert found["sensitivity"] == pytest.approx(chosen[one.truth].mean())
    found = {k: e.value for k, e in scoring.estimates(several, samples=0).items()}
    assert found["macro_auroc"] == pytest.approx(
        reference.roc_auc_score(several.truth, several.scores, multi_class="ovr")
    )
    found = {k: e.value for k, e in scoring.estimates(many, samples=0).items()}
    known = many.truth != UNKNOWN
    areas = [
        reference.roc_auc_score(many.truth[known[:, c], c], many.scores[known[:, c], c])
        for c in range(3)
    ]
    assert found["macro_auroc"] == pytest.approx(np.mean(areas))
    assert found["label/b/auroc"] == areas[1]
    found = {k: e.value for k, e in scoring.estimates(regression, samples=0).items()}
    assert found["r2"] == reference.r2_score(regression.truth, regression.scores)


@pytest.mark.parametrize(
    ("plant", "auroc"), [("perfect", 1.0), ("inverted", 0.0), ("constant", 0.5)]
)
def test_planted_predictors_give_the_known_results(plant, auroc):
    truth = RNG.random(120) < 0.4
    scores = {"perfect": truth + 0.0, "inverted": ~truth + 0.0, "constant": np.zeros(120)}[plant]
    values, _ = scoring.report(Answers("binary", scores, truth, PATIENTS, ("a",)), bootstrap=50)
    assert values["auroc"].value == values["auroc"].low == values["auroc"].high == auroc
    assert values["auroc_constant"].value == 0.5
    assert values["auprc_constant"].value == pytest.approx(truth.mean())


def test_the_constant_predictor_takes_the_frequencies_of_the_reference():
    answers = classes()
    values, _ = scoring.report(answers, reference=np.array([2, 2, 0]), bootstrap=0)
    assert values["accuracy_constant"].value == (answers.truth == 2).mean()
    assert values["macro_auroc_constant"].value == 0.5
    values, _ = scoring.report(number(), bootstrap=0)
    assert values["r2_constant"].value == pytest.approx(0.0)


def test_the_constant_predictor_decides_for_what_is_more_frequent():
    for threshold in (0.05, 0.9):
        answers = binary(threshold)
        values, _ = scoring.report(answers, bootstrap=0)
        assert values["accuracy_constant"].value == pytest.approx((~answers.truth).mean())
        assert values["f1_constant"].value == 0
        assert values["balanced_accuracy_constant"].value == 0.5


def test_rows_are_paired_with_the_same_draws():
    answers = binary()
    values, _ = scoring.report(answers, rows={"raw_pixels": (answers.scores,)}, bootstrap=100)
    gain = values["auroc_gain_over_raw_pixels"]
    assert (gain.value, gain.low, gain.high, gain.chance) == (0.0, 0.0, 0.0, 0.0)
    shuffled = RNG.permutation(answers.scores)
    values, _ = scoring.report(answers, rows={"images_permuted": (shuffled,)}, bootstrap=100)
    gain, drawn = values["auroc_gain_over_images_permuted"], values["auroc"].draws
    low = np.quantile(drawn - values["auroc_images_permuted"].draws, 0.025)
    assert gain.low == pytest.approx(low)
    with pytest.raises(ValueError, match="same ones"):
        scoring.difference(values["auroc"], scoring.estimate(0.5, None, n=3))


def test_labels_without_both_classes_are_left_out_with_the_reason():
    answers = labels()
    answers.truth[:, 1] = 0
    values, details = scoring.report(answers, bootstrap=0, reference=answers.truth)
    assert details["left_out"] == {"b": "0 present and 120 absent"}
    assert "label/b/auroc" not in values
    assert "label/c/auroc" in values
    answers.truth[:] = 0
    with pytest.raises(ValueError, match="no label has both classes"):
        scoring.report(answers, bootstrap=0)


def test_subgroups_are_measured_alone_and_those_without_a_class_are_named():
    answers = binary()
    inside = np.arange(120) < 60
    groups = {"sex=F": inside, "sex=M": ~answers.truth}
    values, details = scoring.report(answers, subgroups=groups, bootstrap=0)
    alone = scoring.estimates(answers.take(inside), samples=0)
    assert values["subgroup/sex=F/auroc"] == alone["auroc"]
    assert details["subgroups_without_measures"] == {
        "sex=M": f"0 of {int((~answers.truth).sum())} items are positive"
    }


def test_calibration_of_known_cases():
    truth = np.tile([True, False], 60)
    half = Answers("binary", np.full(120, 0.5), truth, PATIENTS, ("a",), 0.4, True)
    assert scoring.estimates(half, samples=0)["calibration_error"].value == 0.0
    sure = Answers("binary", np.ones(120), truth, PATIENTS, ("a",), 0.5, True)
    assert scoring.estimates(sure, samples=0)["calibration_error"].value == 0.5
    curve = scoring.reliability(sure)
    assert curve["n"][-1] == 120
    assert curve["accuracy"][-1] == 0.5
    assert curve["accuracy"][0] is None


def test_intervals_draw_patients_not_items():
    """With one patient there is no interval; items of one patient always come together."""
    answers = binary()
    alone = Answers("binary", answers.scores, answers.truth, ["p"] * 120, ("a",))
    assert scoring.estimates(alone, samples=100)["auroc"].low is None
    single = scoring.estimates(answers, samples=1000)["auroc"]
    doubled = Answers(
        "binary",
        np.tile(answers.scores, 2),
        np.tile(answers.truth, 2),
        np.tile(np.asarray(PATIENTS), 2),
        ("a",),
    )
    both = scoring.estimates(doubled, samples=1000)["auroc"]
    assert (both.low, both.high) == (single.low, single.high)


def test_thresholds_hold_what_they_promise():
    scores = np.array([0.9, 0.8, 0.8, 0.4, 0.1])
    positive = np.array([True, True, False, True, False])
    for share, found in ((0.3, 1), (0.34, 2), (0.67, 3), (1.0, 3)):
        threshold = scoring.threshold_at(scores, positive, share)
        assert (scores[positive] > threshold).sum() == found
    best = scoring.best_f1_threshold(scores, positive)
    options = [reference.f1_score(positive, scores > t) for t in (0.0, 0.2, 0.5, 0.85)]
    assert reference.f1_score(positive, scores > best) == max(options)


def test_average_precision_with_ties_and_missing_positives():
    scores, positive = np.array([1.0, 1.0, 0.0]), np.array([True, False, True])
    drawn = weighted.average_precision(scores, positive, np.array([[1, 1, 1], [0, 1, 0]]))
    assert drawn[0] == reference.average_precision_score(positive, scores)
    assert np.isnan(drawn[1])


def test_answers_refuse_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"expected \(2, 3\)"):
        Answers("classes", np.zeros((2, 2)), np.zeros(2, int), ["a", "b"], ("x", "y", "z"))
    with pytest.raises(ValueError, match="not finite"):
        Answers("number", np.array([np.nan]), np.zeros(1), ["a"], ("x",))


def test_repeats_are_averaged_and_their_range_is_stated():
    answers = classes()
    other = RNG.permutation(answers.scores)
    inside = np.arange(120) < 60
    values, details = scoring.report(
        answers, repeats=[other], subgroups={"half": inside}, bootstrap=50
    )
    each = [
        scoring.estimates(Answers("classes", scores, answers.truth, PATIENTS, answers.names))
        for scores in (answers.scores, other)
    ]
    for measure in ("macro_auroc", "accuracy", "class/b/auroc"):
        pair = [one[measure].value for one in each]
        assert values[measure].value == pytest.approx(np.mean(pair))
        if "/" not in measure:
            assert details["range"][measure] == {"min": min(pair), "max": max(pair), "sets": 2}
    halves = [
        (scores.argmax(axis=1) == answers.truth)[inside].mean()
        for scores in (answers.scores, other)
    ]
    assert values["subgroup/half/accuracy"].value == pytest.approx(np.mean(halves))
    alone, details = scoring.report(answers, repeats=[answers.scores], bootstrap=50)
    plain, _ = scoring.report(answers, bootstrap=50)
    assert "range" in details and alone == plain


def test_item_means_draw_patients():
    right = RNG.random(120) < 0.3
    found = scoring.item_mean(right, PATIENTS, chance=0.25, samples=200, seed=4)
    assert (found.value, found.n, found.chance) == (right.mean(), 120, 0.25)
    pairs = right.reshape(60, 2).mean(axis=1)  # two items per patient
    picks = np.random.default_rng(4).integers(60, size=(200, 60))
    order = np.unique(PATIENTS, return_inverse=True)[1][::2]  # names are sorted as text
    drawn = pairs[np.argsort(order)][picks].mean(axis=1)
    np.testing.assert_allclose(found.draws, drawn)
    assert scoring.item_mean(right, ["p"] * 120).low is None


def test_average_precision_of_classes_is_that_of_scikit_learn():
    answers = classes()
    areas = [
        reference.average_precision_score(answers.truth == c, answers.scores[:, c])
        for c in range(3)
    ]
    found = scoring.estimates(answers, samples=0)["macro_auprc"]
    assert found.value == pytest.approx(np.mean(areas)) and found.chance == 1 / 3


def test_a_value_counts_the_items_it_is_computed_from():
    answers = labels()
    answers.truth[:100, 1] = UNKNOWN
    found = scoring.estimates(answers, samples=20)
    known = answers.truth != UNKNOWN
    for place, name in enumerate(answers.names):
        assert found[f"label/{name}/auroc"].n == known[:, place].sum()
    assert found["macro_auroc"].n == found["calibration_error"].n == known.any(axis=1).sum()


def test_a_label_known_for_one_patient_has_no_interval():
    """All its draws are equal, which would look like certainty."""
    answers = labels()
    answers.truth[:, 2] = UNKNOWN
    answers.truth[:2, 2] = 0, 1  # of patient p0
    found = scoring.estimates(answers, samples=50)
    assert found["label/c/auroc"].low is None and found["label/c/auroc"].n == 2
    assert found["label/b/auroc"].low is not None


def test_draws_without_a_class_are_counted():
    answers = binary()
    answers.truth[:] = False
    answers.truth[:2] = True  # of one patient, whom a draw lacks with probability (59 / 60)^60
    values, details = scoring.report(answers, bootstrap=500)
    assert details["draws_left_out"]["auroc"] == np.isnan(values["auroc"].draws).sum() > 100
    assert "draws_left_out" not in scoring.report(binary(), bootstrap=50)[1]


def test_equal_numbers_have_no_variance_to_explain():
    answers = number()
    groups = {"one": np.arange(120) == 7, "none": np.zeros(120, bool)}
    values, details = scoring.report(answers, subgroups=groups, bootstrap=20)
    assert set(details["subgroups_without_measures"]) == {"one", "none"}
    assert np.isfinite([one.value for one in values.values()]).all()
    with pytest.raises(ValueError, match="120 items have the same number"):
        scoring.estimates(Answers("number", answers.scores, np.full(120, 0.1), PATIENTS))
    # Draws of one patient alone, whose numbers are equal, are no division by a rounding error.
    truth = np.array([63.3, 63.3, 63.3, 12.7])
    drawn = weighted.explained_variance(truth, truth + 1, np.array([[3.0, 3, 3, 0], [1, 1, 1, 1]]))
    assert np.isnan(drawn[0])
    assert drawn[1] == pytest.approx(reference.r2_score(truth, truth + 1))


def test_a_confusion_of_many_classes_needs_no_table_of_items_by_cells():
    truth, chosen = RNG.integers(0, 700, (2, 5000))
    table = weighted.confusion(truth, chosen, 700, np.ones((2, 5000)))  # 20 GB as n x C^2
    np.testing.assert_array_equal(
        table[1], reference.confusion_matrix(truth, chosen, labels=range(700))
    )


def test_a_row_without_scores_is_left_out():
    values, _ = scoring.report(binary(), rows={"images_permuted": ()}, bootstrap=0)
    assert not any("permuted" in name for name in values)
