"""What pictures of evaluators show: curves, tables of decisions, neighbours and maps."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as sklearn_metrics

from mmrl.evaluators import pictures, scoring
from mmrl.evaluators.base import Figure, Neighbours
from mmrl.evaluators.retrieval import Retrieval
from mmrl.evaluators.scoring import UNKNOWN, Answers
from mmrl.evaluators.zero_shot import ZeroShot
from mmrl.reporting import write
from mmrl.reporting.figures import colours
from tests.fakes import FakeData, FakePredict, Studies, code, constant, informed, reports

COUNT = 120
PATIENTS = [f"p{i}" for i in range(COUNT)]
RNG = np.random.default_rng(3)


def asked(kind, **options):
    """Answers of each kind that are better than chance."""
    if kind == "binary":
        truth = RNG.random(COUNT) < 0.4
        return Answers(kind, truth + RNG.normal(size=COUNT), truth, PATIENTS, ("edema",), **options)
    if kind == "classes":
        truth = RNG.integers(0, 3, COUNT)
        scores = np.eye(3)[truth] + RNG.normal(size=(COUNT, 3))
        return Answers(kind, scores, truth, PATIENTS, ("a", "b", "c"), **options)
    truth = RNG.integers(0, 2, (COUNT, 3)).astype(np.int8)
    scores = truth + RNG.normal(size=truth.shape)
    truth[::7, 1], truth[:, 2] = UNKNOWN, 0  # unknown labels, and one without a positive
    return Answers("labels", scores, truth, PATIENTS, ("edema", "nodule", "none"), **options)


@pytest.mark.parametrize("kind", ["binary", "classes", "labels"])
def test_the_area_under_a_curve_is_the_auroc_of_the_table(kind):
    answers = asked(kind)
    curves, more = pictures.roc_curves(answers)
    values, _ = scoring.report(answers, bootstrap=0)
    known = {name: value.value for name, value in values.items()}
    for name, (false, true) in curves.items():
        key = {"binary": "auroc", "classes": f"class/{name}/auroc", "labels": f"label/{name}/auroc"}
        assert sklearn_metrics.auc(false, true) == pytest.approx(known[key[kind]])
    assert (len(curves), more) == {"binary": (1, 0), "classes": (3, 0), "labels": (2, 1)}[kind]


def test_only_the_most_frequent_labels_have_curves():
    truth = np.arange(COUNT)[:, None] % np.arange(2, 22) == 0
    names = tuple(f"every {n}" for n in range(2, 22))
    scores = RNG.random(truth.shape)
    answers = Answers("labels", scores, truth.astype(np.int8), PATIENTS, names)
    curves, more = pictures.roc_curves(answers)
    assert list(curves) == [f"every {n}" for n in range(2, 9)] and more == 13
    (figure,) = pictures.of_answers({"all/20 labels": answers})
    assert figure.name == "answers_all_20_labels" and "13 more have no curve" in figure.caption


def test_confusion_and_decisions_count_every_item():
    classes = asked("classes")
    names, counts = pictures.confusion_matrix(classes)
    expected = sklearn_metrics.confusion_matrix(classes.truth, classes.scores.argmax(axis=1))
    assert names == ("a", "b", "c") and (counts == expected).all() and counts.sum() == COUNT
    labels = asked("labels", threshold=np.array([0.5, 0.2, 0.5]))
    found = pictures.decisions(labels)
    for place, name in enumerate(labels.names):
        known = labels.truth[:, place] != UNKNOWN
        said = labels.scores[known, place] > labels.threshold[place]
        table = sklearn_metrics.confusion_matrix(labels.truth[known, place], said, labels=[1, 0])
        assert found[name] == table.ravel().tolist()
    assert pictures.decisions(asked("labels")) == {} and pictures.confusion_matrix(labels) is None
    assert pictures.decisions(classes) == {}
    one = asked("binary", threshold=0.5)
    assert sum(pictures.decisions(one)["edema"]) == COUNT


def test_figures_of_answers_are_drawn(tmp_path):
    likely = Answers("binary", RNG.random(COUNT), RNG.random(COUNT) < 0.5, PATIENTS, ("edema",))
    given = {
        "classes": asked("classes"),
        "labels": asked("labels", threshold=0.5),
        "probabilities": dataclasses.replace(likely, probabilities=True, threshold=0.5),
        "number": Answers("number", RNG.random(COUNT), RNG.random(COUNT), PATIENTS),
    }
    made = pictures.of_answers(given)
    assert [one.name.removeprefix("answers_") for one in made] == list(given)[:3]
    assert "number of items in its bin" in made[2].caption
    for one in made:
        one.draw(tmp_path / f"{one.name}.png")
        with Image.open(tmp_path / f"{one.name}.png") as image:
            assert image.width == 1350 and len(image.getcolors(2**20)) > 100


class Pictured(FakeData):
    """Reports whose images are squares of one grey each."""

    def pixels(self, encoding, rows):
        if not encoding.startswith("image"):
            return None
        return np.stack([np.full((8, 8, 1), row, np.uint8) for row in rows])


def figures_of(predict, data):
    evaluator = Retrieval(predict, data, bootstrap=0)
    return evaluator.figures(None, evaluator.run(None), [])


def test_nearest_neighbours_both_ways_are_those_of_the_evaluator():
    data = Pictured(reports(40))
    made = figures_of(informed(data), data)
    reports_of, images_of, _ = made
    assert all(isinstance(one, Neighbours) for one in (reports_of, images_of))
    for made_of, what in ((reports_of, "text"), (images_of, "image")):
        assert len(made_of.queries) == 4 and "3 nearest of 40" in made_of.caption
        for query, found in made_of.queries:
            assert [one.matches for one in found] == [True, False, False]
            assert found[0].id == query.id and found[0].score == pytest.approx(1, abs=1e-5)
            assert found[0].score > found[1].score >= found[2].score
            assert (query.image is None) == (what == "image")
            assert all((one.image is None) == (what == "text") for one in found)
            assert all(bool(one.text) == (what == "text") for one in found)
    one = images_of.queries[0][1][0]
    assert one.image[0, 0, 0] == int(one.id.removeprefix("fake:"))
    ids = [{query.id for query, _ in one.queries} for one in (reports_of, images_of)]
    assert ids[0].isdisjoint(ids[1])
    # Every encoder gets the same queries.
    other = figures_of(FakePredict(code, code), data)
    assert [q.id for q, _ in other[0].queries] == [q.id for q, _ in reports_of.queries]


def test_a_duplicate_of_the_query_counts_as_its_own():
    texts = reports(20)
    data = Pictured(texts + texts, groups=[*range(20), *range(20)])
    reports_of, *_ = figures_of(informed(data), data)
    for query, found in reports_of.queries:
        twin = (int(query.id.removeprefix("fake:")) + 20) % 40
        assert [one.matches for one in found] == [True, True, False]
        assert {one.id for one in found[:2]} == {query.id, f"fake:{twin}"}


def test_texts_in_place_of_images_have_no_pictures():
    """Retrieval between two sections of a report."""
    data = Pictured(reports(12))
    rows, vectors = np.arange(12), np.stack([code(text) for text in data.texts])
    made = pictures.neighbours(
        data, rows, vectors, vectors, data.groups, pixels="text@findings.embedding"
    )
    assert all(item.image is None and item.text for one in made for item, _ in one.queries)


def test_a_map_depends_on_the_seed_alone(tmp_path):
    data = Pictured(reports(30))
    first, second = figures_of(informed(data), data)[2], figures_of(informed(data), data)[2]
    assert isinstance(first, Figure) and "t-SNE" in first.caption
    assert "distances between them mean nothing" in first.caption
    for name, one in (("one", first), ("two", second)):
        one.draw(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    (alike,) = figures_of(constant(), data)[2:]
    assert alike.draw is None or "placed by t-SNE" in alike.caption
    same = pictures.embedding_map(data, np.arange(30), np.ones((30, 4)), of="x.y", seed=0)
    assert same[0].draw is None and same[0].caption == "x.y is the same everywhere."
    assert pictures.embedding_map(data, np.arange(3), np.eye(3), of="x.y", seed=0) == []


def test_labels_of_a_map_are_few_and_name_the_rest():
    names = ["edema"] * 9 + ["nodule"] * 8 + ["mass"] * 7 + ["scar"] * 6 + ["rare"] * 2
    findings = [[(name, "left")] for name in names]
    findings += [[], [("edema", "left"), ("nodule", "left")]]
    found = pictures.labels_of(Studies(findings=findings), np.arange(len(findings)))
    assert found[:30] == names[:30] and found[30:] == ["others"] * 2 + ["no finding", "several"]
    assert len(colours(found)) == len(set(colours(found).values())) == 7
    stated = Studies(labels=[(1, 0), (0, 1), (1, 1), (0, 0)])
    found = pictures.labels_of(stated, np.arange(4))
    assert found == ["Edema", "COPD", "several", "no finding"]
    assert pictures.labels_of(FakeData(["a", "b"]), np.arange(2)) == []


def test_a_name_has_its_colour_in_every_figure():
    few, many = colours(["ours", "paper"]), colours(["ours", "paper", "clip"])
    assert few == {name: many[name] for name in few}
    assert len(set(colours("abcdefg").values())) == 7
    assert colours(["ours", "a"], fixed=few)["ours"] == few["ours"]


def test_zero_shot_shows_the_answers_behind_its_values():
    findings = [[(name, "left")] for name in ["edema"] * 20 + ["nodule"] * 20]
    data = Studies(findings=findings)
    predict = FakePredict(code, code)
    evaluator = ZeroShot(predict, data, tasks="findings", bootstrap=0)
    results = evaluator.run(None)
    (figure,) = evaluator.figures(None, results, [])
    curves, _ = pictures.roc_curves(results.answers["findings"])
    for name, (false, true) in curves.items():
        own = results.values[f"findings/{name}/auroc"].value
        assert sklearn_metrics.auc(false, true) == pytest.approx(own)
    assert figure.title == "Answers: findings" and "answers" not in results.to_dict()
    rows = write._summary({"zero_shot": evaluator}, {"zero_shot": results})
    assert [row[0] for row in rows] == ["zero_shot/findings/auroc"]


def test_an_evaluator_without_its_headline_shows_its_first_value():
    data = Studies(findings=[[("edema", "left")]] * 10 + [[]] * 10)
    own = {"mine": {"positive": ("a",), "negative": ("b",), "present": ("edema", "")}}
    evaluator = ZeroShot(FakePredict(code, code), data, tasks=own, bootstrap=0)
    rows = write._summary({"asked": evaluator}, {"asked": evaluator.run(None)})
    assert [row[0] for row in rows] == ["asked/tasks/auroc"]
