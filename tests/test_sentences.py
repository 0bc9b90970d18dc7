"""The input `sentences`: which sentences a row holds, what they affirm, and which texts hold."""

import pickle
from typing import Any

import numpy as np
import pytest

from mmrl import config as configs
from mmrl import wiring
from mmrl.data import counter
from mmrl.data.batches.pipeline import Examples
from mmrl.data.corpus import Corpus, read_corpus
from mmrl.data.inputs import base as inputs
from mmrl.data.inputs.base import Place, Rows
from mmrl.data.inputs.sentences import KNOWN, phrases
from mmrl.data.perturb.statements import affirms, entailed
from mmrl.data.text.excerpts import text_group
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.types import InputError
from tests import toys
from tests.test_pipeline_texts import Reports, corpus, one

LONG = (
    "Small left pleural effusion.",
    "No pneumothorax.",
    "The heart is enlarged.",
    "Right chest tube in place.",
    "Lungs are otherwise clear.",
)
REPORTS = (
    one(" ".join(LONG)),
    one("No pneumothorax; small LEFT pleural effusion", "Stable."),
    one("No effusion. Lungs are clear."),
    one("Nodule.", "A nodule; no effusion; old fracture."),
)
MADE = corpus(*REPORTS, *(one(f"Case {n} shows a nodule.", f"Old scar {n}.") for n in range(12)))
TOKENIZER = Tokenizer.train(MADE.texts, vocab_size=330)


def config(count: int = 3, terms: float = 0.0, **changes: Any) -> Any:
    given = {"data__num_sentences": count, "data__sentence_terms": terms, "inputs": {}}
    chosen = toys.config(towers__text__length=20, **{**given, **changes})
    chosen.objectives = {"global_contrastive": {}, "sentence_contrastive": {"weight": 0.1}}
    return chosen


def evaluated(made: Corpus = MADE, **changes: Any) -> dict[str, np.ndarray]:
    data = Examples(config(**changes), made, {"text": TOKENIZER})
    found = data.arrays(["sentences"], range(len(made)), "text")
    return {name.partition(".")[2]: array for name, array in found.items()}


def batches(count: int = 4, **changes: Any) -> list[dict[str, np.ndarray]]:
    given = {key: changes.pop(key) for key in ("rows", "seed", "start") if key in changes}
    return toys.batches(config(**changes), count, MADE, {"text": TOKENIZER}, **given)


def tokens_of(texts: list[str], length: int = 20) -> np.ndarray:
    return TOKENIZER.encode_batch(texts, length).tokens


# --- what a sentence says

AFFIRMED = """
Small left pleural effusion.
Stable cardiomegaly without effusion.
Stable cardiomegaly without pleural effusion or pneumothorax.
Bibasilar atelectasis, no pneumothorax.
No pneumothorax, but a small effusion is seen.
Heart size is normal with a small left effusion.
The heart is enlarged.
Lungs are hyperexpanded.
Mild prominence of the central vessels.
Interval increase in edema.
Persistent left lower lobe opacity, unchanged.
No significant change in the right effusion.
No change in the left pneumothorax.
The effusion has not resolved.
Cannot exclude pneumonia.
Pneumonia cannot be excluded.
Possible early infiltrate at the left base.
Endotracheal tube in place.
ET tube tip is 3 cm above the carina.
Right PICC line with tip in the SVC.
Median sternotomy wires are intact.
"""
DENIED = """
No pleural effusion.
No pneumothorax or pleural effusion.
Neither effusion nor pneumothorax.
Free of effusion.
There is no evidence of pneumonia.
Negative for acute disease.
No acute cardiopulmonary abnormality.
Pneumothorax is not seen.
Pleural effusions have resolved.
The chest tube has been removed.
Interval removal of the endotracheal tube.
The lungs are clear.
Lungs are clear without focal consolidation.
Heart size is normal.
The cardiomediastinal silhouette is within normal limits.
Costophrenic angles are sharp.
Bony structures are intact.
Trachea is midline.
Normal chest.
"""


@pytest.mark.parametrize("sentence", AFFIRMED.strip().splitlines())
def test_findings_and_devices_are_affirmed(sentence):
    assert affirms(sentence)


@pytest.mark.parametrize("sentence", DENIED.strip().splitlines())
def test_what_is_denied_or_normal_is_not_affirmed(sentence):
    assert not affirms(sentence)


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("Small left pleural effusion.", ("pleural effusion", "left pleural effusion")),
        ("There is no pneumothorax.", ("no pneumothorax",)),
        ("Stable cardiomegaly without effusion.", ("cardiomegaly", "no effusion")),
        ("Left nodule and right effusion.", ("nodule", "effusion")),  # whose side is which?
        ("Bilateral effusions.", ("effusions",)),
        ("No left effusion.", ()),  # there may be one on the right
        ("Possible pneumonia.", ()),
        ("Comparison with the prior shows a nodule.", ()),
        ("The heart is enlarged.", ()),
        ("", ()),
    ],
)
def test_phrases_that_follow_from_a_sentence(sentence, expected):
    assert entailed(sentence) == expected


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (
            "No effusion; the heart is large. Stable tubes.",
            ("No effusion", "the heart is large.", "Stable tubes."),
        ),
        ("1. Small effusion. 2. No change;", ("1. Small effusion.", "2. No change")),
        (
            "Dr. Smith saw a 2.5 cm nodule;;follow up.",
            ("Dr. Smith saw a 2.5 cm nodule", "follow up."),
        ),
        ("; - ; .", ()),
        ("", ()),
    ],
)
def test_reports_are_cut_at_ends_of_sentences_and_semicolons(report, expected):
    assert phrases(report) == expected


# --- evaluation


def test_evaluation_takes_the_first_sentences():
    found = evaluated()
    expected = [
        list(LONG[:3]),
        ["No pneumothorax", "small LEFT pleural effusion.", "Stable."],
        ["No effusion.", "Lungs are clear.", ""],
        ["Nodule.", "A nodule", "no effusion"],
    ]
    for row, texts in enumerate(expected):
        np.testing.assert_array_equal(found["tokens"][row], tokens_of(texts))
        assert found["valid"][row].tolist() == [bool(text) for text in texts]
        assert found["affirmed"][row].tolist() == [bool(t) and affirms(t) for t in texts]
        assert found["key"][row].tolist() == [text_group(text) for text in texts]
    assert found["affirmed"][:4].tolist() == [
        [True, False, True],
        [False, True, True],
        [False, False, False],
        [True, True, False],
    ]
    again = evaluated(terms=1.0, seed=5)
    for name, array in found.items():
        np.testing.assert_array_equal(array, again[name], err_msg=name)


def test_equal_texts_have_equal_keys_in_whatever_report():
    """However they are written: in capitals, with or without a full stop."""
    key = evaluated(count=5)["key"]
    assert key[0, 0] == key[1, 1] and key[0, 1] == key[1, 0]
    assert key[2, 0] == key[3, 2]
    assert key[3, 0] != key[3, 1] and len(set(key[0].tolist())) == 5


def test_known_are_the_keys_of_all_sentences_and_of_what_they_entail():
    found = evaluated(count=1)
    for row, (_, sections) in enumerate(REPORTS):
        texts = [t for part in sections.values() for t in phrases(part)]
        short = [phrase for text in texts for phrase in entailed(text)]
        known = set(found["known"][row].tolist())
        assert known == {text_group(text) for text in (*texts, *short)}
        assert set(found["key"][row].tolist()) <= known
    assert found["known"].shape == (len(MADE), KNOWN)
    # They are of the whole report also where the sentence is not among those of the row.
    assert text_group("left pleural effusion") in found["known"][0]
    assert text_group("right chest tube") in found["known"][0]
    many = corpus(one(" ".join(f"Nodule {n}." for n in range(2 * KNOWN))))
    assert len(set(evaluated(many)["known"][0].tolist())) == KNOWN


def test_a_report_without_sentences_has_empty_texts_that_are_not_valid():
    silent = read_corpus(
        "toy/train",
        Reports([one("Small effusion."), one("- ; -"), ("", {"findings": ""})]),
        sections=("findings", "impression"),
        need_texts=False,
    )
    assert len(silent) == 3
    found = evaluated(silent)
    assert found["valid"].tolist() == [[True, False, False], [False] * 3, [False] * 3]
    assert not found["affirmed"][1:].any()
    empty = TOKENIZER.encode("", 20)  # begin and end mark: attention needs a token
    for place in (found["tokens"][0, 2], found["tokens"][1, 0], found["tokens"][2, 1]):
        np.testing.assert_array_equal(place, empty.tokens)
    assert (found["mask"][1:].sum(axis=2) == 2).all()


def test_long_sentences_are_cut_to_the_tokens_of_the_input():
    chosen = config()
    chosen.inputs = {"sentences": {"max_tokens": 5, "num_sentences": 2}}
    found = Examples(chosen, MADE, {"text": TOKENIZER}).arrays(["sentences"], [0], "text")
    assert found["sentences.tokens"].shape == (1, 2, 5)
    np.testing.assert_array_equal(found["sentences.tokens"][0], tokens_of(list(LONG[:2]), 5))
    assert found["sentences.mask"][0, 0].all()


def test_records_without_a_report_lack_sentences_where_these_are_not_required():
    given = Reports([one("Nodule. No effusion."), one("", "Stable.")])
    sections = ("findings",)
    made = read_corpus("toy/train", given, sections=sections, need_texts=False)
    chosen = config(inputs={"sentences": {"sections": sections, "required": False}})
    found = Examples(chosen, made, {"text": TOKENIZER}).arrays(["sentences"], [0, 1], "text")
    assert found["sentences.present"].tolist() == [True, False]
    assert found["sentences.valid"].tolist() == [[True, True, False], [False] * 3]


# --- training


def reader(train: bool = True, **changes: Any) -> Any:
    made = inputs.make_one(config(**changes), "sentences", "text")
    return made.open(Place(MADE, TOKENIZER, train))


def rows(indices: list[int], step: int) -> Rows:
    return Rows(indices, step, counter.bits(np.uint64(step), np.asarray(indices)))


def test_training_draws_sentences_anew_at_each_step_in_the_order_of_the_report():
    call, keys = reader(), [text_group(text) for text in LONG]
    drawn = []
    for step in range(400):
        found = call(rows([0], step), {})["key"][0].tolist()
        places = [keys.index(key) for key in found]
        assert places == sorted(places) and len(set(places)) == 3
        drawn.append(tuple(places))
    assert len(set(drawn)) == 10  # 5 choose 3
    often = np.bincount(np.ravel(drawn)) / len(drawn)
    np.testing.assert_allclose(often, 3 / 5, atol=0.1)  # four deviations


def test_fewer_sentences_than_places_are_all_there_at_every_step():
    call = reader()
    for step in range(20):
        found = call(rows([2], step), {})
        assert found["valid"][0].tolist() == [True, True, False]
        np.testing.assert_array_equal(
            found["tokens"][0], tokens_of(["No effusion.", "Lungs are clear.", ""])
        )


def test_some_sentences_are_replaced_by_what_they_entail():
    every = [*LONG, *(short for text in LONG for short in entailed(text))]
    text_of = {tokens_of([text]).tobytes(): text for text in every}
    assert len(text_of) == len(every) == 5 + 5
    for share in (0.0, 0.3, 1.0):
        call, short, whole = reader(terms=share), 0, 0
        for step in range(300):
            found = call(rows([0], step), {})
            assert set(found["key"][0].tolist()) <= set(found["known"][0].tolist())
            texts = [text_of[tokens.tobytes()] for tokens in found["tokens"][0]]
            assert found["key"][0].tolist() == [text_group(text) for text in texts]
            for text, affirmed in zip(texts, found["affirmed"][0].tolist(), strict=True):
                assert affirmed == (text in LONG and affirms(text))
                short += text not in LONG
                whole += text in LONG and bool(entailed(text))
        assert short / (short + whole) == pytest.approx(share, abs=0.06)


def test_batches_are_those_of_the_seed_whatever_reads_them():
    whole = batches(6)
    for batch, threads, part in zip(
        whole,
        batches(6, data__num_threads=3),
        batches(6, rows=np.array([1, 2, 6, 7])),
        strict=True,
    ):
        for name, array in batch.items():
            np.testing.assert_array_equal(array, threads[name])
            np.testing.assert_array_equal(array[np.array([1, 2, 6, 7])], part[name])
    for batch, later in zip(whole[4:], batches(2, start=4), strict=True):
        np.testing.assert_array_equal(batch["sentences.tokens"], later["sentences.tokens"])
    other = batches(6, seed=1)
    assert any(
        (a["sentences.tokens"] != b["sentences.tokens"]).any()
        for a, b in zip(whole, other, strict=True)
    )


def test_workers_get_the_same_reader():
    """Worker processes get it pickled."""
    call = reader()
    again = pickle.loads(pickle.dumps(call))
    for step in range(3):
        one, two = (read(rows([0, 1, 3], step), {}) for read in (call, again))
        for name, array in one.items():
            np.testing.assert_array_equal(array, two[name])


def test_an_input_of_another_name_and_other_sections_draws_for_itself():
    chosen = config()
    chosen.inputs = {"impressions": {"name": "sentences", "sections": ("impression",)}}
    chosen.objectives.sentence_contrastive = {
        "reads": {
            "sentences": "text@impressions.sentence",
            "valid": "impressions.affirmed",
            "key": "impressions.key",
            "known": "impressions.known",
        }
    }
    made = inputs.make(chosen, wiring.wire(chosen)[0])
    assert list(made) == ["image", "text", "impressions"]
    needed = inputs.needs(made, chosen.data.sections)
    whole = read_corpus(
        "toy/train",
        Reports(list(REPORTS)),
        sections=needed.sections,
        need_texts=needed.texts,
        more=needed.more,
    )
    assert len(whole) == 2  # the others have no impression
    found = made["impressions"].open(Place(whole, TOKENIZER))(rows([0, 1], 0), {})
    texts = ["Stable.", "", "", "A nodule", "no effusion", "old fracture."]
    np.testing.assert_array_equal(found["tokens"].reshape(6, -1), tokens_of(texts))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__num_sentences": 0}, "config.data.num_sentences=0 must be at least 1"),
        ({"data__sentence_terms": 1.5}, "config.data.sentence_terms=1.5; expected a share from 0"),
        ({"data__sentence_terms": -0.1}, "config.data.sentence_terms=-0.1; expected a share"),
        (
            {"inputs": {"sentences": {"num_sentences": 0}}},
            "config.inputs.sentences.num_sentences=0 must be at least 1",
        ),
        (
            {"inputs": {"sentences": {"sentence_terms": 2.0}}},
            "config.inputs.sentences.sentence_terms=2.0; expected a share from 0 to 1",
        ),
        (
            {"inputs": {"copies": {"name": "perturbed", "num_perturbed": 0}}},
            "config.inputs.copies.num_perturbed=0 must be at least 1",
        ),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        configs.validate(config(**changes))


@pytest.mark.parametrize("tokens", [2, 21])
def test_more_tokens_than_the_tower_reads_are_refused(tokens):
    chosen = config()
    chosen.inputs = {"sentences": {"max_tokens": tokens}}
    message = f"config.inputs.sentences.max_tokens={tokens}; expected 3 to the 20 tokens"
    with pytest.raises(InputError, match=message):
        inputs.make_one(chosen, "sentences", "text")
