"""Choice among perturbed reports: frozen questions, blind accuracies, text-only model."""

import collections
import itertools
import json
import math

import numpy as np
import pytest

from mmrl.data import perturb
from mmrl.evaluators import protocols
from mmrl.evaluators.ngrams import LanguageModel, tokens
from mmrl.evaluators.protocols import PROTOCOLS, Protocol
from mmrl.evaluators.structure import Structure, beats, wins
from mmrl.types import InputError
from tests.fakes import FakeData, FakePredict, code, constant, informed, reports

CHOICES = ("authors-5way@1", "order-10way@1")


def chest_reports(count, seed=0):
    """Reports with sides, degrees, zones and negations, to which all clinical kinds apply."""
    rng = np.random.default_rng(seed)

    def pick(*options):
        return options[int(rng.integers(len(options)))]

    return [
        f"There is a {pick('small', 'large', 'moderate')} {pick('left', 'right')} pleural "
        f"effusion. {pick('Mild', 'Severe')} atelectasis in the {pick('left', 'right')} "
        f"{pick('upper', 'lower')} lobe. No {pick('pneumothorax', 'consolidation')} is seen. "
        f"A {pick('new', 'stable')} nodule of {3 + number} mm. "
        f"{pick('PICC', 'Endotracheal tube')} in place."
        for number in range(count)
    ]


def informed_nouns(text):
    """Embeds the set of tagged words, without their order."""
    return sum(code(key) for key in sorted(perturb.parse(text).keys))


# --- protocols


def test_informed_encoder_is_always_right_and_foreign_images_choose_at_random():
    data = FakeData(reports(200), patients=[f"p{i // 2}" for i in range(200)])
    results = Structure(informed(data), data, protocols=CHOICES).run(None)
    assert results.protocol == "structure" and results.n == 200
    for name, options in (("authors-5way@1", 5), ("order-10way@1", 10)):
        accuracy, blind, gain = (
            results.values[f"{name}/{row}"]
            for row in ("accuracy", "accuracy_images_permuted", "grounded_gain")
        )
        assert accuracy.value == 1 and accuracy.chance == blind.chance == 1 / options
        assert accuracy.n > 150
        assert abs(blind.value - 1 / options) < 0.05 and blind.low < blind.value < blind.high
        assert gain.value == pytest.approx(1 - blind.value) and gain.chance == 0
        for kind in PROTOCOLS[name].kinds:
            assert results.values[f"{name}/kind/{kind}/accuracy"].value == 1
            foreign = results.values[f"{name}/kind/{kind}/accuracy_images_permuted"]
            assert foreign.chance == 0.5 and abs(foreign.value - 0.5) < 0.07
        assert f"{name}/accuracy_text_only" not in results.values  # nothing to learn it from
    assert results.details["permuted_images_of_own_patient"] == 0
    json.dumps(results.to_dict(), allow_nan=False)


def test_a_bag_of_words_is_always_wrong_where_only_the_order_changes():
    data = FakeData(reports(30))
    bag = FakePredict(lambda i: informed_nouns(data.texts[data.ids.index(i)]), informed_nouns)
    values = Structure(bag, data, protocols=("order-10way@1",)).run(None).values
    assert all(estimate.value == 0 for estimate in values.values())


def test_encoder_that_ignores_the_image_gains_nothing():
    data = FakeData(chest_reports(60), training=chest_reports(80, seed=1))

    def grammar(text):
        return code(text) + 20 * (text in data.texts) * code("image")

    for text_of, expected in ((grammar, 1.0), (code, None)):
        blind = FakePredict(lambda i: code("image"), text_of)
        values = Structure(blind, data).run(None).values
        assert {name.split("/")[0] for name in values} == set(PROTOCOLS)
        for name, estimate in values.items():
            if name.endswith("grounded_gain"):
                assert (estimate.value, estimate.low, estimate.high) == (0, 0, 0), name
            if name.endswith("/accuracy"):
                permuted = values[name + "_images_permuted"]
                assert estimate.value == permuted.value
                cased = name.startswith("authors")  # lower case: no text of the list
                assert expected is None or cased or estimate.value == expected


def test_ties_are_wrong_even_with_rounding_unless_counted_as_published():
    data = FakeData(chest_reports(20), training=chest_reports(40, seed=1))
    results = Structure(constant(), data).run(None)
    for name, estimate in results.values.items():
        if name.endswith("ties_right"):
            assert estimate.value == 1
        elif not name.endswith("text_only"):
            assert estimate.value == 0, name
    assert results.details["constant_predictor"] == {"accuracy": 0}


def test_one_tied_copy_makes_the_choice_wrong():
    data = FakeData(reports(20))
    encoder = informed(data)
    reverse = {perturb.perturb(t, "reverse_words", None): t for t in data.texts}
    encoder.text_of = lambda text: code(reverse.get(text, text))
    values = Structure(encoder, data, protocols=("order-10way@1",)).run(None).values
    kind = "order-10way@1/kind/{}/accuracy"
    assert values[kind.format("reverse_words")].value == 0
    assert values[kind.format("shuffle_all_words")].value == 1
    assert values["order-10way@1/accuracy"].value == 0


def test_reports_without_enough_copies_are_excluded_and_counted():
    data = FakeData([*reports(10), "normal normal", "a b", ""])
    asked = protocols.draw(PROTOCOLS["order-10way@1"], data, ())
    assert len(asked) == 10 and asked.excluded == {"fewer than 9 valid copies": 3}
    assert asked.counts["reverse_words"]["cannot change the report"] == 2
    assert asked.counts["shuffle_trigrams"] == {"valid": 10, "cannot change the report": 3}
    # "a b" can only become "b a", so all but the first of its copies repeat it.
    assert sum(c.get("equal to another copy", 0) for c in asked.counts.values()) >= 3


def test_copies_that_differ_only_after_truncation_are_invalid():
    # Swapping neighbours leaves the first two words of the first report, and all that is read.
    data = FakeData(["one one two three four", "one two three four five", "a b"], length=2)
    protocol = Protocol("test@1", ("swap_adjacent_words",), "choice", "")
    asked = protocols.draw(protocol, data, ())
    assert asked.counts["swap_adjacent_words"] == {"equal to the original": 1, "valid": 2}
    assert asked.rows.tolist() == [1, 2] and asked.excluded == {"fewer than 1 valid copies": 1}


def test_the_published_test_reads_fifty_words_in_lower_case():
    long = " ".join(f"Word{i}" for i in range(60)) + "."
    asked = protocols.draw(PROTOCOLS["authors-5way@1"], FakeData([long]), ())
    counts = asked.counts["shuffle_trigrams"]
    assert counts == {"valid": 1}
    shown = perturb.parse(protocols._shown(long, PROTOCOLS["authors-5way@1"])).words
    assert shown == [f"word{i}" for i in range(50)]


def test_questions_depend_on_the_record_only_and_not_on_its_neighbours():
    data = FakeData(chest_reports(12), training=chest_reports(40, seed=1))
    backwards = FakeData(data.texts[::-1], training=data.training)
    backwards.ids = data.ids[::-1]
    for name in (*CHOICES, "clinical@1", "control@1"):
        first = protocols.draw(PROTOCOLS[name], data, ())
        again = protocols.draw(PROTOCOLS[name], backwards, ())

        def named(asked, of):
            rows = zip(asked.rows, asked.copies.tolist(), strict=True)
            return sorted((of.ids[row], tuple(copies)) for row, copies in rows)

        assert named(first, data) == named(again, backwards)
        assert first.sha256 == protocols.draw(PROTOCOLS[name], data, ()).sha256
        assert first.sha256 != again.sha256
    some = Structure(informed(data), data, max_reports=4, protocols=("clinical@1",))
    assert some.run(None).excluded == {"not drawn (max_reports)": 8}
    first = protocols.draw(PROTOCOLS["clinical@1"], data, ())
    whole = collections.defaultdict(list)
    for row, copy in zip(first.rows, first.copies[:, 0], strict=True):
        whole[data.ids[row]].append(copy)
    asked = some.questions["clinical@1"]
    for row in set(asked.rows.tolist()):
        assert asked.copies[asked.rows == row, 0].tolist() == whole[some.data.ids[row]]


def test_pairs_ask_every_kind_that_applies_once():
    data = FakeData(chest_reports(15))
    asked = protocols.draw(PROTOCOLS["clinical@1"], data, ())
    assert len(set(zip(asked.rows, asked.kinds[:, 0], strict=True))) == len(asked)
    for row, original, copy, kind in zip(
        asked.rows, asked.originals, asked.copies[:, 0], asked.kinds[:, 0], strict=True
    ):
        assert original == data.texts[row]
        assert copy in perturb.candidates(original, kind)


def test_text_alone_is_right_in_half_of_the_balanced_questions_of_every_kind():
    data = FakeData(chest_reports(120), training=chest_reports(400, seed=1))
    evaluator = Structure(informed(data), data, protocols=("balanced@1",))
    asked, halves = evaluator.questions["balanced@1"], evaluator._halves
    kinds = sorted(set(asked.kinds[:, 0]))
    first, second = (m.score(asked.copies[:, 0]) - m.score(asked.originals) for m in halves)
    assert (np.sign(first) == np.sign(second)).all()
    assert len(kinds) >= 3
    for kind in kinds:
        likelier = first[asked.kinds[:, 0] == kind] > 0
        assert likelier.sum() * 2 == len(likelier), kind
    values = evaluator.run(None).values
    assert values["balanced@1/accuracy"].value == 1
    # The judge learnt from all training reports; the questions were chosen by halves of them.
    assert abs(values["balanced@1/accuracy_text_only"].value - 0.5) < 0.05
    assert sum(c["asked"] for c in asked.counts.values()) == len(asked)


def test_balanced_questions_take_the_nearest_copy_on_either_side():
    model = LanguageModel(chest_reports(200, seed=1))
    text = chest_reports(1, seed=9)[0]
    found = perturb.candidates(text, "swap_laterality")
    copies = [(0, "swap_laterality", copy) for copy in found]
    base = model.score([text])
    (side,) = protocols._split(copies, base[None], [model])
    gaps = {copy: float(model.score([copy])[0] - base[0]) for copy in found}
    for best, sign in ((side.likelier, 1), (side.unlikelier, -1)):
        of_side = {t: abs(g) for t, g in gaps.items() if g * sign > 0}
        assert best == (min(of_side, key=of_side.get) if of_side else None)


@pytest.mark.parametrize("counts", [(0, 0, 0), (5, 3, 0), (5, 3, 9), (0, 0, 7), (2, 9, 4)])
def test_halves_are_equal_and_keep_as_many_as_possible(counts):
    up, down, both = counts
    sides = [protocols._Sides(i, "u", None) for i in range(up)]
    sides += [protocols._Sides(up + i, None, "d") for i in range(down)]
    sides += [protocols._Sides(up + down + i, "u", "d") for i in range(both)]
    picked, left = protocols._halves(sides, np.random.default_rng(0))
    assert len({row for row, _ in picked}) == len(picked)
    assert sum(text == "u" for _, text in picked) * 2 == len(picked)
    most = max(2 * min(up + k, down + both - k) for k in range(both + 1))
    assert len(picked) == most and left == sum(counts) - most


def test_structure_needs_the_image_of_every_report():
    data = FakeData(reports(10))
    encoder = informed(data)
    encoder.absent = ("fake:3", "fake:8")
    evaluator = Structure(encoder, data, protocols=("order-10way@1",))
    with pytest.raises(
        InputError, match=r"2 of 10 examples of fake/test have no image\.embedding, f"
    ):
        evaluator.run(None)


def test_structure_refuses_what_it_cannot_ask():
    data = FakeData(["normal", "clear lungs"])
    with pytest.raises(InputError, match=r"unknown structure protocol 'clinical' \(did you mean"):
        Structure(constant(), data, protocols=["clinical"])
    with pytest.raises(InputError, match="no protocols given"):
        Structure(constant(), data, protocols=[])
    with pytest.raises(InputError, match="max_reports is 0"):
        Structure(constant(), data, max_reports=0)
    with pytest.raises(InputError, match=r"no report of fake/test yields a question \(2 tried\): "):
        Structure(constant(), data, protocols=("order-10way@1", "control@1"))


def test_margins_by_hand():
    images = np.array([[1.0, 0.0]], np.float32)
    copies = np.array([[[0.0, 1.0], [1.0, 0.0], [0.6, 0.8]]], np.float32)
    margins = wins(images, np.array([[1.0, 0.0]], np.float32), copies)
    np.testing.assert_allclose(margins, [[1.0, 0.0, 0.4]], atol=1e-7)
    assert beats(margins).tolist() == [[True, False, True]]


# --- the text-only judge


def test_probabilities_sum_to_one_whatever_the_history():
    texts = ["the heart is big.", "the heart is small.", "no mass", ""]
    for order in (1, 2, 3, 4):
        model = LanguageModel(texts, order=order)
        words = {token for text in texts for token in tokens(text)} | {"", "never seen"}
        for history in ([], ["the"], ["heart", "is"], ["zzz", "is"], ["q", "r", "s"]):
            total = sum(model.probability(word, history) for word in words)
            assert total == pytest.approx(1.0, abs=1e-12), (order, history)


def test_bigrams_by_hand():
    """Counts: a b twice, b end twice, a a once, begin a twice; discount (1 + 2 * 3) etc."""
    model = LanguageModel(["a b", "a a b"], order=2)
    # bigrams: begin-a 2, a-b 2, b-end 2, a-a 1: n1 = 1, n2 = 3, d = 1 / 7.
    high = 1 / 7
    # left neighbours: a 2 (begin, a), b 1 (a), end 1 (b): n1 = 2, n2 = 1, d = 2 / 4.
    low, total = 0.5, 4
    unseen = 1 / 4  # a, b, end and one more
    unigram_b = (1 - low) / total + low * 3 / total * unseen
    expected = (2 - high) / 3 + high * 2 / 3 * unigram_b
    assert model.probability("b", ["a"]) == pytest.approx(expected, rel=1e-12)
    unigram_x = low * 3 / total * unseen
    assert model.probability("x", ["b"]) == pytest.approx(high * 1 / 2 * unigram_x, rel=1e-12)
    assert model.probability("x", ["x"]) == pytest.approx(unigram_x, rel=1e-12)
    probabilities = [
        model.probability(word, history)
        for word, history in (("a", []), ("b", ["a"]), ("", ["a", "b"]))
    ]
    assert model.score(["a b"])[0] == pytest.approx(sum(map(math.log, probabilities)), rel=1e-12)


def test_true_reports_are_likelier_than_shuffled_ones():
    model = LanguageModel(chest_reports(200, seed=1))
    texts = chest_reports(30, seed=2)
    rng = np.random.default_rng(0)
    shuffled = [perturb.perturb(t, "shuffle_all_words", rng) for t in texts]
    assert (model.score(texts) > model.score(shuffled)).all()


def test_tokens_are_folded_words_and_marks():
    assert tokens("1. No 2.5 cm\nmass, Left!") == (
        ["1", ".", "no", "2.5", "cm", "mass", ",", "left", "!"]
    )
    with pytest.raises(ValueError, match="0 texts"):
        LanguageModel([])


def test_training_order_does_not_matter_but_texts_do():
    texts = chest_reports(20)
    scores = [LanguageModel(t).score(texts[:5]) for t in (texts, texts[::-1])]
    np.testing.assert_array_equal(*scores)
    digests = [LanguageModel(t).sha256 for t in itertools.permutations(texts[:3])]
    assert len(set(digests)) == len(digests)
