"""Pointing with sentences, and what both pointing games log beside accuracy."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mmrl import build, wiring
from mmrl.data.text.grounding import select_examples
from mmrl.evaluators.pointing import Pointing
from mmrl.evaluators.pointing_game import Pointed, attention_entropy, judge
from mmrl.evaluators.sentence_pointing import SentencePointing, sentence_maps
from mmrl.objectives.sentence_contrastive import sentence_scores
from mmrl.types import InputError
from tests import toys
from tests.fakes import Prompts
from tests.test_figures import GRID
from tests.test_pointing import LABELS, SENTENCES, FakeData

WIDTH = 16
CELLS = [(y, x) for y in range(4) for x in range(4)]


class Data(FakeData):
    """Studies whose finding lies in one cell; the sentence of a study states its finding."""

    def with_texts(self, texts):
        return Prompts(list(texts))


class Predict:
    """Every study shows its own sentence in `cells(index)`; other regions show nothing of it.

    Sentences are orthogonal directions, and all other regions are one further direction.
    """

    provides = ("image.regions", "text.sentence")
    grids = {"image": GRID}  # noqa: RUF012

    def __init__(self, data, cells):
        self.data, self.cells, self.asked = data, cells, []

    def encode(self, state, data, names):
        (name,) = names
        self.asked.append(name)
        assert name in self.provides
        found = self.regions(data) if name == "image.regions" else self.sentences(data.texts)
        return {"present": np.ones(len(data), bool), name: found}

    def sentences(self, texts):
        return np.stack([3.0 * self.direction(text) for text in texts])

    def direction(self, text):
        return np.eye(WIDTH, dtype=np.float32)[SENTENCES.index(text)]

    def regions(self, data):
        found = np.tile(0.5 * np.eye(WIDTH, dtype=np.float32)[-1], (len(data), *GRID, 1))
        for row, name in enumerate(data.ids):
            index = int(name.removeprefix("fake:"))
            for cell in self.cells(index):
                found[row][cell] = self.direction(self.data.sentences[index][1])
        return found.reshape(len(data), 16, WIDTH)


def run(data, cells, **options):
    return SentencePointing(Predict(data, cells), data, **options).run(None)


def at_box(data):
    return lambda index: [data.cell(index)]


# --- maps


def test_maps_are_softmaxes_of_cosines():
    rng = np.random.default_rng(0)
    sentences, regions = rng.normal(size=(3, 5)), rng.normal(size=(3, 7, 5))
    found = sentence_maps(sentences, regions, 4.0)
    assert found.shape == (3, 7) and found.dtype == np.float32
    for row in range(3):
        cosines = [
            region @ sentences[row] / np.linalg.norm(region) / np.linalg.norm(sentences[row])
            for region in regions[row]
        ]
        powers = np.exp(4.0 * np.array(cosines))
        np.testing.assert_allclose(found[row], powers / powers.sum(), rtol=1e-5)
    zero = sentence_maps(np.zeros((1, 5)), regions[:1], 4.0)
    np.testing.assert_allclose(zero, 1 / 7, rtol=1e-6)


@pytest.mark.parametrize("sharpness", [1.0, 20.0])
def test_a_map_is_how_the_loss_spreads_its_slope_over_regions(sharpness):
    """d score / d cosine of region r is scale times the map at r."""
    rng = np.random.default_rng(1)
    sentence = rng.normal(size=(1, 5)).astype(np.float32)
    sentence /= np.linalg.norm(sentence)
    regions = rng.normal(size=(1, 7, 5)).astype(np.float32)
    regions /= np.linalg.norm(regions, axis=2, keepdims=True)

    def score(regions):
        return sentence_scores(regions, sentence, scale=3.0, sharpness=sharpness)[0, 0]

    slope = jax.grad(score)(jnp.asarray(regions))[0]
    # Of unit regions, the slope is that of the cosine, less its part along the region.
    cosines = regions[0] @ sentence[0]
    along = sentence - cosines[:, None] * regions[0]
    maps = sentence_maps(sentence, regions, sharpness)[0]
    np.testing.assert_allclose(slope, 3.0 * maps[:, None] * along, atol=1e-5)


# --- the game


def test_sentences_that_find_their_box_and_those_that_do_not():
    data = Data(12)
    results = run(data, at_box(data))
    assert results.protocol == "sentence_pointing@1" and results.n == 12 and not results.excluded
    values = results.values
    accuracy = values["accuracy"]
    assert (accuracy.value, accuracy.low, accuracy.n) == (1, 1, 12)
    assert accuracy.chance == pytest.approx(1 / 16)
    assert values["accuracy_boxes_permuted"].value < 0.3 and values["grounded_gain"].low > 0.5
    gain = values["accuracy"].value - values["accuracy_boxes_permuted"].value
    assert values["grounded_gain"].value == pytest.approx(gain)
    for label in LABELS:
        assert values[f"finding/{label}/accuracy"].value == 1
    assert results.details["options"]["sharpness"] == 20.0 and results.details["words"] == 12
    json.dumps(results.to_dict(), allow_nan=False)
    # Never inside, and torn between the box and another place, or undecided: no hit.
    beside = {(1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2), (2, 3)}
    assert all(data.cell(i) in beside for i in range(12))
    assert run(data, lambda i: [(0, 0)]).values["accuracy"].value == 0
    assert run(data, lambda i: [data.cell(i), (3, 3)]).values["accuracy"].value == 0
    assert run(data, lambda i: []).values["accuracy"].value == 0


def test_maps_that_know_nothing_of_the_image_hit_by_chance():
    data, rng = Data(120), np.random.default_rng(0)
    places = [CELLS[n] for n in rng.integers(0, 16, 120)]
    values = run(data, lambda index: [places[index]], count=120).values
    assert values["accuracy"].value == pytest.approx(1 / 16, abs=0.07)  # three deviations
    assert values["accuracy"].low <= 1 / 16 <= values["accuracy"].high
    assert values["grounded_gain"].low <= 0 <= values["grounded_gain"].high
    # A place that is right for one finding of eight is exchanged with the boxes.
    same = run(data, lambda index: [(1, 1)], count=120).values
    assert same["accuracy"].value == pytest.approx(1 / 8)
    assert same["grounded_gain"].value == pytest.approx(0, abs=0.02)


def test_the_sentence_is_that_of_the_box_and_encoded_once():
    data = Data(12)
    predict = Predict(data, at_box(data))
    evaluator = SentencePointing(predict, data, sharpness=5.0)
    maps = evaluator.maps(None, evaluator.chosen)
    assert predict.asked == ["image.regions", "text.sentence"]
    chosen = select_examples(data, data.tokenizer.words, count=400)
    assert [choice.sentence for choice in chosen] == [SENTENCES[c.index % 3] for c in chosen]
    assert all(one.shape == (1, *GRID) for one in maps)
    np.testing.assert_allclose([one.sum() for one in maps], 1, rtol=1e-6)
    for choice, one in zip(chosen, maps, strict=True):
        assert np.unravel_index(one[0].argmax(), GRID) == data.cell(choice.index)


def test_a_box_without_a_sentence_is_pointed_at_with_its_name():
    data = Data(6, sentence=-1)
    chosen = select_examples(data, data.tokenizer.words)
    names = ("pleural effusion", "nodule", "pneumothorax")
    assert {(c.label, c.sentence) for c in chosen} == set(zip(LABELS, names, strict=True))
    predict = Predict(data, at_box(data))
    predict.direction = lambda text: np.eye(WIDTH, dtype=np.float32)[
        (names if text in names else SENTENCES).index(text)
    ]
    assert SentencePointing(predict, data).run(None).values["accuracy"].value == 1


def test_the_sharpness_changes_the_entropy_and_no_hit():
    data = Data(12)
    found = {s: run(data, at_box(data), sharpness=s).values for s in (0.01, 1.0, 100.0)}
    entropies = [values["attention_entropy"].value for values in found.values()]
    assert entropies[0] == pytest.approx(1, abs=1e-3) and entropies[2] == pytest.approx(0, abs=1e-3)
    assert entropies[0] > entropies[1] > entropies[2]
    assert {values["accuracy"].value for values in found.values()} == {1.0}


# --- entropy and exchanged boxes, of both games


def test_entropy_is_one_for_uniform_maps_and_zero_for_one_place():
    uniform, place = np.full((2, *GRID), 1 / 16, np.float32), np.zeros((1, *GRID), np.float32)
    place[0, 1, 2] = 1
    halves = np.zeros((1, *GRID), np.float32)
    halves[0, 0, :2] = 0.5
    found = attention_entropy([uniform, place, halves])
    np.testing.assert_allclose(found, [1, 1, 0, 1 / 4], atol=1e-6)  # log 2 / log 16
    np.testing.assert_allclose(attention_entropy([np.ones((1, 1, 1))]), [0], atol=1e-6)


def test_boxes_are_exchanged_between_patients_and_entropy_is_a_mean():
    """Each of two patients looks at its own box; the other's is elsewhere."""
    data = FakeData(2)
    size, cell = (16, 16), np.zeros((1, *GRID), np.float32)
    left, right = cell.copy(), cell.copy()
    left[0, 1, 0], right[0, 1, 3] = 1, 1
    boxes = [(0.0, 4.0, 4.0, 8.0)], [(12.0, 4.0, 16.0, 8.0)]

    def judged(*maps, **options):
        studies = [
            Pointed(f"p{n}", "nodule", one, box, size)
            for n, (one, box) in enumerate(zip(maps, boxes, strict=True))
        ]
        return judge(studies, data, protocol="some@1", **options).values

    own = judged(left, right)
    assert own["accuracy"].value == 1 and own["accuracy_boxes_permuted"].value == 0
    assert own["grounded_gain"].value == 1 and own["attention_entropy"].value == 0
    swapped = judged(right, left)
    assert swapped["accuracy"].value == 0 and swapped["accuracy_boxes_permuted"].value == 1
    even = np.full((1, *GRID), 1 / 16, np.float32)
    assert judged(left, even)["attention_entropy"].value == pytest.approx(0.5)
    assert "finding/nodule/attention_entropy" not in own
    assert own["attention_entropy"].chance is None


# --- what training and the summary page do with it


def test_the_headline_names_values_that_there_are():
    data = Data(12)
    values = run(data, at_box(data)).values
    for evaluator in (Pointing, SentencePointing):
        assert list(evaluator.headline) == ["accuracy", "grounded_gain"]
        assert set(evaluator.headline) <= set(values)
        assert build.find("evaluator", evaluator.protocol.partition("@")[0]) is evaluator
    assert SentencePointing.headline["accuracy"].startswith("a sentence finds")


@pytest.mark.exhaustive
def test_the_figure_shows_sentences_over_their_images(tmp_path):
    data = Data(12)
    evaluator = SentencePointing(Predict(data, at_box(data)), data)
    (figure,) = evaluator.figures(None, evaluator.run(None), [])
    assert (figure.name, figure.title) == (
        "sentence_attention",
        "Attention of sentences over regions",
    )
    (examples,) = figure.draw.args
    chosen = evaluator.chosen[:6]
    assert [one.id for one in examples] == [data.ids[choice.index] for choice in chosen]
    for example, choice in zip(examples, chosen, strict=True):
        ((sentence, weights),) = example.words
        assert sentence == SENTENCES[choice.index % 3] and weights.shape == GRID
        assert np.unravel_index(weights.argmax(), GRID) == data.cell(choice.index)
    path = Path(tmp_path) / "figure.png"
    figure.draw(path)
    with Image.open(path) as image:
        assert image.size[0] > 500


def test_the_game_says_why_it_has_no_values():
    boxless = Data(6, boxes=False)
    evaluator = SentencePointing(Predict(boxless, at_box(boxless)), boxless, optional=True)
    results = evaluator.run(None)
    assert not results.values and results.excluded == {"no boxes": 6}
    data = Data(6)
    bare = Predict(data, at_box(data))
    bare.provides = ("image.regions", "text.embedding")
    blind = SentencePointing(bare, data, optional=True)
    assert not blind.run(None).values
    (figure,) = blind.figures(None, blind.run(None), [])
    assert figure.draw is None and "text.sentence" in figure.caption
    for predict, where, options, message in (
        (bare, data, {}, "sentence_pointing needs image.regions, text.sentence, the encoders prov"),
        (
            Predict(boxless, at_box(boxless)),
            boxless,
            {},
            r"\(6 examples\); sentence_pointing needs a source with boxes",
        ),
        (Predict(data, at_box(data)), data, {"sharpness": 0.0}, "sharpness is 0.0, expected"),
        (Predict(data, at_box(data)), data, {"count": 0}, "count is 0"),
    ):
        with pytest.raises(InputError, match=message) as error:
            SentencePointing(predict, where, **options)
        assert "\n" not in str(error.value)


def test_without_boxes_the_figure_shows_the_sentence_of_the_rarest_word():
    data = Data(6, boxes=False)
    predict = Predict(data, at_box(data))
    predict.direction = lambda text: np.eye(WIDTH, dtype=np.float32)[0]
    evaluator = SentencePointing(predict, data, optional=True)
    (figure,) = evaluator.figures(None, evaluator.run(None), [])
    (examples,) = figure.draw.args
    assert len(examples) == 6
    for example, choice in zip(examples, evaluator.chosen, strict=True):
        ((sentence, _),) = example.words
        assert sentence == SENTENCES[choice.index % 3]


def test_attention_that_is_not_finite_stops_the_evaluation():
    data = Data(6)
    predict = Predict(data, at_box(data))
    regions = predict.regions

    def broken(subset):
        found = regions(subset)
        found[subset.ids.index("fake:2")] = np.nan
        return found

    predict.regions = broken
    with pytest.raises(FloatingPointError, match="first fake:2"):
        SentencePointing(predict, data).run(None)


def test_the_records_of_a_run_are_encoded_without_their_sentences():
    """Only what is read of the records is encoded in a pass; sentences are the evaluator's own."""
    chosen = toys.config(evaluators={"sentence_pointing": {}})
    assert wiring.evaluated(chosen) == ["image@image.regions"]


# --- words that have read the sentence alone


class WordPredict(Predict):
    """A sentence has three words, the last of them padding with features of its own."""

    provides = ("image.regions", "text.words", "text.word_mask")

    def encode(self, state, data, names):
        if names == ["image.regions"]:
            return super().encode(state, data, names)
        assert names == ["text.words", "text.word_mask"]
        first = super().sentences(data.texts)
        other = np.broadcast_to(np.eye(WIDTH, dtype=np.float32)[-2], first.shape)
        garbage = np.full(first.shape, 7.0, np.float32)
        mask = np.tile([True, True, False], (len(first), 1))
        words = np.stack([first, other, garbage], axis=1)
        return {"present": np.ones(len(data), bool), names[0]: words, names[1]: mask}


def test_words_of_a_sentence_share_its_map_and_padding_has_no_part():
    data = Data(12)
    predict = WordPredict(data, at_box(data))
    evaluator = SentencePointing(predict, data, reads={"sentences": "text.words"})
    assert evaluator.run(None).values["accuracy"].value == 1
    maps = evaluator.maps(None, evaluator.chosen[:2])
    for choice, found in zip(evaluator.chosen[:2], maps, strict=True):
        words = np.stack([predict.direction(choice.sentence), np.eye(WIDTH)[-2]])
        regions = predict.regions(evaluator.data)[choice.index]
        by_hand = sentence_maps(words, np.stack([regions, regions]), 20.0).mean(axis=0)
        np.testing.assert_allclose(found.ravel(), by_hand, rtol=1e-5)
