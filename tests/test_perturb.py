"""Perturbed reports: what is kept, what differs, when there is none, which kinds are drawn."""

import collections
import csv
import itertools
import os
import pathlib
import re
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mmrl.data.perturb import KINDS, Perturbation, Slots, draw, draw_kinds, perturb
from mmrl.types import InputError

SETTINGS = settings(max_examples=500, deadline=None, database=None, derandomize=True)
SEEDS = st.integers(0, 2**32 - 1)
DETERMINISTIC = ("swap_adjacent_words", "reverse_words")

WORDS = st.one_of(
    st.sampled_from(
        ("No", "no", "NO", "heart", "x-XXXX", "2.5", "Dr.", "e.g.", "C7-T1", "___", "o\u0301dema")
    ),
    st.text("abÄß1", min_size=1, max_size=3),
)
JOINS = st.sampled_from([" ", " ", " ", "  ", ", ", ". ", ".. ", "\n", ": ", " (", ") ", ". 2. "])


@st.composite
def reports(draw_from: st.DrawFn) -> str:
    words = draw_from(st.lists(WORDS, max_size=14))
    joins = draw_from(st.lists(JOINS, min_size=len(words), max_size=len(words)))
    text = "".join(itertools.chain.from_iterable(zip(words, joins, strict=True)))
    return draw_from(st.sampled_from(["", "1. ", " "])) + text.rstrip() + "."


def keys(text: str) -> list[str]:
    return Slots.of(text).keys


def check(report: str, result: Perturbation, kind: str) -> None:
    """Everything a perturbation promises, whatever its kind."""
    assert result.kind == kind
    assert sorted(result.text) == sorted(report)
    assert sorted(re.findall(r"\w+", result.text)) == sorted(re.findall(r"\w+", report))
    words = set(Slots.of(report).words)
    assert sorted(result.changed_spans) == list(result.changed_spans) and result.changed_spans
    last = 0
    for low, high in result.changed_spans:
        assert last <= low < high <= len(result.text)
        assert result.text[low:high] in words
        last = high
    assert result.text.casefold() != report.casefold()


@given(reports(), st.sampled_from(KINDS), SEEDS)
@SETTINGS
def test_words_and_punctuation_are_kept(report: str, kind: str, seed: int) -> None:
    result = perturb(report, kind, np.random.default_rng(seed))
    assert perturb(report, kind, np.random.default_rng(seed)) == result
    words = keys(report)
    if result is None:
        # Only these have nothing to permute; the exact condition is tested on short reports.
        trigrams = {tuple(words[at : at + 3]) for at in range(0, len(words), 3)}
        blocks_alike = kind == "shuffle_trigrams" and len(trigrams) <= 2
        assert len(set(words)) < 2 or kind in DETERMINISTIC or blocks_alike or len(words) < 6
    else:
        check(report, result, kind)


def reachable(words: tuple[str, ...], kind: str) -> set[tuple[str, ...]]:
    """Every outcome of a kind, by enumeration."""
    blocks = [words[at : at + 3] for at in range(0, len(words), 3)]
    if kind == "shuffle_all_words":
        return set(itertools.permutations(words))
    if kind == "reverse_words":
        return {tuple(reversed(words))}
    if kind == "swap_adjacent_words":
        pairs = [words[at : at + 2][::-1] for at in range(0, len(words), 2)]
        return {tuple(itertools.chain.from_iterable(pairs))}
    choices: Iterable[tuple[tuple[str, ...], ...]] = itertools.permutations(blocks)
    if kind == "shuffle_within_trigrams":
        choices = itertools.product(*(itertools.permutations(block) for block in blocks))
    return {tuple(itertools.chain.from_iterable(choice)) for choice in choices}


@pytest.mark.parametrize("kind", KINDS)
def test_none_exactly_when_nothing_can_change(kind: str) -> None:
    rng = np.random.default_rng(7)
    nothing = 0
    for size in range(8):
        for words in itertools.product("ab", repeat=size):
            outcomes = reachable(words, kind) - {words}
            result = perturb(" ".join(words), kind, rng)
            assert (result is None) == (not outcomes), words
            nothing += result is None
            if result is not None:
                assert tuple(result.text.split()) in outcomes
    assert nothing >= 1 + 2 * 7  # the empty report and the constant ones at least


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("shuffle_all_words", "a b c"),
        ("shuffle_within_trigrams", "a b c d"),
        ("shuffle_within_trigrams", "a b c d e"),
        ("shuffle_trigrams", "a b c d e f g"),
        ("shuffle_all_words", "a a b b"),
    ],
)
def test_every_outcome_is_equally_likely(kind: str, words: str) -> None:
    outcomes = reachable(tuple(words.split()), kind) - {tuple(words.split())}
    rng = np.random.default_rng(3)
    count = 400 * len(outcomes)
    results = (perturb(words, kind, rng) for _ in range(count))
    seen = collections.Counter(tuple(r.text.split()) for r in results if r is not None)
    assert set(seen) == outcomes and sum(seen.values()) == count
    chi_square = sum((n - 400) ** 2 / 400 for n in seen.values())
    freedom = len(outcomes) - 1
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom)


def test_deterministic_kinds_as_values() -> None:
    rng = np.random.default_rng(0)
    report = "1. The heart is normal. 2. No effusion, no 2.5 cm mass."
    swapped = perturb(report, "swap_adjacent_words", rng)
    assert swapped is not None
    assert swapped.text == "1. heart The normal is. 2. effusion No, 2.5 no mass cm."
    reverse = perturb(report, "reverse_words", rng)
    assert reverse is not None
    assert reverse.text == "1. mass cm 2.5 no. 2. effusion No, normal is heart The."
    odd = perturb("The heart is.", "swap_adjacent_words", rng)
    assert odd == Perturbation("heart The is.", "swap_adjacent_words", ((0, 5), (6, 9)))


def test_changed_spans_ignore_case_and_point_into_the_new_text() -> None:
    rng = np.random.default_rng(0)
    result = perturb("No mass, no nodule.", "reverse_words", rng)
    assert result is not None and result.text == "nodule no, mass No."
    assert [result.text[low:high] for low, high in result.changed_spans] == (
        ["nodule", "no", "mass", "No"]
    )
    result = perturb("No large nodule. no", "reverse_words", rng)
    assert result is not None and result.text == "no nodule large. No"
    assert [result.text[low:high] for low, high in result.changed_spans] == ["nodule", "large"]
    assert perturb("No mass. no", "reverse_words", rng) is None


def test_trigram_kinds_keep_to_their_blocks() -> None:
    words = "a b c d e f g h i j k"
    rng = np.random.default_rng(1)
    for _ in range(50):
        within = perturb(words, "shuffle_within_trigrams", rng)
        assert within is not None
        new = within.text.split()
        for at in range(0, 11, 3):
            assert sorted(new[at : at + 3]) == words.split()[at : at + 3]
        between = perturb(words, "shuffle_trigrams", rng)
        assert between is not None
        assert sorted(re.findall("a b c|d e f|g h i|j k", between.text)) == (
            ["a b c", "d e f", "g h i", "j k"]
        )


@given(reports(), st.integers(0, 12), SEEDS)
@SETTINGS
def test_draw_is_the_kinds_then_each_perturbation(report: str, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    copies = draw(report, KINDS, count, rng)
    rng = np.random.default_rng(seed)
    kinds = draw_kinds(KINDS, count, rng)
    assert copies == [perturb(report, kind, rng) for kind in kinds]
    assume(all(copy is not None for copy in copies))
    assert [copy.kind for copy in copies if copy is not None] == list(kinds)


@pytest.mark.parametrize("count", [0, 1, 3, 5, 7, 10, 12])
def test_kinds_are_drawn_evenly_and_in_random_order(count: int) -> None:
    rng = np.random.default_rng(count)
    first: set[str] = set()
    for _ in range(200):
        kinds = draw_kinds(KINDS, count, rng)
        assert len(kinds) == count
        times = [kinds.count(kind) for kind in KINDS]
        assert max(times) - min(times) <= 1
        first.update(kinds[:1])
    assert len(first) == (len(KINDS) if count else 0)


def test_input_errors() -> None:
    rng = np.random.default_rng(0)
    listing = ", ".join(KINDS)
    with pytest.raises(InputError, match=f"'shufle' is not known; expected one of {listing}"):
        perturb("No mass.", "shufle", rng)
    with pytest.raises(InputError, match="'x' is not known"):
        draw("No mass.", ("reverse_words", "x"), 2, rng)
    with pytest.raises(InputError, match="given: none; expected distinct ones of"):
        draw("No mass.", (), 2, rng)
    with pytest.raises(InputError, match="given: reverse_words, reverse_words; expected dist"):
        draw("No mass.", ("reverse_words",) * 2, 2, rng)
    with pytest.raises(InputError, match="copies is -1; expected 0 or more"):
        draw("No mass.", KINDS, -1, rng)


@pytest.mark.real_data
def test_every_real_report_can_be_perturbed(capsys: pytest.CaptureFixture[str]) -> None:
    path = pathlib.Path(os.environ.get("MMRL_REAL_DATA", "../shared/data"))
    path = path / "openi" / "indiana_reports.csv"
    if not path.is_file():
        pytest.skip(f"{path} is absent; set MMRL_REAL_DATA")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rng = np.random.default_rng(0)
    for section, floor in (("findings", 0.999), ("impression", 0.7)):
        texts = [row[section] for row in rows if row[section].strip()]
        for kind in KINDS:
            applied = 0
            for text in texts:
                result = perturb(text, kind, rng)
                if result is not None:
                    check(text, result, kind)
                    applied += 1
            with capsys.disabled():
                print(f"\n{section} {kind}: {applied} of {len(texts)}", end="")
            assert applied >= floor * len(texts)
