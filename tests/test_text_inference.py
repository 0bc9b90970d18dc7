"""Text inference with planted encoders of known results, and what its head may not see."""

import functools
import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mmrl.data.reading.sentence_pairs import LABELS
from mmrl.evaluators import scoring, text_inference
from mmrl.evaluators.text_inference import TextInference, pair_features, read_pairs
from mmrl.types import Entailment, InputError, Record
from tests import fakes
from tests.corpus_files import write_jsonl

WIDTH = 8


@pytest.fixture(autouse=True)
def _few_strengths(monkeypatch):
    monkeypatch.setattr(text_inference, "STRENGTHS", (1e-3, 1.0))


def record(split, number, premise, hypothesis, label, unit=""):
    native = f"toy:{split}/{number}"
    return Record(
        native,
        "toy",
        native,
        native,
        unit or native,
        split,
        (),
        {"premise": premise, "hypothesis": hypothesis},
        entailment=Entailment(premise, hypothesis, label),
    )


def made(split, premises=40, word="claim"):
    """Three hypotheses for each premise, one of each label, of which their texts say nothing."""
    records = []
    for number in range(premises):
        order = np.random.default_rng([number, len(split)]).permutation(3)
        for place, c in enumerate(order.tolist()):
            name = f"{split}{number}"
            records.append(
                record(
                    split, f"{number}{place}", f"fact {name}.", f"{word} {name} {place}.", LABELS[c]
                )
            )
    return records


class Data(fakes.FakeData):
    """Sentence pairs of one split, and further splits."""

    def __init__(self, split="test", **splits):
        self.splits = {"test": made("test"), "train": made("train"), "val": made("val")} | splits
        self.records = self.splits[split]
        super().__init__([one.id for one in self.records])
        self.name = f"toy/{split}"

    def record(self, index):
        return self.records[index]

    def split(self, name):
        if name not in self.splits:
            raise InputError(f"{self.name} has no split {name}")
        return Data(name, **self.splits)


def every(data):
    return [one.entailment for records in data.splits.values() for one in records if one.entailment]


def knowing(data):
    """Hypotheses lie along their premise, against it or in its complement, at random directions."""
    sign = {pair.hypothesis: (1.0, 0.0, -1.0)[LABELS.index(pair.label)] for pair in every(data)}
    premise = {pair.hypothesis: pair.premise for pair in every(data)}

    def encode(text):
        if text not in premise:
            return np.sign(fakes.code(text, WIDTH))
        return sign[text] * np.sign(fakes.code(premise[text], WIDTH))

    return fakes.FakePredict(None, encode)


def telling(data):
    """Hypotheses give their label away, whatever their premise."""
    label = {pair.hypothesis: LABELS.index(pair.label) for pair in every(data)}

    def encode(text):
        if text in label:
            return np.eye(WIDTH, dtype=np.float32)[label[text]]
        return fakes.code(text, WIDTH)

    return fakes.FakePredict(None, encode)


def blind(width=WIDTH):
    return fakes.FakePredict(None, functools.partial(fakes.code, width=width))


def constant():
    return fakes.FakePredict(None, lambda text: np.ones(WIDTH, np.float32))


def run(predict, data, **options):
    return TextInference(predict, data, bootstrap=100, **options).run(None)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("fit", ["train", "val", "folds"])
def test_an_encoder_that_knows_needs_the_premise(fit):
    data = Data()
    results = run(knowing(data), data, fit=fit)
    values = results.values
    assert values["accuracy"].value == values["accuracy"].low == values["macro_f1"].value == 1
    assert values["accuracy"].n == results.n == 120 and values["accuracy"].chance == 1 / 3
    # |hypothesis| tells neutral from the others; only the premise tells those apart.
    assert values["accuracy_hypothesis_only"].value < 0.8
    assert values["accuracy_premises_permuted"].value < 0.8
    assert values["accuracy_premise_only"].value < 0.45
    assert values["accuracy_constant"].value == pytest.approx(1 / 3)
    gain = values["accuracy_gain_over_hypothesis_only"]
    assert gain.value == pytest.approx(1 - values["accuracy_hypothesis_only"].value)
    assert gain.low > 0
    assert results.protocol == "text_inference@1" and not results.excluded
    assert next(iter(values)) == "accuracy"
    json.dumps(results.to_dict(), allow_nan=False)


def test_an_encoder_that_tells_by_the_hypothesis_gains_nothing_from_the_premise():
    data = Data()
    values = run(telling(data), data).values
    assert values["accuracy"].value == values["accuracy_hypothesis_only"].value == 1
    assert values["accuracy_premises_permuted"].value == 1
    assert values["accuracy_gain_over_hypothesis_only"].value == 0


def test_a_random_encoder_is_at_chance():
    data = Data(test=made("test", 150))
    values = run(blind(), data).values
    assert values["accuracy"].low < 1 / 3 < values["accuracy"].high
    assert abs(values["macro_auroc"].value - 0.5) < 0.07


def test_a_constant_encoder_gives_exactly_the_constant_row():
    data = Data(train=made("train")[:-2])  # one class is a little more frequent
    values = run(constant(), data).values
    for name in ("accuracy", "macro_f1", "macro_auroc", "balanced_accuracy", "weighted_f1"):
        assert values[name].value == values[f"{name}_constant"].value, name
    assert values["macro_auroc"].value == 0.5


def test_the_head_is_that_of_scikit_learn(monkeypatch):
    monkeypatch.setattr(text_inference, "STRENGTHS", (0.1,))
    data = Data()
    predict = blind()
    results = run(predict, data)

    def rows(name):
        pairs = [one.entailment for one in data.splits[name]]
        u, v = (
            np.stack([predict.text_of(getattr(pair, part)) for pair in pairs])
            for part in ("premise", "hypothesis")
        )
        x = np.concatenate([u, v, np.abs(u - v), u * v], axis=1)
        return x, np.array([LABELS.index(pair.label) for pair in pairs])

    (x, y), (test, truth) = rows("train"), rows("test")
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=0.1, max_iter=2000).fit(scaler.transform(x), y)
    expected = (model.predict(scaler.transform(test)) == truth).mean()
    assert results.values["accuracy"].value == pytest.approx(expected)
    assert results.details["fitted_on"]["inverse_strengths"] == [0.1]


def test_judged_labels_change_nothing_but_the_judgement():
    data = Data()
    other = Data(test=[*made("test")])
    for place, one in enumerate(other.records):
        pair = one.entailment
        label = LABELS[(LABELS.index(pair.label) + 1) % 3]
        other.records[place] = record("test", place, pair.premise, pair.hypothesis, label)
    kept = []

    class Kept(scoring.Answers):
        def __post_init__(self):
            super().__post_init__()
            kept.append(self.scores)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_inference.scoring, "Answers", Kept)
        for one in (data, other):
            run(blind(), one)
    first = [scores for scores in kept if len(scores) == 120]
    np.testing.assert_array_equal(first[0], first[len(first) // 2])


@pytest.mark.exhaustive
def test_the_penalty_is_chosen_on_val_and_else_by_folds():
    data = Data()
    stated = run(blind(), data).details["fitted_on"]
    assert stated["penalty_chosen_on"] == "toy/val, 120 pairs" and stated["name"] == "toy/train"
    assert len(stated["inverse_strengths"]) == 1 and stated["classes"] == dict.fromkeys(LABELS, 40)
    judged = Data("val")
    on_val = run(blind(), judged).details["fitted_on"]["penalty_chosen_on"]
    assert on_val == "5 folds over premises of the fitted pairs"
    folds = run(blind(), data, fit="folds", folds=4).details["fitted_on"]
    assert len(folds["inverse_strengths"]) == 4 and folds["name"] == "toy/test"


def test_no_premise_is_in_two_folds():
    data = Data(test=made("test", 12))
    evaluator = TextInference(blind(), data, fit="folds", folds=4)
    units = evaluator.pairs.units
    seen = []
    for rest, own in evaluator._folds(evaluator.pairs.labels, units):
        assert not set(units[rest]) & set(units[own])
        seen += own.tolist()
    assert sorted(seen) == list(range(36))


def test_pairs_of_a_premise_or_swapped_ones_are_one_unit():
    records = [
        record("test", 0, "Heart is large.", "Heart is big.", "entailment", "a"),
        record("test", 1, "Heart is big.", "Heart is large.", "entailment", "a"),  # swapped
        record("test", 2, "heart is  large", "Heart is small.", "contradiction", "b"),
        record("test", 3, "Lungs are clear.", "Heart is small.", "neutral", "c"),
    ]
    units = read_pairs("toy/test", records).units
    assert units[0] == units[1] == units[2] != units[3]


def test_pairs_that_are_judged_do_not_fit():
    test = made("test")
    again = [
        record("train", i, one.entailment.premise, "something else", "neutral")
        for i, one in enumerate(test[:6])
    ]
    swapped = record(
        "train", "s", test[9].entailment.hypothesis, test[9].entailment.premise, "neutral"
    )
    data = Data(test=test, train=[*made("train"), *again, swapped])
    stated = run(blind(), data).details["fitted_on"]
    assert stated["left_out_because_judged"] == 7 and stated["pairs"] == 120


def test_wording_that_gives_the_label_away_shows_in_the_rows_without_features():
    def worded(split):
        return [
            record(
                split,
                i,
                one.entailment.premise,
                f"{one.entailment.label} thing.",
                one.entailment.label,
            )
            for i, one in enumerate(made(split))
        ]

    data = Data(**{split: worded(split) for split in ("train", "val", "test")})
    values = run(blind(), data).values
    assert values["accuracy_bag_of_words"].value == 1
    assert values["accuracy_hypothesis_only"].value == 1  # three texts, three directions


def test_records_without_a_pair_are_excluded_and_counted():
    plain = Record("toy:x", "toy", "x", "x", "x", "test", (), {"findings": "No pair."})
    data = Data(test=[*made("test"), plain])
    results = run(blind(), data)
    assert results.excluded == {"no sentence pair": 1} and results.n == 120
    with pytest.raises(
        InputError, match=r"no record of toy/test is a sentence pair \(1 examples\)"
    ):
        TextInference(blind(), Data(test=[plain]))


def test_training_pairs_of_another_source(tmp_path):
    for split, file in (("train", "train"), ("val", "dev")):
        rows = [
            {
                "pairID": one.id,
                "gold_label": one.entailment.label,
                "sentence1": one.entailment.premise,
                "sentence2": one.entailment.hypothesis,
            }
            for one in made(split)
        ]
        write_jsonl(tmp_path / f"mli_{file}_v1.jsonl", rows)
    data = Data(train=[], val=[])
    own = {"source": "mednli", "path": str(tmp_path)}
    results = run(knowing(Data()), data, train=own)
    stated = results.details["fitted_on"]
    assert results.values["accuracy"].value == 1
    assert (stated["name"], stated["pairs"]) == ("mednli/train", 120)
    assert stated["penalty_chosen_on"] == "mednli/val, 120 pairs"


@pytest.mark.parametrize(
    ("options", "splits", "reason"),
    [
        ({"fit": "dev"}, {}, "unknown fit of text_inference 'dev'"),
        (
            {},
            {"train": []},
            r"toy/train holds no sentence pairs; choose fit=val, fit=folds or train",
        ),
        ({"fit": "val", "train": {"source": "mednli"}}, {}, "train is given with fit=val"),
        ({"folds": 1}, {}, "folds is 1"),
        ({"train": {"source": "mednil"}}, {}, "did you mean 'mednli'"),
        (
            {},
            {"train": [one for one in made("train") if one.entailment.label != "neutral"]},
            "none of the 80 pairs of toy/train that fit the head is neutral",
        ),
    ],
)
def test_what_cannot_be_fitted_is_refused(options, splits, reason):
    with pytest.raises(InputError, match=reason):
        TextInference(blind(), Data(**splits), **options)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_head_fitted_on_what_is_judged_is_refused(split):
    with pytest.raises(
        InputError, match=f"fit={split} would fit the head on toy/{split}, which is"
    ):
        TextInference(blind(), Data(split), fit=split)


def test_features_that_do_not_fit_are_refused():
    data = Data()
    with pytest.raises(InputError, match="needs one vector for each text"):
        run(fakes.FakePredict(None, lambda text: np.ones((3, 4))), data)
    broken = fakes.FakePredict(None, lambda text: np.full(4, np.nan if "test7." in text else 1.0))
    with pytest.raises(FloatingPointError, match=r"first of the text 'fact test7\.'"):
        run(broken, data)
    few = Data(test=made("test", 3))
    with pytest.raises(InputError, match="3 premises cannot be divided into 5 folds"):
        run(blind(), few, fit="folds")


def test_any_named_feature_and_pair_features():
    data = Data()
    predict = blind()
    run(predict, data, reads={"text": "text.pooled"})
    assert set(predict.asked) == {"text.pooled"}
    u, v = np.array([[1.0, 2.0]]), np.array([[3.0, -1.0]])
    np.testing.assert_array_equal(pair_features(u, v), [[1, 2, 3, -1, 2, 3, 3, -2]])


def test_same_seed_same_results():
    first, again = (run(blind(), Data()).to_dict() for _ in range(2))
    assert first == again
