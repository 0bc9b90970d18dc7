"""Tokenizers of other libraries: their ids, marks, words, parts, and files that are refused."""

import gzip
import itertools
import json
import os
import pathlib
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.data import perturb
from mmrl.data.perturb import copies as copies_module
from mmrl.data.perturb import order_rules
from mmrl.data.perturb.copies import Copies
from mmrl.data.text import tokenizer_files
from mmrl.data.text.segments import Segments, plain
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.data.text.tokenizer_json import guarded
from mmrl.preparation import lengths
from mmrl.training import run
from mmrl.types import InputError
from tests import toys
from tests.reference_tokenizers import GOLDEN, LENGTH, STORED, TEXTS, clip_file
from tests.toy_tokenizers import BY_PARTS, KINDS, MADE, reports, siglip, tokenizer

SETTINGS = settings(max_examples=100, deadline=None, database=None, derandomize=True)
ORDER = [kind for kind in perturb.KINDS if kind in order_rules.RULES]
EXPECTED = np.load(GOLDEN / "expected.npz")


# --- ids -----------------------------------------------------------------------------------------


def assert_equal_rows(made: Tokenizer, name: str) -> None:
    """Equal ids where there is a token; libraries that mark none in an empty text have no row."""
    tokens, mask, _ = made.encode_batch(TEXTS, LENGTH)
    expected_mask = EXPECTED[f"{name}.mask"]
    some = expected_mask.any(axis=1)
    assert some.sum() > 190
    np.testing.assert_array_equal(mask[some], expected_mask[some])
    expected = EXPECTED[f"{name}.tokens"]
    np.testing.assert_array_equal(tokens[expected_mask], expected[expected_mask])
    assert (tokens[~mask] == made.pad).all()


@pytest.mark.parametrize("name", [*STORED, "clip_pairs"])
def test_ids_are_those_of_transformers_and_open_clip(name: str) -> None:
    assert_equal_rows(tokenizer(name), name)


@pytest.mark.real_data
@pytest.mark.parametrize("file", ["", "tokenizer.json", "vocab.txt"])
def test_ids_of_minilm_are_those_of_transformers(file: str) -> None:
    place = os.environ.get("MMRL_MINILM", "")
    if not place:
        pytest.skip("MMRL_MINILM does not name the folder of all-MiniLM-L6-v2")
    made = tokenizer_files.read(pathlib.Path(place) / file).tokenizer
    assert made.vocab_size == 30522
    assert_equal_rows(made, "minilm")


def test_special_ids_are_those_of_the_file() -> None:
    found = {}
    for name in KINDS:
        one = tokenizer(name)
        ids = one.begin, one.end, one.pad, one.unknown, one.mask
        found[name] = tuple(None if i is None else _token(one, i) for i in ids)
    bert = ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]")
    clip = ("<|startoftext|>", "<|endoftext|>", "<|endoftext|>", "<|endoftext|>", None)
    trained = ("<s>", "</s>", "<pad>", "<unk>", "<mask>")
    assert found == {
        "bpe": trained,
        "unigram": trained,
        "bert_uncased": bert,
        "bert_cased": bert,
        "clip": clip,
        "clip_pairs": clip,
        "gpt2": (None, None, "<|endoftext|>", None, None),
        "qwen2": (None, None, "<|endoftext|>", None, None),
        "llama3": ("<|begin_of_text|>", None, "<|pad|>", None, None),
        "siglip": (None, "</s>", "</s>", "<unk>", None),
    }


def _token(one: Tokenizer, number: int) -> str:
    return one.vocabulary.surfaces()[number].decode().strip()


@pytest.mark.parametrize("name", KINDS)
def test_rows_are_marks_around_the_pieces(name: str) -> None:
    one = tokenizer(name)
    begin = [] if one.begin is None else [one.begin]
    end = [] if one.end is None else [one.end]
    for length in (len(begin + end) + 1, 7, 200):
        tokens, mask, truncated = one.encode_batch(TEXTS, length)
        room = one.room(length)
        assert room == length - len(begin + end)
        for row, text in enumerate(TEXTS):
            pieces = one.pieces_of(text)
            expected = [*begin, *pieces[:room], *end] or [one.pad]
            assert tokens[row][mask[row]].tolist() == expected
            assert (tokens[row][~mask[row]] == one.pad).all()
            assert truncated[row] == (len(pieces) > room)
            assert mask[row, : len(expected)].all()
    stated = ", ".join(["begin"] * len(begin) + ["text"] + ["end"] * len(end))
    with pytest.raises(InputError, match=f"or more: {stated}$"):
        one.encode("x", len(begin + end))


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("name", KINDS)
@given(text=st.one_of(reports(), st.text(max_size=30)))
@SETTINGS
def test_chunks_give_the_pieces_of_the_whole(name: str, text: str) -> None:
    one = tokenizer(name)
    assert one.pieces_of(text) == one.vocabulary.encode(text)


# --- parts ---------------------------------------------------------------------------------------


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("name", [name for name in BY_PARTS if name not in ("bpe", "unigram")])
@given(text=reports())
@SETTINGS
def test_texts_can_be_cut_where_no_piece_spans(name: str, text: str) -> None:
    one = tokenizer(name)
    spans, whole = one.vocabulary.spans(), one.pieces_of(text)
    for place, (last, first) in enumerate(itertools.pairwise(text), 1):
        if not spans[ord(last), ord(first)]:
            assert one.pieces_of(text[:place]) + one.pieces_of(text[place:]) == whole


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("name", BY_PARTS)
@given(texts=st.lists(reports(), min_size=1, max_size=4), kind=st.sampled_from(ORDER))
@SETTINGS
def test_copies_put_together_from_parts_are_those_of_their_text(
    name: str, texts: list[str], kind: str
) -> None:
    one = tokenizer(name)
    tokens, mask, _ = one.encode_batch(texts, 40)
    kinds = np.full((len(texts), 2), perturb.KINDS.index(kind))
    seeds = np.arange(len(texts), dtype=np.uint64)
    fast = Copies(one, 40)(texts, tokens, mask, kinds, seeds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies_module, "plain", lambda text: False)
        slow = Copies(one, 40)(texts, tokens, mask, kinds, seeds)
    for key in fast:
        np.testing.assert_array_equal(fast[key], slow[key], err_msg=key)


@pytest.mark.parametrize("name", KINDS)
def test_most_copies_are_put_together_where_the_tokenizer_allows_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, encoded = tokenizer(name), []
    texts = [text for text in TEXTS if plain(text)]
    tokens, mask, _ = one.encode_batch(texts, LENGTH)
    inner = one.encode_batch
    monkeypatch.setattr(one, "encode_batch", lambda t, n: (encoded.extend(t), inner(t, n))[1])
    kinds = np.full((len(texts), 2), perturb.KINDS.index("shuffle_all_words"))
    seeds = np.arange(len(texts), dtype=np.uint64)
    made = Copies(one, LENGTH)(texts, tokens, mask, kinds, seeds)
    assert made["valid"].any()
    assert Segments(one).usable == (name in BY_PARTS)
    if name in BY_PARTS[2:]:  # the two of sentencepiece lack many of these characters
        assert len(encoded) < len(texts)
    elif name not in BY_PARTS:
        assert len(encoded) > len(texts)


def test_a_copy_whose_padding_is_an_end_mark_differs_where_its_mask_does() -> None:
    """The mark that pads may also be written out in a text."""
    one = tokenizer("clip")
    text = "left <|endoftext|>"
    tokens, mask, _ = one.encode_batch([text], 8)
    kinds = np.full((1, 1), perturb.KINDS.index("reverse_words"))
    made = Copies(one, 8)([text], tokens, mask, kinds, np.zeros(1, np.uint64))
    other = one.encode("endoftext <|left|>", 8)
    np.testing.assert_array_equal(made["tokens"][0, 0], other.tokens)
    np.testing.assert_array_equal(made["mask"][0, 0], other.mask)


# --- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_every_piece_belongs_to_one_word(name: str) -> None:
    one = tokenizer(name)
    tokens = one.encode_batch(TEXTS, 60).tokens
    for row, text in enumerate(TEXTS):
        groups = one.words(tokens[row])
        positions = [position for _, group in groups for position in group]
        first, count = int(one.begin is not None), len(one.pieces_of(text))
        assert positions == list(range(first, first + min(count, one.room(60))))
        for word, group in groups:
            assert word and word == word.strip() and group


def _shown(name: str) -> list[str]:
    one = tokenizer(name)
    return [word for word, _ in one.words(one.encode("Pleural x-ray, 2.5 cm!", 60).tokens)]


def test_words_are_whole_words() -> None:
    parted = ["pleural", "x", "-", "ray", ",", "2", ".", "5", "cm"]
    assert _shown("bert_uncased")[:-1] == parted
    assert _shown("bert_cased")[0] != "pleural"
    assert _shown("clip_pairs") == [*parted, "!"]
    whole = ["x-ray", ",", "2.5", "cm", "!"]
    for name in ("gpt2", "qwen2", "llama3"):
        assert _shown(name) == ["Pleural", *whole]
    assert _shown("siglip") == ["pleural", *whole]
    for name in ("bert_uncased", "gpt2"):
        groups = dict(tokenizer(name).words(tokenizer(name).encode("pneumothoraces", 40).tokens))
        assert len(groups["pneumothoraces"]) > 1
    one = tokenizer("bert_uncased")
    assert ("[UNK]", [1]) in one.words(one.encode("\u6c34", 8).tokens)
    assert one.words(one.encode("a [MASK] b", 8).tokens)[1] == ("[MASK]", [2])


@pytest.mark.parametrize("name", KINDS)
def test_decoding_gives_the_letters_back(name: str) -> None:
    one = tokenizer(name)
    text = "no left effusion, 2.5 cm"
    for length in (60, 20 + LENGTH):
        decoded = one.decode(one.encode(text, length).tokens)
        assert "".join(decoded.split()) == "".join(text.split())
    with pytest.raises(InputError, match=f"expected 0 to {one.vocab_size - 1}"):
        one.words([one.vocab_size])


# --- use -----------------------------------------------------------------------------------------


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("name", [*STORED, "llama3", "siglip"])
def test_files_and_pickles_hold_the_same_tokenizer(name: str, tmp_path: pathlib.Path) -> None:
    one = tokenizer(name)
    assert one.suffix == ".json" and one.imported
    one.save(tmp_path / "tokenizer.json")
    loaded, told = lengths.choose_tokenizer(None, str(tmp_path / "tokenizer.json"))
    assert told["sha256"] == one.sha256 and told["vocab_size"] == one.vocab_size
    for same in (
        loaded,
        Tokenizer.from_file(tmp_path / "tokenizer.json"),
        tokenizer_files.read(tmp_path).tokenizer,
        Tokenizer.from_bytes(one.to_bytes()),
        pickle.loads(pickle.dumps(one)),
    ):
        assert same.sha256 == one.sha256
        for mine, other in zip(
            same.encode_batch(TEXTS, 20), one.encode_batch(TEXTS, 20), strict=True
        ):
            np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("name", ["bert_uncased", "clip", "llama3", "qwen2"])
def test_batches_and_towers_follow_the_tokenizer(name: str, tmp_path: pathlib.Path) -> None:
    one = tokenizer(name)
    one.save(tmp_path / "tokenizer.json")
    chosen = toys.config(towers__text__tokenizer=str(tmp_path / "tokenizer.json"))
    made = run.make_tokenizers(chosen, toys.corpus())["text"]
    assert made.sha256 == one.sha256
    batch = toys.batches(chosen, 1, toys.corpus(), {"text": made})[0]
    for key in ("text", "perturbed"):
        tokens, mask = batch[f"{key}.tokens"], batch[f"{key}.mask"]
        assert mask[..., 0].all() and not mask.all() and (tokens[~mask] == one.pad).all()
        if one.begin is not None:
            assert (tokens[..., 0] == one.begin).all()
    own = run.resolved(chosen, {"text": made}).towers.text
    assert (own.begin_mark, own.end_mark) == (one.begin is not None, one.end is not None)
    assert own.vocab_size == max(one.vocab_size, chosen.towers.text.vocab_size)
    counts = lengths.token_counts(made, TEXTS[:9])
    marks = (one.begin is not None) + (one.end is not None)
    expected = [max(len(one.pieces_of(text)) + marks, 1) for text in TEXTS[:9]]
    assert counts.tolist() == expected


# --- files that are refused ----------------------------------------------------------------------


def changed(**parts: object) -> bytes:
    return json.dumps(json.loads(tokenizer("bert_uncased").to_bytes()) | parts).encode()


def with_model(**parts: object) -> bytes:
    stated = json.loads(tokenizer("bert_uncased").to_bytes())["model"]
    return changed(model=stated | parts)


def template(*parts: str) -> dict[str, object]:
    single = [{"SpecialToken": {"id": p, "type_id": 0}} for p in parts]
    single.insert(1, {"Sequence": {"id": "A", "type_id": 0}})
    ids = {p: {"id": p, "ids": [2], "tokens": [p]} for p in parts}
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": ids}


PADDING = {"strategy": {"Fixed": 10**15}, "direction": "Left", "pad_to_multiple_of": None}
PADDING |= {"pad_type_id": 0}
REFUSED = {
    "empty object": (b"{}", "no tokenizer.json that can be read"),
    "cut": (siglip()[:-9], "no tokenizer.json that can be read"),
    "deep": (b'{"model":' + b"[" * 100_000, "no tokenizer.json that can be read"),
    "text": (b'{"version": "1.0", "model": "x"}', "no tokenizer.json that can be read"),
    "not UTF-8": (b'{"\xff": 1}', "no tokenizer.json that can be read"),
    "no ids": (with_model(vocab={}), "its own unknown token"),
    "unknown": (with_model(unk_token="[GONE]"), r"has no token '\[GONE\]', its own unknown token"),
    "two marks": (changed(post_processor=template("[CLS]", "[SEP]", "[CLS]")), "at most one mark"),
    "padding": (
        changed(padding=PADDING | {"pad_id": 7, "pad_token": "[PAD]"}),
        r"pads with '\[PAD\]' as id 7; its own id is 0",
    ),
    "huge ids": (with_model(vocab={"a": 0, "[UNK]": 2**31}), r"has ids up to 2147483648"),
    "random": (
        json.dumps(
            (found := json.loads(tokenizer("gpt2").to_bytes()))
            | {"model": found["model"] | {"dropout": 0.1}}
        ).encode(),
        r"drops merges at random \(dropout 0\.1",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_damaged_files_are_refused_in_one_line(name: str, tmp_path: pathlib.Path) -> None:
    content, message = REFUSED[name]
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    for read in (Tokenizer.from_file, tokenizer_files.read):
        with pytest.raises(InputError, match=message) as caught:
            read(path)
        assert str(caught.value).startswith(f"tokenizer file {path}: ")
        assert "\n" not in str(caught.value)


def test_panics_of_the_library_become_errors_and_interrupts_do_not() -> None:
    def raising(error: BaseException) -> None:
        raise error

    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(InputError, match=r"^it fails: a b$"):
        guarded("it fails", lambda: raising(panic("a\nb")))
    with pytest.raises(KeyboardInterrupt):
        guarded("it fails", lambda: raising(KeyboardInterrupt()))


def test_lengths_of_the_file_are_not_used() -> None:
    """Neither a cut nor a padding of the file changes a row."""
    own = tokenizer("bert_uncased")
    cut = {"direction": "Left", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    other = Tokenizer.from_bytes(
        changed(truncation=cut, padding=PADDING | {"pad_id": 0, "pad_token": "[PAD]"})
    )
    for mine, same in zip(own.encode_batch(TEXTS, 30), other.encode_batch(TEXTS, 30), strict=True):
        np.testing.assert_array_equal(mine, same)


# --- files of a folder ---------------------------------------------------------------------------


def folder(path: pathlib.Path, **contents: object) -> pathlib.Path:
    for name, content in contents.items():
        base, _, suffix = name.rpartition("_")
        if not isinstance(content, bytes | str):
            content = json.dumps(content)
        data = content.encode() if isinstance(content, str) else content
        (path / f"{base}.{suffix}").write_bytes(data)
    return path


PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "Heart", "heart", "##s"]


def test_letters_stay_as_they_are_if_a_piece_has_a_capital(tmp_path: pathlib.Path) -> None:
    text = "\r\n".join(PIECES)
    cased = tokenizer_files.read(folder(tmp_path, vocab_txt=text)).tokenizer
    assert cased.encode("Heart heart", 4).tokens.tolist() == [2, 4, 5, 3]
    assert cased.mask is None
    folder(tmp_path, tokenizer_config_json={"do_lower_case": True})
    folded = tokenizer_files.read(tmp_path / "vocab.txt").tokenizer
    assert folded.encode("Heart hearts", 5).tokens.tolist() == [2, 5, 5, 6, 3]
    uncased = Tokenizer.from_bytes(tokenizer_files.word_pieces([*PIECES[:4], "heart"]))
    assert uncased.encode("Heart", 4).tokens.tolist() == [2, 4, 3, 0]


def test_the_config_of_a_folder_states_the_padding(tmp_path: pathlib.Path) -> None:
    """Without it, the token that is named so, or the end mark, pads."""
    (tmp_path / "tokenizer.json").write_bytes(MADE["llama3"]())
    assert _token(tokenizer_files.read(tmp_path).tokenizer, 558) == "<|end_of_text|>"
    folder(tmp_path, tokenizer_config_json={"pad_token": {"content": "<|end_of_text|>"}})
    assert tokenizer_files.read(tmp_path).tokenizer.pad == 558
    folder(tmp_path, tokenizer_config_json={"pad_token": "<gone>"})
    with pytest.raises(InputError, match="pads with '<gone>', which the tokenizer lacks"):
        tokenizer_files.read(tmp_path)


def test_a_piece_that_also_pads_stays_a_piece() -> None:
    """Stable Diffusion pads the texts of CLIP with "!", which reports hold as well."""
    own = tokenizer("clip")
    stated = json.loads((GOLDEN / "clip" / "vocab.json").read_text(encoding="utf-8"))
    merges = (GOLDEN / "clip" / "merges.txt").read_text(encoding="utf-8").split("\n")[1:-1]
    config = {"tokenizer_class": "CLIPTokenizer", "pad_token": "!"}
    other = Tokenizer.from_bytes(tokenizer_files.byte_pairs(stated, merges, config))
    assert other.pad == stated["!"] != own.pad
    text = "no effusion!"
    one, same = own.encode(text, 20), other.encode(text, 20)
    np.testing.assert_array_equal(one.tokens[one.mask], same.tokens[same.mask])
    assert other.words(same.tokens) == own.words(one.tokens)


PAIRS = {"vocab_json": {"a": 0, "b": 1, "ab": 2}, "merges_txt": "#version: 0.2\na b\n"}
GPT2 = {"tokenizer_class": "GPT2Tokenizer"}
ADDED = {"5": {"content": "<|endoftext|>"}}
REFUSED_FOLDERS = {
    "nothing": ({}, "no tokenizer in .*; expected tokenizer.json, vocab.txt, vocab.json with"),
    "pieces": ({"vocab_txt": "[PAD]\n[UNK]\na\n"}, r"lacks \[CLS\], \[SEP\]"),
    "not text": ({"vocab_txt": b"\xff\xfe"}, "vocab.txt is not UTF-8"),
    "no class": (PAIRS, "no tokenizer_class in tokenizer_config.json; choices: GPT2Tokenizer"),
    "class": (PAIRS | {"tokenizer_config_json": {"tokenizer_class": "X"}}, "tokenizer_class 'X'"),
    "no merges": (
        {"vocab_json": {"a": 0}, "tokenizer_config_json": GPT2},
        "merges.txt: No such file",
    ),
    "merges": (PAIRS | {"merges_txt": "a b c\n", "tokenizer_config_json": GPT2}, "merge 'a b c'"),
    "other merges": (
        PAIRS | {"merges_txt": "a c\n", "tokenizer_config_json": GPT2},
        "vocabulary and merges do not fit each other",
    ),
    "ids": (PAIRS | {"vocab_json": {"a": "x"}, "tokenizer_config_json": GPT2}, "vocab.json"),
    "list": (PAIRS | {"vocab_json": ["a"], "tokenizer_config_json": GPT2}, "holds a list"),
    "marks": (
        PAIRS | {"tokenizer_config_json": {"tokenizer_class": "CLIPTokenizer"}},
        "lacks <|startoftext|> or <|endoftext|>".replace("|", r"\|"),
    ),
    "added": (
        PAIRS | {"tokenizer_config_json": GPT2 | {"added_tokens_decoder": ADDED}},
        r"gives '<\|endoftext\|>' the id 5; by the vocabulary it is 3",
    ),
    "config": (PAIRS | {"tokenizer_config_json": "{"}, "tokenizer_config.json is not JSON"),
    "deep": (PAIRS | {"tokenizer_config_json": "[" * 100_000}, "tokenizer_config.json is not JSON"),
    "decoder": (
        PAIRS | {"tokenizer_config_json": GPT2 | {"added_tokens_decoder": {"x": 1}}},
        "added_tokens_decoder of tokenizer_config.json is damaged",
    ),
    "no gzip": ({"bpe_simple_vocab_16e6.txt_gz": b"\x1f\x8bxx"}, "not the byte pairs of CLIP"),
    "short": (
        {"bpe_simple_vocab_16e6.txt_gz": gzip.compress(b"title\na b\n")},
        "2 byte pairs; expected 48,894 or more",
    ),
}


@pytest.mark.parametrize("name", REFUSED_FOLDERS)
def test_damaged_folders_are_refused_in_one_line(name: str, tmp_path: pathlib.Path) -> None:
    contents, message = REFUSED_FOLDERS[name]
    with pytest.raises(InputError, match=message) as caught:
        tokenizer_files.read(folder(tmp_path, **contents))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_byte_pairs_of_clip_are_read_from_their_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "bpe_simple_vocab_16e6.txt.gz").write_bytes(clip_file(["a b", "ab c</w>"]))
    made = tokenizer_files.read(tmp_path)
    assert (made.name, made.vocab_size) == ("tokenizer.json", 49408)
    assert made.tokenizer.encode("ABC", 4).tokens.tolist() == [49406, 513, 49407, 49407]
