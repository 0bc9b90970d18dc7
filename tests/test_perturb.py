"""Kinds that reorder words, the control, the antonyms, and how kinds are drawn.

The clinical kinds have tests of their own: test_perturb_place, _degree and _claims.
"""

import collections
import csv
import itertools
import os
import pathlib
import re
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.data.perturb import (
    CLINICAL_KINDS,
    CONTROL_KINDS,
    KINDS,
    LEXICAL_KINDS,
    NEGATIVE_KINDS,
    ORDER_KINDS,
    SENTENCE_ORDER_KINDS,
    parse,
    perturb,
)
from mmrl.data.perturb.mix import Mix
from mmrl.data.text.reports import split_sentences
from mmrl.types import InputError

SETTINGS = settings(max_examples=500, deadline=None, database=None, derandomize=True)
SEEDS = st.integers(0, 2**32 - 1)

WORDS = st.one_of(
    st.sampled_from(
        ("No", "no", "NO", "heart", "x-XXXX", "2.5", "Dr.", "e.g.", "C7-T1", "___", "o\u0301dema")
    ),
    st.text("abÄß1", min_size=1, max_size=3),
)
JOINS = st.sampled_from([" ", " ", " ", "  ", ", ", ". ", ".. ", "\n", ": ", " (", ") ", ". 2. "])


def test_sentences_equal_but_for_case_are_no_other_order():
    text = "No.. No heart. 1 No No. no.."
    for seed in range(20):
        result = perturb(text, "shuffle_sentences", np.random.default_rng(seed))
        assert result is None or normal(result) != normal(text)


@st.composite
def reports(draw_from: st.DrawFn) -> str:
    words = draw_from(st.lists(WORDS, max_size=14))
    joins = draw_from(st.lists(JOINS, min_size=len(words), max_size=len(words)))
    text = "".join(itertools.chain.from_iterable(zip(words, joins, strict=True)))
    return draw_from(st.sampled_from(["", "1. ", " "])) + text.rstrip() + "."


REORDERING = (*ORDER_KINDS, *SENTENCE_ORDER_KINDS)


def normal(text: str) -> str:
    return " ".join(text.split()).casefold()


def check(report: str, result: str, kind: str) -> None:
    """What every perturbation promises, and what kinds that only reorder promise beyond it."""
    assert normal(result) != normal(report)
    if kind in CONTROL_KINDS:
        assert sorted(split_sentences(result)) == sorted(split_sentences(report))
    if kind not in REORDERING:
        return
    assert sorted(result) == sorted(report)
    assert sorted(re.findall(r"\w+", result)) == sorted(re.findall(r"\w+", report))


@given(reports(), SEEDS)
@SETTINGS
def test_every_kind_keeps_its_promises_and_is_reproducible(report: str, seed: int) -> None:
    for kind in KINDS:
        result = perturb(report, kind, np.random.default_rng(seed))
        parse.cache_clear()  # nothing remembered may decide
        assert perturb(report, kind, np.random.default_rng(seed)) == result
        if result is not None:
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


UNTAGGED = tuple(kind for kind in ORDER_KINDS if "nouns" not in kind)


@pytest.mark.parametrize("kind", UNTAGGED)
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
                assert tuple(result.split()) in outcomes
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
    seen = collections.Counter(tuple(r.split()) for r in results if r is not None)
    assert set(seen) == outcomes and sum(seen.values()) == count
    chi_square = sum((n - 400) ** 2 / 400 for n in seen.values())
    freedom = len(outcomes) - 1
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom)


def test_deterministic_kinds_as_values() -> None:
    rng = np.random.default_rng(0)
    report = "1. The heart is normal. 2. No effusion, no 2.5 cm mass."
    swapped = perturb(report, "swap_adjacent_words", rng)
    assert swapped is not None
    assert swapped == "1. heart The normal is. 2. effusion No, 2.5 no mass cm."
    reverse = perturb(report, "reverse_words", rng)
    assert reverse is not None
    assert reverse == "1. mass cm 2.5 no. 2. effusion No, normal is heart The."
    odd = perturb("The heart is.", "swap_adjacent_words", rng)
    assert odd == "heart The is."


def test_words_equal_but_for_case_are_no_change() -> None:
    rng = np.random.default_rng(0)
    assert perturb("No mass, no nodule.", "reverse_words", rng) == "nodule no, mass No."
    assert perturb("No large nodule. no", "reverse_words", rng) == "no nodule large. No"
    assert perturb("No mass. no", "reverse_words", rng) is None


def test_whole_words_move_and_what_is_between_them_stays() -> None:
    report = parse("1. Dr. No: a 2.5-cm\n x-XXXX, (C7-T1).")
    words = ["Dr.", "No", "a", "2.5-cm", "x-XXXX", "C7-T1"]
    assert report.words == words
    between = ["1. ", " ", ": ", " ", "\n ", ", (", ")."]
    for order in itertools.permutations(range(6)):
        moved = [words[source] for source in order]
        expected = "".join(itertools.chain.from_iterable(zip(between, [*moved, ""], strict=True)))
        assert report.reordered(order) == expected


def test_trigram_kinds_keep_to_their_blocks() -> None:
    words = "a b c d e f g h i j k"
    rng = np.random.default_rng(1)
    for _ in range(50):
        within = perturb(words, "shuffle_within_trigrams", rng)
        assert within is not None
        new = within.split()
        for at in range(0, 11, 3):
            assert sorted(new[at : at + 3]) == words.split()[at : at + 3]
        between = perturb(words, "shuffle_trigrams", rng)
        assert between is not None
        assert sorted(re.findall("a b c|d e f|g h i|j k", between)) == (
            ["a b c", "d e f", "g h i", "j k"]
        )


def test_tagged_kinds_move_words_within_their_class() -> None:
    report = "The mild edema obscures a small nodule, and large masses displace the left lung."
    nouns = {"edema", "nodule", "masses", "lung"}
    adjectives = {"mild", "small", "large", "left"}
    verbs = {"obscures", "displace"}
    rng = np.random.default_rng(0)
    words = parse(report).keys
    for kind, classes in {
        "shuffle_nouns_and_adjectives": (nouns, adjectives),
        "shuffle_nouns_verbs_adjectives": (nouns, verbs, adjectives),
        "shuffle_all_but_nouns_and_adjectives": (set(words) - nouns - adjectives,),
    }.items():
        moved: set[str] = set()
        for _ in range(40):
            result = perturb(report, kind, rng)
            assert result is not None
            for old, new in zip(words, parse(result).keys, strict=True):
                if old != new:
                    assert any({old, new} <= words_of for words_of in classes), (kind, old, new)
                    moved.add(old)
        assert moved == set().union(*classes)


@pytest.mark.parametrize("kind", SENTENCE_ORDER_KINDS)
def test_sentence_scope_keeps_words_in_their_sentences(kind: str) -> None:
    report = "1. The lungs are of a normal size. There is no large 2.5 cm mass on the left!"
    rng = np.random.default_rng(0)
    result = perturb(report, kind, rng)
    assert result is not None
    for old, new in zip(split_sentences(report), split_sentences(result), strict=True):
        assert sorted(parse(old).keys) == sorted(parse(new).keys)
    # A report of one sentence is perturbed as a whole, by the same random numbers.
    one = "There is a small mass in the left lung."
    seeded = [np.random.default_rng(5) for _ in range(2)]
    whole = perturb(one, kind.removesuffix("_in_sentences"), seeded[0])
    within = perturb(one, kind, seeded[1])
    assert whole is not None and within is not None and whole == within


@pytest.mark.parametrize(
    ("report", "outcomes"),
    [
        ("No mass. No edema.", {"No edema. No mass."}),
        ("One.  Two!\nThree?", None),
        # The last sentence has no full stop: it stays where it runs into nothing.
        ("No mass. No edema. Clear lungs", {"No edema. No mass. Clear lungs"}),
        ("1. No mass. 2. No edema.", {"2. No edema. 1. No mass."}),
        ("No mass. No mass.", set()),
        ("No mass.", set()),
        ("No mass. clear", set()),
        ("", set()),
    ],
)
def test_control_moves_whole_sentences(report: str, outcomes: set[str] | None) -> None:
    rng = np.random.default_rng(0)
    results = [perturb(report, "shuffle_sentences", rng) for _ in range(20)]
    texts = {result for result in results if result is not None}
    if outcomes is None:
        assert len(texts) == 5 and all(re.search(r"^\w+[.!?]  \w+[.!?]\n", t) for t in texts)
    else:
        assert texts == outcomes


def test_antonyms_as_values() -> None:
    kind, rng = "replace_adjectives_with_antonyms", np.random.default_rng(0)
    result = perturb("A mild LEFT effusion. An acute fracture. Clear right lung.", kind, rng)
    assert result is not None
    assert result == "A severe RIGHT effusion. A chronic fracture. Opaque left lung."
    assert perturb("No mass.", kind, rng) is None


def named(kinds: np.ndarray) -> list[list[str]]:
    """What `Mix.draw` gives, by name."""
    return [[KINDS[kind] for kind in row] for row in kinds.tolist()]


@pytest.mark.parametrize("count", [0, 1, 3, 5, 7, 10, 12, 60])
def test_kinds_are_drawn_evenly_and_in_random_order(count: int) -> None:
    mix = Mix.from_config(NEGATIVE_KINDS)
    first: set[str] = set()
    for kinds in named(mix.draw(0, count, np.arange(600, dtype=np.uint64))):
        assert len(kinds) == count
        times = [kinds.count(kind) for kind in NEGATIVE_KINDS]
        assert max(times) - min(times) <= 1
        first.update(kinds[:1])
    assert len(first) == (len(NEGATIVE_KINDS) if count else 0)


def test_weighted_kinds_come_at_their_rate() -> None:
    weights = {"reverse_words": 3.0, "shuffle_all_words": 1.0, "shuffle_trigrams": 0.5}
    mix = Mix.from_config(weights)
    drawn = mix.draw(0, 2, np.arange(20_000, dtype=np.uint64))
    seen = collections.Counter(kind for kinds in named(drawn) for kind in kinds)
    first = collections.Counter(kinds[0] for kinds in named(drawn))  # in random order
    for kind, weight in weights.items():
        assert abs(seen[kind] / 40_000 - weight / 4.5) < 0.01
        assert abs(first[kind] / 20_000 - weight / 4.5) < 0.01
    # 9 copies at 6 : 2 : 1 are exactly that.
    for kinds in named(mix.draw(0, 9, np.arange(50, dtype=np.uint64))):
        assert collections.Counter(kinds) == {k: 2 * w for k, w in weights.items()}


def test_a_mix_changes_at_its_steps() -> None:
    mix = Mix.from_config(
        ("reverse_words", "shuffle_trigrams"),
        (
            {"from_step": 10, "perturbations": {"reverse_words": 1, "swap_zone": 2}},
            {"from_step": 30, "perturbations": ("swap_zone",)},
        ),
    )
    assert mix.at(0) == mix.at(9) == {"reverse_words": 1.0, "shuffle_trigrams": 1.0}
    assert mix.at(10) == mix.at(29) == {"reverse_words": 1.0, "swap_zone": 2.0}
    assert mix.at(30) == mix.at(10**9) == {"swap_zone": 1.0}
    assert mix.kinds == ("reverse_words", "shuffle_trigrams", "swap_zone")


@pytest.mark.parametrize(
    ("perturbations", "curriculum", "message"),
    [
        ((), (), "config.data.perturbations is empty"),
        (("shufle",), (), "unknown perturbation 'shufle'; choices: "),
        (("shuffle_sentences",), (), "keeps the meaning, so it cannot be a negative"),
        ({"swap_zone": 0}, (), "weight swap_zone=0; expected positive numbers"),
        (("swap_zone",) * 2, (), "names a kind twice"),
        (("swap_zone",), ({"from_step": 3},), "has from_step; expected from_step and perturb"),
        (
            ("swap_zone",),
            ({"from_step": 0, "perturbations": ("swap_zone",)},),
            r"curriculum\[0\].from_step=0; expected a step after 0",
        ),
    ],
)
def test_mixes_that_are_refused(perturbations, curriculum, message) -> None:
    with pytest.raises(InputError, match=message):
        Mix.from_config(perturbations, curriculum)


def test_input_errors() -> None:
    rng = np.random.default_rng(0)
    listing = ", ".join(KINDS)
    with pytest.raises(InputError, match=f"unknown perturbation 'shufle'; choices: {listing}"):
        perturb("No mass.", "shufle", rng)


@pytest.mark.real_data
@pytest.mark.parametrize("stride", [6, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_real_reports_can_be_perturbed(stride: int, capsys: pytest.CaptureFixture[str]) -> None:
    path = pathlib.Path(os.environ.get("MMRL_REAL_DATA", "../shared/data"))
    path = path / "openi" / "indiana_reports.csv"
    if not path.is_file():
        pytest.skip(f"{path} is absent; set MMRL_REAL_DATA")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rng = np.random.default_rng(0)
    texts = [row["findings"] for row in rows if row["findings"].strip()]
    assert len(texts) == 3337
    texts = texts[::stride]
    for kind in KINDS:
        applied = 0
        for text in texts:
            result = perturb(text, kind, rng)
            if result is not None:
                check(text, result, kind)
                applied += 1
        with capsys.disabled():
            print(f"\n{kind}: {applied} of {len(texts)}", end="")
        assert applied >= (
            0.95 * len(texts) if kind not in (*LEXICAL_KINDS, *CLINICAL_KINDS) else 1
        )
