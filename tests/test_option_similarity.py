"""Multiple choice, closed questions and corrupted images, with encoders of known results."""

import dataclasses
import json

import numpy as np
import pytest

from mmrl.evaluators import questions, statistics
from mmrl.evaluators.corruption import KINDS, Corrupted, chosen
from mmrl.evaluators.multiple_choice import MultipleChoice
from mmrl.evaluators.retrieval import Retrieval
from mmrl.evaluators.truth import know
from mmrl.evaluators.vqa import Vqa
from mmrl.evaluators.zero_shot import ZeroShot
from mmrl.types import InputError
from tests import fakes
from tests.fakes import FakePredict, Studies, code

NAMES = ("nodule", "edema", "fracture", "tube", "mass")


def corpus(count=60, **options):
    """One finding of five in every study, on one side."""
    findings = [[(NAMES[i % 5], ("left", "right")[i % 2])] for i in range(count)]
    return Studies(findings, **options)


def sees(data, sign=1.0):
    """Images by finding and side; texts by the words in them, denials not understood."""
    axes = {name: n for n, name in enumerate((*NAMES, "left", "right", "yes"))}

    def image_of(name):
        row = np.full(len(axes) + 1, 0.01, np.float32)
        for finding in data.record(data.ids.index(name)).findings:
            row[axes[finding.name]] = row[axes[finding.side]] = sign
        return row

    def text_of(text):
        row = np.zeros(len(axes) + 1, np.float32)
        words = set("".join(c if c.isalpha() else " " for c in text.lower()).split())
        for word in words & set(axes):
            row[axes[word]] = 1
        row[-1] = 0.1
        return row

    return FakePredict(image_of, text_of)


def values_of(evaluator):
    results = evaluator.run(None)
    return {name: estimate.value for name, estimate in results.values.items()}, results


@pytest.mark.parametrize("name", ["findings", "laterality"])
def test_planted_encoders_give_the_known_accuracy(name):
    data = corpus()
    options = {"questions": name, "bootstrap": 50, "permutations": 20}
    chance = {"findings": 0.25, "laterality": 0.5}[name]
    values, results = values_of(MultipleChoice(sees(data), data, **options))
    assert values["accuracy"] == 1 and results.values["accuracy"].chance == chance
    assert values["accuracy_gain_over_images_permuted"] == pytest.approx(
        1 - values["accuracy_images_permuted"]
    )
    inverted, _ = values_of(MultipleChoice(sees(data, -1), data, **options))
    assert inverted["accuracy"] == 0
    collapsed, _ = values_of(MultipleChoice(fakes.constant(), data, **options))
    for row in ("", "_images_permuted", "_text_only", "_image_only"):
        assert collapsed[f"accuracy{row}"] == 0  # all options are tied
    noise, _ = values_of(MultipleChoice(FakePredict(code, code), data, **options))
    assert noise["accuracy"] == pytest.approx(chance, abs=0.17)
    assert noise["accuracy_images_permuted"] == pytest.approx(chance, abs=0.1)
    assert results.protocol == "multiple_choice@1" and results.n == 60
    assert values["type/nodule/accuracy"] == 1 and results.values["type/nodule/accuracy"].n == 12
    json.dumps(results.to_dict(), allow_nan=False)


def test_rows_by_hand():
    """Three questions with different options about two images."""
    data = Studies([[("nodule", "left")]] * 2)
    asked = [
        questions.Question(0, "Q", ("x", "y"), 0, "one"),
        questions.Question(1, "Q", ("y", "x"), 0),
        questions.Question(1, "R", ("y", "z", "x"), 0),
    ]
    basis = np.eye(3, dtype=np.float32)
    texts = {"Q x": 0, "Q y": 1, "R y": 1, "R z": 2, "R x": 1, "x": 0, "y": 1, "z": 2}
    images = {"fake:0": [0.8, 0.6, 0], "fake:1": [0, 0.6, 0.8]}
    predict = FakePredict(
        lambda name: np.array(images[name], np.float32), lambda text: basis[texts[text]]
    )
    evaluator = Vqa(predict, data, bootstrap=0, questions="presence", permutations=1)
    evaluator.asked = questions.Asked(asked, {}, {})
    values, results = values_of(evaluator)
    # 0: .8 > .6 right; 1: .6 > 0 right; 2: y .6, z .8, x .6 wrong.
    assert values["accuracy"] == pytest.approx(2 / 3)
    # The images exchanged: 0 > .6 wrong; .6 > .8 wrong; .6 > 0 but tied with x, wrong.
    assert values["accuracy_images_permuted"] == 0
    # Mean image (.4, .6, .4): Q x .4 < y .6 wrong; Q y right; R y = R x tied, wrong.
    assert values["accuracy_text_only"] == pytest.approx(1 / 3)
    # Without the question: x .8 right; y .6 right; y .6 < z .8 wrong.
    assert values["accuracy_image_only"] == pytest.approx(2 / 3)
    # y is the answer of two of three.
    assert values["accuracy_most_frequent"] == pytest.approx(2 / 3)
    assert values["accuracy_first_option"] == 1
    assert results.values["accuracy"].chance == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)
    assert values["type/one/accuracy"] == 1


class Told(Studies):
    """Studies whose section "history" names the finding of some of them."""

    told = ("nodule", "", "mass", "edema")

    def record(self, index):
        text = self.told[index]
        return dataclasses.replace(
            super().record(index), sections={"history": text} if text else {}
        )


def test_modalities_by_hand():
    """Image, text about the case, or both, for the questions with such a text."""
    data = Told([[("nodule", "left")]] * 4)
    basis = np.eye(4, dtype=np.float32)
    texts = {"Q x": 3, "Q y": 2, "x": 0, "y": 1, "nodule": 0, "edema": 2, "mass": 1}
    images = {
        "fake:0": [0.6, 0.8, 0, 0],  # y > x, and the history says x
        "fake:1": [1, 0, 0, 0],  # without a history
        "fake:2": [1, 0, 0, 0],  # x, and the history says y: both are tied
        "fake:3": [0.8, 0.6, 0, 0],  # x > y, and the history says neither
    }
    predict = FakePredict(
        lambda name: np.array(images[name], np.float32), lambda text: basis[texts[text]]
    )
    asked = [questions.Question(row, "Q", ("x", "y"), 0) for row in range(4)]
    evaluator = Vqa(predict, data, bootstrap=0, case="history", permutations=1)
    evaluator.asked = questions.Asked(asked, {}, {})
    values, results = values_of(evaluator)
    assert values["modality/image/accuracy"] == pytest.approx(2 / 3)
    assert values["modality/text/accuracy"] == pytest.approx(1 / 3)
    assert values["modality/both/accuracy"] == pytest.approx(2 / 3)
    assert results.values["modality/both/accuracy"].n == 3
    assert results.details["case"] == {"text": "history", "questions": 3}
    assert "modality/both/accuracy_images_permuted" in values
    plain, _ = values_of(Vqa(sees(corpus()), corpus(), bootstrap=0))
    assert not any(name.startswith("modality") for name in plain)
    data = corpus()
    of_question, results = values_of(MultipleChoice(sees(data), data, bootstrap=0, case="question"))
    assert results.values["modality/text/accuracy"].n == results.n
    assert of_question["modality/text/accuracy"] == 0  # "Which finding is present?" names none
    assert of_question["modality/image/accuracy"] == 1
    with pytest.raises(InputError, match="case=histroy: no example that is asked about"):
        Vqa(sees(corpus()), corpus(), bootstrap=0, case="histroy").run(None)


def test_a_template_without_the_question_has_no_ablation_of_it():
    data = corpus(20)
    values, results = values_of(MultipleChoice(sees(data), data, template="{option}", bootstrap=0))
    assert values["accuracy"] == 1 and "accuracy_image_only" not in values
    assert results.details["template"] == "{option}"
    for template in ("{question}", "{option} {finding}", "{option} {"):
        with pytest.raises(InputError, match=r"expected a text with \{option\}"):
            MultipleChoice(sees(data), data, template=template)


def test_absent_images_are_excluded_and_counted():
    data = corpus(20)
    predict = sees(data)
    predict.absent = ("fake:3", "fake:4")
    _, results = values_of(MultipleChoice(predict, data, bootstrap=0))
    assert results.n == 18 and results.excluded == {"an input is missing": 2}
    assert results.values["accuracy"].value == 1


# --- questions


def test_made_questions_are_true_and_depend_on_the_record_alone():
    sides = ("left", "right", "bilateral", "")
    findings = [
        [(NAMES[i % 5], sides[i % 4]), *([("edema", "left")] * (i % 3 == 0))] for i in range(40)
    ]
    data = Studies([*findings, []])
    facts = know(data, purpose="test").facts
    made = questions.make("findings", data, options=3, seed=1)
    assert made.excluded == {"records that give no question": 1}
    assert made.source["name"] == "findings@1"
    for one in made.questions:
        present = [facts[one.row].has((t.split()[0].lower(), "")) for t in one.options]
        assert len(present) == 3 and present.count(True) == 1 and present[one.answer]
    assert len({one.answer for one in made.questions}) == 3
    sided = questions.make("laterality", data, seed=1).questions
    for one in sided:
        assert (
            one.options[one.answer]
            .lower()
            .startswith(next(s for s in ("left", "right") if facts[one.row].has((one.type, s))))
        )
    assert not [
        one
        for one in sided
        if one.row % 4 > 1 and one.type == NAMES[one.row % 5] and one.type != "edema"
    ]
    yes_no = questions.make("presence", data, seed=1).questions
    assert {one.options for one in yes_no} == {("Yes.", "No.")}
    assert all(facts[one.row].has((one.type, "")) == (one.answer == 0) for one in yes_no)
    assert [one.answer for one in yes_no].count(1) == 41
    # Other records before it change nothing, nor does a second call.
    part = statistics.Subset(data, range(10, 41))
    shifted = questions.make("findings", part, options=3, seed=1).questions
    later = [one for one in made.questions if one.row >= 10]
    assert [(one.row + 10, one.options) for one in shifted] == [(o.row, o.options) for o in later]
    assert questions.make("findings", data, options=3, seed=1) == made
    assert questions.make("findings", data, options=3, seed=2).source != made.source
    with pytest.raises(InputError, match="unknown questions 'finding'"):
        questions.make("finding", data)
    with pytest.raises(InputError, match="no record of fake/test gives a question of laterality"):
        questions.make("laterality", Studies([[("nodule", "")]] * 3))


def test_records_in_another_language_get_no_english_questions():
    data = corpus(20, languages=["en"] * 15 + ["fr"] * 5)
    made = questions.make("findings", data)
    assert made.excluded == {"language is not en": 5} and len(made.questions) == 15


ROWS = [
    ("fake:0", "What is it?", "CT|MRI", "CT", "modality"),
    ("fake:1", "Is it left?", '["yes", "no"]', "no", "side"),
    ("fake:9", "What is it?", "CT|MRI", "CT", ""),
    ("fake:1", "What is it?", "CT|MRI", "PET", ""),
    ("fake:1", "What is it?", "CT|CT", "CT", ""),
    ("fake:1", "What is it?", "CT", "CT", ""),
    ("fake:1", "What is it?", "[1, 2]", "1", ""),
]
COLUMNS = ("id", "question", "options", "answer", "type")


def test_files_of_questions(tmp_path):
    path = tmp_path / "q.jsonl"
    lines = [json.dumps(dict(zip(COLUMNS, row, strict=True))) for row in ROWS]
    path.write_text("\n".join(lines), "utf-8")
    data = corpus(4)
    asked = questions.read(str(path), data)
    assert asked.questions == [
        questions.Question(0, "What is it?", ("CT", "MRI"), 0, "modality"),
        questions.Question(1, "Is it left?", ("yes", "no"), 1, "side"),
    ]
    assert asked.excluded == {
        "about a record that is not evaluated": 1,
        "the answer is none of the options": 1,
        "options that are equal or fewer than two": 3,
    }
    values, results = values_of(
        Vqa(FakePredict(code, code), data, questions=str(path), bootstrap=0)
    )
    assert results.n == 2 and results.details["questions"] == asked.source
    assert {"type/modality/accuracy", "type/side/accuracy"} <= set(values)
    path.write_text("\n".join(lines[2:]), "utf-8")
    with pytest.raises(InputError, match="has no question about fake/test"):
        questions.read(str(path), data)
    path.write_text('{"id": "a", "question": "b"}', "utf-8")
    with pytest.raises(InputError, match=r"no column .options., .answer."):
        questions.read(str(path), data)


# --- corruption

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 40, 1), np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_corruptions_grow_with_their_strength_and_begin_at_nothing(kind):
    def corrupted(strength):
        return KINDS[kind](IMAGE, strength, np.random.default_rng(1))

    assert np.array_equal(corrupted(0.0), IMAGE)
    distances = []
    for strength in (0.1, 0.4, 1.0):
        image = corrupted(strength)
        assert image.dtype == np.uint8 and image.shape == IMAGE.shape
        distances.append(np.abs(image.astype(float) - IMAGE).mean())
    assert 0 < distances[0] < distances[1] < distances[2]


def test_corruptions_do_what_they_say():
    rng = np.random.default_rng(0)
    grey = np.full((200, 200, 1), 128, np.uint8)
    assert KINDS["noise"](grey, 0.1, rng).std() == pytest.approx(25.5, rel=0.02)
    covered = KINDS["occlusion"](np.where(np.arange(200)[None, :, None] % 2, grey, 0), 0.25, rng)
    assert (covered == 64).mean() == pytest.approx(0.25)
    assert np.ptp(KINDS["contrast"](IMAGE, 1.0, rng)) == 0
    half = KINDS["contrast"](IMAGE, 0.5, rng).astype(float)
    assert half.std() == pytest.approx(IMAGE.std() / 2, rel=0.01)
    spot = np.zeros((101, 101, 1), np.uint8)
    spot[50, 50] = 255
    wide = KINDS["blur"](spot, 0.3, rng)[..., 0].astype(float)
    across = ((np.arange(101) - 50) ** 2 * wide.sum(axis=0)).sum() / wide.sum()
    assert across**0.5 == pytest.approx(0.3 * 101 / 10, rel=0.2)  # grey levels are rounded


class Pictures(Studies):
    """The finding of a study is the quarter of its image that is bright."""

    def arrays(self, names, rows, tower=""):
        return {"image.pixels": np.stack([self.image(row) for row in rows])}

    def pixels(self, encoding, rows):
        return np.stack([self.image(row) for row in rows])

    def image(self, index):
        image = np.full((16, 16, 1), 40, np.uint8)
        n = NAMES.index(self.record(index).findings[0].name)
        image[8 * (n // 2) : 8 * (n // 2) + 8, 8 * (n % 2) : 8 * (n % 2) + 8] = 220
        return image


class Looks(FakePredict):
    """Embeds the mean of each quarter of the pixels, and texts by the finding they name."""

    def encode(self, state, data, names):
        if names[0].startswith("text"):
            return super().encode(state, data, names)
        pixels = data.arrays(["image"], range(len(data)), "image")["image.pixels"]
        quarters = pixels.reshape(-1, 2, 8, 2, 8).mean(axis=(2, 4)).reshape(-1, 4)
        centred = quarters - quarters.mean(axis=1, keepdims=True)
        return {names[0]: centred.astype(np.float32), "present": np.ones(len(data), bool)}


def pictures(count=40):
    return Pictures([[(NAMES[i % 4], "left")] for i in range(count)])


def text_of(text):
    return np.array([name in text.lower() for name in NAMES[:4]], np.float32)


def test_curves_fall_from_the_accuracy_of_clean_images():
    data = pictures()
    strengths = {"contrast": (0.0, 1.0), "noise": (0.0, 0.9)}
    options = {"corruptions": strengths, "bootstrap": 50, "options": 4}
    values, results = values_of(MultipleChoice(Looks(None, text_of), data, **options))
    assert values["accuracy"] == values["corruption/contrast=0/accuracy"] == 1
    assert values["corruption/noise=0/accuracy"] == 1
    assert values["corruption/contrast=1/accuracy"] == 0  # nothing is left: all options are tied
    assert 0.25 < values["corruption/noise=0.9/accuracy"] <= 1
    again, _ = values_of(MultipleChoice(Looks(None, text_of), data, **options))
    assert again == values
    assert results.values["corruption/noise=0.9/accuracy"].low is not None


def test_corrupted_data_has_a_digest_of_its_own_and_does_not_depend_on_blocks():
    data = pictures(6)
    spoiled = Corrupted(data, "noise", 0.2)
    whole = spoiled.arrays(["image"], range(6), "image")["image.pixels"]
    for row in range(6):
        alone = spoiled.arrays(["image"], [row], "image")["image.pixels"][0]
        assert np.array_equal(alone, whole[row])
        assert np.array_equal(spoiled.image(row), whole[row])
        assert np.array_equal(spoiled.pixels("image.embedding", [row])[0], whole[row])
    assert not np.array_equal(whole[0], whole[4])  # the same picture, other noise
    others = [Corrupted(data, "noise", 0.3), Corrupted(data, "noise", 0.2, seed=1), data]
    assert len({one.sha256 for one in (*others, spoiled)}) == 4
    assert spoiled.preprocessing == {
        "size": 8,
        "corruption": {"kind": "noise", "strength": 0.2, "seed": 0},
    }
    assert spoiled.record(3) is data.record(3) and len(spoiled) == 6


def test_wrong_corruptions_are_refused():
    data = pictures(6)
    with pytest.raises(InputError, match="unknown corruption 'fog'"):
        Corrupted(data, "fog", 0.5)
    with pytest.raises(InputError, match="strength of blur is 2"):
        Corrupted(data, "blur", 2)
    with pytest.raises(
        InputError, match=r"unknown corruption in multiple_choice\.corruptions 'fog'"
    ):
        MultipleChoice(Looks(None, text_of), data, corruptions={"fog": (0.1,)})
    with pytest.raises(InputError, match=r"x\.noise holds 'a'; expected numbers from 0 to 1"):
        chosen({"noise": ("a",)}, where="x")
    assert chosen({"noise": 0.5, "blur": (0.1, 1)}, where="x") == [
        ("noise", 0.5),
        ("blur", 0.1),
        ("blur", 1.0),
    ]


def test_findings_with_the_same_words_are_no_options_of_one_question():
    """An image can never be closer to one of two equal texts."""
    names = ("Pleural_Effusion", "pleural effusion", "Edema")
    labels = [(1, 0, 0), (0, 0, 1)] * 10
    data = Studies(labels=labels, label_names=names)
    found = questions.make("findings", data, options=2)
    assert all(len(set(one.options)) == 2 for one in found.questions)
    alike = found.excluded["options that are equal or fewer than two"]
    assert alike + len(found.questions) == 20 and 0 < alike < 10
    with pytest.raises(InputError, match="gives a question of findings"):
        questions.make("findings", data, options=3)


def test_one_patient_has_no_images_of_another():
    data = corpus(20, patients=["p"] * 20)
    for make in (MultipleChoice, ZeroShot, Retrieval):
        least = {"min_positives": 1} if make is ZeroShot else {}
        values, _ = values_of(make(sees(data), data, bootstrap=0, **least))
        assert not any("permuted" in name for name in values)
