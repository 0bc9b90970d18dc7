"""Texts that are not English: what relies on English words leaves them out and counts them."""

import dataclasses

import cv2
import numpy as np
import pytest

from mmrl.data import perturb
from mmrl.data.batches.pipeline import Examples
from mmrl.data.corpus import describe, read_corpus
from mmrl.data.sources.table import Table
from mmrl.data.text.excerpts import text_group
from mmrl.data.text.grounding import select_examples
from mmrl.data.text.language import NOT_ENGLISH, is_english
from mmrl.evaluators import statistics
from mmrl.evaluators.structure import Structure
from mmrl.types import InputError
from tests import toys
from tests.fakes import FakeData, informed, reports
from tests.test_sentence_pointing import Data, at_box, run

FOREIGN = frozenset({1, 4, 5})


class Abroad(toys.ToySource):
    """The toys, some of which say that their text is Spanish."""

    def __getitem__(self, index):
        record = super().__getitem__(index)
        return dataclasses.replace(record, language="es") if index in FOREIGN else record


def abroad(length=12):
    return read_corpus("toy/train", Abroad(length), sections=("findings",))


def test_codes_of_english():
    assert all(map(is_english, ("en", "EN", "en-GB")))
    assert not any(map(is_english, ("es", "eng", "")))


def test_a_corpus_knows_and_states_which_texts_are_not_english():
    made = abroad()
    assert made.foreign == FOREIGN and describe(made)[NOT_ENGLISH] == 3
    at_home = read_corpus("toy/train", toys.ToySource(12), sections=("findings",))
    assert not at_home.foreign and NOT_ENGLISH not in describe(at_home)
    assert Examples(toys.config(), made, toys.tokenizers(toys.config())).foreign == FOREIGN


def test_a_table_states_its_language(tmp_path):
    (tmp_path / "pairs.csv").write_text("image,report,patient_id\na.png,Derrame pleural.,1\n")
    given = {"path": str(tmp_path / "pairs.csv"), "fractions": (1.0, 0.0, 0.0)}
    given |= {"patient_column": "patient_id"}
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8), np.uint8))
    assert Table(split="train", **given, language="es")[0].language == "es"
    assert Table(split="train", **given)[0].language == "en"


def arrays(made, name, **changes):
    chosen = toys.config(**changes)
    data = Examples(chosen, made, toys.tokenizers(chosen))
    found = data.arrays([name], range(len(made)), "text")
    return {key.partition(".")[2]: array for key, array in found.items()}


def test_copies_by_english_rules_are_not_valid_and_others_are():
    free = [kind for kind in perturb.KINDS if kind not in perturb.ENGLISH_KINDS]
    assert set(free) >= {"shuffle_all_words", "reverse_words", "shuffle_sentences"}
    assert set(perturb.CLINICAL_KINDS) < set(perturb.ENGLISH_KINDS)
    assert "shuffle_nouns_and_adjectives" in perturb.ENGLISH_KINDS
    rows = np.array(sorted(FOREIGN))
    at_home = read_corpus("toy/train", toys.ToySource(12), sections=("findings",))
    for kinds, holds in ((("reverse_words",), True), (("shuffle_nouns_and_adjectives",), False)):
        changes = {"data__perturbations": kinds, "data__num_perturbed": 1}
        own = arrays(abroad(), "perturbed", **changes)
        english = arrays(at_home, "perturbed", **changes)
        assert english["valid"][rows].any()
        np.testing.assert_array_equal(own["valid"][rows], english["valid"][rows] & holds)
        others = np.setdiff1d(np.arange(12), rows)
        for name, array in own.items():
            np.testing.assert_array_equal(array[others], english[name][others])


def test_sentences_of_other_languages_affirm_and_entail_nothing():
    class Stated(Abroad):
        def __getitem__(self, index):
            report = {"findings": "Small left pleural effusion. No pneumothorax."}
            return dataclasses.replace(super().__getitem__(index), sections=report)

    made = read_corpus("toy/train", Stated(6), sections=("findings",))
    found = arrays(made, "sentences", data__num_sentences=2)
    for row in range(6):
        keys = set(found["known"][row].tolist())
        whole = set(found["key"][row].tolist())
        assert found["affirmed"][row].tolist() == [row not in FOREIGN, False]
        assert whole == keys if row in FOREIGN else whole < keys
        assert (text_group("left pleural effusion") in keys) == (row not in FOREIGN)


def test_structure_leaves_them_out_and_counts_them():
    data = FakeData(reports(12), training=reports(4))
    data.foreign = FOREIGN
    results = Structure(informed(data), data, bootstrap=0).run(None)
    assert results.excluded[NOT_ENGLISH] == 3 and results.n == 9
    kept = FakeData(data.texts, training=data.training)
    rows = [row for row in range(12) if row not in FOREIGN]
    alone = statistics.Subset(kept, rows)
    expected = Structure(informed(data), alone, bootstrap=0).run(None)
    assert results.values == expected.values
    data.foreign = frozenset(range(12))
    with pytest.raises(InputError, match=r"no text of fake/test is English \(12 examples\)"):
        Structure(informed(data), data)


def test_a_subset_keeps_which_texts_are_not_english():
    data = FakeData(reports(12))
    data.foreign = FOREIGN
    assert statistics.Subset(data, [4, 0, 1]).foreign == {0, 2}


def test_pointing_leaves_them_out_and_counts_them():
    data = Data(16)
    whole = run(data, at_box(data))
    data.foreign = FOREIGN
    results = run(data, at_box(data))
    assert results.excluded[NOT_ENGLISH] == 3
    assert results.values["accuracy"].n == whole.values["accuracy"].n - 3
    chosen = select_examples(data, data.tokenizer.words, count=16, skip=FOREIGN)
    assert not {choice.index for choice in chosen} & FOREIGN
