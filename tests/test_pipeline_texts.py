"""What training reads of a report, and which examples are then no negatives of each other."""

import dataclasses

import numpy as np
import pytest

from mmrl import config as configs
from mmrl.data.batches.pipeline import Examples
from mmrl.data.corpus import read_corpus
from mmrl.data.text import reports
from mmrl.data.text.excerpts import CHOICES, Excerpts
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.types import InputError
from tests import toys

SENTENCES = ("No effusion.", "The heart is large.", "A nodule at the left apex.", "Stable tubes.")


class Reports(toys.ToySource):
    """Reports of given sections and studies; image and id are those of the toys."""

    def __init__(self, given: list[tuple[str, dict[str, str]]]) -> None:
        super().__init__(len(given))
        self.given = given

    def __getitem__(self, index: int):
        study, sections = self.given[index]
        return dataclasses.replace(super().__getitem__(index), study_id=study, sections=sections)


def corpus(*given, wanted=("findings", "impression")):
    return read_corpus("toy/train", Reports(list(given)), sections=wanted)


def one(findings: str, impression: str = "", study: str = ""):
    return study or findings + impression, {"findings": findings, "impression": impression}


def excerpts_of(made, choice, seed):
    return Excerpts(made.texts, made.groups, made.cuts, choice, seed)


def drawn(made, choice, index, steps=400, seed=0):
    excerpts = excerpts_of(made, choice, seed)
    return [excerpts(index, step)[0] for step in range(steps)]


def test_a_report_is_read_whole_unless_asked_otherwise():
    made = corpus(one("No effusion. Clear.", "Normal."), one("B."))
    excerpts = excerpts_of(made, "report", 0)
    assert excerpts(0, 3) == ("No effusion. Clear. Normal.", 0)
    assert excerpts(1, 3) == ("B.", 1)


def test_the_sections_of_a_text_are_found_again():
    """As composing and folding the whole gives it."""
    odd = {
        "findings": " 1. No  effusion\n2. Clear",
        "impression": "nan",
        "full": "\u00c5 x",
        "a": "b?",
    }
    wanted = ("full", "findings", "impression", "a", "none")
    made = corpus(("s", odd), wanted=wanted)
    assert made.texts == (reports.normalise(reports.compose(odd, wanted)),)
    assert set(drawn(made, "section", 0)) == {"\u00c5 x.", "1. No effusion 2. Clear.", "b?"}


def test_each_section_and_each_sentence_is_drawn_as_often():
    made = corpus(one(" ".join(SENTENCES[:3]), SENTENCES[3]))
    sections = drawn(made, "section", 0)
    assert set(sections) == {" ".join(SENTENCES[:3]), SENTENCES[3]}
    assert 160 < sections.count(SENTENCES[3]) < 240
    sentences = drawn(made, "sentence", 0)
    counts = [sentences.count(sentence) for sentence in SENTENCES]
    assert sum(counts) == 400 and min(counts) > 70


def test_runs_of_sentences_are_neighbours_of_any_length():
    made = corpus(one(" ".join(SENTENCES)))
    runs = drawn(made, "sentences", 0, steps=2000)
    every = {" ".join(SENTENCES[low:high]) for high in range(1, 5) for low in range(high)}
    assert set(runs) == every  # ten
    lengths = np.bincount([len(reports.split_sentences(run)) for run in runs])[1:]
    assert np.abs(lengths / 2000 - 0.25).max() < 0.05


def test_one_study_reads_one_part_in_a_batch_and_equal_parts_share_a_group():
    made = corpus(
        one(" ".join(SENTENCES), study="a"),
        one(" ".join(SENTENCES), study="a"),  # another image of it
        one(" ".join(SENTENCES).upper(), study="b"),  # the same report
        one("No effusion. Something else.", study="c"),
    )
    excerpts = excerpts_of(made, "sentence", 7)
    met = set()
    for step in range(200):
        texts, groups = zip(*(excerpts(index, step) for index in range(4)), strict=True)
        assert texts[0] == texts[1] == texts[2].capitalize() or texts[0].lower() == texts[2].lower()
        assert groups[0] == groups[1] == groups[2]
        assert (groups[0] == groups[3]) == (texts[0] == texts[3])
        met.add(groups[0] == groups[3])
        assert all(-(2**31) <= group < 2**31 for group in groups)
    assert met == {True, False}


def test_different_reports_of_one_study_stay_no_negatives():
    made = corpus(
        one("No effusion. Clear.", study="a"),
        one("Large heart. Stable tubes. No effusion.", study="a"),
        one("No effusion. Old.", study="b"),
    )
    excerpts = excerpts_of(made, "sentence", 1)
    for step in range(50):
        groups = [excerpts(index, step)[1] for index in range(3)]
        assert groups[0] == groups[1] != groups[2]


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("choice", CHOICES)
def test_batches_hold_the_part_its_copies_and_its_group(choice):
    """The same for any number of threads and any division of the rows; anew in the next epoch."""
    made = corpus(
        *(one(f"{SENTENCES[n % 4]} {SENTENCES[(n + 1) % 4]}", f"Case {n}.") for n in range(16))
    )
    tokenizer = Tokenizer.train(made.texts, vocab_size=300)

    def batches(rows=None, **changes):
        chosen = toys.config(
            data__text=choice,
            towers__text__length=60,
            data__perturbations=("reverse_words",),
            **changes,
        )
        return toys.batches(chosen, 6, made, {"text": tokenizer}, rows=rows)

    whole = batches()
    excerpts = excerpts_of(made, choice, 0)
    for step, batch in enumerate(whole):
        for row, index in enumerate(batch["index"].tolist()):
            text, group = excerpts(index, step)
            tokens = tokenizer.encode(text, 60).tokens
            np.testing.assert_array_equal(batch["text.tokens"][row], tokens)
            assert batch["group"][row] == group
            words = set(tokens.tolist())
            assert set(batch["perturbed.tokens"][row, 0].tolist()) <= words | {0}
    rows = np.array([1, 2, 6, 7])
    for batch, threads, part in zip(
        whole, batches(data__num_threads=3), batches(rows), strict=True
    ):
        for name, array in batch.items():
            np.testing.assert_array_equal(array, threads[name])
            np.testing.assert_array_equal(array[rows], part[name])


def test_evaluation_reads_the_whole_report():
    made = corpus(one("No effusion. Clear.", "Normal."))
    tokenizer = Tokenizer.train(made.texts, vocab_size=300)
    data = Examples(toys.config(data__text="sentence"), made, {"text": tokenizer})
    assert data.texts == ("No effusion. Clear. Normal.",)
    arrays = data.arrays(["text"], [0], "text")
    whole = tokenizer.encode("No effusion. Clear. Normal.", 24)
    np.testing.assert_array_equal(arrays["text.tokens"], [whole.tokens])


def test_an_unknown_choice_is_refused():
    with pytest.raises(InputError, match=r"unknown config.data.text 'word'; choices: report"):
        configs.validate(toys.config(data__text="word"))
