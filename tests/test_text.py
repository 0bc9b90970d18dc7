"""Sentences, sections, composition and comparison of reports; the tokenizer."""

import csv
import os
import pathlib
import pickle
import re
import unicodedata
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.data import reports
from mmrl.data import tokenizer as tokenizer_module
from mmrl.data.tokenizer import BOS, EOS, MASK, PAD, UNK, Tokenizer
from mmrl.types import InputError

SETTINGS = settings(max_examples=300, deadline=None, database=None, derandomize=True)


def solid(text: str) -> str:
    return "".join(text.split())


# --- words and normal forms ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("No pleural effusion.", ["No", "pleural", "effusion"]),
        ("A 2.5 cm mass, 1,000 mL.", ["A", "2.5", "cm", "mass", "1,000", "mL"]),
        ("Well-expanded; x-XXXX at C7-T1.", ["Well-expanded", "x-XXXX", "at", "C7-T1"]),
        ("effusion/pneumothorax, patient's ___.", ["effusion/pneumothorax", "patient's", "___"]),
        ("1. Clear. 2. No change 3. ", ["Clear", "No", "change", "3"]),
        ("12. Clear\n3) No. 2.No", ["Clear", "No", "No"]),
        ("Dr. Smith, e.g. at 3 p.m.", ["Dr.", "Smith", "e.g.", "at", "3", "p.m."]),
        ("Dr.Smith apex.There", ["Dr", "Smith", "apex", "There"]),
        ("o\u0301dema \u0915\u093f", ["o\u0301dema", "\u0915\u093f"]),
        (" ... ", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert reports.WORD.findall(text) == words


@given(st.text(max_size=60))
@SETTINGS
def test_two_words_never_touch(text: str) -> None:
    frame = reports.WORD.split(text)
    assert all(frame[1:-1])


def test_normalise_values() -> None:
    text = "\ufeffNo\u00a0\u00a0acute\r\n\tﬁnding\u200b.\x00 "
    assert reports.normalise(text) == "No acute finding."


@given(st.text(max_size=60))
@SETTINGS
def test_normalise_is_idempotent_and_canonical_ignores_layout(text: str) -> None:
    once = reports.normalise(text)
    assert reports.normalise(once) == once
    assert once == once.strip() and "  " not in once
    key = reports.canonical(text)
    assert reports.canonical(f"  {once} .\n") == key
    assert all(unicodedata.category(c)[0] in "LNM" or c == " " for c in key)


def test_canonical_tells_the_same_report_from_another() -> None:
    key = reports.canonical("The heart is normal. No effusion.")
    assert key == "the heart is normal no effusion"
    for same in ("THE heart is normal;  no effusion", "the heart\nis normal.. No effusion."):
        assert reports.canonical(same) == key
    for other in ("No effusion. The heart is normal.", "The heart is normal. Effusion."):
        assert reports.canonical(other) != key
    assert reports.canonical("2.5 cm") != reports.canonical("25 cm")
    assert reports.canonical("O\u0301dema") == reports.canonical("ó\u0064ema")
    assert reports.canonical("\u0915\u093f") != reports.canonical("\u0915\u0940")


# --- sentences -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sentences",
    [
        ["A 2.5 cm mass.", "No effusion."],
        ["Dr. Smith was called.", "Clear."],
        ["Discussed with Dr. J. Smith at 3 p.m. XXXX/XXXX.", "Dr. XXXX agreed."],
        ["Seen at 9 a.m.", "Stable."],
        ["Opacity, e.g. pneumonia, i.e. infection.", "Right vs. left."],
        ["1. No effusion.", "2. Stable heart.", "3. 1.7 cm nodule at T5 and L2."],
        ["1) No effusion.", "2) Stable heart."],
        ["1.Severe emphysema.", "2.No change."],
        ["Disc disease at C7-T1.", "Normal chest x-XXXX.", "XXXX.", "___.", "XXXX XXXX."],
        ["The lungs ... are clear...", "No change.."],
        ["Stable silhouette. .", "No change . ."],
        ["Is it pneumonia?", "Cough, ? TB.", "Call!"],
        ["no pneumothorax.", "heart size is normal.", "see fig. 3 and no. 2 there."],
        ["Grew E. coli.", "History of hepatitis B.", "No change."],
        ['He said "normal."', "(Not seen.)", "Yes"],
        ["Smith et al. described it.", "Size approx. 3 cm."],
        ["No effusion"],
    ],
)
def test_sentences(sentences: list[str]) -> None:
    assert reports.split_sentences(" ".join(sentences)) == sentences


def test_sentences_across_lines() -> None:
    text = "The heart is\nnormal. Lungs\nclear\n\nNo effusion\n- item one\n2. item two.Next one"
    assert reports.split_sentences(text) == [
        "The heart is normal.",
        "Lungs clear",
        "No effusion",
        "- item one",
        "2. item two.",
        "Next one",
    ]
    glued = "Disc at T5.There is no.. No.The e.g.The Dr.Smith vs.Right v1.5a"
    assert len(reports.split_sentences(glued)) == 4


def test_sentences_of_wordless_text() -> None:
    assert (reports.split_sentences(" \n "), reports.split_sentences("..")) == ([], [".."])
    assert reports.split_sentences(". \n\n! Clear. ?") == [". ! Clear. ?"]


@given(st.text(alphabet="aB1.?!… \n-)(\"'X_é", max_size=60))
@SETTINGS
def test_sentence_spans_cover_every_character(text: str) -> None:
    spans = reports.sentence_spans(text)
    outside, last = "", 0
    for low, high in spans:
        assert last <= low < high
        outside += text[last:low]
        last = high
    assert not solid(outside + text[last:])
    assert solid("".join(pieces := reports.split_sentences(text))) == solid(text)
    assert all(re.search(r"\w", piece) for piece in pieces) or len(pieces) == 1


# --- sections ------------------------------------------------------------------------------------


def test_sections_of_a_report_with_line_headers() -> None:
    text = """                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with cough // ? pneumonia

 COMPARISON:

 FINDINGS:

 LUNGS: clear.
 The heart is
 normal.

 CONCLUSION:  No acute process.
 IMPRESSION: Stable.
"""
    assert reports.parse_sections(text) == {
        "preamble": "FINAL REPORT",
        "examination": "CHEST (PA AND LAT)",
        "indication": "___F with cough // ? pneumonia",
        "comparison": "",
        "findings": "LUNGS: clear.\n The heart is\n normal.",
        "impression": "No acute process.\nStable.",
    }


@pytest.mark.parametrize(
    ("text", "sections"),
    [
        ("Clinical history: cough. Technique: PA. Findings : Clear. Impression: Normal.", {
            "history": "cough.", "technique": "PA.", "findings": "Clear.", "impression": "Normal.",
        }),
        ("INDICATION: cough COMPARISON: none FINDINGS: ok", {
            "indication": "cough", "comparison": "none", "findings": "ok",
        }),
        ("COMPARISON: Findings: ok", {"comparison": "", "findings": "ok"}),
        ("FINDINGS AND IMPRESSION: ok", {"findings": "ok"}),
        ("Reason for  exam: cough", {"indication": "cough"}),
        ("Seen at PM Comparison: CT", {"full": "Seen at PM Comparison: CT"}),
        ("findings: in lower case", {"full": "findings: in lower case"}),
        ("Our impression: none", {"full": "Our impression: none"}),
        ("No FINDINGS here", {"full": "No FINDINGS here"}),
        ("", {"full": ""}),
    ],
)  # fmt: skip
def test_sections(text: str, sections: dict[str, str]) -> None:
    assert reports.parse_sections(text) == sections
    assert set(sections) <= set(reports.KNOWN_SECTIONS)


def test_compose_orders_and_closes_sections() -> None:
    sections = {"findings": " Clear lungs ", "impression": "Normal.", "history": "cough?"}
    compose = reports.compose
    assert compose(sections, ("findings", "impression")) == "Clear lungs. Normal."
    assert compose(sections, ("impression", "findings")) == "Normal. Clear lungs."
    assert compose(sections, ("history", "absent", "impression")) == "cough? Normal."
    assert compose(sections, ("absent",)) == compose(sections, ()) == ""
    assert compose({"a": '("ok.")', "b": "end"}, ("a", "b")) == '("ok.") end.'


@pytest.mark.parametrize(
    "marker", ["", "  ", "nan", "NaN", "None", "None.", "N/A", "Not given.", "null", "<NA>", "."]
)
def test_missing_values_are_blank(marker: str) -> None:
    sections = {"findings": marker, "impression": "Ok"}
    assert reports.is_blank(marker) and not reports.is_blank(f"{marker} seen")
    assert reports.compose(sections, ("findings",)) == ""
    assert reports.compose(sections, ("findings", "impression")) == "Ok."


@pytest.mark.real_data
def test_no_real_report_loses_a_character() -> None:
    path = pathlib.Path(os.environ.get("MMRL_REAL_DATA", "../shared/data"))
    path = path / "openi" / "indiana_reports.csv"
    if not path.is_file():
        pytest.skip(f"{path} is absent; set MMRL_REAL_DATA")
    with path.open(newline="", encoding="utf-8") as file:
        texts = [row[name] for row in csv.DictReader(file) for name in ("findings", "impression")]
    split = [reports.split_sentences(text) for text in texts]
    for text, sentences in zip(texts, split, strict=True):
        assert solid("".join(sentences)) == solid(text)
    # An independent count of this file (regular expression on ". ") gave 22,092.
    assert abs(sum(map(len, split)) - 22092) < 100
    assert sum(bool(reports.parse_sections(text).keys() - {"full"}) for text in texts) < 10


# --- tokenizer -----------------------------------------------------------------------------------

_PLACES = ("left lung", "right lung", "heart", "mediastinum", "spine", "pleura")
_STATES = ("is clear", "is enlarged", "is normal", "shows a 2.5 cm nodule", "is stable, x-XXXX")
CORPUS = [
    f"{n}. The {place} {state}. No evidence of {word}."
    for n, place in enumerate(_PLACES)
    for state in _STATES
    for word in ("pneumothorax", "effusion", "consolidation", "atelectasis")
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CORPUS, vocab_size=400)


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_training_is_deterministic(model_type: str) -> None:
    first, again = (Tokenizer.train(CORPUS, vocab_size=330, model_type=model_type) for _ in "12")
    assert first.to_bytes() == again.to_bytes() and first.sha256 == again.sha256
    other = Tokenizer.train(CORPUS[:60], vocab_size=330, model_type=model_type)
    assert other.sha256 != first.sha256


def test_a_small_corpus_caps_the_vocabulary(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == tokenizer.requested_vocab_size == 400
    for model_type in tokenizer_module.MODEL_TYPES:
        small = Tokenizer.train(["No effusion."], vocab_size=8000, model_type=model_type)
        assert small.requested_vocab_size == 8000
        assert 261 < small.vocab_size < 320
        assert small.decode(small.encode("no effusion.", 32).tokens) == "no effusion."
        assert pickle.loads(pickle.dumps(small)).requested_vocab_size == 8000
        assert Tokenizer.from_bytes(small.to_bytes()).requested_vocab_size == small.vocab_size


def test_training_errors() -> None:
    with pytest.raises(InputError, match=r"size is 100; expected at least 2\d\d, which"):
        Tokenizer.train(CORPUS, vocab_size=100)
    with pytest.raises(InputError, match=r"'word' is not known; expected one of \('bpe', 'uni"):
        Tokenizer.train(CORPUS, vocab_size=400, model_type="word")
    with pytest.raises(InputError, match="no text to learn from"):
        Tokenizer.train(["", " \n"], vocab_size=400)


def test_an_error_of_the_corpus_comes_through_training() -> None:
    def texts() -> Iterator[str]:
        yield "No effusion."
        raise InputError("report 2 cannot be read")

    with pytest.raises(InputError, match=r"^report 2 cannot be read$"):
        Tokenizer.train(texts(), vocab_size=400)


def test_long_texts_are_learned_from() -> None:
    long = Tokenizer.train(["pneumothorax " * 2000, "a"], vocab_size=300)
    assert long.encode("pneumothorax", 8).mask.sum() == 3


def test_encode_pads_after_begin_pieces_end(tokenizer: Tokenizer) -> None:
    tokens, mask, truncated = tokenizer.encode("The heart is normal.", 16)
    size = int(mask.sum())
    assert tokens.shape == mask.shape == (16,) and truncated is False
    assert mask[:size].all() and not mask[size:].any()
    assert tokens[0] == BOS and tokens[size - 1] == EOS and (tokens[size:] == PAD).all()
    assert not np.isin(tokens[1 : size - 1], [PAD, UNK, BOS, EOS]).any()
    np.testing.assert_array_equal(tokenizer.encode("THE  heart\nis normal. ", 16).tokens, tokens)


def test_truncation_keeps_begin_and_end(tokenizer: Tokenizer) -> None:
    whole = tokenizer.encode("The heart is normal.", 32)
    size = int(whole.mask.sum())
    exact = tokenizer.encode("The heart is normal.", size)
    np.testing.assert_array_equal(exact.tokens, whole.tokens[:size])
    assert not exact.truncated
    for length in range(3, size):
        tokens, mask, truncated = tokenizer.encode("The heart is normal.", length)
        assert truncated and mask.all() and tokens[-1] == EOS
        np.testing.assert_array_equal(tokens[:-1], whole.tokens[: length - 1])
    with pytest.raises(InputError, match="token length is 2; expected 3 or more"):
        tokenizer.encode("x", 2)


def test_batch_equals_one_by_one(tokenizer: Tokenizer) -> None:
    texts = ["", "The heart is normal.", "日本 π", *CORPUS[:5], CORPUS[0] * 3]
    tokens, mask, truncated = tokenizer.encode_batch(texts, 24)
    assert (tokens.dtype, mask.dtype, truncated.dtype) == (np.int32, bool, bool)
    assert truncated.tolist()[-1] is True and not truncated[:2].any()
    for row, text in enumerate(texts):
        one = tokenizer.encode(text, 24)
        np.testing.assert_array_equal(tokens[row], one.tokens)
        np.testing.assert_array_equal(mask[row], one.mask)
        assert truncated[row] == one.truncated
    assert tokens[0, :3].tolist() == [BOS, EOS, PAD] and mask[0].sum() == 2
    empty = tokenizer.encode_batch([], 8)
    assert empty.tokens.shape == empty.mask.shape == (0, 8) and empty.truncated.shape == (0,)


ODD_WORDS = ("heart", "LUNGS", "2.5", "x-XXXX,", "日本", "π", "<mask>", "é", "(", "%")


@given(st.lists(st.sampled_from(ODD_WORDS), max_size=9))
@SETTINGS
def test_round_trip_and_words(tokenizer: Tokenizer, chosen: list[str]) -> None:
    text = " ".join(chosen)
    tokens, mask, _ = tokenizer.encode(text, 160)
    assert tokenizer.decode(tokens) == text.lower()
    groups = tokenizer.words(tokens)
    assert solid("".join(word for word, _ in groups)) == solid(text.lower())
    positions = [position for _, group in groups for position in group]
    assert positions == list(range(1, int(mask.sum()) - 1))


def test_words_are_whole_words(tokenizer: Tokenizer) -> None:
    encoding = tokenizer.encode("1. Heart: 2.5 cm, x-XXXX pneumothoraces <mask> (日本).", 80)
    groups = tokenizer.words(encoding.tokens)
    # A piece may span "1" and "."; it then counts for the "1".
    shown = [word for word, _ in groups if word not in ".,:"]
    words = ["1", "heart", "2.5", "cm", "x-xxxx", "pneumothoraces", "<mask>", "(", "日本", ")."]
    assert shown == words
    by_word = dict(groups)
    assert len(by_word["pneumothoraces"]) > 1 and len(by_word["日本"]) >= 6
    assert encoding.tokens[by_word["<mask>"][-1]] == MASK
    assert tokenizer.words([PAD, BOS, EOS]) == tokenizer.words([]) == []
    cut = tokenizer.encode("日本", 6)
    assert tokenizer.words(cut.tokens)[0][0].startswith("日")


def test_unknown_ids_are_refused(tokenizer: Tokenizer) -> None:
    for call in (tokenizer.decode, tokenizer.words):
        with pytest.raises(InputError, match="token id 400 is unknown; expected 0 to 399"):
            call(np.array([BOS, 400]))
        with pytest.raises(InputError, match="token id -1 is unknown"):
            call([-1])


def test_files_and_pickles_hold_the_same_tokenizer(
    tokenizer: Tokenizer, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "deep" / "tokenizer.model"
    tokenizer.save(path)
    tokenizer.save(path)
    assert [file.name for file in path.parent.iterdir()] == ["tokenizer.model"]
    for same in (
        Tokenizer.from_file(path),
        Tokenizer.from_bytes(tokenizer.to_bytes()),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert same.sha256 == tokenizer.sha256
        np.testing.assert_array_equal(
            same.encode_batch(CORPUS, 20).tokens, tokenizer.encode_batch(CORPUS, 20).tokens
        )


def test_corrupt_models_are_refused(tokenizer: Tokenizer, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "bad.model"
    for content in (b"", b"hello", b"\x00" * 100, tokenizer.to_bytes()[:-7]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"^tokenizer file .*bad\.model: the tokenizer model"):
            Tokenizer.from_file(path)
        with pytest.raises(InputError, match="expected a sentencepiece model"):
            Tokenizer.from_bytes(content)
    with pytest.raises(InputError, match=r"none\.model: No such file"):
        Tokenizer.from_file(tmp_path / "none.model")
