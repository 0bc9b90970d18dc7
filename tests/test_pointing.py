"""The pointing game: its words and boxes, attention, hits, and the evaluator."""

import json
import re
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from mmrl import build
from mmrl.data.image.images import Preprocess
from mmrl.data.text.grounding import select_examples
from mmrl.data.text.reports import split_sentences
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.evaluators.pointing import Pointing, word_maps, word_region_attention
from mmrl.evaluators.pointing_game import Pointed, judge, mapped_boxes
from mmrl.evaluators.statistics import Subset
from mmrl.objectives import local_contrastive
from mmrl.types import Box, ImageRef, InputError, Record
from tests.test_figures import GRID, picture

LABELS = ("pleural_effusion", "nodule", "pneumothorax")
SENTENCES = ("Small left pleural effusion.", "Right upper lobe nodules.", "Tiny LEFT pneumothorax.")


class FakeData:
    """Studies with one boxed finding each; the box fills one cell of the grid."""

    name, preprocessing = "fake/test", {"size": 16}
    sha256, items_sha256 = "0" * 64, "1" * 64
    foreign = frozenset()

    def __init__(self, count, *, boxes=True, sentence=1, length=64, patients=None):
        self.boxes, self.sentence, self.length = boxes, sentence, length
        self.ids = [f"fake:{i}" for i in range(count)]
        self.patients = patients or [f"p{i}" for i in range(count)]
        self.groups = np.arange(count)
        ends = ("The heart is normal.", "No fracture is seen there.")
        self.sentences = [(ends[0], SENTENCES[i % 3], ends[1]) for i in range(count)]
        self.texts = [" ".join(s) for s in self.sentences]
        self.tokenizer = Tokenizer.train(self.texts, vocab_size=330)
        self.preprocess = Preprocess(16)

    def __len__(self):
        return len(self.ids)

    def cell(self, index):
        """Row and column in the grid; rows 0 and 3 are padding of the wide picture."""
        return 1 + index // 4 % 2, index % 4

    def record(self, index):
        row, column = self.cell(index)
        x, y = 20.0 * column, 20.0 * (row - 1)
        box = Box((x, y, x + 20, y + 20), LABELS[index % 3], self.sentence)
        return Record(
            id=self.ids[index],
            source="fake",
            patient_id=self.patients[index],
            study_id="",
            leakage_unit="",
            split="test",
            images=(ImageRef("k", picture),),
            sections={},
            boxes=(box,) if self.boxes else (),
            sentences=tuple(("findings", s) for s in self.sentences[index]),
        )

    def tokenize(self, texts):
        tokens, mask, _ = self.tokenizer.encode_batch(texts, self.length)
        return tokens, mask

    def image(self, index):
        return self.preprocess(picture())[..., None]

    def arrays(self, names, rows, tower=""):
        assert (*names, tower) == ("image", "image")
        return {"image.pixels": np.stack([self.image(row) for row in rows])}


class FakePredict:
    """Regions are one-hot; every word is the sum of the regions that `cells(id)` gives."""

    provides = ("image.regions", "text.words", "text.word_mask")

    grids = {"image": GRID}  # noqa: RUF012

    def __init__(self, cells):
        self.cells = cells

    def encode(self, state, data, names):
        assert sorted(names) == sorted(self.provides)
        present = np.ones(len(data), bool)
        return {"present": present, **self.images(data), **self.texts(data, data.texts)}

    def images(self, data):
        arrays = data.arrays(("image",), range(len(data)), "image")
        assert len(arrays["image.pixels"]) == len(data)
        return {"image.regions": np.tile(np.eye(16, dtype=np.float32), (len(data), 1, 1))}

    def texts(self, data, texts):
        mask = data.tokenize(texts)[1]
        words = np.zeros((*mask.shape, *GRID), np.float32)
        for row, name in enumerate(data.ids):
            for cell in self.cells(name):
                words[(row, slice(None), *cell)] = 1
        return {"text.words": words.reshape(*mask.shape, 16), "text.word_mask": mask}


def plain_attention(words, word_mask, regions):
    scores = np.exp(words @ regions.T)
    return scores / scores.sum(axis=1, keepdims=True)


class Shown(NamedTuple):
    """A study with its attention maps and boxes."""

    id: str
    patient: str
    words: list
    boxes: list
    size: tuple


def run_attention(data, cells, count=12, words=plain_attention):
    chosen = select_examples(data, data.tokenizer.words, count=count)
    maps = word_maps(FakePredict(cells), None, data, chosen, attention=words, grid=GRID)
    shown = []
    for choice, of_words in zip(chosen, maps, strict=True):
        size = data.image(choice.index).shape[:2]
        boxes = mapped_boxes(data, choice, data.preprocess.geometry, size)
        shown.append(
            Shown(
                data.ids[choice.index],
                data.patients[choice.index],
                [(word, m) for (word, _), m in zip(choice.words, of_words, strict=True)],
                [(choice.label, box) for box in boxes],
                size,
            )
        )
    return shown


def pointing(examples, data, **options):
    studies = [
        Pointed(
            patient=example.patient,
            label=example.boxes[0][0] if example.boxes else "",
            maps=np.stack([weights for _, weights in example.words]),
            boxes=[box for _, box in example.boxes],
            size=example.size,
        )
        for example in examples
    ]
    return judge(studies, data, protocol="pointing@1", **options)


# --- words, maps, hits


def test_examples_name_the_finding_and_spread_over_findings_and_patients():
    data = FakeData(30, patients=[f"p{i // 5}" for i in range(30)])
    chosen = select_examples(data, data.tokenizer.words, count=6)
    assert chosen == select_examples(data, data.tokenizer.words, count=6)
    assert sorted(choice.label for choice in chosen) == sorted(LABELS * 2)
    assert len({data.patients[choice.index] for choice in chosen}) == 6
    words = {choice.label: [word for word, _ in choice.words] for choice in chosen}
    assert words == {
        "pleural_effusion": ["effusion", "left"],
        "nodule": ["nodules", "right"],
        "pneumothorax": ["pneumothorax", "left"],
    }
    for choice in chosen:
        tokens = data.tokenize([data.texts[choice.index]])[0][0]
        for word, positions in choice.words:
            assert data.tokenizer.decode(tokens[list(positions)]) == word
    # More than there are patients: the rest are other studies of the same patients.
    many = select_examples(data, data.tokenizer.words, count=40)
    assert sorted(choice.index for choice in many) == list(range(30))


def test_examples_without_sentence_take_the_words_of_the_label_only():
    data = FakeData(6, sentence=-1)
    chosen = select_examples(data, data.tokenizer.words, words_per_example=3)
    words = {choice.label: [word for word, _ in choice.words] for choice in chosen}
    assert words["nodule"] == ["nodules"] and words["pneumothorax"] == ["pneumothorax"]
    assert sorted(words["pleural_effusion"]) == ["effusion", "pleural"]


def test_examples_without_boxes_take_rare_words_and_truncated_sentences_do_not_count():
    data = FakeData(9, boxes=False)
    chosen = select_examples(data, data.tokenizer.words, count=4)
    assert len(chosen) == 4 and all(not c.boxes and len(c.words) == 2 for c in chosen)
    assert not {w for c in chosen for w, _ in c.words} & {"the", "normal", "heart"}
    for choice in chosen:  # the sentence of the first word, to be encoded alone
        sentences = split_sentences(data.texts[choice.index])
        holding = [s for s in sentences if choice.words[0][0] in re.findall(r"\w+", s.casefold())]
        assert len(sentences) > 1 and choice.sentence == holding[0]
    cut = FakeData(9, length=8)
    assert all(not choice.boxes for choice in select_examples(cut, cut.tokenizer.words))
    assert select_examples(FakeData(9), data.tokenizer.words, scan=0) == []
    assert run_attention(data, lambda name: [(0, 0)], count=0) == []


def test_attention_is_averaged_over_the_tokens_of_a_word_and_boxes_are_mapped():
    data = FakeData(3)

    def by_position(words, word_mask, regions):
        return np.arange(words.shape[0])[:, None] * np.ones(16)

    shown = run_attention(data, lambda name: [], words=by_position)[0]
    choice = select_examples(data, data.tokenizer.words)[0]
    for (word, weights), (chosen_word, positions) in zip(shown.words, choice.words, strict=True):
        assert word == chosen_word and weights.shape == GRID and weights.dtype == np.float32
        np.testing.assert_allclose(weights, np.mean(positions))
    row, column = data.cell(choice.index)
    assert shown.boxes == [
        (choice.label, (4.0 * column, 4.0 * row, 4.0 * column + 4, 4.0 * row + 4))
    ]


def test_features_that_do_not_fit_are_refused():
    data = FakeData(3)
    chosen = select_examples(data, data.tokenizer.words)
    options = {"attention": plain_attention}
    with pytest.raises(ValueError, match=r"16 regions, the grid is \(3, 4\)"):
        word_maps(FakePredict(lambda n: []), None, data, chosen, grid=(3, 4), **options)
    predict = FakePredict(lambda n: [])
    texts = predict.texts
    predict.texts = lambda *args: {k: v[:, 1:] for k, v in texts(*args).items()}
    with pytest.raises(ValueError, match="63 places for 64 tokens"):
        word_maps(predict, None, data, chosen, grid=GRID, **options)


def test_subset_keeps_what_belongs_together():
    data = FakeData(7)
    subset = Subset(data, [5, 2])
    assert subset.ids == ["fake:5", "fake:2"] and subset.groups.tolist() == [5, 2]
    assert subset.record(1).id == "fake:2" and subset.texts[0] == data.texts[5]
    assert subset.sha256 != Subset(data, [2, 5]).sha256
    pixels = subset.arrays(("image",), [1, 0], "image")["image.pixels"]
    assert pixels.shape == (2, 16, 16, 1)
    np.testing.assert_array_equal(pixels, [data.image(2), data.image(5)])
    np.testing.assert_array_equal(subset.image(1), data.image(2))


def test_pointing_of_true_blind_and_undecided_attention():
    data = FakeData(12)

    def at_box(name):
        return [data.cell(int(name.removeprefix("fake:")))]

    true = pointing(run_attention(data, at_box), data)
    assert true.protocol == "pointing@1" and true.n == 12 and true.details["words"] == 24
    assert true.values["accuracy"].value == 1
    assert true.values["accuracy"].chance == pytest.approx(1 / 16)
    assert true.values["grounded_gain"].low > 0.5
    same = pointing(run_attention(data, lambda name: [(1, 1)]), data)
    assert same.values["accuracy"].value == same.values["accuracy_boxes_permuted"].value == 2 / 12
    assert same.values["grounded_gain"].value == pytest.approx(0)
    # Attention that is even, or shared between the box and another place, is no hit.
    assert pointing(run_attention(data, lambda n: []), data).values["accuracy"].value == 0
    torn = pointing(run_attention(data, lambda name: [*at_box(name), (3, 3)]), data)
    assert torn.values["accuracy"].value == 0
    for shown in run_attention(data, at_box, words=word_region_attention):
        np.testing.assert_allclose([w.sum() for _, w in shown.words], 1, rtol=1e-6)
    json.dumps(true.to_dict(), allow_nan=False)


def test_pointing_excludes_and_counts():
    data = FakeData(3)

    def study(*boxes):
        even = np.full(GRID, 1 / 16, np.float32)
        named = [("effusion", box) for box in boxes]
        return Shown("fake:0", "p", [("effusion", even), ("left", even)], named, (16, 16))

    slipped, kept = (0.0, 0.0, 1.0, 1.0), (4.0, 4.0, 8.0, 8.0)
    results = pointing([study(), study(slipped), study(kept)], data)
    assert results.n == 1
    assert results.excluded == {"no boxes": 1, "no region centre inside the boxes": 1}
    assert results.values["accuracy"].low is None  # one patient
    empty = pointing([study()], data)
    assert empty.n == 0 and not empty.values and empty.excluded == {"no boxes": 1}
    assert pointing([], data).n == 0


# --- the evaluator


class Looks(FakePredict):
    """The words of the game attend to `cells(id)`; all other words attend nowhere."""

    def texts(self, data, texts):
        encoded = super().texts(data, texts)
        for row, tokens in enumerate(data.tokenize(texts)[0]):
            asked = {"effusion", "left", "nodules", "right", "pneumothorax"}
            others = np.ones(len(tokens), bool)
            for word, positions in TOKENIZED.words(tokens):
                others[positions] = word.casefold() not in asked
            encoded["text.words"][row, others] = 0
        return encoded


TOKENIZED = FakeData(3).tokenizer


def at_box(data):
    return lambda name: [data.cell(int(name.removeprefix("fake:")))]


@pytest.mark.parametrize("valid", [12, 9, 1, 0])
@pytest.mark.parametrize("temperature", [0.5, 4.0, 20.0])
def test_attention_is_the_one_that_the_local_loss_trains(valid, temperature):
    words, regions = np.random.default_rng(0).normal(size=(2, 12, 8)).astype(np.float32)
    inputs = words, np.arange(12) < valid, regions
    ours = word_region_attention(*inputs, temperature=temperature)
    assert ours.dtype == np.float32 and ours.shape == (12, 12)
    np.testing.assert_allclose(ours.sum(axis=1), 1, rtol=1e-6)
    # The similarity that the loss computes is that of the contexts which this attention gives.
    context = ours.astype(np.float64) @ regions
    lengths = np.linalg.norm(context, axis=1) * np.linalg.norm(words, axis=1)
    cosine = (context * words).sum(axis=1) / lengths
    expected = 10 * np.log(np.exp(5 * cosine[:valid]).sum()) if valid else 0.0
    trained = local_contrastive.local_similarity(
        *(jnp.asarray(one)[None] for one in inputs), temperatures=(temperature, 5.0, 10.0)
    )
    np.testing.assert_allclose(trained, [[expected]], rtol=2e-5, atol=1e-5)


def test_attention_by_hand():
    # Two words, two regions, scores [[log 3, 0], [0, 0]]: over words 3/4 and 1/2, 1/4 and 1/2.
    words, regions = np.diag([np.log(3.0), 0.0]), np.eye(2)
    attention = word_region_attention(words, np.ones(2, bool), regions, temperature=np.log(16.0))
    np.testing.assert_allclose(attention, [[2 / 3, 1 / 3], [1 / 3, 2 / 3]], rtol=1e-6)


def test_evaluator_of_attention_that_knows_the_boxes():
    data = FakeData(12)
    results = Pointing(Looks(at_box(data)), data).run(None)
    assert results.protocol == "pointing@1" and results.n == 12 and not results.excluded
    values = results.values
    assert list(values)[:3] == ["accuracy", "accuracy_boxes_permuted", "grounded_gain"]
    assert values["accuracy"].value == values["accuracy"].low == 1 and values["accuracy"].n == 24
    assert values["accuracy"].chance == pytest.approx(1 / 16)
    assert values["accuracy_boxes_permuted"].value < 0.3 and values["grounded_gain"].low > 0.5
    assert results.details["box_area_share"] == pytest.approx(1 / 16)
    for label in LABELS:
        of_label = values[f"finding/{label}/accuracy"]
        assert (of_label.value, of_label.n, of_label.chance) == (1, 8, pytest.approx(1 / 16))
    # Maps of one cell among 16 that the softmax makes sharp; see below for exact values.
    assert 0 < values["attention_entropy"].value < 1
    assert len(values) == 3 * (1 + len(LABELS)) + 1
    json.dumps(results.to_dict(), allow_nan=False)


def test_evaluator_splits_by_finding_and_draws_the_studies_it_judges():
    data = FakeData(12)

    def nodules_only(name):
        number = int(name.removeprefix("fake:"))
        return [data.cell(number) if number % 3 == 1 else (0, 0)]

    evaluator = Pointing(Looks(nodules_only), data, temperature=2.0, count=9, seed=3)
    results = evaluator.run(None)
    found = {label: results.values[f"finding/{label}/accuracy"].value for label in LABELS}
    assert found == {"pleural_effusion": 0, "nodule": 1, "pneumothorax": 0}
    assert results.values["accuracy"].value == pytest.approx(1 / 3)
    chosen = select_examples(data, data.tokenizer.words, count=9)
    assert evaluator.run(None).values == results.values
    (figure,) = evaluator.figures(None, results, [])
    (examples,) = figure.draw.args
    assert [example.id for example in examples] == [data.ids[c.index] for c in chosen[:6]]
    for example, choice in zip(examples, chosen, strict=False):
        row, column = data.cell(choice.index)
        box = (4.0 * column, 4.0 * row, 4.0 * column + 4, 4.0 * row + 4)
        assert example.boxes == [(choice.label, box)]
        assert example.image.shape == (16, 16, 1) and example.text == data.texts[choice.index]
        assert [word for word, _ in example.words] == [word for word, _ in choice.words]


def test_optional_pointing_says_why_there_is_nothing():
    data = FakeData(9, boxes=False)
    evaluator = Pointing(Looks(lambda name: [(0, 0)]), data, count=4, optional=True)
    results = evaluator.run(None)
    assert not results.values and results.excluded == {"no boxes": 4}
    (figure,) = evaluator.figures(None, results, [])
    assert len(figure.draw.args[0]) == 4  # where words look is shown without boxes, too
    blind = Looks(lambda name: [(0, 0)])
    blind.provides = ("image.embedding",)
    evaluator = Pointing(blind, data, optional=True)
    assert not evaluator.run(None).values
    (figure,) = evaluator.figures(None, evaluator.run(None), [])
    assert figure.draw is None and "image.regions" in figure.caption


def test_the_habitual_place_of_a_finding_is_no_gain():
    # Every finding has one cell, of its own in every patient; all boxes of a finding agree.
    cells = {0: (1, 0), 1: (2, 1), 2: (1, 3)}
    data = FakeData(12)
    data.cell = lambda index: cells[index % 3]
    values = Pointing(Looks(at_box(data)), data).run(None).values
    assert values["accuracy"].value == 1 and values["grounded_gain"].value > 0.5
    for label in LABELS:
        assert values[f"finding/{label}/accuracy_boxes_permuted"].value == 1
        assert values[f"finding/{label}/grounded_gain"].value == 0


def test_a_finding_of_one_patient_has_no_boxes_to_exchange():
    data = FakeData(6, patients=["a", "b", "c", "d", "b", "e"])  # b has all nodules
    values = Pointing(Looks(at_box(data)), data).run(None).values
    assert [name for name in values if "nodule" in name] == ["finding/nodule/accuracy"]
    assert len(values) == 3 * 3 + 1 + 1


def test_collapsed_encoders_hit_nothing_however_they_round():
    data = FakeData(12)

    class Collapsed(FakePredict):
        def images(self, data):
            noise = np.random.default_rng(0).choice([-1e-7, 1e-7], size=(len(data), 16, 16))
            return {"image.regions": (1 + noise).astype(np.float32)}

        def texts(self, data, texts):
            words = np.random.default_rng(1).normal(size=(len(texts), 64, 16))
            return {"text.words": words.astype(np.float32), "text.word_mask": words[..., 0] < 9}

    values = Pointing(Collapsed(at_box(data)), data).run(None).values
    assert values["accuracy"].value == values["accuracy_boxes_permuted"].value == 0


def test_boxes_outside_the_image_are_excluded_and_images_read_once(monkeypatch):
    data = FakeData(6)
    loads = []
    record = data.record

    def moved(index):
        box = Box((900, 900, 910, 910), LABELS[0], 1)
        image = ImageRef("k", lambda: loads.append(index) or picture())
        boxes = (box,) if index == 0 else record(index).boxes
        return Record(**{**vars(record(index)), "boxes": boxes, "images": (image,)})

    monkeypatch.setattr(data, "record", moved)
    evaluator = Pointing(Looks(at_box(data)), data)
    assert not loads
    assert evaluator.run(None).excluded == {"no boxes": 1}
    evaluator.run(None)
    assert sorted(loads) == list(range(6))


def test_evaluator_refuses_in_one_line():
    data = FakeData(6)
    predict = FakePredict(at_box(data))
    bare = FakePredict(at_box(data))
    bare.provides = ("image.embedding", "text.embedding")
    for given, where, options, message in (
        (
            bare,
            data,
            {},
            "needs image.regions, text.word_mask, text.words, the encoders provide image.embedding",
        ),
        (predict, FakeData(6, boxes=False), {}, r"no report of fake/test states .* \(6 examples"),
        (predict, data, {"count": 0}, "count is 0"),
        (predict, data, {"temperature": 0.0}, "temperature is 0.0, expected a number above 0"),
    ):
        with pytest.raises(InputError, match=message) as error:
            Pointing(given, where, **options)
        assert "\n" not in str(error.value)
    assert build.find("evaluator", "pointing") is Pointing
    assert {"temperature", "count", "bootstrap", "seed"} < set(build.options(Pointing))


def test_attention_that_is_not_finite_stops_the_evaluation():
    data = FakeData(6)
    predict = FakePredict(lambda name: [(0, 0)] if name != "fake:2" else [])
    images = predict.images

    def broken(data):
        encoded = images(data)
        encoded["image.regions"][data.ids.index("fake:2")] = np.nan
        return encoded

    predict.images = broken
    with pytest.raises(FloatingPointError, match="first fake:2"):
        Pointing(predict, data).run(None)
