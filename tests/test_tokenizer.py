"""The tokenizer: training, padding, truncation, words, and pieces that never cross a blank."""

import pathlib
import pickle
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.data.text.sentencepiece_model import BOS, EOS, MASK, MODEL_TYPES, PAD, UNK
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.types import InputError

SETTINGS = settings(max_examples=300, deadline=None, database=None, derandomize=True)

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
    for model_type in MODEL_TYPES:
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


ODD_WORDS = ("heart", "LUNGS", "2.5", "x-XXXX,", "日本", "π", "<mask>", "é", "(", "%")


@given(st.lists(st.sampled_from([*ODD_WORDS, " ", "\n", "\t ", "\u3000", "\u0301", "<mask>"])))
@SETTINGS
def test_chunks_give_the_pieces_of_the_whole(tokenizer: Tokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    expected = tokenizer.vocabulary.encode(text)
    tokens, mask, _ = tokenizer.encode(text, len(expected) + 3)
    assert tokens[mask].tolist() == [BOS, *expected, EOS]


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


@given(st.lists(st.sampled_from(ODD_WORDS), max_size=9))
@SETTINGS
def test_round_trip_and_words(tokenizer: Tokenizer, chosen: list[str]) -> None:
    text = " ".join(chosen)
    tokens, mask, _ = tokenizer.encode(text, 160)
    assert tokenizer.decode(tokens) == text.lower()
    groups = tokenizer.words(tokens)
    joined = "".join(word for word, _ in groups)
    assert "".join(joined.split()) == "".join(text.lower().split())
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
    assert tokenizer.words([BOS, EOS, PAD]) == tokenizer.words([]) == []
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
