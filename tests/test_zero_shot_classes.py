"""Prompt sets, exclusive classes and their named variants, with encoders of known results."""

import itertools
import json

import numpy as np
import pytest

from configs import real
from mmrl.data.labels import PRESETS
from mmrl.evaluators import prompt_sets, statistics
from mmrl.evaluators.truth import exclusive, know
from mmrl.evaluators.zero_shot import ZeroShot
from mmrl.evaluators.zero_shot_classes import (
    VARIANTS,
    ZeroShotClasses,
    class_scores,
    local_scores,
    standardised,
)
from mmrl.types import InputError
from tests import fakes
from tests.fakes import FakePredict, Studies, code

CLASSES = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
WORDS = ("atelectasis", "cardi", "consolidation", "edema", "effusion")


def five_by(count=20, **options):
    """`count` studies of each class, the other labels blank, and two that are of no class."""
    one = [tuple(1 if c == k else -2 for c in range(5)) for k in range(5) for _ in range(count)]
    data = Studies(labels=[*one, (-2,) * 5, (1, 1, -2, -2, -2)], label_names=CLASSES, **options)
    data.label_policy = PRESETS["u_ignore"]
    return data


def class_of(text):
    return next((n for n, word in enumerate(WORDS) if word in text.lower()), 1)  # "heart size ..."


def planted(data, sign=1.0):
    """Images of a class and prompts of a class have the same direction."""

    def image_of(name):
        row = np.full(6, 0.01, np.float32)
        row[data.record(data.ids.index(name)).labels.index(1)] = sign
        return row

    return FakePredict(image_of, lambda text: np.eye(6, dtype=np.float32)[class_of(text)])


GLOBAL = ("medclip", "cxr_clip", "biovil")


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("name", GLOBAL)
def test_planted_encoders_give_the_known_results(name):
    data = five_by()
    for encoder, accuracy, area in (
        (planted(data), 1.0, 1.0),
        (planted(data, -1.0), 0.0, 0.0),
        (fakes.constant(), 0.2, 0.5),
    ):
        options = {"variants": (name,), "draws": 2, "permutations": 2, "bootstrap": 0}
        results = ZeroShotClasses(encoder, data, **options).run(None)
        assert results.values[f"{name}/accuracy"].value == accuracy
        assert results.values[f"{name}/macro_auroc"].value == area
        assert results.values[f"{name}/accuracy_constant"].value == pytest.approx(0.2)
        assert results.values[f"{name}/accuracy"].chance == 0.2
    results = ZeroShotClasses(planted(data), data, **options).run(None)
    assert results.values[f"{name}/accuracy_images_permuted"].value == pytest.approx(0.2, abs=0.08)
    assert results.values[f"{name}/macro_auprc"].value == 1.0
    assert results.values[f"{name}/macro_f1"].value == 1.0
    noise = ZeroShotClasses(FakePredict(code, code), data, **options).run(None)
    assert noise.values[f"{name}/accuracy"].value == pytest.approx(0.2, abs=0.12)
    assert noise.values[f"{name}/macro_auroc"].value == pytest.approx(0.5, abs=0.12)
    assert results.protocol == "zero_shot_classes@1"
    assert results.n == 100
    assert results.excluded == {"none of the classes": 1, "several of the classes": 1}
    assert results.details["prompt_set"]["name"] == "chexpert_5x200@1"
    json.dumps(results.to_dict(), allow_nan=False)


class Local(FakePredict):
    """Also encodes regions and words, by functions of id and text."""

    provides = (*FakePredict.provides, "image.regions", "text.words", "text.word_mask")

    def __init__(self, predict, regions_of, words_of):
        super().__init__(predict.image_of, predict.text_of)
        self.regions_of, self.words_of = regions_of, words_of

    def encode(self, state, data, names):
        found = {"present": np.ones(len(data), bool)}
        for name in names:
            if name == "image.regions":
                found[name] = np.stack([self.regions_of(i) for i in data.ids])
            elif name == "text.words":
                found[name] = np.stack([self.words_of(t)[0] for t in data.texts])
            elif name == "text.word_mask":
                found[name] = np.stack([self.words_of(t)[1] for t in data.texts])
            else:
                found |= super().encode(state, data, [name])
        return found

    def stream(self, state, data, names):
        for start in range(0, len(data), 7):
            rows = range(start, min(start + 7, len(data)))
            yield self.encode(state, statistics.Subset(data, rows), names)


def words_of(text):
    rng = statistics.generator(0, text, "words")
    mask = np.arange(7) < 2 + len(text) % 5
    return rng.normal(size=(7, 4)).astype(np.float32), mask


def regions_of(name):
    return statistics.generator(0, name, "regions").normal(size=(9, 4)).astype(np.float32)


def local_by_hand(words, mask, regions):
    """Word by word and region by region, in float64."""
    valid = [word.astype(np.float64) for word, kept in zip(words, mask, strict=True) if kept]
    regions = regions.astype(np.float64)
    over_words = []
    for region in regions:
        powers = [np.exp(region @ word) for word in valid]
        over_words.append([power / sum(powers) for power in powers])
    best = -np.inf
    for n, word in enumerate(valid):
        powers = [np.exp(4 * of_region[n]) for of_region in over_words]
        context = sum(p * r for p, r in zip(powers, regions, strict=True)) / sum(powers)
        best = max(best, context @ word / np.linalg.norm(context) / np.linalg.norm(word))
    return 5 * best


def test_local_scores_equal_loops_for_any_chunk_and_padding():
    texts, images = [f"text {'x' * n}" for n in range(6)], [f"image {n}" for n in range(5)]
    words, masks = map(np.stack, zip(*map(words_of, texts), strict=True))
    regions = np.stack([regions_of(one) for one in images])
    expected = [
        [local_by_hand(w, m, r) for w, m in zip(words, masks, strict=True)] for r in regions
    ]
    for chunk in (1, 2, 64):
        found = local_scores(words, masks, regions, chunk=chunk)
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    spoiled = np.where(masks[:, :, None], words, 1e3)
    np.testing.assert_array_equal(local_scores(spoiled, masks, regions), found)
    with pytest.raises(ValueError, match="text 2 has no valid word"):
        local_scores(words, masks & (np.arange(6) != 2)[:, None], regions)


def test_gloria_is_what_it_claims():
    data = five_by(4)
    predict = Local(FakePredict(code, code), regions_of, words_of)
    evaluator = ZeroShotClasses(predict, data, variants=("gloria",), draws=3, bootstrap=0)
    results = evaluator.run(None)
    prompts = results.details["variants"]["gloria"]["prompts"]
    assert len(prompts) == 3 and all(len(own) == 5 for one in prompts for own in one.values())
    assert prompts[0] != prompts[1]
    accuracies = []
    for one in prompts:
        scores = np.empty((20, 5))
        for (row, name), (column, own) in itertools.product(
            enumerate(data.ids[:20]), enumerate(one.values())
        ):
            image = code(name) / np.linalg.norm(code(name))
            each = []
            for text in own:
                cosine = image @ (code(text) / np.linalg.norm(code(text)))
                each.append((cosine + local_by_hand(*words_of(text), regions_of(name))) / 2)
            scores[row, column] = max(each)
        scores = (scores - scores.mean(axis=0)) / scores.std(axis=0)
        accuracies.append(float((scores.argmax(axis=1) == np.arange(20) // 4).mean()))
    assert results.values["gloria/accuracy"].value == pytest.approx(np.mean(accuracies))
    told = results.details["variants"]["gloria"]["range"]["accuracy"]
    assert told == {"min": min(accuracies), "max": max(accuracies), "sets": 3}
    assert results.details["depends_on_the_test_set"] == ["gloria"]
    with pytest.raises(
        InputError, match=r"gloria needs image\.regions, .* heads regions and words"
    ):
        ZeroShotClasses(FakePredict(code, code), data, variants=("gloria",))


def test_variants_combine_prompts_as_published():
    images, texts = (
        statistics.unit_rows(np.random.default_rng(n).normal(size=(5, 8)), "x", "abcde")
        for n in range(2)
    )
    prompts = [[0, 1, 2], [3, 4]]
    similarity = images @ texts.T
    by_mean = class_scores(VARIANTS["cxr_clip"], similarity, images, texts, prompts)
    expected = np.stack([similarity[:, own].mean(axis=1) for own in prompts], axis=1)
    np.testing.assert_allclose(by_mean, expected, atol=1e-6)
    ensembles = [texts[own].mean(axis=0) for own in prompts]
    by_ensemble = class_scores(VARIANTS["biovil"], similarity, images, texts, prompts)
    expected = np.stack([images @ (one / np.linalg.norm(one)) for one in ensembles], axis=1)
    np.testing.assert_allclose(by_ensemble, expected, atol=2e-6)
    by_greatest = class_scores(VARIANTS["gloria"], similarity, images, texts, prompts)
    greatest = np.stack([similarity[:, own].max(axis=1) for own in prompts], axis=1)
    expected = (greatest - greatest.mean(axis=0)) / greatest.std(axis=0)
    np.testing.assert_allclose(by_greatest, expected, atol=1e-4)
    assert (VARIANTS["gloria"].drawn, VARIANTS["medclip"].drawn) == (5, 10)


def test_standardised_columns_and_those_of_equal_scores():
    scores = np.array([[1.0, 0.1], [3.0, 0.1], [5.0, 0.1]])
    np.testing.assert_allclose(standardised(scores).T, [[-(1.5**0.5), 0, 1.5**0.5], [0, 0, 0]])
    np.testing.assert_array_equal(standardised(scores[:1]), scores[:1])


def test_snapped_scores_are_near_and_equal_where_only_rounding_differs():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(50, 3))
    assert np.abs(statistics.snapped(scores) - scores).max() <= statistics.TIE
    for start in rng.random(20):  # wherever the grid lies
        collapsed = start + rng.choice([-2e-7, 0, 2e-7], (50, 3))
        assert len(np.unique(statistics.snapped(collapsed))) == 1
        assert len(np.unique(statistics.snapped(collapsed[:, 0]))) == 1


# --- prompt sets


def test_published_prompts():
    given = prompt_sets.load("chexpert_5x200@1", "classes", where="prompts")
    counts = {name: len(prompts) for name, prompts in given.classes.items()}
    assert counts == dict(zip(CLASSES, (210, 10, 192, 18, 36), strict=True))
    assert "mild linear atelectasis at the lung bases" in given.classes["Atelectasis"]
    assert "pulmonary edema" in given.classes["Edema"]
    assert "large tiny subpulmonic pleural effusion" in given.classes["Pleural Effusion"]
    assert "improved patchy consolidation at the left upper lobe" in given.classes["Consolidation"]
    every = [text for prompts in given.classes.values() for text in prompts]
    assert len(set(every)) == len(every) and all(text == " ".join(text.split()) for text in every)
    assert "15 fixed phrases" in given.facts["notes"]
    assert prompt_sets.names("classes") == ["chexpert_5x200@1", "modality@1"]
    assert prompt_sets.names("tasks") == ["rsna_pneumonia@1"]
    tasks = prompt_sets.load("rsna_pneumonia@1", "tasks", where="tasks").tasks
    assert {key: len(tasks["pneumonia"][key]) for key in ("positive", "negative")} == {
        "positive": 4,
        "negative": 4,
    }


GOOD = {"source": "me", "license": "none", "language": "en"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nonsense", "cannot be read as JSON"),
        ("[]", "holds a list; expected an object"),
        (json.dumps({**GOOD, "classes": {"a": {"phrases": ["x"]}}}), "expected at least two"),
        (json.dumps({**GOOD, "tasks": {"a": {}}}), "has no 'classes'"),
        (json.dumps({**GOOD, "language": ""}), "has no 'language'"),
        (json.dumps({**GOOD, "class": {}}), "unknown key in .* 'class'"),
        (json.dumps({**GOOD, "classes": {"a": ["x"], "b": 1}}), "class 'a': expected"),
        (json.dumps({**GOOD, "classes": {"a": {"product": ["x"]}}}), "class 'a': expected"),
        (json.dumps({**GOOD, "classes": {"a": {"phrases": []}}}), "class 'a': expected"),
        (json.dumps({**GOOD, "classes": {"a": {"phrases": [""]}}}), "empty prompts only"),
    ],
)
def test_wrong_files_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "own.json"
    path.write_text(content, "utf-8")
    with pytest.raises(InputError, match=message) as error:
        prompt_sets.load(str(path), "classes", where="prompts")
    assert "\n" not in str(error.value)


def test_own_files_and_unknown_names(tmp_path):
    path = tmp_path / "own.json"
    classes = {"Edema": {"phrases": ["wet"]}, "COPD": {"product": [["", "big"], ["lungs"]]}}
    path.write_text(json.dumps({**GOOD, "classes": classes}), "utf-8")
    data = Studies(labels=[(i % 2, 1 - i % 2) for i in range(12)])
    predict = FakePredict(code, code)
    evaluator = ZeroShotClasses(predict, data, prompts=str(path), bootstrap=0)
    assert evaluator.prompts.classes == {"Edema": ("wet",), "COPD": ("lungs", "big lungs")}
    assert evaluator.run(None).values["biovil/accuracy"].n == 12
    with pytest.raises(
        InputError, match=r"unknown prompts .* choices: chexpert_5x200@1, modality@1, or a"
    ):
        ZeroShotClasses(predict, data, prompts="chexpert")
    with pytest.raises(InputError, match=r"unknown finding or label in prompts .* 'Atelectasis'"):
        ZeroShotClasses(predict, data)
    with pytest.raises(InputError, match=r"unknown variant .* 'clip'"):
        ZeroShotClasses(predict, data, prompts=str(path), variants=("clip",))
    with pytest.raises(InputError, match="draws is 0"):
        ZeroShotClasses(predict, data, prompts=str(path), draws=0)


# --- what is known of studies


def test_only_studies_of_exactly_one_class_count():
    labels = [(1, 0), (0, 1), (1, 1), (0, 0), (1, -2), (-1, 0), (1, 0)]
    data = Studies(labels=labels, languages=["en"] * 6 + ["de"])
    classed = exclusive(know(data, purpose="test"), ("Edema", "COPD"), where="test")
    assert classed.rows.tolist() == [0, 1] and classed.truth.tolist() == [0, 1]
    assert classed.excluded == {
        "language is not en": 1,
        "several of the classes": 1,
        "none of the classes": 1,
        "a class is unknown": 2,
    }
    data.label_policy = PRESETS["u_zeros"]
    classed = exclusive(know(data, purpose="test"), ("Edema", "COPD"), where="test")
    assert classed.rows.tolist() == [0, 1, 4]
    with pytest.raises(InputError, match="expected studies of two classes at least"):
        exclusive(know(Studies(labels=[(1, 0)] * 3), purpose="test"), ("Edema", "COPD"), where="t")


def test_prompts_are_not_used_on_reports_of_another_language():
    findings = [[("edema",)] * (i % 2) for i in range(40)]
    predict = FakePredict(code, code)
    mixed = Studies(findings, languages=["en"] * 30 + ["es"] * 10)
    results = ZeroShot(predict, mixed, tasks="findings", bootstrap=0).run(None)
    assert results.excluded == {"language is not en": 10} and results.n == 30
    assert results.values["findings/edema/auroc"].n == 30
    alone = ZeroShot(predict, Studies(findings[:30]), tasks="findings", bootstrap=0).run(None)
    assert alone.values["findings/edema/auroc"].value == (
        results.values["findings/edema/auroc"].value
    )
    spanish = Studies(findings, languages=["es"] * 40)
    with pytest.raises(InputError, match="in the languages es, the prompts of zero_shot in en"):
        ZeroShot(predict, spanish)
    with pytest.raises(InputError, match="prompts of findings are in en, language is es"):
        ZeroShot(predict, spanish, language="es")
    own = {"edema": {"positive": ["edema"], "negative": ["no"], "present": ("edema", "")}}
    assert ZeroShot(predict, spanish, language="es", tasks=own, bootstrap=0).run(None).n == 40


# --- binary tasks: the measures beside the AUROC


def sees(data, scores):
    """The cosine with the positive prompt minus that with the negative one is the score."""
    score = dict(zip(data.ids, scores, strict=True))

    def image_of(name):
        return np.array([score[name], (1 - score[name] ** 2) ** 0.5], np.float32)

    def text_of(text):
        return np.array([-1 if "No" in text or "no " in text else 1, 0], np.float32)

    return image_of, text_of


def test_thresholds_are_chosen_on_another_split_and_applied():
    label = {"label_names": ("Pneumonia",)}
    val = Studies(labels=[(int(i >= 5),) for i in range(10)], **label)
    val.name = "fake/val"
    test = Studies(labels=[(int(i % 3 == 0),) for i in range(12)], splits={"val": val}, **label)
    # On val the best threshold is between 0.25 and 0.3.
    of_val, of_test = np.linspace(0.05, 0.5, 10), np.linspace(0.01, 0.45, 12)

    class Both(FakePredict):
        def encode(self, state, data, names):
            image_of, text_of = sees(val, of_val) if data is val else sees(test, of_test)
            return FakePredict(image_of, text_of).encode(state, data, names)

    options = {"tasks": "rsna_pneumonia@1", "min_positives": 2, "bootstrap": 50}
    evaluator = ZeroShot(Both(None, None), test, threshold_from="val", **options)
    values = evaluator.run(None).values
    truth, chosen = np.arange(12) % 3 == 0, of_test > 0.3
    right = float((truth == chosen).mean())
    assert values["rsna_pneumonia@1/accuracy"].value == pytest.approx(right)
    hits = (truth & chosen).sum()
    assert values["rsna_pneumonia@1/f1"].value == pytest.approx(
        2 * hits / (truth.sum() + chosen.sum())
    )
    told = evaluator.run(None).details["thresholds"]
    assert told["chosen_on"] == "fake/val" and told["excluded"] == {}
    told = told["values"]["rsna_pneumonia@1"]["pneumonia"]
    assert 2 * 0.25 < told < 2 * 0.3 + 1e-6  # of the difference of two opposite prompts
    plain = ZeroShot(Both(None, None), test, **options).run(None)
    assert "rsna_pneumonia@1/accuracy" not in plain.values
    assert plain.details["thresholds"] == {"none": "threshold_from is not set"}
    assert plain.values["rsna_pneumonia@1/auprc"].value == (values["rsna_pneumonia@1/auprc"].value)
    val.splits = {"val": val}
    itself = ZeroShot(Both(None, None), val, threshold_from="val", **options).run(None)
    assert itself.details["thresholds"] == {"none": "fake/val is evaluated itself"}
    assert itself.values["rsna_pneumonia@1/auprc"].value == 1
    empty = Studies(labels=[(0,)] * 10, **label)
    empty.name = "fake/train"
    test.splits["train"] = empty
    with pytest.raises(InputError, match="no task has 1 positive"):
        ZeroShot(Both(None, None), test, threshold_from="train", **options)


def test_every_published_set_loads_and_has_a_version():
    for path in prompt_sets.FOLDER.glob("*.json"):
        kind = "classes" if path.stem in prompt_sets.names("classes") else "tasks"
        given = prompt_sets.load(path.stem, kind, where="prompts")
        assert path.stem.rpartition("@")[2].isdigit() and len(given.sha256) == 64


def test_prompts_of_modalities_are_those_of_the_preset():
    given = prompt_sets.load("modality@1", "classes", where="prompts")
    tasks = real.modality_tasks()
    assert given.classes == {name: task["positive"] for name, task in tasks.items()}
