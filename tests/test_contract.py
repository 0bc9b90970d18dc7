"""What every evaluator states beside its values, whichever it is.

A new evaluator needs an entry in `CASES`. What one cannot state is listed below with the reason.
"""

import dataclasses
import json
import math
import re
from typing import Any

import numpy as np
import pytest

from mmrl import build
from mmrl.data.reading.sentence_pairs import LABELS
from mmrl.evaluators import base, scoring
from mmrl.types import Entailment, Finding, Record
from tests import (
    fakes,
    places,
    test_grounding,
    test_option_similarity,
    test_pointing,
    test_probe,
    test_segmentation,
    test_sentence_pointing,
    test_zero_shot_classes,
)
from tests.test_classification import FakeData as Labelled
from tests.test_classification import predict as predict_labels

COUNT = 80

# Evaluator -> why its results have no such part. Most are decisions by cosines of prompts or texts.
NO_SUBGROUPS = {
    "pointing": "at most 400 studies, spread over findings, which have rows of their own",
    "sentence_pointing": "as pointing",
    "retrieval": "a rank depends on all candidates, not on the patient alone",
    "composed_retrieval": "as retrieval",
    "zero_shot": "rows of its tasks",
    "text_inference": "sentence pairs have no patients",
}
NO_BLIND_ROW = {
    "retrieval": "a permuted image finds its report by chance, which every row states",
    "text_inference": "no image is asked about; premises are permuted, and rows read one sentence",
}
NO_CALIBRATION = dict.fromkeys(
    (
        *("retrieval", "composed_retrieval", "structure", "zero_shot", "pointing"),
        *("sentence_pointing", "grounding", "segmentation", "multiple_choice", "vqa"),
        *("precision_at_k", "zero_shot_classes"),
    ),
    "a cosine or a map is no probability of a decision",
)
NO_PREVALENCE = dict.fromkeys(
    (
        *("retrieval", "composed_retrieval", "structure", "pointing", "sentence_pointing"),
        *("grounding", "segmentation", "multiple_choice", "vqa"),
    ),
    "the questions have no classes; chance and the options of each question are stated",
)
NO_CHANCE = (
    *("f1", "macro_f1", "weighted_f1", "sensitivity", "specificity"),
    *("calibration_error", "mean_absolute_error", "attention_entropy", "accuracy_ties_right"),
    *("cnr", "miou", "dice", "iou", "dice_not_empty"),  # rows of constant and permuted maps say it
)

MEASURES = ("ties_right", "not_empty")  # ends of names of measures, not of rows
_POINT = re.compile(r"_at_[\w%]+$")  # the operating point of a decision
_ROW = re.compile(rf"_(gain(_over_\w+)?|{'|'.join(base.ROWS)})$")


def _record(data: Any, index: int, **fields: Any) -> Record:
    sex = {"sex": "FM"[index % 2]}
    patient = data.patients[index]
    return Record(
        data.ids[index], "fake", patient, "", patient, "test", (), {}, attributes=sex, **fields
    )


class Texts(fakes.FakeData):
    """Reports of women and men."""

    def record(self, index):
        names = ("Pleural effusion", "Nodule")
        side = ("left", "right")[index // 2 % 2]
        return _record(self, index, findings=(Finding(names[index % 2], side),))


class Labels(Labelled):
    """Labelled studies of women and men."""

    def record(self, index):
        return _record(self, index)


class Pairs(fakes.FakeData):
    """Sentence pairs."""

    def split(self, name):
        other = Pairs([f"{name} {number}" for number in range(COUNT)])
        other.name = f"fake/{name}"
        return other

    def record(self, index):
        pair = Entailment(
            f"fact {self.name} {index // 3}", f"claim {self.texts[index]}", LABELS[index % 3]
        )
        return _record(self, index, entailment=pair)


def _texts() -> Any:
    data = Texts(fakes.reports(COUNT), training=fakes.reports(COUNT)[::2])
    return fakes.informed(data), data, {}


def _labels() -> Any:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2, (COUNT, 3))
    data = Labels(values, np.ones((COUNT, 3), bool))
    return predict_labels(data, values + rng.normal(0, 1, (COUNT, 3))), data, {}


def _pairs() -> Any:
    data = Pairs([str(number) for number in range(COUNT)])
    return fakes.FakePredict(None, fakes.code), data, {"permutations": 2}


def _words() -> Any:
    data = test_pointing.FakeData(COUNT)
    return test_pointing.Looks(test_pointing.at_box(data)), data, {}


def _sentences() -> Any:
    data = test_sentence_pointing.Data(COUNT)
    looks = test_sentence_pointing.Predict(data, test_sentence_pointing.at_box(data))
    return looks, data, {}


class Placed(places.Places):
    """Boxes and masks of women and men."""

    def record(self, index):
        sex = {"sex": "FM"[index % 2]}
        return dataclasses.replace(super().record(index), attributes=sex)


def _boxes() -> Any:
    data = Placed(COUNT)
    regions = places.Regions(test_grounding.at_box, lambda text: test_grounding.EAST)
    return regions, data, {"sigma": 0.7, "permutations": 2}


def _masks() -> Any:
    training = Placed(24, name="fake/train", first=1000)
    validation = Placed(8, name="fake/val", first=2000)
    data = Placed(COUNT, splits={"train": training, "val": validation})
    options = {"epochs": 3, "learning_rate": 0.05, "decoder": "linear"}
    return places.Regions(test_segmentation.planted), data, options


def _people(data: fakes.Studies) -> fakes.Studies:
    """The studies, of women and men."""
    data.records = [
        dataclasses.replace(record, attributes={"sex": "FM"[index % 2]})
        for index, record in enumerate(data.records)
    ]
    return data


def _questions() -> Any:
    data = _people(test_option_similarity.corpus(COUNT))
    return test_option_similarity.sees(data), data, {}


def _exclusive() -> Any:
    data = _people(test_zero_shot_classes.five_by(20))
    return fakes.FakePredict(fakes.code, fakes.code), data, {}


def _same_class() -> Any:
    predict, data, _ = _exclusive()
    return predict, data, {"classes": test_zero_shot_classes.CLASSES}


class Probed(test_probe.FakeData):
    """Labelled images of women and men."""

    def record(self, index):
        sex = {"sex": "FM"[index % 2]}
        return dataclasses.replace(super().record(index), attributes=sex)


def _features() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_probe, "FakeData", Probed)
        data = test_probe.splits(test_probe.planted("random"))
    return test_probe.FakePredict(), data, {}


CASES = {
    "probe": _features,
    "multiple_choice": _questions,
    "vqa": _questions,
    "zero_shot_classes": _exclusive,
    "precision_at_k": _same_class,
    "composed_retrieval": _texts,
    "retrieval": _texts,
    "structure": _texts,
    "zero_shot": _texts,
    "classification": _labels,
    "text_inference": _pairs,
    "grounding": _boxes,
    "segmentation": _masks,
    "pointing": _words,
    "sentence_pointing": _sentences,
}


@pytest.fixture(scope="module", params=build.choices("evaluator"))
def judged(request):
    """Name, evaluator and results of every evaluator in the folder."""
    name = request.param
    if name not in CASES:
        pytest.fail(f"evaluator {name} has no case in tests/test_contract.py; add one")
    predict, data, options = CASES[name]()
    evaluator = build.find("evaluator", name)(predict, data, bootstrap=50, **options)
    return name, evaluator, evaluator.run(None)


def keys(details):
    """All keys at any depth."""
    found = set()
    if isinstance(details, dict):
        for key, value in details.items():
            found |= {key} | keys(value)
    return found


@pytest.mark.default_cases(3)
def test_what_was_judged_and_how_is_stated(judged):
    name, _, results = judged
    stated = [results.protocol, *(key.split("/")[0] for key in results.values)]
    versions = [one for one in stated if re.fullmatch(r"[a-z0-9_-]+@\d+", one)]
    assert versions, f"{name} states no version of its protocol"
    assert set(results.data) == {"name", "sha256", "items_sha256"}
    assert results.preprocessing and results.n > 0
    assert all(count > 0 and reason for reason, count in results.excluded.items())
    json.dumps(results.to_dict(), allow_nan=False)


def test_every_value_has_an_interval_its_draws_its_chance_and_its_items(judged):
    name, _, results = judged
    assert results.values
    for key, estimate in results.values.items():
        last = _POINT.sub("", _ROW.sub("", key.rpartition("/")[2]))
        assert math.isfinite(estimate.value) and estimate.n > 0, key
        if estimate.n > 1:  # an item of one patient gives no interval
            assert estimate.low is not None and estimate.low <= estimate.high, key
            assert estimate.draws is not None and len(estimate.draws) == 50, key
            kept = estimate.draws[np.isfinite(estimate.draws)]
            assert (estimate.low, estimate.high) == pytest.approx(
                np.quantile(kept, [0.025, 0.975]), abs=1e-12
            )
        assert estimate.chance is not None or last in NO_CHANCE, f"{name}: {key} has no chance"


def test_a_constant_predictor_is_stated(judged):
    _, evaluator, results = judged
    constant = results.details.get("constant_predictor", {})
    first = [key for key in evaluator.headline if key in results.values]
    for key in first or list(results.values)[:1]:
        plain = _ROW.sub("", key)
        if "_gain" in key:
            continue  # a constant answer gains nothing
        stated = {f"{plain}_{row}" for row in ("constant", "constant_map", "background")}
        assert stated & set(results.values) or plain.rpartition("/")[2] in constant, key


def test_what_is_asked_about_an_image_has_a_row_without_it(judged):
    name, _, results = judged
    rows = ("_images_permuted", "_boxes_permuted")
    assert name in NO_BLIND_ROW or any(key.endswith(rows) for key in results.values)


def test_rows_have_names_that_tables_know(judged):
    _, _, results = judged
    for key in results.values:
        plain = _POINT.sub("", _ROW.sub("", key))
        of = [other for other in results.values if plain.startswith(f"{other}_")]
        if of:  # a longer name of a measure, or a row that no table would show
            assert plain.removeprefix(f"{max(of, key=len)}_") in MEASURES, key


def test_subgroups_prevalence_and_calibration_are_stated_where_there_are_any(judged):
    name, _, results = judged
    groups = set(re.findall(r"subgroup/([^/]+)/", " ".join(results.values)))
    assert name in NO_SUBGROUPS or groups == {"sex=F", "sex=M"}
    found = keys(results.details)
    assert name in NO_PREVALENCE or "prevalence" in found
    assert name in NO_CALIBRATION or "calibration" in found


@pytest.mark.default_cases(3)
def test_same_state_same_results(judged):
    _, evaluator, results = judged
    assert evaluator.run(None).to_dict() == results.to_dict()


def test_rows_of_scoring_are_known():
    truth = np.arange(20) % 2 == 0
    answers = scoring.Answers("binary", np.arange(20.0), truth, np.arange(20).astype(str))
    rows = {name: [np.zeros(20)] for name in base.ROWS if name != "constant"}
    values, details = scoring.report(answers, rows=rows, bootstrap=20)
    assert {f"auroc_{name}" for name in base.ROWS} <= set(values)
    other = scoring.Answers("binary", np.arange(20.0), ~truth, np.arange(20).astype(str))
    assert scoring.report(other, bootstrap=0)[1]["truth_sha256"] != details["truth_sha256"]
