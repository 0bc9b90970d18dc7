"""Copies made for a whole batch, from ids, are those that one report at a time gives, from text."""

import collections
import itertools
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.data import counter, perturb
from mmrl.data.perturb import copies as module
from mmrl.data.perturb import report
from mmrl.data.perturb.copies import Copies
from mmrl.data.perturb.mix import Mix
from mmrl.data.perturb.systematic import systematic
from mmrl.data.text.segments import Segments, plain
from mmrl.data.text.tokenizer import Tokenizer

SETTINGS = settings(max_examples=150, deadline=None, database=None, derandomize=True)
ORDER = (*perturb.ORDER_KINDS, *perturb.SENTENCE_ORDER_KINDS)
FIXED = ("swap_adjacent_words", "reverse_words")
LONG = 400

REPORTS = (
    "Small left effusion. No right effusion, no mass.",
    "The heart is normal in size. There is a large (right) pneumothorax; 2 nodules of 3.5 cm.",
    '1. No mass. 2. T8/T9 fracture, old. 12. A "tiny" well-expanded x-XXXX lung.',
    "Dr. No saw 3 nodules, e.g. in the left apex: no change.. Stable",
    "Größe 3 mm. Kein Erguss, kein O\u0301dem.",
    "a a a a",
    "No no NO. no.",
    "Normal.",
    "(",
    "a\x0bb c d. <mask> e",
)
TOKENIZERS = [
    Tokenizer.train(REPORTS * 3, vocab_size=420, model_type=m) for m in ("bpe", "unigram")
]


def make(texts, kind, count=2, seed=0, tokenizer=TOKENIZERS[0], length=LONG):
    maker = Copies(tokenizer, length)
    tokens, mask, _ = tokenizer.encode_batch(texts, length)
    kinds = np.full((len(texts), count), perturb.KINDS.index(kind))
    seeds = np.arange(len(texts), dtype=np.uint64) + np.uint64(seed)
    return maker(texts, tokens, mask, kinds, seeds)


WORDS = st.one_of(
    st.sampled_from(
        ["No", "left", "1", "2.5", "C7-T1", "x-XXXX", "Dr.", "mass", "3", "12", "~", "ö"]
    ),
    st.text("abcXYZ019'", min_size=1, max_size=4),
)
JOINS = st.sampled_from(
    [" ", " ", " ", ", ", ". ", "\n", "  ", " (", ") ", "/", " 1. ", "..", "\t", '"']
)


@st.composite
def reports(draw):
    words = draw(st.lists(WORDS, min_size=0, max_size=12))
    joins = draw(st.lists(JOINS, min_size=len(words) + 1, max_size=len(words) + 1))
    return "".join(itertools.chain(*zip(joins, words, strict=False))) + joins[-1]


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["bpe", "unigram"])
@given(texts=st.lists(reports(), min_size=1, max_size=4), kind=st.sampled_from(ORDER))
@SETTINGS
def test_ids_put_together_are_those_of_the_encoded_text(tokenizer, texts, kind):
    """The same orders, once as ids of parts and once as texts that are encoded."""
    fast = make(texts, kind, tokenizer=tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "plain", lambda text: False)
        slow = make(texts, kind, tokenizer=tokenizer)
    for name in fast:
        np.testing.assert_array_equal(fast[name], slow[name], err_msg=name)


def test_most_copies_need_no_encoding(monkeypatch):
    """Or the whole would be in vain: only what a piece might join, or is not ASCII, is encoded."""
    tokenizer, encoded = TOKENIZERS[0], []
    tokens, mask, _ = tokenizer.encode_batch(REPORTS, LONG)
    kinds = np.full((len(REPORTS), 1), perturb.KINDS.index("reverse_words"))
    inner = tokenizer.encode_batch
    monkeypatch.setattr(
        tokenizer, "encode_batch", lambda texts, n: (encoded.extend(texts), inner(texts, n))[1]
    )
    Copies(tokenizer, LONG)(REPORTS, tokens, mask, kinds, np.zeros(len(REPORTS), np.uint64))
    assert perturb.perturb(REPORTS[0], "reverse_words", None) not in encoded
    assert perturb.perturb(REPORTS[4], "reverse_words", None) in encoded


@pytest.mark.parametrize("kind", ORDER)
def test_a_copy_keeps_the_words_and_is_valid_exactly_where_the_kind_can_change_it(kind):
    made = make(REPORTS, kind, count=3)
    for row, text in enumerate(REPORTS):
        valid = made["valid"][row]
        assert valid.all() == valid.any() == perturb.possible(text, kind)
        own = TOKENIZERS[0].encode(text, LONG)
        for ids, mask in zip(made["tokens"][row], made["mask"][row], strict=True):
            np.testing.assert_array_equal(mask, ids != 0)
            if plain(text):  # elsewhere folding may cross what is between words
                words = [
                    collections.Counter(perturb.parse(TOKENIZERS[0].decode(tokens)).keys)
                    for tokens in (ids, own.tokens)
                ]
                assert words[0] == words[1]


@pytest.mark.parametrize("kind", [k for k in ORDER if k.startswith(FIXED)])
def test_kinds_without_randomness_give_the_text_of_one_report_at_a_time(kind):
    made = make(REPORTS, kind)
    for row, text in enumerate(REPORTS):
        one = perturb.perturb(text, kind, None)
        expected = TOKENIZERS[0].encode(one or text, LONG).tokens
        np.testing.assert_array_equal(made["tokens"][row], [expected] * 2)


SHORT = "big old cat sees a red dog. tall cat ran the men"
CLASSES = {
    **dict.fromkeys(("cat", "dog", "men"), "noun"),
    **dict.fromkeys(("big", "old", "red", "tall"), "adjective"),
    **dict.fromkeys(("sees", "ran"), "verb"),
}


@pytest.mark.default_cases(3)
@pytest.mark.parametrize("kind", [k for k in ORDER if not k.startswith(FIXED)])
def test_random_kinds_reach_the_same_texts_equally_often(kind, monkeypatch):
    """Against one report at a time, in a table of two rows: chi-square within its quantile."""
    monkeypatch.setattr(report.tagger, "tag", lambda word: CLASSES.get(word, "other"))
    perturb.parse.cache_clear()
    text = "aa bbb cc d eeee. ff gg h" if "all_words" in kind or "trigrams" in kind else SHORT
    rng = np.random.default_rng(0)
    draws = 6000
    tokenizer = TOKENIZERS[0]
    slow = collections.Counter(
        tuple(tokenizer.encode(perturb.perturb(text, kind, rng), 60).tokens.tolist())
        for _ in range(draws)
    )
    made = make([text] * (draws // 20), kind, count=20, length=60)["tokens"]
    fast = collections.Counter(map(tuple, made.reshape(draws, 60).tolist()))
    perturb.parse.cache_clear()
    if len(slow) > draws // 20:  # too many to count each: those of 8 words in any order
        firsts = [collections.Counter(), collections.Counter()]
        for counter_of, seen in zip(firsts, (slow, fast), strict=True):
            for ids, times in seen.items():
                counter_of[ids[1:4]] += times
        slow, fast = firsts
    else:
        assert set(slow) == set(fast)
    both = slow.keys() | fast.keys()
    statistic = sum((slow[k] - fast[k]) ** 2 / (slow[k] + fast[k]) for k in both)
    freedom = max(len(both) - 1, 1)
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


def test_a_copy_depends_on_its_report_its_kind_and_its_seed_alone():
    kinds = Mix.from_config(perturb.NEGATIVE_KINDS).draw(0, 5, np.arange(10, dtype=np.uint64))
    seeds = np.arange(10, dtype=np.uint64)
    tokenizer = TOKENIZERS[1]
    tokens, mask, _ = tokenizer.encode_batch(REPORTS, 40)
    whole = Copies(tokenizer, 40)(REPORTS, tokens, mask, kinds, seeds)
    some = np.array([7, 2, 5, 1])
    maker = pickle.loads(pickle.dumps(Copies(tokenizer, 40)))
    given = [REPORTS[n] for n in some], tokens[some], mask[some], kinds[some], seeds[some]
    part, again = maker(*given), maker(*given)
    for name, values in part.items():
        np.testing.assert_array_equal(values, whole[name][some], err_msg=name)
        np.testing.assert_array_equal(values, again[name], err_msg=name)
    other = Copies(tokenizer, 40)(REPORTS, tokens, mask, kinds, seeds + np.uint64(1))
    assert (other["tokens"] != whole["tokens"]).any()


def test_blocks_and_full_memories_change_nothing(monkeypatch):
    texts = [*REPORTS, " ".join(REPORTS)] * 2
    expected = make(texts, "shuffle_nouns_and_adjectives", count=4)
    monkeypatch.setattr(module.order_batches, "MAX_WORDS", 128)
    monkeypatch.setattr(module, "_CACHED_BYTES", 0)
    monkeypatch.setattr(module, "_CACHED_PARTS", 0)
    made = make(texts, "shuffle_nouns_and_adjectives", count=4)
    for name, values in made.items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_a_copy_that_is_equal_by_bad_luck_is_drawn_again():
    """Half of all draws of two words change nothing."""
    made = make(["left right"] * 200, "shuffle_all_words", count=4)
    swapped = TOKENIZERS[0].encode("right left", LONG).tokens
    assert (made["tokens"] == swapped).all()


def test_copies_that_differ_only_behind_the_cut_are_invalid():
    """Changes among the last words are invisible to an encoder that reads the first tokens."""
    text = "a b c d e f g h"
    assert make([text], "shuffle_trigrams", count=8)["valid"].all()
    unseen = make([text], "shuffle_trigrams", count=64, length=3)
    equal = (unseen["tokens"] == TOKENIZERS[0].encode(text, 3).tokens).all(axis=2)
    assert equal.any() and not equal.all()
    np.testing.assert_array_equal(unseen["valid"], ~equal)


def test_the_longest_reports_are_left_to_one_report_at_a_time():
    text = "one two three " * 25_000
    made = make([text, "left right"], "shuffle_all_words", length=64)
    assert made["valid"].all()


def test_pieces_that_may_reach_across_a_cut_are_found_out():
    """The vocabulary holds "1." as one piece, so "1" and "." do not add up to "1."."""
    tokenizer = Tokenizer.train(["1. no mass 1. no mass, a b."] * 9, vocab_size=290)
    segments = Segments(tokenizer)
    assert any("1." in piece for piece in tokenizer.vocabulary.spelled)
    texts = {"1.": (" 1", "."), "a.": (" a", "."), "no,": (" no", ",")}
    parts = np.array([segments.number(part) for pair in texts.values() for part in pair])
    (tokens, *_), exact = segments.rows(parts, np.array([2, 2, 2]), 8)
    np.testing.assert_array_equal(exact, [False, True, True])
    for row, text in enumerate(texts):
        same = (tokens[row] == tokenizer.encode(text, 8).tokens).all()
        assert same == exact[row]


def test_counters_are_splitmix64_and_uniform():
    """The first outputs for seed 1234567, as the reference implementation prints them."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert counter.bits(np.uint64(1234567), np.arange(3)).tolist() == known
    drawn = counter.uniforms(np.arange(200, dtype=np.uint64)[:, None], np.arange(500))
    assert drawn.min() >= 0 and drawn.max() < 1
    counts = np.histogram(drawn, 100, (0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 99 + 5 * math.sqrt(198)
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.3
    assert abs(np.corrcoef(drawn[:-1].ravel(), drawn[1:].ravel())[0, 1]) < 0.02


def test_systematic_sampling_takes_each_kind_once_where_there_are_enough():
    drawn = systematic(np.ones(9), 4, np.random.default_rng(0).random((500, 14)))
    assert drawn.shape == (500, 4)
    assert all(len(set(row)) == 4 for row in drawn.tolist())
    pairs = collections.Counter(map(tuple, np.sort(drawn[:, :2], axis=1).tolist()))
    assert len(pairs) == 36  # no two exclude each other
