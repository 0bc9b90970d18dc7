"""AUROC in closed form, and zero-shot classification with encoders of known results."""

import itertools
import json

import ml_collections
import numpy as np
import pytest

from mmrl import build
from mmrl.data.phantom.findings import KINDS
from mmrl.evaluators import metrics, statistics
from mmrl.evaluators.metrics import Interval, Ranked, auroc, draws, intervals, weighted_auroc
from mmrl.evaluators.zero_shot import ZeroShot, finding_task, laterality_task
from mmrl.types import InputError
from tests import fakes
from tests.fakes import FakePredict, Studies, code

# --- AUROC


def auroc_by_hand(scores, positive, tie=0.0):
    pairs = [(a, b) for a in scores[positive] for b in scores[~positive]]
    return np.mean([0.5 if abs(a - b) <= tie else float(a > b) for a, b in pairs])


@pytest.mark.parametrize("tie", [0.0, 0.15])
def test_auroc_counts_pairs_and_halves_ties(tie):
    rng = np.random.default_rng(0)
    for size in (2, 3, 10, 41):
        positive = np.arange(size) < max(1, size // 3)
        for scores in (rng.integers(4, size=size) / 4, rng.normal(size=size)):
            expected = auroc_by_hand(scores, positive, tie)
            assert auroc(scores, positive, tie=tie) == pytest.approx(expected, abs=1e-12)
            assert auroc(-scores, positive, tie=tie) == pytest.approx(1 - expected, abs=1e-12)


def test_auroc_of_known_answers():
    positive = np.array([True, True, False, False, False])
    assert auroc(np.array([5.0, 4, 3, 2, 1]), positive) == 1
    assert auroc(np.array([1.0, 2, 3, 4, 5]), positive) == 0
    assert auroc(np.zeros(5), positive) == 0.5
    assert auroc(np.array([3.0, 1, 2, 1, 0]), positive) == pytest.approx(4.5 / 6)
    noise = np.random.default_rng(0).choice([-3e-7, 3e-7], 5)
    assert auroc(noise, positive, tie=statistics.TIE) == 0.5
    with pytest.raises(ValueError, match="5 of 5 items are positive"):
        auroc(np.zeros(5), np.ones(5, bool))


def test_weights_are_repetitions():
    rng = np.random.default_rng(1)
    scores, positive = rng.integers(5, size=20).astype(float), rng.random(20) < 0.4
    weights = rng.integers(3, size=(8, 20))
    weights[0, positive] = 0
    given = weighted_auroc(scores, positive, weights)
    assert np.isnan(given[0])
    for row, value in zip(weights[1:], given[1:], strict=True):
        repeated = auroc(np.repeat(scores, row), np.repeat(positive, row))
        assert value == pytest.approx(repeated, abs=1e-12)


def two_tasks(size=40):
    rng = np.random.default_rng(2)
    patients = [f"p{i}" for i in rng.integers(9, size=size)]
    rows = np.sort(rng.choice(size, 25, replace=False))
    first = Ranked(np.arange(size), rng.normal(size=(1, size)), rng.random(size) < 0.2)
    second = Ranked(rows, rng.normal(size=(3, 25)), np.arange(25) % 8 == 1)
    return [first, second], patients


def test_intervals_equal_drawing_patients_one_by_one():
    tasks, patients = two_tasks()
    each, macro = intervals(tasks, patients, samples=300, seed=5, level=0.8)
    names = sorted(set(patients))
    picks = np.random.default_rng(5).integers(len(names), size=(300, len(names)))
    drawn = np.full((300, 2), np.nan)
    for s, row in enumerate(picks):
        times = np.array([np.sum(row == names.index(p)) for p in patients])
        for t, task in enumerate(tasks):
            weight = times[task.rows]
            positive = np.repeat(task.positive, weight)
            if 0 < positive.sum() < len(positive):
                by_scoring = [auroc(np.repeat(x, weight), positive) for x in task.scores]
                drawn[s, t] = np.mean(by_scoring)
    for values, interval in zip([*drawn.T, drawn.mean(axis=1)], [*each, macro], strict=True):
        kept = values[~np.isnan(values)]
        assert interval.skipped == 300 - len(kept)
        np.testing.assert_allclose(
            (interval.low, interval.high), np.quantile(kept, [0.1, 0.9]), rtol=1e-12
        )
    assert macro.skipped >= each[1].skipped > 0


def test_intervals_do_not_depend_on_blocks_or_on_items_of_no_task(monkeypatch):
    tasks, patients = two_tasks()
    whole = intervals(tasks, patients, samples=50)
    assert intervals(tasks, [*patients, "stranger"], samples=50) == whole
    monkeypatch.setattr(metrics, "_WEIGHTS_AT_ONCE", 90)
    assert intervals(tasks, patients, samples=50) == whole


def test_interval_of_two_patients_is_exact():
    # Draws of one patient only lack a class; the other half rank right.
    task = Ranked(np.arange(2), np.array([[1.0, 0.0]]), np.array([True, False]))
    (interval,), macro = intervals([task], ["a", "b"], samples=2000)
    assert (interval.low, interval.high) == (1, 1) and macro == interval
    assert interval.skipped == pytest.approx(1000, abs=100)
    for patients, samples in ((["a", "a"], 100), (["a", "b"], 0)):
        nothing = Interval(None, None, 0)
        assert intervals([task], patients, samples=samples) == ([nothing], nothing)


def test_interval_has_the_width_of_delong():
    rng = np.random.default_rng(3)
    positive = np.arange(300) < 100
    scores = rng.normal(size=300) + positive
    placement = scores[positive][:, None] > scores[~positive]  # DeLong et al. 1988
    variance = placement.mean(axis=1).var() / 100 + placement.mean(axis=0).var() / 200
    patients = [str(i) for i in range(300)]
    (interval,), _ = intervals([Ranked(np.arange(300), scores[None], positive)], patients)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * variance**0.5, rel=0.1)


# --- zero-shot


def corpus(count=120):
    """Nodules left, right, on both sides or nowhere; edema in every third study."""
    sides = ((), ("left",), ("right",), ("left", "right"))
    return Studies(
        [
            [("nodule", side) for side in sides[i % 4]] + [("edema", "bilateral")] * (i % 3 == 0)
            for i in range(count)
        ]
    )


def reads(data, *, sides=True):
    """Encodes findings and optionally their sides; encodes prompts by their words."""
    axes = {"nodule": 0, "edema": 1, "left": 2, "right": 3}

    def image_of(name):
        row = np.full(6, 0.05, np.float32)
        for finding in data.record(data.ids.index(name)).findings:
            row[axes[finding.name]] = 1
            if sides and finding.side in axes:
                row[axes[finding.side]] = 1
        return row

    def text_of(prompt):
        row = np.full(6, 0.05, np.float32)
        words = prompt.lower().replace(".", "").replace("-", " ").split()
        for word in set(words) & set(axes):
            row[axes[word]] = -1 if "no" in words else 1
        return row

    return FakePredict(image_of, text_of)


def values_of(predict, data, **options):
    """The AUROCs and the results."""
    results = ZeroShot(predict, data, **options).run(None)
    return {name: results.values[name].value for name in aurocs(results)}, results


def aurocs(results):
    ends = ("/auroc", "/auroc_images_permuted")
    return [n for n in results.values if n.endswith(ends)]


def test_encoder_that_sees_everything():
    data = corpus()
    values, results = values_of(reads(data), data)
    assert list(values)[:4] == [
        f"{task_set}/{row}"
        for task_set in ("findings", "laterality")
        for row in ("auroc", "auroc_images_permuted")
    ]
    for name in ("findings", "findings/nodule", "findings/edema", "laterality/nodule"):
        assert values[f"{name}/auroc"] == 1
        assert values[f"{name}/auroc_images_permuted"] == pytest.approx(0.5, abs=0.1)
    assert results.protocol == "zero_shot@1" and results.n == 120
    areas = [results.values[name] for name in aurocs(results)]
    assert all(row.chance == 0.5 and row.low is not None for row in areas)
    sided = results.details["tasks"]["laterality"]["by_task"]["nodule"]
    assert (sided["n"], sided["positives"], sided["left_out"]) == (60, 30, 60)
    assert (sided["prevalence"], sided["patients"]) == (0.5, 60)
    assert results.values["laterality/nodule/auroc"].n == 60
    edema = results.details["tasks"]["findings"]["by_task"]["edema"]
    assert (edema["n"], edema["positives"], edema["left_out"]) == (120, 40, 0)
    # Bilateral edema is on both sides, so it is on neither side alone.
    assert results.details["tasks_excluded"]["laterality"] == {
        "edema": "0 positive and 0 negative studies, fewer than 5"
    }
    json.dumps(results.to_dict(), allow_nan=False)


def test_encoder_blind_to_sides_and_encoder_that_sees_nothing():
    data = corpus()
    values, _ = values_of(reads(data, sides=False), data)
    assert values["findings/auroc"] == 1
    assert values["laterality/auroc"] == values["laterality/auroc_images_permuted"] == 0.5
    collapsed, results = values_of(fakes.constant(), data)
    assert set(collapsed.values()) == {0.5}
    assert results.details["constant_predictor"] == {"auroc": 0.5}
    nodule = results.details["tasks"]["findings"]["by_task"]["nodule"]
    assert nodule["single_prompts"] == {"min": 0.5, "max": 0.5, "pairs": 25}


def test_ensembles_and_single_prompts_are_what_they_claim():
    data = corpus(48)
    tasks = {
        "nodule": {
            "positive": ("round thing", "nodule"),
            "negative": ("nothing", "clear lungs", "normal"),
            "present": ("nodule", ""),
        }
    }
    given, results = values_of(FakePredict(code, lambda t: 3 * code(t)), data, tasks=tasks)

    def unit(rows):
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

    images = unit(np.stack([code(name) for name in data.ids]))
    yes, no = (
        unit(np.stack([code(text) for text in tasks["nodule"][key]]))
        for key in ("positive", "negative")
    )
    truth = np.array([bool(i % 4) for i in range(48)])
    scores = images @ unit(yes.mean(axis=0)) - images @ unit(no.mean(axis=0))
    assert given["tasks/nodule/auroc"] == pytest.approx(auroc(scores, truth), abs=1e-9)
    assert given["tasks/auroc"] == given["tasks/nodule/auroc"]
    single = [
        auroc(images @ yes[p] - images @ no[q], truth)
        for p, q in itertools.product(range(2), range(3))
    ]
    told = results.details["tasks"]["tasks"]["by_task"]["nodule"]["single_prompts"]
    assert told["pairs"] == 6
    assert (told["min"], told["max"]) == pytest.approx((min(single), max(single)), abs=1e-9)


def test_macro_is_the_mean_over_tasks_and_skipped_draws_are_counted():
    findings = [[("edema",)] * (i < 6) + [("nodule", "left")] * (i % 2) for i in range(40)]
    data = Studies(findings, patients=[f"p{i // 3}" for i in range(40)])
    values, results = values_of(FakePredict(code, code), data, tasks="findings")
    of_tasks = [values["findings/edema/auroc"], values["findings/nodule/auroc"]]
    assert values["findings/auroc"] == pytest.approx(np.mean(of_tasks))
    skipped = results.details["tasks"]["findings"]["skipped_draws"]
    # The 6 positives belong to 2 of 14 patients: (12/14)**14 of the draws miss both.
    assert skipped["edema/auroc"] == pytest.approx(1000 * (12 / 14) ** 14, abs=45)
    assert skipped["auroc"] >= skipped["edema/auroc"] > skipped["nodule/auroc"] == 0
    assert values_of(FakePredict(code, code), data, tasks="findings")[0] == values
    no_interval = values_of(FakePredict(code, code), data, bootstrap=0)[1].values
    assert all(row.low is None for row in no_interval.values())


def test_labels_are_truth_where_there_are_no_findings():
    labels = [(i % 4 - 2, i % 2, 1) for i in range(40)]
    data = Studies(labels=labels, label_names=("Pleural_Effusion", "COPD", "No Finding"))
    results = ZeroShot(FakePredict(code, code), data).run(None)
    assert list(results.details["tasks"]) == ["findings"]
    tasks = results.details["tasks"]["findings"]["by_task"]
    assert {name: (t["n"], t["positives"], t["left_out"]) for name, t in tasks.items()} == {
        "Pleural_Effusion": (20, 10, 20),
        "COPD": (40, 20, 0),
    }
    assert tasks["Pleural_Effusion"]["positive_prompts"][:2] == [
        "Pleural effusion.",
        "Pleural effusion is present.",
    ]
    assert "There is no COPD." in tasks["COPD"]["negative_prompts"]
    excluded = results.details["tasks_excluded"]
    assert excluded["findings"] == {"No Finding": "is itself a denial"}
    assert set(excluded["laterality"]) == {"COPD", "No Finding", "Pleural_Effusion"}


def test_sides_that_are_not_stated_leave_laterality_open():
    sides = ("left", "right", "", "bilateral")
    findings = [[("nodule", side)] for side in sides] * 6 + [[("nodule", "left"), ("nodule", "")]]
    data = Studies([*findings, []])
    predict = FakePredict(code, code)
    sided = ZeroShot(predict, data, tasks="laterality").sets["laterality"]["nodule"]
    assert sided.rows.tolist() == [i for i in range(24) if i % 4 < 2]
    assert sided.positive.tolist() == [True, False] * 6
    own = {"positive": ["left nodule"], "negative": ["none"], "present": ["nodule", "left"]}
    question = ZeroShot(predict, data, tasks={"any left": own}).sets["tasks"]["any left"]
    # Left alone, with another, or on both sides; not those that may or may not be left.
    assert question.rows[question.positive].tolist() == [
        *sorted(i for i in range(24) if i % 4 in (0, 3)),
        24,
    ]
    assert question.rows[~question.positive].tolist() == [*range(1, 24, 4), 25]


@pytest.mark.parametrize("name", KINDS)
def test_prompts_name_the_finding_and_differ(name):
    for task in (finding_task(name), laterality_task(name)):
        prompts = task.positive + task.negative
        assert len(set(prompts)) == len(prompts) >= 8
        assert all(name in p.lower() and p.endswith(".") and p[0].isupper() for p in prompts)
    asked = laterality_task(name)
    assert asked.negative == tuple(
        p.replace("left", "right").replace("Left", "Right") for p in asked.positive
    )
    assert asked.present == (name, "left") and asked.absent == (name, "right")


OWN = {"positive": ("a",), "negative": ("b",), "present": ("nodule", "")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": "finding"}, "unknown task set 'finding' .* choices: findings, laterality"),
        ({"tasks": ("findings", "sides")}, "unknown task set 'sides'"),
        ({"tasks": {"x": {**OWN, "absence": 1}}}, "unknown key in tasks.x 'absence'"),
        ({"tasks": {"x": {"positive": ("a",)}}}, "tasks.x lacks negative, present; expected"),
        ({"tasks": {"x": {**OWN, "positive": "a"}}}, "tasks.x.positive is 'a', expected a seq"),
        ({"tasks": {"x": {**OWN, "negative": ()}}}, r"tasks.x.negative is \(\), expected a seq"),
        ({"tasks": {"x": {**OWN, "present": "nodule"}}}, r"expected \(finding, side\)"),
        ({"tasks": {"x": {**OWN, "present": ("nodule", "top")}}}, r"side left, right or"),
        ({"tasks": {"x": {**OWN, "absent": ("nodul", "")}}}, "did you mean 'nodule'"),
        ({"tasks": ()}, "no task has 5 positive and 5 negative studies in fake/test"),
        ({"min_positives": 200}, "no task has 200 positive"),
        ({"min_positives": 0}, "min_positives is 0"),
        ({"permutations": 0}, "permutations is 0"),
        ({"bootstrap": -1}, "bootstrap is -1"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options, message):
    with pytest.raises(InputError, match=message) as error:
        ZeroShot(FakePredict(code, code), corpus(40), **options)
    assert "\n" not in str(error.value)


def test_records_without_truth_are_refused_and_configs_are_understood():
    for data in (Studies([[]] * 9), Studies(labels=[(-1, -2)] * 9)):
        with pytest.raises(InputError, match="no record of fake/test has findings or labels"):
            ZeroShot(FakePredict(code, code), data)
    config = ml_collections.ConfigDict({"tasks": {"x": OWN}, "bootstrap": 10})
    build.check_options("config.evaluators.zero_shot", ZeroShot, config)
    evaluator = build.find("evaluator", "zero_shot")(FakePredict(code, code), corpus(), **config)
    assert list(evaluator.run(None).values) == [
        "tasks/auroc",
        "tasks/auroc_images_permuted",
        "tasks/auprc",
        "tasks/auroc_constant",
        "tasks/auprc_constant",
        "tasks/auprc_images_permuted",
        "tasks/auroc_gain_over_images_permuted",
        "tasks/x/auroc",
        "tasks/x/auroc_images_permuted",
        "tasks/x/auprc",
    ]
    partial = FakePredict(code, code, absent=("fake:0",))
    with pytest.raises(InputError, match=r"1 of 40 .* have no image\.embedding"):
        ZeroShot(partial, corpus(40)).run(None)
    broken = FakePredict(code, lambda t: np.full(32, np.nan, np.float32))
    with pytest.raises(FloatingPointError, match=r"text\.embedding is not finite"):
        ZeroShot(broken, corpus(40)).run(None)


def test_ranked_scores_and_draws_are_those_of_the_results():
    data = corpus(48)
    evaluator = ZeroShot(FakePredict(code, code), data, tasks="findings", bootstrap=200, seed=3)
    values = evaluator.run(None).values
    of_set = evaluator.ranked(None)["findings"]
    drawn = draws(list(of_set.values()), data.patients, samples=200, seed=3)
    assert drawn.shape == (200, len(of_set)) and len(of_set) == 2
    for (name, ranked), column in zip(of_set.items(), drawn.T, strict=True):
        stated = values[f"findings/{name}/auroc"]
        assert auroc(ranked.scores[0], ranked.positive) == pytest.approx(stated.value, abs=1e-9)
        assert np.nanquantile(column, (0.025, 0.975)) == pytest.approx((stated.low, stated.high))
    macro = values["findings/auroc"]
    ends = np.nanquantile(drawn.mean(axis=1), (0.025, 0.975))
    assert ends == pytest.approx((macro.low, macro.high))
    assert draws(list(of_set.values()), ["one"] * 48).shape == (0, 2)
